// Which images are chosen, and which one has the focus: pure, without elements. Images are ids in a shown order.
//
// Rules as of file managers and Google Photos: moving keeps the selection; Shift extends from the anchor; Space and
// Ctrl+click toggle; actions go to the selected images, or to the one with the focus if none is selected.

export class Selection {
  order = [];
  selected = new Set();
  focus = null;
  #places = new Map();
  #anchor = null;
  #base = new Set(); // what was selected when the anchor was set; Shift adds to it

  placeOf(id) {
    return this.#places.get(id) ?? -1;
  }

  /** Show other images, or these in another order. The focus stays on its image, or goes to the next that remains. */
  setOrder(ids) {
    const before = this.order, place = this.placeOf(this.focus);
    this.order = [...ids];
    this.#places = new Map(this.order.map((id, index) => [id, index]));
    for (const id of this.selected) if (!this.#places.has(id)) this.selected.delete(id);
    this.#base = new Set([...this.#base].filter((id) => this.#places.has(id)));
    if (!this.#places.has(this.focus)) {
      const after = before.slice(place + 1).find((id) => this.#places.has(id));
      const previous = () => before.slice(0, Math.max(0, place)).findLast((id) => this.#places.has(id));
      this.focus = (place < 0 ? undefined : after ?? previous()) ?? this.order[0] ?? null;
    }
    if (!this.#places.has(this.#anchor)) this.#anchor = this.focus;
  }

  /** The images that an action goes to, in the shown order. */
  targets() {
    if (this.selected.size > 0) return [...this.selected].sort((one, other) => this.placeOf(one) - this.placeOf(other));
    return this.focus === null ? [] : [this.focus];
  }

  /** Move the focus by a key, in a grid of `columns`, of which `rows` are seen at once. Returns whether it is such a key. */
  move(key, columns, rows, isExtending = false) {
    const last = this.order.length - 1, now = this.placeOf(this.focus);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -columns * rows, PageDown: columns * rows };
    if (!(key in steps) && key !== "Home" && key !== "End") return false;
    if (last < 0) return true;
    let to = key === "Home" ? 0 : key === "End" ? last : now + steps[key];
    if (key === "PageUp" || key === "PageDown") to = Math.max(now % columns, Math.min(to, last));
    else if (to < 0 || (to > last && !(key === "ArrowDown" && Math.floor(now / columns) < Math.floor(last / columns)))) to = now;
    this.focusOn(this.order[Math.min(to, last)], isExtending);
    return true;
  }

  /** Focus an image; `isExtending` selects all from the anchor to it. */
  focusOn(id, isExtending = false) {
    if (this.placeOf(id) < 0) return;
    this.focus = id;
    if (!isExtending) this.#setAnchor(id);
    else this.#select([this.placeOf(this.#anchor), this.placeOf(id)]);
  }

  toggle(id) {
    if (this.placeOf(id) < 0) return;
    if (!this.selected.delete(id)) this.selected.add(id);
    this.focus = id;
    this.#setAnchor(id);
  }

  all() {
    this.selected = new Set(this.order);
    this.#base = new Set(this.selected);
  }

  clear() {
    this.selected.clear();
    this.#setAnchor(this.focus);
  }

  #setAnchor(id) {
    this.#anchor = id;
    this.#base = new Set(this.selected);
  }

  #select([from, to]) {
    this.selected = new Set(this.#base);
    for (let place = Math.min(from, to); place <= Math.max(from, to); place++) this.selected.add(this.order[place]);
  }
}
