// Resizes, crops and pads RGB pixels into a network's input, with the same results as tl/runtime/imaging/geometry.py.
// Source of the filters and their fixed-point arithmetic: Pillow, src/libImaging/Resample.c and Geometry.c.

const PRECISION_BITS = 22; // 32 - 8 - 2: 8-bit pixels, and two bits for sums that exceed them
const HALF = 1 << (PRECISION_BITS - 1);

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

function bicubic(value) {
  const a = -0.5, x = Math.abs(value);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: bicubic },
  lanczos: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

/** The source pixels of each output pixel, and their weights as integers. */
function coefficients(size, newSize, filter) {
  const scale = size / newSize, filterScale = Math.max(scale, 1);
  const support = filter.support * filterScale;
  return Array.from({ length: newSize }, (_, place) => {
    const center = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(size, Math.trunc(center + support + 0.5));
    const weights = [];
    let sum = 0;
    for (let x = first; x < last; x++) {
      weights.push(filter.weight((x - center + 0.5) / filterScale));
      sum += weights.at(-1);
    }
    const whole = weights.map((weight) => {
      const scaled = (sum === 0 ? weight : weight / sum) * (1 << PRECISION_BITS);
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    return { first, weights: Int32Array.from(whole) };
  });
}

/** Resize one axis: `step` is the distance of neighbors along it, `lines` the starts of what runs along it. */
function resample(pixels, out, taps, step, outStep, lines, outLines) {
  for (let place = 0; place < taps.length; place++) {
    const { first, weights } = taps[place];
    for (let line = 0; line < lines.length; line++) {
      let from = lines[line] + first * step;
      let red = HALF, green = HALF, blue = HALF;
      for (let k = 0; k < weights.length; k++, from += step) {
        const weight = weights[k];
        red += pixels[from] * weight;
        green += pixels[from + 1] * weight;
        blue += pixels[from + 2] * weight;
      }
      const to = outLines[line] + place * outStep;
      out[to] = red >> PRECISION_BITS; // out clamps to 0..255
      out[to + 1] = green >> PRECISION_BITS;
      out[to + 2] = blue >> PRECISION_BITS;
    }
  }
}

const starts = (count, step) => Int32Array.from({ length: count }, (_, n) => n * step);

function nearest({ pixels, width, height }, newWidth, newHeight) {
  const table = (size, newSize) => {
    const scale = size / newSize;
    let at = scale * 0.5;
    return Array.from({ length: newSize }, () => {
      const found = Math.trunc(at);
      at += scale; // summed, as in Pillow, so that rounding is the same
      return Math.min(found, size - 1);
    });
  };
  const columns = table(width, newWidth), rows = table(height, newHeight);
  const out = new Uint8ClampedArray(newWidth * newHeight * 3);
  let to = 0;
  for (const row of rows) {
    for (const column of columns) {
      const from = (row * width + column) * 3;
      out[to++] = pixels[from];
      out[to++] = pixels[from + 1];
      out[to++] = pixels[from + 2];
    }
  }
  return { pixels: out, width: newWidth, height: newHeight };
}

/** Resize `image`, {pixels: RGB bytes, width, height}, as Pillow's `Image.resize` does. */
export function resize(image, newWidth, newHeight, interpolation) {
  if (image.width === newWidth && image.height === newHeight) return image;
  if (interpolation === "nearest") return nearest(image, newWidth, newHeight);
  const filter = FILTERS[interpolation];
  const columns = (from) => (from.width === newWidth ? from : resampleColumns(from, newWidth, filter));
  const rows = (from) => (from.height === newHeight ? from : resampleRows(from, newHeight, filter));
  return rows(columns(image));
}

function resampleColumns({ pixels, width, height }, newWidth, filter) {
  const out = new Uint8ClampedArray(newWidth * height * 3), taps = coefficients(width, newWidth, filter);
  resample(pixels, out, taps, 3, 3, starts(height, width * 3), starts(height, newWidth * 3));
  return { pixels: out, width: newWidth, height };
}

function resampleRows({ pixels, width, height }, newHeight, filter) {
  const out = new Uint8ClampedArray(width * newHeight * 3), taps = coefficients(height, newHeight, filter);
  resample(pixels, out, taps, width * 3, width * 3, starts(width, 3), starts(width, 3));
  return { pixels: out, width, height: newHeight };
}

/** Python's `round`: halves to the even neighbor. */
function round(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Where an image lies in the input: its resized size, and the place of its top-left pixel. See `geometry.place`. */
export function place(width, height, preprocessing) {
  const [inputHeight, inputWidth] = preprocessing.input_hw;
  if (preprocessing.resize_mode === "squash") return { width: inputWidth, height: inputHeight, left: 0, top: 0 };
  if (preprocessing.resize_mode === "short_side") {
    const short = preprocessing.short_side;
    const long = Math.max(short, Math.trunc((short * Math.max(height, width)) / Math.min(height, width)));
    const [newHeight, newWidth] = height <= width ? [short, long] : [long, short];
    const left = -round((newWidth - inputWidth) / 2), top = -round((newHeight - inputHeight) / 2);
    return { width: newWidth, height: newHeight, left, top };
  }
  const scale = Math.min(inputHeight / height, inputWidth / width);
  const newHeight = Math.max(1, round(height * scale)), newWidth = Math.max(1, round(width * scale));
  const left = Math.floor((inputWidth - newWidth) / 2), top = Math.floor((inputHeight - newHeight) / 2);
  return { width: newWidth, height: newHeight, left, top };
}

/** The network's input of an image: {pixels: Uint8Array (H x W x 3), width, height, placed}. */
export function toInput(image, preprocessing) {
  const [height, width] = preprocessing.input_hw;
  const placed = place(image.width, image.height, preprocessing);
  if (placed.width * placed.height > 178_956_970) {
    throw new Error(`too elongated: ${image.width}x${image.height} would become ${placed.width}x${placed.height}`);
  }
  const resized = resize(image, placed.width, placed.height, preprocessing.interpolation);
  const pixels = new Uint8Array(width * height * 3);
  for (let n = 0; n < pixels.length; n++) pixels[n] = preprocessing.pad_rgb[n % 3];
  const firstRow = Math.max(0, placed.top), lastRow = Math.min(height, placed.top + placed.height);
  const firstColumn = Math.max(0, placed.left), lastColumn = Math.min(width, placed.left + placed.width);
  for (let row = firstRow; row < lastRow; row++) {
    const from = ((row - placed.top) * placed.width + firstColumn - placed.left) * 3;
    const length = (lastColumn - firstColumn) * 3;
    pixels.set(resized.pixels.subarray(from, from + length), (row * width + firstColumn) * 3);
  }
  return { pixels, width, height, placed };
}
