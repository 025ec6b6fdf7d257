// Collects image files from a drop, a picker or the clipboard. Folders are searched for images; single files are kept
// whatever their names are, so that the answer says what is wrong with them.

// As in tl/runtime/sources/paths.py. Formats that cannot be decoded are kept too, to be told as failed.
const KINDS = "jpg jpeg jpe jfif mpo png apng tif tiff bmp dib gif webp avif jp2 j2k jpx jpf pbm pgm ppm pnm " +
  "heic heif jxl tga dng nef nrw cr2 cr3 arw orf rw2 raf pef srw x3f mrw czi nd2 lif svs psd ico";
const IMAGES = new RegExp(`\\.(${KINDS.replaceAll(" ", "|")})$`, "i");

const isImage = (name) => IMAGES.test(name) && !name.startsWith(".");

/** From a list of files: {images: [{file, name}], others: number left out}. */
export function fromList(files) {
  const images = [];
  let others = 0;
  for (const file of files) {
    const name = file.webkitRelativePath || file.name;
    if (file.webkitRelativePath && !isImage(file.name)) others += 1;
    else images.push({ file, name });
  }
  return { images, others };
}

/** From a drop, folders included. Must be called in the event itself, whose data are gone later. */
export async function fromDrop(transfer) {
  const entries = Array.from(transfer.items ?? [], (item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (entries.length === 0) return fromList(transfer.files);
  const found = { images: [], others: 0 };
  for (const entry of entries) await collect(entry, "", found, true);
  return found;
}

async function collect(entry, folder, found, isGiven = false) {
  const name = folder + entry.name;
  if (entry.isDirectory) {
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (some.length === 0) return; // each call returns up to 100
      for (const inner of some) await collect(inner, `${name}/`, found);
    }
  }
  if (!isGiven && !isImage(entry.name)) found.others += 1;
  else found.images.push({ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), name });
}
