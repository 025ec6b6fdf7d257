// The keys of a page, and the dialog that lists them.
//
//   const keys = new Keys({ blocked: () => zoom.isOpen });
//   keys.add("Label", ["1", "2"], "label with the class of this number", (event, key) => ..., "1 – 9");
//   keys.handle(event)   // for keys in a dialog of the page; the page's own are heard without it
//   keys.otherwise = (event) => ...;
//   keys.help.open(); keys.help.more = () => [elements];
//
// A key is written as in "x", "?", "Delete", "Ctrl+a", "Ctrl+Shift+z", "Shift+F10"; Ctrl stands for the Command key too.

import { el } from "./dom.js";

/** The name of a pressed key. Digits count where a layout has other signs on them, as the French. */
export function nameOf({ key, code = "", ctrlKey, metaKey, altKey, shiftKey }) {
  const isDigit = !shiftKey && /^Digit\d$/.test(code) && !/^\d$/.test(key);
  const plain = isDigit ? code.at(-1) : key.length === 1 ? key.toLowerCase() : key;
  const hasShift = shiftKey && (plain.length > 1 || (ctrlKey || metaKey));
  return [(ctrlKey || metaKey) && "Ctrl", altKey && "Alt", hasShift && "Shift", plain].filter(Boolean).join("+");
}

// Of a key that is held down, only these are done again and again; others would act on many images.
const REPEATED = ["u", "Ctrl+z", "Ctrl+Shift+z", "Ctrl+y"];

const isCapital = ({ key, shiftKey, ctrlKey, metaKey, altKey }) => shiftKey && !ctrlKey && !metaKey && !altKey && /^\p{Lu}$/u.test(key);

const isTyping = (target) => target.closest?.("input:not([type=range], [type=checkbox], [type=radio]), textarea, select, [contenteditable]");

export class Keys {
  #runs = new Map();
  #groups = new Map();
  otherwise = null;

  /** `typesCapitals`: a capital letter is the beginning of a word, and no key. */
  constructor({ blocked = () => false, typesCapitals = false } = {}) {
    this.typesCapitals = typesCapitals;
    this.help = new Help(() => this.#groups);
    document.addEventListener("keydown", (event) => {
      if (event.repeat && ["Enter", " "].includes(event.key) && event.target.closest?.("button, summary")) event.preventDefault();
    }, { capture: true });
    document.addEventListener("keydown", (event) => {
      if (event.defaultPrevented || blocked() || document.querySelector("dialog[open]")) return;
      if (!this.handle(event)) this.otherwise?.(event);
    });
  }

  add(group, names, title, run, shown = names.join(" or ")) {
    for (const name of names) this.#runs.set(name, run);
    if (title) this.describe(group, shown, title);
  }

  /** A line of the dialog, for keys that others handle. */
  describe(group, shown, title) {
    if (!this.#groups.has(group)) this.#groups.set(group, []);
    this.#groups.get(group).push([shown, title]);
  }

  /** Do what the key of an event says. Returns whether there is such a key. */
  handle(event) {
    if (event.isComposing || isTyping(event.target)) return false;
    if (this.typesCapitals && isCapital(event)) return false;
    const name = nameOf(event), run = this.#runs.get(name);
    if (!run) return false;
    event.preventDefault();
    if (!event.repeat || REPEATED.includes(name)) run(event, name);
    return true;
  }
}

/** The keys of a line, as elements: "Ctrl + Z" or "1 – 9", or an array of keys. */
function keysOf(shown) {
  const isBetween = (part) => typeof shown === "string" && ["or", "–", "+"].includes(part);
  return (typeof shown === "string" ? shown.split(" ") : shown).map((part) => (isBetween(part) ? ` ${part} ` : el("kbd", { text: part })));
}

class Help {
  more = () => []; // what a page adds below its keys

  constructor(groups) {
    this.groups = groups;
    this.body = el("div", { class: "help-body" });
    const close = el("button", { type: "button", "aria-label": "Close", on: { click: () => this.dialog.close() } }, "✕");
    this.dialog = el("dialog", { class: "help", "aria-labelledby": "help-title" },
      el("div", { class: "detail-head" }, el("h2", { id: "help-title", text: "Keys" }), close), this.body);
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    document.body.append(this.dialog);
  }

  open() {
    const groups = [...this.groups()].map(([group, lines]) => el("section", {}, el("h3", { text: group }),
      el("dl", {}, ...lines.flatMap(([shown, title]) => [
        el("dt", {}, ...keysOf(shown)),
        el("dd", { text: title })]))));
    this.body.replaceChildren(...groups, ...this.more());
    if (!this.dialog.open) this.dialog.showModal();
  }
}
