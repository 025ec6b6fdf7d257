// The panel of classes: a box to type in, and the classes with their keys. Digits are for the first nine.

import { el } from "./dom.js";

const SHOWN = 200;

export class Classes {
  #classes = [];
  #active = 0;

  /** `choose(name)`: a class was chosen. `leave()`: the box was left without choosing. */
  constructor(place, { choose, leave }) {
    Object.assign(this, { place, choose, leave });
    this.title = el("h2", { id: "side-title", text: "Label as" });
    this.box = el("input", {
      type: "text", id: "class-box", class: "box", role: "combobox", autocomplete: "off", spellcheck: "false", placeholder: "Type a class", maxlength: "200",
      "aria-label": "Class", "aria-expanded": "true", "aria-controls": "classes", "aria-autocomplete": "list",
    });
    this.list = el("ul", { id: "classes", class: "classes", role: "listbox", "aria-label": "Classes" });
    this.hint = el("p", { class: "soft hint" });
    place.append(this.title, this.box, this.list, this.hint);
    this.box.addEventListener("input", () => ((this.#active = 0), this.#draw()));
    this.box.addEventListener("keydown", (event) => this.#key(event));
  }

  show(classes, about) {
    this.#classes = classes;
    this.hint.textContent = about;
    this.#draw();
  }

  /** The class of a digit key, if there is one. */
  ofKey(digit) {
    return this.#classes[Number(digit) - 1]?.name;
  }

  open(text = "") {
    this.box.value = text;
    this.#active = 0;
    this.#draw();
    this.box.focus();
  }

  get #matches() {
    const text = this.box.value.trim().toLowerCase(), at = ({ name }) => name.toLowerCase().indexOf(text);
    const found = this.#classes.map((one, n) => ({ ...one, key: n < 9 ? String(n + 1) : "" })).filter((one) => at(one) >= 0);
    if (text === "") return found;
    found.sort((one, other) => (at(one) > 0) - (at(other) > 0));
    const isKnown = this.#classes.some(({ name }) => name.toLowerCase() === text);
    return isKnown ? found : [...found, { name: this.box.value.trim(), isNew: true, key: "" }];
  }

  #draw() {
    const found = this.#matches.slice(0, SHOWN), isTyping = document.activeElement === this.box && this.box.value !== "";
    this.#active = Math.min(this.#active, Math.max(0, found.length - 1));
    this.list.replaceChildren(...found.map((one, n) => el("li", {
      role: "option", id: `class-${n}`, "aria-selected": String(isTyping && n === this.#active), class: one.isNew ? "new-class" : null,
      on: { mousedown: (event) => event.preventDefault(), click: () => this.#take(one.name) },
    }, one.key ? el("kbd", { "aria-hidden": "true", text: one.key }) : el("span", { class: "no-key", "aria-hidden": "true", text: one.isNew ? "+" : "" }),
      el("span", { class: "name", title: one.name, text: one.isNew ? `New class: ${one.name}` : one.name }),
      one.isNew ? null : el("span", { class: "number soft", text: one.count.toLocaleString("en") }))));
    if (isTyping) this.box.setAttribute("aria-activedescendant", `class-${this.#active}`);
    else this.box.removeAttribute("aria-activedescendant");
    if (isTyping) this.list.children[this.#active]?.scrollIntoView({ block: "nearest" });
  }

  #take(name) {
    this.box.value = "";
    this.box.blur();
    this.#draw();
    this.choose(name);
  }

  #key(event) {
    const found = this.#matches;
    if (event.isComposing) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      this.#active = (this.#active + (event.key === "ArrowDown" ? 1 : found.length - 1)) % Math.max(1, found.length);
      this.#draw();
    } else if (event.key === "Enter") {
      const chosen = this.box.value.trim() ? found[this.#active] : null;
      if (chosen && !event.repeat) this.#take(chosen.name);
    } else if (event.key === "Escape") {
      this.box.value = "";
      this.#draw();
      this.leave();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
