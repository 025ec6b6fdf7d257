// Cards of images, and the large view of one. An entry is {file, name, url, state, result}; see workbench.js.

import { answer, memberVotes, points } from "./answers.js";
import { byId, el } from "./dom.js";

const STATES = { waiting: "Waiting", working: "Predicting…", canceled: "Canceled" };

/** The photo of an entry, with points or explanation. */
function photo(info, entry, isLarge) {
  const { result, name } = entry;
  const frame = el("div", { class: "photo" });
  const overlay = result?.overlay;
  const kind = overlay ? "Photo with explanation" : "Photo", alt = isLarge ? `${kind} ${name}` : kind; // the name follows
  const image = el("img", { src: overlay ?? entry.url, alt, decoding: "async", loading: isLarge ? "eager" : "lazy" });
  image.addEventListener("error", () => image.replaceWith(el("p", { class: "no-photo", text: "This browser cannot show this file" })));
  frame.append(image);
  const drawn = result && points(info, result, isLarge);
  if (drawn) frame.append(drawn);
  return frame;
}

/** A card that opens the large view. */
export function card(info, entry, open) {
  const { result, name } = entry;
  const base = name.split("/").at(-1);
  const button = el("button", { type: "button", class: "open", "aria-haspopup": "dialog", on: { click: () => open(entry) } },
    photo(info, entry, false), el("span", { class: "file", title: name, text: base }));
  const below = result ? answer(info, result, 3) : el("p", { class: `state ${entry.state}`, text: STATES[entry.state] });
  return el("li", { class: result && "error" in result ? "card failed" : "card" }, button, below);
}

/** The dialog with one image in full; `neighbor(entry, step)` gives the next one shown, or undefined. */
export class Detail {
  #entry = null;

  constructor(neighbor) {
    this.dialog = byId("detail");
    this.neighbor = neighbor;
    byId("close").addEventListener("click", () => this.dialog.close());
    byId("previous").addEventListener("click", () => this.#step(-1));
    byId("next").addEventListener("click", () => this.#step(1));
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.#step(-1);
      if (event.key === "ArrowRight") this.#step(1);
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
  }

  show(info, entry) {
    this.info = info;
    this.#entry = entry;
    byId("detail-name").textContent = entry.name;
    byId("previous").disabled = !this.neighbor(entry, -1);
    byId("next").disabled = !this.neighbor(entry, 1);
    const { result } = entry;
    const facts = el("div", { class: "detail-facts" });
    facts.append(result ? answer(info, result, 40) : el("p", { text: STATES[entry.state] }));
    const votes = result && memberVotes(info, result);
    if (votes) facts.append(votes);
    if (result?.keypoints) facts.append(coordinates(info, result));
    const left = el("div", { class: "detail-photo" }, photo(info, entry, true));
    byId("detail-body").replaceChildren(left, facts);
    if (!this.dialog.open) this.dialog.showModal();
  }

  /** Draw again if `entry` is shown, because its result came. */
  refresh(entry) {
    if (this.dialog.open && this.#entry === entry) this.show(this.info, entry);
  }

  #step(step) {
    const next = this.neighbor(this.#entry, step);
    if (next) this.show(this.info, next);
  }
}

function coordinates(info, result) {
  const rows = info.keypoint_names.map((name) => {
    const { x, y } = result.keypoints[name];
    return el("tr", {}, el("th", { scope: "row", text: name }), el("td", { text: x.toFixed(1) }), el("td", { text: y.toFixed(1) }));
  });
  const head = el("tr", {}, ...["point", "x", "y"].map((text) => el("th", { scope: "col", text })));
  return el("table", { class: "coordinates" }, el("caption", { text: "In pixels of the upright photo" }),
    el("thead", {}, head), el("tbody", {}, ...rows));
}
