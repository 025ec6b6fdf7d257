// A grid of images for keys, mouse and touch: only the rows that are seen exist as elements, so that 20,000 images are
// as quick as 20. The element is a listbox, which keeps the keyboard's focus and names its active image.
//
//   const grid = new Grid(byId("grid"), records, {
//     describe: (record) => ({ name, strip: [nodes], tone: "s3" | null, kind: "labeled" | ..., label: "for screen readers" }),
//     focus: (id) => ..., selection: (ids) => ..., open: (id) => ..., seen: () => ... });
//   grid.show(ids, { top: 0, focus: id });      // another view: drawn at once, at a scroll position
//   grid.change(ids);                           // the same view: images that left fade, the others move up
//   grid.refresh(ids);                          // records changed (all without ids)
//   grid.targets(), grid.lookedAt(), grid.selection, grid.top, grid.setSize(180), grid.key(event), grid.focus()

import { el } from "./dom.js";
import { layout, lookedAt, position, scrollTo, seen, windowOf } from "./rows.js";
import { Selection } from "./selection.js";

const GAP = 10, STRIP = 30, WINDOW = 200, FADE_MS = 200, MOVE_MS = 180, FAST_MS = 90, MARGIN = 4;

export class Grid {
  selection = new Selection();
  #tiles = new Map();
  #size = 180;
  #frame = null;
  #fastTimer = null;
  #moveTimer = null;

  constructor(place, records, heard) {
    Object.assign(this, { place, records, heard });
    place.setAttribute("role", "listbox");
    place.setAttribute("aria-multiselectable", "true");
    place.tabIndex = 0;
    this.sheet = el("div", { class: "sheet", role: "presentation" });
    this.ghosts = el("div", { class: "ghosts", "aria-hidden": "true" });
    place.replaceChildren(this.sheet);
    place.after(this.ghosts);
    this.#measure();
    this.#listen();
  }

  get ids() {
    return this.selection.order;
  }

  get top() {
    return this.place.scrollTop;
  }

  /** Show another list of images, at a scroll position, with the focus on an image. */
  show(ids, { top = 0, focus = null } = {}) {
    this.selection = new Selection();
    this.selection.setOrder(ids);
    if (focus !== null) this.selection.focusOn(focus);
    for (const tile of this.#tiles.values()) tile.remove();
    this.#tiles.clear();
    this.#measure();
    this.place.scrollTop = top;
    this.draw();
    this.#tellFocus();
    this.#tellSelection();
  }

  /** Show a list that differs a little from the shown one. Nothing else than what left, and what follows it, moves. */
  change(ids) {
    const before = this.selection.focus, selected = this.selection.selected.size, kept = new Set(ids);
    for (const [id, tile] of this.#tiles) if (!kept.has(id)) this.#fade(tile);
    this.selection.setOrder(ids);
    this.sheet.classList.add("moving");
    clearTimeout(this.#moveTimer);
    this.#moveTimer = setTimeout(() => this.sheet.classList.remove("moving"), MOVE_MS);
    this.#measure();
    this.draw();
    if (this.selection.focus !== before) this.#tellFocus();
    if (this.selection.selected.size !== selected) this.#tellSelection();
  }

  /** Draw the tiles of these images anew, or all. */
  refresh(ids = null) {
    for (const id of ids ?? this.#tiles.keys()) if (this.#tiles.has(id)) this.#fill(this.#tiles.get(id));
    if (ids === null) this.draw();
  }

  targets() {
    return this.selection.targets();
  }

  /** The images of which at least half is seen. */
  lookedAt() {
    return this.ids.slice(...lookedAt(this.layout, this.place.scrollTop, this.place.clientHeight));
  }

  /** Smallest side of a thumbnail. What is seen first stays in place. */
  setSize(size) {
    const [first] = seen(this.layout, this.top, 1), isAtTop = this.top < this.layout.step / 2;
    this.#size = size;
    this.#measure();
    this.place.scrollTop = isAtTop ? 0 : position(this.layout, first).y;
    this.draw();
  }

  focus() {
    this.place.focus({ preventScroll: true });
  }

  clearSelection() {
    this.selection.clear();
    this.#tellSelection();
  }

  selectAll() {
    this.selection.all();
    this.#tellSelection();
  }

  /** Focus an image and scroll to it. */
  go(id) {
    this.selection.focusOn(id);
    this.#reveal();
    this.#tellFocus();
  }

  /** Do what a key of grids does. Returns whether it is one. */
  key(event) {
    if (event.altKey) return false;
    const { key, shiftKey } = event, rows = Math.max(1, Math.floor(this.place.clientHeight / this.layout.step));
    if (key === " ") {
      if (this.selection.focus !== null && !event.repeat) this.selection.toggle(this.selection.focus);
    } else if (key === "Enter") {
      if (this.selection.focus !== null && !event.repeat) this.heard.open?.(this.selection.focus);
    } else if (!this.selection.move(key, this.layout.columns, rows, shiftKey)) return false;
    event.preventDefault();
    this.#reveal();
    this.#tellFocus();
    if (key === " " || shiftKey) this.#tellSelection();
    return true;
  }

  /** Load images again that could not be loaded, because the server was gone. */
  retryImages() {
    for (const tile of this.#tiles.values()) if (tile.classList.contains("no-image")) this.#load(tile);
  }

  draw() {
    this.#frame = null;
    const { layout: of, ids, place, selection } = this, height = place.clientHeight;
    const [first, end] = seen(of, place.scrollTop, height, Math.min(600, height));
    const wanted = new Set(ids.slice(first, end));
    if (selection.focus !== null) wanted.add(selection.focus); // so that aria-activedescendant always names an element
    for (const [id, tile] of this.#tiles) {
      if (wanted.has(id)) continue;
      tile.remove();
      this.#tiles.delete(id);
    }
    for (const id of wanted) this.#put(id);
    this.#order(wanted);
    if (ids.length > 0) this.records.want(ids.slice(...windowOf(first, end, ids.length, WINDOW)));
  }

  #put(id) {
    const index = this.selection.placeOf(id), { x, y } = position(this.layout, index);
    let tile = this.#tiles.get(id);
    if (!tile) {
      tile = this.#make(id);
      this.#tiles.set(id, tile);
      this.sheet.append(tile);
      this.#fill(tile);
      if (this.#fastTimer === null) this.#load(tile);
    }
    tile.classList.toggle("jumps", tile.row !== undefined && tile.row !== y); // to another row: at once, not across the grid
    tile.row = y;
    tile.style.transform = `translate(${x}px, ${y}px)`;
    tile.setAttribute("aria-posinset", index + 1);
    tile.setAttribute("aria-setsize", this.ids.length);
    this.#mark(tile);
  }

  /** Elements in the shown order, for screen readers that read on. */
  #order(wanted) {
    const inOrder = [...wanted].sort((one, other) => this.selection.placeOf(one) - this.selection.placeOf(other));
    inOrder.forEach((id, n) => {
      const tile = this.#tiles.get(id);
      if (this.sheet.children[n] !== tile) this.sheet.insertBefore(tile, this.sheet.children[n] ?? null);
    });
  }

  #make(id) {
    const image = el("img", { alt: "", draggable: "false", decoding: "async" });
    const tick = el("span", { class: "tick", "aria-hidden": "true" });
    const tile = el("div", { class: "tile", role: "option", id: `image-${id}` },
      el("div", { class: "frame" }, image), tick, el("div", { class: "strip", "aria-hidden": "true" }));
    tile.imageId = id;
    image.addEventListener("load", () => (tile.classList.remove("no-image"), tile.classList.add("loaded")));
    image.addEventListener("error", () => tile.classList.add("no-image"));
    return tile;
  }

  #load(tile) {
    tile.querySelector("img").src = `thumb/${tile.imageId}`;
  }

  #fill(tile) {
    const record = this.records.get(tile.imageId), told = record ? this.heard.describe(record) : null;
    const strip = tile.lastChild;
    tile.className = ["tile", told?.kind, record?.isPending && "pending", ...["loaded", "no-image"].filter((one) => tile.classList.contains(one))]
      .filter(Boolean).join(" ");
    if (told?.tone) tile.dataset.tone = told.tone;
    else delete tile.dataset.tone;
    tile.title = told?.name ?? "";
    tile.setAttribute("aria-label", told?.label ?? "loading");
    strip.replaceChildren(...(told?.strip ?? []));
    this.#mark(tile);
  }

  #mark(tile) {
    const { imageId } = tile, isActive = imageId === this.selection.focus;
    tile.setAttribute("aria-selected", String(this.selection.selected.has(imageId)));
    tile.classList.toggle("active", isActive);
    if (isActive) this.place.setAttribute("aria-activedescendant", tile.id);
  }

  /** An image that left: it fades above what takes its place. */
  #fade(tile) {
    this.#tiles.delete(tile.imageId);
    const seenAt = tile.getBoundingClientRect(), area = this.place.getBoundingClientRect();
    tile.remove();
    if (seenAt.bottom < area.top || seenAt.top > area.bottom || this.ghosts.childElementCount > 200) return;
    const ghost = el("div", { class: tile.className, "data-tone": tile.dataset.tone });
    ghost.append(...tile.childNodes);
    const { left, top } = this.ghosts.getBoundingClientRect();
    ghost.style.cssText = tile.style.cssText;
    ghost.style.transform = `translate(${seenAt.left - left}px, ${seenAt.top - top}px)`;
    this.ghosts.append(ghost);
    setTimeout(() => ghost.remove(), FADE_MS);
  }

  #measure() {
    const style = getComputedStyle(this.place);
    const width = this.place.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    this.layout = layout(this.ids.length, Math.max(60, width), this.#size, GAP, STRIP);
    this.sheet.style.height = `${this.layout.height}px`;
    for (const place of [this.place, this.ghosts]) {
      place.style.setProperty("--side", `${this.layout.side}px`);
      place.style.setProperty("--tall", `${this.layout.tall}px`);
    }
    this.place.classList.toggle("small", this.layout.side < 120);
  }

  #reveal() {
    const index = this.selection.placeOf(this.selection.focus);
    if (index < 0) return;
    this.place.scrollTop = scrollTo(this.layout, index, this.top, this.place.clientHeight - 2 * MARGIN, MARGIN);
    this.draw();
  }

  #tellFocus() {
    for (const tile of this.#tiles.values()) this.#mark(tile);
    if (this.selection.focus === null) this.place.removeAttribute("aria-activedescendant");
    this.heard.focus?.(this.selection.focus);
  }

  #tellSelection() {
    for (const tile of this.#tiles.values()) this.#mark(tile);
    this.place.classList.toggle("selecting", this.selection.selected.size > 0);
    this.heard.selection?.([...this.selection.selected]);
  }

  #click(event) {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    const id = tile.imageId, { selection } = this, isTouch = event.pointerType === "touch";
    if (event.shiftKey) selection.focusOn(id, true);
    else if (event.ctrlKey || event.metaKey || isTouch || event.target.closest(".tick") || selection.selected.size > 0) selection.toggle(id);
    else selection.focusOn(id);
    this.#reveal();
    this.#tellFocus();
    this.#tellSelection();
  }

  #listen() {
    const { place } = this;
    place.addEventListener("click", (event) => this.#click(event));
    place.addEventListener("dblclick", (event) => {
      const tile = event.target.closest(".tile");
      if (tile && !event.target.closest(".tick") && !event.ctrlKey && !event.shiftKey) this.heard.open?.(tile.imageId);
    });
    this.#listenToSweeps();
    let before = 0;
    place.addEventListener("scroll", () => {
      // A jump over many rows: images that are passed are not loaded.
      if (Math.abs(this.top - before) > 2 * place.clientHeight) this.#waitForRest();
      before = this.top;
      this.#frame ??= requestAnimationFrame(() => (this.draw(), this.heard.seen?.()));
    }, { passive: true });
    new ResizeObserver(() => {
      const [first] = seen(this.layout, this.top, 1), isAtTop = this.top < this.layout.step / 2, { columns } = this.layout;
      this.#measure();
      if (columns !== this.layout.columns && !isAtTop) place.scrollTop = position(this.layout, first).y;
      this.draw();
      this.heard.seen?.();
    }).observe(place);
  }

  /** The mouse, pressed on a tick and drawn over other images, selects all between. */
  #listenToSweeps() {
    let from = null;
    this.place.addEventListener("pointerdown", (event) => {
      from = event.pointerType === "mouse" && event.target.closest(".tick") ? event.target.closest(".tile").imageId : null;
    });
    this.place.addEventListener("pointermove", (event) => {
      const id = from !== null && event.buttons === 1 ? event.target.closest(".tile")?.imageId : undefined;
      if (id === undefined || id === this.selection.focus || (id === from && !this.selection.selected.has(from))) return;
      if (!this.selection.selected.has(from)) this.selection.toggle(from);
      this.selection.focusOn(id, true);
      this.#tellFocus();
      this.#tellSelection();
    });
  }

  #waitForRest() {
    clearTimeout(this.#fastTimer);
    this.#fastTimer = setTimeout(() => {
      this.#fastTimer = null;
      for (const tile of this.#tiles.values()) if (!tile.querySelector("img").hasAttribute("src")) this.#load(tile);
    }, FAST_MS);
  }
}
