// The list of cards: those that are seen and some more exist as elements; one has the keyboard's focus.

import { card } from "./cards.js";
import { byId, el, plural } from "./dom.js";
import { Selection } from "./selection.js";

const AT_ONCE = 20, LEAVE_MS = 180;

export class ProblemList {
  selection = new Selection();
  #cards = new Map(); // id -> {element, content}
  #limit = AT_ONCE;
  #wantsFocus = false;

  /** `heard`: what cards report (see cards.js), and selected(): the selection or its focus changed. */
  constructor(records, heard) {
    Object.assign(this, { records, heard, place: byId("list"), names: {} });
    byId("more").addEventListener("click", () => this.#showMore());
    new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && this.#showMore(), { root: byId("scroll"), rootMargin: "600px" })
      .observe(byId("more"));
  }

  get ids() {
    return this.selection.order;
  }

  get focused() {
    return this.selection.focus;
  }

  targets() {
    return this.selection.targets();
  }

  /** Another list. `focus`: the image to begin with. */
  show(ids, { focus = null, takesFocus = true } = {}) {
    this.selection.clear();
    this.selection.setOrder(ids);
    this.selection.focusOn(focus ?? ids[0]);
    for (const { element } of this.#cards.values()) element.remove();
    this.#cards.clear();
    this.#limit = Math.max(AT_ONCE, this.selection.placeOf(this.focused) + AT_ONCE / 2);
    byId("scroll").scrollTop = 0;
    this.#wantsFocus = takesFocus;
    this.draw();
    this.heard.selected();
  }

  /** The same list, from which some images have left or to which some came. */
  change(ids, { focus = null } = {}) {
    const hadFocus = this.place.contains(document.activeElement) || document.activeElement === document.body;
    const kept = new Set(ids), before = this.focused;
    for (const [id, { element }] of this.#cards) if (!kept.has(id)) this.#leave(id, element);
    this.selection.setOrder(ids);
    if (focus !== null) this.selection.focusOn(focus);
    this.#limit = Math.max(this.#limit, this.selection.placeOf(this.focused) + 3);
    if (hadFocus && (this.focused !== before || !this.place.contains(document.activeElement))) this.#wantsFocus = true;
    this.draw();
    this.heard.selected();
  }

  draw() {
    const shown = this.ids.slice(0, this.#limit);
    this.records.want(shown);
    shown.forEach((id, n) => {
      const item = this.#put(id);
      if (this.place.children[n] !== item) this.place.insertBefore(item, this.place.children[n] ?? null);
    });
    while (this.place.children.length > shown.length) this.place.lastChild.remove();
    for (const id of this.#cards.keys()) if (!this.#cards.get(id).element.isConnected) this.#cards.delete(id);
    byId("more").hidden = this.ids.length <= shown.length;
    byId("more").textContent = `Show more of ${plural(this.ids.length, "image")}`;
    this.#mark();
  }

  /** Move the focus by a key. Returns whether it is such a key. */
  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return false;
    if (event.key === " ") !event.repeat && this.selection.toggle(this.focused);
    else if (!this.selection.move(event.key, 1, 3, event.shiftKey)) return false;
    event.preventDefault();
    this.go(this.focused, event.shiftKey);
    return true;
  }

  /** Focus an image and show it. */
  go(id, keepsSelection = true) {
    if (this.selection.placeOf(id) < 0) return;
    if (!keepsSelection || id !== this.focused) this.selection.focusOn(id);
    this.#limit = Math.max(this.#limit, this.selection.placeOf(id) + 3);
    this.#wantsFocus = true;
    this.draw();
    this.heard.selected();
  }

  /** The focus went to a card by Tab or a click. */
  noticeFocus(id) {
    if (id === this.focused || this.selection.placeOf(id) < 0) return;
    this.selection.focusOn(id);
    this.#mark();
    this.heard.selected();
  }

  select(id, isExtending) {
    if (isExtending) this.selection.focusOn(id, true);
    else this.selection.toggle(id);
    this.#mark();
    this.heard.selected();
  }

  selectAll() {
    this.selection.all();
    this.#mark();
    this.heard.selected();
  }

  clearSelection() {
    this.selection.clear();
    this.#mark();
    this.heard.selected();
  }

  focus() {
    this.#wantsFocus = true;
    this.#mark();
  }

  #put(id) {
    const record = this.records.get(id), known = this.#cards.get(id);
    const content = JSON.stringify(record); // the same record fetched anew is no reason to draw it anew
    if (known && known.content === content) return known.element;
    const hadFocus = known?.element.contains(document.activeElement);
    const inner = record
      ? card(record, { names: this.names, heard: this.heard, isSelected: this.selection.selected.has(id) })
      : el("article", { class: "card loading", tabindex: "-1", "aria-label": "Loading", "data-id": id });
    const element = el("li", {}, inner);
    known?.element.replaceWith(element);
    this.#cards.set(id, { element, content });
    if (hadFocus) this.#wantsFocus = true;
    return element;
  }

  #mark() {
    for (const [id, { element }] of this.#cards) {
      const inner = element.firstChild, isSelected = this.selection.selected.has(id), isFocused = id === this.focused;
      inner.tabIndex = isFocused ? 0 : -1;
      inner.classList.toggle("current", isFocused);
      inner.classList.toggle("selected-card", isSelected);
      const check = inner.querySelector("input[type=checkbox]");
      if (check) check.checked = isSelected;
      for (const button of inner.querySelectorAll("button, input")) button.tabIndex = isFocused ? 0 : -1;
    }
    if (this.#wantsFocus && this.#cards.has(this.focused)) {
      const inner = this.#cards.get(this.focused).element.firstChild;
      inner.focus({ preventScroll: true });
      inner.scrollIntoView({ block: "nearest" });
      this.#wantsFocus = inner.classList.contains("loading"); // again when its record has come
    }
  }

  #showMore() {
    if (this.#limit >= this.ids.length) return;
    this.#limit += AT_ONCE;
    this.draw();
  }

  #leave(id, element) {
    this.#cards.delete(id);
    const seen = element.getBoundingClientRect(), area = byId("scroll");
    element.remove();
    if (seen.bottom < 0 || seen.top > innerHeight || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    const ghost = el("div", { class: "ghost", "aria-hidden": "true", inert: true });
    ghost.append(...element.childNodes);
    for (const one of ghost.querySelectorAll("[id]")) one.removeAttribute("id");
    const { left, top } = area.getBoundingClientRect();
    Object.assign(ghost.style, { left: `${seen.left - left}px`, top: `${seen.top - top + area.scrollTop}px`, width: `${seen.width}px` });
    area.append(ghost);
    setTimeout(() => ghost.remove(), LEAVE_MS);
  }
}
