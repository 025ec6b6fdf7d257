// Where the images of a virtual grid lie: pure numbers, in CSS pixels. Images fill rows from left to right.

/** Columns and sizes for `count` images in `width`: as many columns as fit with images of at least `size`. */
export function layout(count, width, size, gap, strip) {
  const columns = Math.max(1, Math.floor((width + gap) / (size + gap)));
  const side = Math.max(1, Math.floor((width - gap * (columns - 1)) / columns));
  const rows = Math.ceil(count / columns), step = side + strip + gap;
  return { count, columns, side, rows, step, gap, tall: side + strip, height: Math.max(0, rows * step - gap) };
}

/** Left and top of an image. */
export function position(of, index) {
  return { x: (index % of.columns) * (of.side + of.gap), y: Math.floor(index / of.columns) * of.step };
}

/** The images [first, end) whose rows are seen, with `spare` pixels above and below. */
export function seen(of, top, height, spare = 0) {
  const row = Math.max(0, Math.floor((top - spare + of.gap) / of.step));
  const endRow = Math.max(row, Math.ceil((top + height + spare) / of.step));
  return [Math.min(row * of.columns, of.count), Math.min(endRow * of.columns, of.count)];
}

/** The images [first, end) of which at least half is seen: those that a person looks at. */
export function lookedAt(of, top, height) {
  const row = Math.max(0, Math.ceil((top - of.tall / 2) / of.step));
  const endRow = Math.max(row, Math.floor((top + height - of.tall / 2) / of.step) + 1);
  return [Math.min(row * of.columns, of.count), Math.min(endRow * of.columns, of.count)];
}

/** The scroll position that shows an image in whole, as near to `top` as possible. */
export function scrollTo(of, index, top, height, margin = 0) {
  const { y } = position(of, index);
  if (y - margin < top) return Math.max(0, y - margin);
  if (y + of.tall + margin > top + height) return Math.max(0, y + of.tall + margin - height);
  return top;
}

/** The windows [first, end) of `size` that cover the images [first, end). */
export function windowOf(first, end, count, size) {
  return [Math.floor(first / size) * size, Math.min(count, Math.ceil(end / size) * size)];
}
