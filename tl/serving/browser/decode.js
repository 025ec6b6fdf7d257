// Decodes an image file to upright RGB with the browser's decoders, by the rules of the contract: EXIF orientation,
// alpha over white, ICC profiles ignored. Refuses what browsers would decode otherwise than tl: cut files, 16 bits, CMYK.

const MAX_PIXELS = 178_956_970; // as in tl/runtime/imaging/decode.py

/** {pixels: Uint8Array (H x W x 3), width, height}. Throws Error with a text for people. */
export async function decode(file) {
  if (file.size === 0) throw new Error("the file is empty");
  checkBytes(new Uint8Array(await file.arrayBuffer()));
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none",
    });
  } catch {
    throw new Error("this browser cannot decode the file: it is damaged, no image, or of a format that browsers do not read");
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) throw new Error(`${width}x${height} pixels, expected at most ${MAX_PIXELS}`);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error(`${width}x${height} pixels are too many for this browser`);
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height), pixels = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    pixels[to++] = data[from];
    pixels[to++] = data[from + 1];
    pixels[to++] = data[from + 2];
  }
  return { pixels, width, height };
}

const text = (bytes, start, length) => String.fromCharCode(...bytes.subarray(start, start + length));

function checkBytes(bytes) {
  if (text(bytes, 1, 3) === "PNG") checkPng(bytes);
  else if (bytes[0] === 0xff && bytes[1] === 0xd8) checkJpeg(bytes);
  else if (text(bytes, 0, 2) === "II" || text(bytes, 0, 2) === "MM") throw new Error("browsers do not decode TIFF: use tl predict, or save it as PNG");
  else if (/^ftyp(hei|hev|mif1|msf1)/.test(text(bytes, 4, 8))) throw new Error("an HEIC photo: export it as JPEG or PNG");
}

/** Source: PNG specification, third edition, chapter 5. */
function checkPng(bytes) {
  const view = new DataView(bytes.buffer);
  if (bytes.length > 25 && bytes[24] === 16) throw new Error("a PNG of 16 bits, which browsers round in their own way: use tl predict");
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    if (text(bytes, at + 4, 4) === "IEND") return;
  }
  throw new Error("the file is cut off");
}

/** Source: ITU-T T.81, annex B. */
function checkJpeg(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 2; at + 4 <= bytes.length;) {
    const marker = bytes[at + 1];
    if (bytes[at] !== 0xff) break;
    if (marker === 0xff) at += 1; // fill byte
    else if (marker === 0xda) return checkScans(bytes, at);
    else {
      const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
      if (isFrame && bytes[at + 9] === 4) throw new Error("a CMYK JPEG, whose colors browsers convert in their own way: use tl predict");
      at += 2 + view.getUint16(at + 2);
    }
  }
  throw new Error("the file is cut off or damaged");
}

/** Look for the end marker of a JPEG; 0xff in image data is followed by 0 or a restart marker. */
function checkScans(bytes, start) {
  for (let at = bytes.indexOf(0xff, start); at >= 0; at = bytes.indexOf(0xff, at + 1)) if (bytes[at + 1] === 0xd9) return;
  throw new Error("the file is cut off");
}
