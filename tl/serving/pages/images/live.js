// What happened, for eyes and ears: a line at the bottom of the page, a live region, and a banner for what lasts.
//
//   const live = new Live(document.querySelector(".work"));   // where the line stands, below the images
//   live.say("12 images labeled ant.", { action: ["Undo", () => ..., "U"], spoken: "12 images labeled ant. U undoes." });
//   live.fail("These images cannot be labeled: ...");   // stays until it is closed or something else happens
//   live.banner("The server does not answer ..."); live.banner(null);

import { el } from "./dom.js";

const SHOWN_MS = 6000;

export class Live {
  #timer = null;

  constructor(place) {
    this.place = place;
    this.text = el("span", { class: "toast-text" });
    this.buttons = el("span", { class: "toast-buttons" });
    this.toast = el("div", { class: "toast", role: "region", "aria-label": "Message", hidden: true }, this.text, this.buttons);
    this.region = el("p", { class: "hidden", role: "status", "aria-live": "polite" });
    this.alert = el("p", { class: "hidden", role: "alert" });
    this.bar = el("p", { class: "banner", role: "alert", hidden: true });
    document.body.append(this.region, this.alert);
    place.append(this.toast);
    document.body.prepend(this.bar);
  }

  say(text, { action = null, spoken = text } = {}) {
    this.#show(text, action, false);
    this.#speak(this.region, spoken);
  }

  fail(text, { action = null } = {}) {
    this.#show(text, action, true);
    this.#speak(this.alert, text);
  }

  banner(text, isGone = true) {
    this.bar.textContent = text ?? "";
    this.bar.hidden = text === null;
    document.body.classList.toggle("server-gone", text !== null && isGone);
  }

  hide() {
    clearTimeout(this.#timer);
    this.toast.hidden = true;
  }

  #show(text, action, isBad) {
    clearTimeout(this.#timer);
    this.text.textContent = text;
    const close = el("button", { type: "button", "aria-label": "Close this message", on: { click: () => this.hide() } }, "✕");
    const act = action && el("button", { type: "button", on: { click: () => (this.hide(), action[1]()) } }, action[0], action[2] ? el("kbd", { text: action[2] }) : null);
    this.buttons.replaceChildren(...[act, isBad && close].filter(Boolean));
    this.toast.classList.toggle("bad", isBad);
    this.toast.hidden = false;
    const dialog = [...document.querySelectorAll("dialog[open]")].at(-1), place = dialog ?? this.place;
    if (this.toast.parentNode !== place) place.append(this.toast); // an open dialog covers all that is not in it
    if (!isBad) this.#timer = setTimeout(() => this.hide(), SHOWN_MS);
  }

  /** The same text twice is said twice. */
  #speak(region, text) {
    region.textContent = region.textContent === text ? `${text}\u00a0` : text;
  }
}
