// One image in full: zoom and pan by wheel, drag, pinch and keys, with facts beside it.
//
//   const zoom = new Zoom({
//     neighbor: (id, step) => id or null,        // what is before and after an image in the grid
//     name: (id) => text, facts: (id) => [nodes],// drawn anew by zoom.refresh()
//     left: (id) => ...,                         // closed, with the image that was shown last
//     key: (event) => whether it was taken });   // keys that are not of the zoom view, such as those that label
//   zoom.open(id); zoom.id; zoom.isOpen; zoom.refresh(); zoom.close();

import { el } from "./dom.js";
import { FIT, fitted, pan, zoomAt } from "./viewport.js";

const STEP = 1.35, PAN_PX = 90, WHEEL = 0.0018;
const ARROWS = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

export class Zoom {
  id = null;
  #drawn = null; // the image that the facts are of
  #view = FIT;
  #pointers = new Map();
  #pinch = 0;

  constructor(heard) {
    this.heard = heard;
    const button = (text, label, act) => el("button", { type: "button", "aria-label": label, title: label, on: { click: act } }, text);
    this.title = el("h2", { id: "zoom-name" });
    this.scaleText = el("output", { class: "scale", "aria-label": "Size" });
    this.previous = button("←", "Previous image", () => this.step(-1));
    this.next = button("→", "Next image", () => this.step(1));
    this.image = el("img", { alt: "", draggable: "false" });
    this.stage = el("div", { class: "stage", tabindex: "-1" }, this.image, el("p", { class: "no-photo", hidden: true, text: "This image cannot be shown." }));
    this.facts = el("div", { class: "zoom-facts" });
    this.dialog = el("dialog", { class: "zoom", "aria-labelledby": "zoom-name" },
      el("div", { class: "detail-head" }, this.title, this.scaleText, button("−", "Smaller", () => this.#zoom(1 / STEP)),
        button("+", "Larger", () => this.#zoom(STEP)), this.previous, this.next, button("✕", "Close", () => this.close())),
      el("div", { class: "zoom-body" }, this.stage, this.facts));
    document.body.append(this.dialog);
    this.#listen();
  }

  get isOpen() {
    return this.dialog.open;
  }

  open(id) {
    const isOther = id !== this.id || !this.isOpen;
    this.id = id;
    if (!this.isOpen) {
      this.dialog.showModal();
      this.stage.focus();
    }
    if (isOther) this.#load(id);
    this.refresh();
  }

  close() {
    this.dialog.close();
  }

  step(step) {
    const next = this.heard.neighbor(this.id, step);
    if (next !== null && next !== undefined) this.open(next);
  }

  /** Draw name and facts anew. */
  refresh() {
    if (!this.isOpen) return;
    this.title.textContent = this.heard.name(this.id);
    this.image.alt = this.heard.name(this.id);
    for (const [button, step] of [[this.previous, -1], [this.next, 1]]) button.disabled = this.heard.neighbor(this.id, step) == null;
    const controls = () => [...this.facts.querySelectorAll("button")], place = controls().indexOf(document.activeElement);
    if (place >= 0 && this.#drawn === this.id) return; // a press that is under way is not interrupted
    this.#drawn = this.id;
    this.facts.replaceChildren(...this.heard.facts(this.id));
    if (place >= 0) (controls()[place] ?? this.stage).focus();
  }

  /** The thumbnail, which is there at once, until the large image is. */
  #load(id) {
    this.#view = FIT;
    this.stage.lastChild.hidden = true;
    this.image.hidden = false;
    this.image.src = `thumb/${id}`;
    this.natural = null;
    this.stage.classList.add("busy");
    const large = new Image();
    large.addEventListener("load", () => {
      if (this.id !== id) return;
      this.stage.classList.remove("busy");
      this.image.src = large.src;
      this.natural = { width: large.naturalWidth, height: large.naturalHeight };
      this.#draw();
      for (const step of [1, -1]) { // the next ones are there when they are asked for
        const near = this.heard.neighbor(id, step);
        if (near !== null && near !== undefined) new Image().src = `view/${near}`;
      }
    });
    large.addEventListener("error", () => {
      if (this.id !== id) return;
      this.stage.classList.remove("busy");
      this.stage.lastChild.hidden = false;
      this.image.hidden = true;
    });
    large.src = `view/${id}`;
    this.#draw();
  }

  #size() {
    return { width: this.stage.clientWidth, height: this.stage.clientHeight };
  }

  #draw() {
    const { scale, x, y } = this.#view, { style } = this.image;
    const natural = this.natural ?? { width: 320, height: 320 }, size = this.natural ? fitted(natural, this.#size()) : this.#size();
    style.width = `${size.width}px`;
    style.height = `${size.height}px`;
    style.transform = `translate(-50%, -50%) translate(${x}px, ${y}px) scale(${scale})`;
    const perPixel = this.natural ? (scale * size.width) / natural.width : 0;
    this.image.classList.toggle("pixels", perPixel > 2);
    this.stage.classList.toggle("can-pan", scale > 1);
    this.scaleText.textContent = this.natural ? `${Math.round(100 * perPixel)}%` : "";
  }

  #zoom(factor, point = { x: 0, y: 0 }) {
    if (!this.natural) return;
    this.#view = zoomAt(this.#view, factor, point, this.natural, this.#size());
    this.#draw();
  }

  #pan(dx, dy) {
    if (!this.natural) return;
    this.#view = pan(this.#view, dx, dy, this.natural, this.#size());
    this.#draw();
  }

  #key(event) {
    if (event.target.matches("input, textarea, select")) return;
    const { key } = event, isZoomed = this.#view.scale > 1;
    if (event.ctrlKey || event.metaKey || event.altKey) return void this.heard.key?.(event);
    if (key === "+" || key === "=") this.#zoom(STEP);
    else if (key === "-") this.#zoom(1 / STEP);
    else if (key === "0") this.#zoom(1 / this.#view.scale);
    else if (key in ARROWS && isZoomed) this.#pan(...ARROWS[key].map((way) => way * PAN_PX));
    else if (key === "ArrowLeft" || key === "PageUp") this.step(-1);
    else if (key === "ArrowRight" || key === "PageDown") this.step(1);
    else if (key === "Escape" || key.toLowerCase() === "z") this.close();
    else if (!this.heard.key?.(event)) return;
    event.preventDefault();
  }

  #point(event) {
    const { left, top, width, height } = this.stage.getBoundingClientRect();
    return { x: event.clientX - left - width / 2, y: event.clientY - top - height / 2 };
  }

  #move(event) {
    const before = this.#pointers.get(event.pointerId);
    if (!before) return;
    const now = this.#point(event);
    this.#pointers.set(event.pointerId, now);
    if (this.#pointers.size === 1) return this.#pan(now.x - before.x, now.y - before.y);
    const [one, other] = [...this.#pointers.values()], apart = Math.hypot(one.x - other.x, one.y - other.y);
    if (this.#pinch > 0) this.#zoom(apart / this.#pinch, { x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 });
    this.#pinch = apart;
  }

  #listen() {
    const { dialog, stage } = this;
    dialog.addEventListener("keydown", (event) => this.#key(event));
    dialog.addEventListener("close", () => this.heard.left?.(this.id));
    dialog.addEventListener("click", (event) => event.target === dialog && this.close());
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.#zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 30 : 1) * WHEEL), this.#point(event));
    }, { passive: false });
    stage.addEventListener("dblclick", (event) => this.#zoom(this.#view.scale > 1 ? 1 / this.#view.scale : 3, this.#point(event)));
    stage.addEventListener("pointerdown", (event) => {
      stage.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, this.#point(event));
      this.#pinch = 0;
    });
    stage.addEventListener("pointermove", (event) => this.#move(event));
    const release = (event) => this.#pointers.delete(event.pointerId);
    for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, release);
    new ResizeObserver(() => this.isOpen && this.#pan(0, 0)).observe(stage);
  }
}
