// What happened, for eyes and ears: a line at the bottom of the page, a live region, and a banner for what lasts.
//
//   const live = new Live(document.querySelector(".work"));   // where the line stands, below the images
//   live.say("12 images labeled ant.", { action: ["Undo", () => ..., "U"], spoken: "12 images labeled ant. U undoes." });
//   live.fail("These images cannot be labeled: ...");   // stays until it is closed or something else happens
//   live.banner("The server does not answer ..."); live.banner(null);
//   live.unsaved(3);                         // in the banner too, if it stays so for a while

import { el, plural } from "./dom.js";

const SHOWN_MS = 6000, SLOW_MS = 1500, MOVED_MS = 60;
const openDialog = () => [...document.querySelectorAll("dialog[open]")].at(-1) ?? null;

export class Live {
  #timer = null;
  #slow = null; // the timer of `unsaved`
  #lasting = null;
  #unsaved = 0;
  #isSlow = false;

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
    const isNew = text !== null && text !== this.#lasting;
    this.#lasting = text;
    this.#drawBar();
    if (isNew && openDialog()) this.#speak(this.alert, text);
    document.body.classList.toggle("server-gone", text !== null && isGone);
  }

  /** How many actions are shown but not yet saved. */
  unsaved(count) {
    this.#unsaved = count;
    if (count === 0) {
      clearTimeout(this.#slow);
      this.#slow = null;
      this.#isSlow = false;
    } else this.#slow ??= setTimeout(() => ((this.#isSlow = true), this.#drawBar()), SLOW_MS);
    this.#drawBar();
  }

  #drawBar() {
    const slow = !this.#isSlow ? null : `${plural(this.#unsaved, "action")} not saved yet: the server is slow to answer.`;
    this.bar.textContent = [this.#lasting, slow].filter(Boolean).join(" ");
    this.bar.hidden = this.bar.textContent === "";
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
    const place = openDialog() ?? this.place;
    if (this.toast.parentNode !== place) place.append(this.toast); // an open dialog covers all that is not in it
    if (!isBad) this.#timer = setTimeout(() => this.hide(), SHOWN_MS);
  }

  /** The same text twice is said twice. */
  #speak(region, text) {
    const place = openDialog() ?? document.body, said = region.textContent === text ? `${text}\u00a0` : text;
    if (region.parentNode === place) return void (region.textContent = said);
    region.textContent = "";
    place.append(region); // nothing outside an open dialog is read
    setTimeout(() => (region.textContent ||= said), MOVED_MS); // a region is heard when it changes after it was there
  }
}
