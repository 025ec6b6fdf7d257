// What decisions are called, in sentences and on buttons: pure, without elements.

import { plural } from "./dom.js";

export const DONE = {
  keep: "kept", relabel: "labeled", drop: "removed", duplicate: "removed as a duplicate", group: "put into one group",
};

/** What a decision made of an image, as a sentence without its subject. */
export function outcome({ do: what, label, of }) {
  if (what === "keep") return "Kept as it is";
  if (what === "relabel") return `Labeled ${label}`;
  if (what === "drop") return "Removed";
  return what === "duplicate" ? `Removed: duplicate of ${of}` : `In one group with ${of}`;
}

/** What was just done to images, for the line at the bottom and for screen readers. */
export function told(what, records, label) {
  const images = plural(records.length, "image");
  if (what === "accept" || what === "relabel") {
    const labels = [...new Set(records.map((record) => record.decision?.label || record.label))];
    return `${images} labeled ${what === "relabel" ? label : labels.length === 1 ? labels[0] : "as suggested"}.`;
  }
  return what === "duplicate" && records.length > 1 ? `${images} removed as duplicates.` : `${images} ${DONE[what]}.`;
}

export const baseName = (path) => path.split("/").at(-1);

export const splitName = { train: "training", val: "validation", test: "test" };
