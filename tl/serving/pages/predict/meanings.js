// What the answers mean, in words, for the model that is chosen.

import { el } from "./dom.js";

const PROBABILITY =
  "The model divides 100% among the classes that it knows. Among held-out images that resemble its training images, " +
  "about 9 of 10 answers given with 90% should be right. For other images, a high probability proves nothing: " +
  "the model must choose one of its classes even for a photo that shows none of them.";
const OWN_PROBABILITY =
  "Each label has a probability by itself, so they need not add up to 100%. An image gets a label if its probability " +
  "reaches the threshold in the model file, which differs from label to label.";
const REJECTED =
  "The model gives no answer, because its probability is below the required limit or because the image is unlike the " +
  "training images. The reason is beside it. The bars show what the label would have been.";
const OOD =
  "The out-of-distribution score tells how unlike the training images an image is. Above the limit, which few training-like " +
  "images exceed, look at the image yourself.";
const SETS = {
  classification:
    "A set contains the true class with the coverage that you chose, on average over images like the held-out ones. " +
    "A set of several classes says that the model cannot tell them apart here.",
  multilabel:
    "A set lacks at most the remaining share of an image's labels, on average over images like the held-out ones.",
  regression: "An interval holds the true number with the coverage that you chose, on average over images like the held-out ones.",
};
const AGREEMENT =
  "Several models vote. The agreement is the share of them that voted for the answer. Where they disagree, look twice; " +
  "but they can also be wrong together.";
const EXPLANATION =
  "Orange parts of the photo spoke for the label, blue ones against it. It shows where the model looked, not whether it is right.";
const POINTS =
  "Points are in pixels of the upright photo, from the center of its top-left pixel. A shape is unusual if it is " +
  "farther from the mean shape of the training images than nearly all of those were.";
const NUMBERS = "A number is the model's estimate in the unit of its training data. Outside the range of those data, it is a guess.";

/** Fill the list for a model; `isLocal`: whether the model runs in this browser. */
export function drawMeanings(list, info, isLocal) {
  const rows = [];
  if (info.task === "classification") rows.push(["Probability", PROBABILITY], ["“?”", REJECTED]);
  if (info.task === "multilabel") rows.push(["Probability", OWN_PROBABILITY]);
  if (info.task === "regression") rows.push(["Number", NUMBERS]);
  if (info.task === "landmarks") rows.push(["Points", POINTS]);
  if (info.task === "classification" || info.ood_limit != null) rows.push(["Unlike the training images", OOD]);
  if (info.supports_coverage && SETS[info.task]) rows.push(["Coverage", SETS[info.task]]);
  if (info.ensemble && info.task !== "regression") rows.push(["Agreement", AGREEMENT]);
  if (info.has_explanation) rows.push(["Explanation", EXPLANATION]);
  rows.push(["Your photos", isLocal ?
    "They are read by this page and stay on this device: the model runs in your browser." :
    "They are sent to the server named at the top, which predicts them and answers. The browser keeps them only until you close this page."]);
  list.replaceChildren(...rows.flatMap(([name, text]) => [el("dt", { text: name }), el("dd", { text })]));
}
