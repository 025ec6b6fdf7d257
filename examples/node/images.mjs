// Decode JPEG and PNG to upright RGB, as a model file of any input size expects it: 16 bits by v >> 8, alpha over
// white, gray in all three channels, EXIF orientation applied, color profiles ignored.
import { readFileSync } from "node:fs";
import jpeg from "jpeg-js";
import { PNG } from "pngjs";

// Returns { data: Uint8Array of height * width * 3, width, height }.
export function readRgb(path) {
  const bytes = readFileSync(path);
  if (bytes[0] === 0xff && bytes[1] === 0xd8) {
    const image = jpeg.decode(bytes, { useTArray: true, formatAsRGBA: false, maxMemoryUsageInMB: 2048 });
    return upright(image, exifOrientation(image.exifBuffer));
  }
  const isDeep = bytes[24] === 16; // the bit depth; pngjs would round 16 bits to 8
  return overWhite(PNG.sync.read(bytes, { skipRescale: isDeep }), isDeep ? 8 : 0);
}

function overWhite({ data, width, height }, shift) {
  const rgb = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    const alpha = (data[4 * i + 3] >> shift) / 255;
    for (let c = 0; c < 3; c++) {
      rgb[3 * i + c] = Math.round(alpha * (data[4 * i + c] >> shift) + (1 - alpha) * 255);
    }
  }
  return { data: rgb, width, height };
}

// EXIF 2.3, tag 0x0112 of the first directory; 1 if there is none.
function exifOrientation(exif) {
  if (!exif || exif.length < 14) return 1;
  exif = Buffer.from(exif);
  const start = exif.subarray(0, 8).toString("latin1").search(/II\*\0|MM\0\*/); // jpeg-js keeps a byte before it
  if (start < 0) return 1;
  const isLittle = exif[start] === 0x49;
  const u16 = (at) => (isLittle ? exif.readUInt16LE(at) : exif.readUInt16BE(at));
  const u32 = (at) => (isLittle ? exif.readUInt32LE(at) : exif.readUInt32BE(at));
  const directory = start + u32(start + 4);
  for (let i = 0; i < u16(directory); i++) {
    const entry = directory + 2 + 12 * i;
    if (u16(entry) === 0x0112) return u16(entry + 8);
  }
  return 1;
}

function upright({ data, width, height }, orientation) {
  if (orientation < 2 || orientation > 8) return { data, width, height };
  const isTurned = orientation >= 5;
  const [w, h] = isTurned ? [height, width] : [width, height];
  const rgb = new Uint8Array(data.length);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      let [sx, sy] = isTurned ? [y, x] : [x, y];
      if ([2, 3, 7, 8].includes(orientation)) sx = width - 1 - sx;
      if ([3, 4, 6, 7].includes(orientation)) sy = height - 1 - sy;
      for (let c = 0; c < 3; c++) rgb[3 * (y * w + x) + c] = data[3 * (sy * width + sx) + c];
    }
  }
  return { data: rgb, width: w, height: h };
}
