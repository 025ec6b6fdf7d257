// Draws an explanation: the photo in gray, with the evidence for the label in orange and against it in blue, as
// tl/runtime/explain/drawing.py does. Source: class activation maps, Zhou et al. 2016.

const LONGEST = 800, OPACITY = 0.75;
const FOR = [0xd5, 0x5e, 0x00], AGAINST = [0x00, 0x72, 0xb2];

/** A PNG as data URL. `placed`: where the photo lies in the network's input, from `place`. */
export async function drawHeat(image, outputs, placed, { input_hw: [inputHeight, inputWidth] }) {
  const { data, dims: [, classes, rows, columns] } = outputs.cam, shares = outputs.probabilities.data;
  const label = shares.indexOf(Math.max(...shares)), size = rows * columns;
  const heat = Float32Array.from({ length: size }, (_, at) => {
    let mean = 0;
    for (let n = 0; n < classes; n++) mean += data[n * size + at] / classes;
    return data[label * size + at] - mean;
  });
  const largest = Math.max(1e-12, ...heat.map(Math.abs));
  const scale = Math.min(1, LONGEST / Math.max(image.width, image.height));
  const width = Math.max(1, Math.round(image.width * scale)), height = Math.max(1, Math.round(image.height * scale));
  const drawn = new ImageData(width, height);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++, to += 4) {
      const column = (((x + 0.5) / width) * placed.width + placed.left) / inputWidth;
      const row = (((y + 0.5) / height) * placed.height + placed.top) / inputHeight;
      const share = sample(heat, rows, columns, row * rows - 0.5, column * columns - 0.5, row, column) / largest;
      const from = (Math.floor((y + 0.5) / scale) * image.width + Math.floor((x + 0.5) / scale)) * 3;
      const [red, green, blue] = image.pixels.subarray(from, from + 3);
      const gray = 0.299 * red + 0.587 * green + 0.114 * blue, opacity = OPACITY * Math.abs(share);
      const color = share > 0 ? FOR : AGAINST;
      for (let n = 0; n < 3; n++) drawn.data[to + n] = gray * (1 - opacity) + color[n] * opacity;
      drawn.data[to + 3] = 255;
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(drawn, 0, 0);
  const bytes = new Uint8Array(await (await canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 })).arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return `data:image/jpeg;base64,${btoa(text)}`;
}

/** Bilinear interpolation; 0 for parts of the photo that are outside the input. */
function sample(heat, rows, columns, y, x, row, column) {
  if (row < 0 || row > 1 || column < 0 || column > 1) return 0;
  const clamp = (value, count) => Math.min(count - 1, Math.max(0, value));
  const top = Math.floor(y), left = Math.floor(x), down = y - top, right = x - left;
  const at = (r, c) => heat[clamp(r, rows) * columns + clamp(c, columns)];
  return (at(top, left) * (1 - right) + at(top, left + 1) * right) * (1 - down) +
    (at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right) * down;
}
