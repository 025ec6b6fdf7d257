// The panel of classes: a box to type names, and a list whose buttons label the chosen images.

import { byId, el, plural } from "./dom.js";
import { matchClasses } from "./lists.js";
import { redraw } from "./describe.js";

/** A name without regard to case and spelling, as the server compares names. */
const spelled = (name) => name.normalize("NFKC").split(/\s+/).filter(Boolean).join(" ").toLowerCase();

export class Classes {
  #isLabeling = false; // opened by a key from the grid: Enter labels
  #options = [];
  #active = 0;

  /** `act`: {label(name), add(name), rename(name, new), merge(name, into, images), remove(name), show(name), leave(), count() of images that a label goes to}. */
  constructor(tones, act) {
    Object.assign(this, { tones, act, classes: [] });
    this.box = byId("class-box");
    this.list = byId("class-options");
    this.#listen();
  }

  get names() {
    return this.classes.map(({ name }) => name);
  }

  update(classes) {
    this.classes = classes;
    this.tones.update(this.names);
    byId("class-hint").hidden = classes.length > 1;
    byId("class-hint").textContent = classes.length === 0 ? "Type a class name and press Enter. Two classes are enough to begin." :
      "Add a second class in the same way.";
    const key = JSON.stringify(classes.map(({ name, key, count }) => [name, key, count]));
    const focused = document.activeElement?.closest("#class-list button");
    const place = focused ? [...byId("class-list").querySelectorAll("button")].indexOf(focused) : -1;
    redraw("class-list", classes.map((one) => this.#row(one)), key);
    if (place >= 0 && !document.contains(focused)) byId("class-list").querySelectorAll("button")[place]?.focus();
  }

  /** Open the box to label the chosen images, with a first letter. */
  open(letter = "") {
    this.#isLabeling = true;
    this.box.value = letter;
    this.box.focus();
    this.#suggest();
  }

  #row({ name, key, count }) {
    const label = `${key ? `${key} ` : ""}${name} ${plural(count, "image")}, label with this class`;
    return el("li", { "data-tone": this.tones.of(name) },
      el("button", { type: "button", class: "class", "aria-label": label, title: name, on: { click: () => this.act.label(name) } },
        key ? el("kbd", { text: key }) : el("span", { class: "no-key" }), el("span", { class: "dot full" }), " ",
        el("span", { class: "name", text: name }), " ", el("span", { class: "number", text: count.toLocaleString("en") })),
      el("button", { type: "button", class: "more", "aria-label": `Edit the class ${name}`, title: "Rename, remove, show its images",
        on: { click: () => this.edit(name) } }, "⋯"));
  }

  #suggest() {
    const text = this.box.value.trim(), count = this.act.count(), found = matchClasses(this.names, text);
    const images = plural(count, "image");
    const options = count > 0 ? found.slice(0, 8).map((name) => ({ text: `Label ${images} ${name}`, tone: this.tones.of(name), run: () => this.act.label(name) })) : [];
    if (text !== "" && !this.names.includes(text)) {
      const add = { text: `Add the class ${text}`, run: () => this.act.add(text) };
      const label = count > 0 ? [{ text: `Label ${images} ${text}, a new class`, run: () => this.act.label(text) }] : [];
      options.push(...(this.#isLabeling ? [...label, add] : [add, ...label]));
    }
    this.#options = options;
    this.#active = 0;
    this.#draw();
  }

  #draw() {
    const isOpen = this.#options.length > 0 && document.activeElement === this.box;
    this.list.hidden = !isOpen;
    this.box.setAttribute("aria-expanded", String(isOpen));
    this.list.replaceChildren(...this.#options.map(({ text, tone }, n) => el("li", {
      role: "option", id: `class-option-${n}`, "aria-selected": String(n === this.#active), "data-tone": tone,
      on: { pointerdown: (event) => event.preventDefault(), click: () => this.#choose(n) },
    }, tone ? el("span", { class: "dot full" }) : el("span", { class: "plus", "aria-hidden": "true", text: "+" }), el("span", { class: "name", text }))));
    if (isOpen) this.box.setAttribute("aria-activedescendant", `class-option-${this.#active}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  #choose(n) {
    const option = this.#options[n];
    if (!option) return;
    const isLabeling = this.#isLabeling;
    this.box.value = "";
    this.#options = [];
    this.#draw();
    option.run();
    if (isLabeling) this.act.leave();
  }

  #key(event) {
    const { key } = event, count = this.#options.length;
    if (event.isComposing) return;
    if ((key === "ArrowDown" || key === "ArrowUp") && count > 0) {
      this.#active = (this.#active + (key === "ArrowDown" ? 1 : count - 1)) % count;
      this.#draw();
    } else if (key === "Enter") !event.repeat && this.#choose(this.#active);
    else if (key === "Escape" || (key === "ArrowDown" && count === 0)) {
      this.box.value = "";
      this.#options = [];
      this.#draw();
      this.act.leave();
    } else if (/^[1-9]$/.test(key) && this.box.value === "" && !this.#isLabeling && this.classes.some((one) => one.key === key)) {
      this.act.leave(); // who has just added classes and presses a number means the class
      this.act.label(this.classes.find((one) => one.key === key).name);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** The dialog to rename, merge or remove a class. */
  edit(name) {
    const { count } = this.classes.find((one) => one.name === name);
    this.edited = name;
    byId("class-title").textContent = `Class ${name}`;
    byId("class-name").value = name;
    byId("class-remove").disabled = count > 0;
    byId("class-count").textContent = count > 0 ? `${plural(count, "image")} labeled. To merge the class with another, give it the name of that one.` :
      "No image is labeled with it.";
    this.#askToMerge(null);
    byId("class-dialog").showModal();
    byId("class-name").select();
  }

  /** Rename the class. The name of another class is asked about first: their images become one class. */
  #rename(name) {
    const other = this.names.find((one) => one !== this.edited && spelled(one) === spelled(name)) ?? null;
    if (other !== null && other !== this.into) return this.#askToMerge(other);
    byId("class-dialog").close();
    if (other !== null) this.act.merge(this.edited, other, this.#images());
    else if (name !== "" && name !== this.edited) this.act.rename(this.edited, name);
  }

  #images() {
    return plural(this.classes.find(({ name }) => name === this.edited)?.count ?? 0, "image");
  }

  /** `into`: the class whose name was given, null to ask nothing. */
  #askToMerge(into) {
    this.into = into;
    byId("class-merge").hidden = into === null;
    byId("class-merge").textContent = into === null ? "" :
      `There is a class ${into} already. Merging labels ${this.#images()} of ${this.edited} as ${into}, and removes ${this.edited}. U undoes.`;
    byId("class-rename").textContent = into === null ? "Rename" : `Merge ${this.#images()}`;
  }

  #listen() {
    const { box } = this, dialog = byId("class-dialog");
    box.addEventListener("input", () => this.#suggest());
    box.addEventListener("keydown", (event) => this.#key(event));
    box.addEventListener("blur", () => ((this.#isLabeling = false), this.#draw()));
    box.addEventListener("focus", () => this.#suggest());
    byId("class-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#rename(byId("class-name").value.trim());
    });
    byId("class-form").addEventListener("keydown", (event) => event.key === "Enter" && event.repeat && event.preventDefault());
    byId("class-name").addEventListener("input", () => this.#askToMerge(null));
    byId("class-remove").addEventListener("click", () => (dialog.close(), this.act.remove(this.edited)));
    byId("class-show").addEventListener("click", () => (dialog.close(), this.act.show(this.edited)));
    for (const one of dialog.querySelectorAll(".close")) one.addEventListener("click", () => dialog.close());
  }
}
