// A color for each class: the same as long as the page is open, different for the first eight. Pure.
//
//   const tones = new Tones(); tones.update(["ant", "bee"]); tones.of("ant") === "s0"   // --s0 of base.css

const COUNT = 8;

export class Tones {
  #slots = new Map();
  #names = [];

  /** Take the classes in their order. A new name in the place of one that is gone is the same class, renamed. */
  update(names) {
    const isRenamed = names.length === this.#names.length && names.filter((name, n) => name !== this.#names[n]).length === 1;
    if (isRenamed) {
      const place = names.findIndex((name, n) => name !== this.#names[n]);
      this.#slots.set(names[place], this.#slots.get(this.#names[place]));
    }
    for (const name of [...this.#slots.keys()]) if (!names.includes(name)) this.#slots.delete(name);
    for (const name of names) if (!this.#slots.has(name)) this.#slots.set(name, this.#free());
    this.#names = [...names];
  }

  of(name) {
    const slot = this.#slots.get(name);
    return slot === undefined ? null : `s${slot % COUNT}`;
  }

  /** The least used color, the first of these. */
  #free() {
    const uses = Array(COUNT).fill(0);
    for (const slot of this.#slots.values()) uses[slot]++;
    return uses.indexOf(Math.min(...uses));
  }
}
