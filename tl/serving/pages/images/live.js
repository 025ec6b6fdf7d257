// What happened, for eyes and ears: a line at the bottom of the page, a live region, and a banner for what lasts.
//
//   const live = new Live();
//   live.say("12 images labeled ant.", { action: ["Undo", () => ...], keep: false });
//   live.fail("These images cannot be labeled: ...");   // stays until it is closed or something else happens
//   live.banner("The server does not answer ..."); live.banner(null);

import { el } from "./dom.js";

const SHOWN_MS = 6000;

export class Live {
  #timer = null;

  constructor() {
    this.text = el("span", { class: "toast-text" });
    this.buttons = el("span", { class: "toast-buttons" });
    this.toast = el("div", { class: "toast", hidden: true }, this.text, this.buttons);
    this.region = el("p", { class: "hidden", role: "status", "aria-live": "polite" });
    this.alert = el("p", { class: "hidden", role: "alert" });
    this.bar = el("p", { class: "banner", role: "alert", hidden: true });
    document.body.append(this.region, this.alert, this.toast);
    document.body.prepend(this.bar);
  }

  say(text, { action = null } = {}) {
    this.#show(text, action, false);
    this.#speak(this.region, text);
  }

  fail(text, { action = null } = {}) {
    this.#show(text, action, true);
    this.#speak(this.alert, text);
  }

  banner(text) {
    this.bar.textContent = text ?? "";
    this.bar.hidden = text === null;
    document.body.classList.toggle("server-gone", text !== null);
  }

  hide() {
    clearTimeout(this.#timer);
    this.toast.hidden = true;
  }

  #show(text, action, isBad) {
    clearTimeout(this.#timer);
    this.text.textContent = text;
    const close = el("button", { type: "button", "aria-label": "Close this message", on: { click: () => this.hide() } }, "✕");
    const act = action && el("button", { type: "button", on: { click: () => (this.hide(), action[1]()) } }, action[0]);
    this.buttons.replaceChildren(...[act, isBad && close].filter(Boolean));
    this.toast.classList.toggle("bad", isBad);
    this.toast.hidden = false;
    // In the top layer, so that it is seen above an open dialog.
    const dialog = document.querySelector("dialog[open]");
    (dialog ?? document.body).append(this.toast);
    if (!isBad) this.#timer = setTimeout(() => this.hide(), SHOWN_MS);
  }

  /** The same text twice is said twice. */
  #speak(region, text) {
    region.textContent = region.textContent === text ? `${text}\u00a0` : text;
  }
}
