// How a large image lies in its stage: pure numbers. A view is {scale, x, y}: scale 1 fits the stage, and x, y is how far
// the image's center lies from the stage's center, in CSS pixels.

export const FIT = Object.freeze({ scale: 1, x: 0, y: 0 });

/** The size at which an image of `natural` {width, height} fits into `stage`; small ones are enlarged up to `most` times. */
export function fitted(natural, stage, most = 3) {
  const share = Math.min(stage.width / natural.width, stage.height / natural.height, most);
  return { width: natural.width * share, height: natural.height * share };
}

/** The largest scale: one pixel of the image on `most` of the screen. */
export function largestScale(natural, stage, most = 4) {
  return Math.max(4, (most * natural.width) / fitted(natural, stage).width);
}

/** Enlarge by `factor`, so that the point of the image under `point` (from the stage's center) stays there. */
export function zoomAt(view, factor, point, natural, stage) {
  const scale = Math.min(Math.max(view.scale * factor, 1), largestScale(natural, stage)), grown = scale / view.scale;
  return held({ scale, x: point.x - (point.x - view.x) * grown, y: point.y - (point.y - view.y) * grown }, natural, stage);
}

export function pan(view, dx, dy, natural, stage) {
  return held({ ...view, x: view.x + dx, y: view.y + dy }, natural, stage);
}

/** The view, moved so that no edge of the image leaves a gap that it could fill. */
function held(view, natural, stage) {
  const size = fitted(natural, stage);
  const limit = (extent, room) => Math.max(0, (extent * view.scale - room) / 2);
  const cut = (value, most) => Math.min(Math.max(value, -most), most) + 0;
  return { scale: view.scale, x: cut(view.x, limit(size.width, stage.width)), y: cut(view.y, limit(size.height, stage.height)) };
}
