// The table of results, sortable by each column.

import { FAILED, headline } from "./answers.js";
import { el, percent, short } from "./dom.js";

/** [{title, value: entry -> what is sorted, text: entry -> what is shown, isNumber}] for a task. */
function columns(info, entries) {
  const has = (key) => entries.some((entry) => entry.result && key in entry.result);
  const of = (key) => (entry) => entry.result?.[key];
  const said = (entry) => (entry.result && !(FAILED in entry.result) ? headline(info, entry.result) : "");
  const found = [{ title: "Image", value: (entry) => entry.name }];
  const number = (title, value, show = short) => found.push({ title, value, show, isNumber: true });
  const text = (title, value) => found.push({ title, value });
  if (info.task === "classification") {
    text("Label", said);
    number("Probability", of("confidence"), percent);
  } else if (info.task === "multilabel") text("Labels", said);
  else if (info.task === "regression") {
    info.target_names.forEach((name, t) => {
      const of = (key) => (entry) => entry.result?.targets?.[name]?.[key], unit = info.units?.[t];
      number(unit ? `${name} (${unit})` : name, of("value"));
      if (entries.some((entry) => of("low")(entry) !== undefined)) {
        number(`${name} from`, of("low"));
        number("to", of("high"));
      }
      if (entries.some((entry) => of("spread")(entry) !== undefined)) number(`${name} spread`, of("spread"));
    });
  } else {
    number("Centroid size (px)", of("centroid_size"));
    number("Shape distance", of("shape_distance"));
    text("Shape", (entry) => (entry.result?.keypoints ? (entry.result.is_odd ? "unusual" : "usual") : ""));
  }
  if (has("set")) text("Set", (entry) => entry.result?.set?.join(", "));
  if (has("ood_score")) number("OOD score", of("ood_score"));
  if (has("agreement")) number("Agreement", of("agreement"), percent);
  if (has("reason") || has(FAILED)) text("Remark", (entry) => entry.result?.error ?? entry.result?.reason);
  return found;
}

export class Table {
  #column = null;
  #descending = false;

  constructor(place, open) {
    this.place = place;
    this.open = open;
  }

  /** Draw the table of these entries; keeps the order that was chosen. */
  draw(info, entries) {
    this.last = [info, entries];
    const all = columns(info, entries);
    const sorted = this.#sorted(all.find((column) => column.title === this.#column), entries);
    const head = el("tr", {}, ...all.map((column) => this.#header(column)));
    const body = el("tbody", {}, ...sorted.map((entry) => el("tr", {}, ...all.map((column) => this.#cell(column, entry)))));
    const caption = el("caption", { class: "hidden", text: "Results; the buttons in the first row sort them" });
    this.place.replaceChildren(el("table", {}, caption, el("thead", {}, head), body));
  }

  #header({ title, isNumber }) {
    const isSorted = title === this.#column;
    const arrow = isSorted ? (this.#descending ? " ↓" : " ↑") : "";
    const button = el("button", { type: "button", on: { click: () => this.#sort(title, isNumber) } }, title,
      el("span", { "aria-hidden": "true", text: arrow }));
    const order = isSorted ? (this.#descending ? "descending" : "ascending") : "none";
    return el("th", { scope: "col", "aria-sort": order, class: isNumber ? "number" : null }, button);
  }

  #cell({ title, value, show, isNumber }, entry) {
    const found = value(entry);
    const text = found === undefined || found === null ? "" : show ? show(found) : String(found);
    if (title !== "Image") return el("td", { class: isNumber ? "number" : null, text });
    const button = el("button", { type: "button", class: "link", text, on: { click: () => this.open(entry) } });
    return el("th", { scope: "row" }, button);
  }

  #sort(title, isNumber) {
    this.#descending = this.#column === title ? !this.#descending : Boolean(isNumber);
    this.#column = title;
    this.draw(...this.last);
    for (const button of this.place.querySelectorAll("th button")) {
      if (button.firstChild.textContent === title) button.focus();
    }
  }

  #sorted(column, entries) {
    if (!column) return entries;
    const sign = this.#descending ? -1 : 1;
    const isEmpty = (value) => value === undefined || value === null || value === "";
    return entries.toSorted((one, other) => {
      const left = column.value(one), right = column.value(other);
      if (isEmpty(left) || isEmpty(right)) return isEmpty(left) - isEmpty(right); // empty cells are last
      return sign * (typeof left === "number" ? left - right : left.localeCompare(right, "en", { numeric: true }));
    });
  }
}
