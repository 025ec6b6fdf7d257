// The views: which images are shown, in which order, and how the shown list follows what happens, without jumps.

import { byId, el, plural } from "./dom.js";
import { extendRanked, putBack, refillQueue } from "./lists.js";
import { redraw } from "./describe.js";
import { EMPTY, NOTES, TITLES } from "./texts.js";

const isOpen = (record) => !record || (record.label === null && record.status === "open" && !record.error);
/** Whether an image belongs to a view, as far as its record tells. */
const BELONGS = {
  next: isOpen, suggested: isOpen, similar: isOpen,
  labeled: (record, { label }) => !record || (record.label !== null && (!label || record.label === label)),
  unsure: (record) => !record || record.status === "unsure",
  skipped: (record) => !record || record.status === "skipped",
  all: () => true, errors: () => true,
};
const RANKED = ["suggested", "similar", "labeled", "unsure", "skipped"];
// Of the queue, this many images stay when one comes back to it.
const REMEMBERED = 12;

export class Views {
  current = { view: "next" };
  isLoaded = false;
  #remembered = new Map(); // view -> {ids, top, focus}
  #places = new Map(); // image that left -> its place
  #asked = 0;
  #coming = null; // the view that is being opened
  #inNav = null; // the view whose button was scrolled to
  #before = { view: "next" }; // the view before similar images

  constructor({ api, records, live, tones, drawn }) {
    Object.assign(this, { api, records, live, tones, drawn });
  }

  /** Show a view. `label`: a class, for suggested and labeled; `like`: ids; `search`: part of a name. */
  async open(view, { label = null, like = null, search = "" } = {}) {
    const asked = ++this.#asked, { grid } = this, wanted = { view, label, like, search };
    this.#coming = view;
    this.drawn();
    try {
      const fresh = await this.#fetch(wanted);
      if (asked !== this.#asked) return;
      this.#remember();
      if (view === "similar" && this.current.view !== "similar") this.#before = this.current;
      this.current = wanted; // only now, so that what is shown and what it is called agree
      this.#places.clear();
      const before = this.#remembered.get(this.#key()) ?? {}, news = this.#news(fresh);
      const ids = view === "next" && before.ids ? refillQueue(before.ids, news, (id) => this.#belongs(id), REMEMBERED) : news;
      this.isLoaded = true;
      grid.show(ids, { top: before.top ?? 0, focus: before.focus ?? null });
    } catch (error) {
      if (!error.isGone) this.live.fail(error.message);
    } finally {
      if (asked === this.#asked) this.#coming = null;
      this.drawn();
    }
  }

  goBack() {
    return this.open(this.#before.view, this.#before);
  }

  /** Take the server's order anew, and go to its beginning. */
  async renew() {
    if (this.#coming !== null) return; // another view is being opened
    this.#remembered.delete(this.#key());
    this.grid.show(this.grid.ids);
    const { view, ...more } = this.current, asked = this.#asked;
    const fresh = await this.#fetch(this.current).catch(() => null);
    if (fresh === null || asked !== this.#asked) return;
    this.grid.show(fresh);
    this.drawn();
    this.live.say(`${TITLES[view]}: ${plural(fresh.length, "image")}${more.label ? ` suggested as ${more.label}` : ""}, in the newest order.`);
  }

  /** Something changed: take up what is new in the shown list. */
  async follow() {
    const { current } = this, { view, search } = current;
    if (view === "all" && !search && this.isLoaded) return;
    const isQueue = view === "next", belongs = (id) => this.#belongs(id);
    const fresh = await this.#fetch(current, isQueue ? this.#seen().filter(belongs) : []).catch(() => null);
    if (fresh === null || current !== this.current) return;
    const shown = this.grid.ids, news = this.#news(fresh);
    const ids = isQueue ? refillQueue(shown, news, belongs, this.#seen().length) : RANKED.includes(view) ? extendRanked(shown, news, belongs) : news;
    this.isLoaded = true;
    if (ids.length !== this.grid.ids.length || ids.some((id, n) => id !== this.grid.ids[n])) this.grid.change(ids);
    this.drawn();
  }

  /** Images were acted on: those that belong here no more leave; the focus goes on. */
  leave(ids) {
    const { grid } = this, wasSelected = grid.selection.selected.has(ids[0]), last = grid.selection.placeOf(ids.at(-1));
    const staying = grid.ids.filter((id) => this.#belongs(id));
    if (staying.length < grid.ids.length) {
      grid.ids.forEach((id, place) => !this.#belongs(id) && this.#places.set(id, place));
      grid.change(staying);
    }
    if (staying.length === 0) this.isLoaded = false; // the server knows what comes next, and is asked after its answer
    if (wasSelected) grid.clearSelection();
    const isThere = ids.includes(grid.selection.focus);
    if (isThere && last >= 0 && last + 1 < grid.ids.length) grid.go(grid.ids[last + 1]);
    this.drawn();
  }

  /** Whether one of these images is shown and does not belong here any more, since another window has changed it. */
  hasStrays(ids) {
    return ids.some((id) => !this.#belongs(id) && this.grid.selection.placeOf(id) >= 0);
  }

  /** Images that left belong here after all. */
  comeBack(ids) {
    const back = ids.filter((id) => this.#places.has(id) && this.#belongs(id));
    if (back.length > 0) {
      this.isLoaded = true;
      this.grid.change(putBack(this.grid.ids, back, this.#places));
    }
    this.drawn();
    return back;
  }

  /** Images whose last action was undone: show them again, and put the focus on them. */
  returned(ids) {
    const { grid } = this, before = grid.ids.length;
    this.comeBack(ids);
    if (grid.ids.some((id) => !this.#belongs(id))) grid.change(grid.ids.filter((id) => this.#belongs(id)));
    const first = grid.ids.find((id) => ids.includes(id));
    if (first !== undefined && grid.ids.length >= before) grid.go(first);
    this.drawn();
  }

  /** The images in view that have the suggestion of this group. */
  confirmable() {
    const { view, label } = this.current;
    return view === "suggested" ? this.grid.lookedAt().filter((id) => isOpen(this.records.get(id)) && this.records.get(id)?.suggestion === label) : [];
  }

  /** Draw what stands around the grid. `act`: {focusClasses()}. */
  draw(state, act) {
    this.#drawNav(state);
    this.#drawGroups(state);
    this.#drawToolbar();
    const isEmpty = this.isLoaded && this.grid.ids.length === 0;
    byId("grid-area").classList.toggle("away", isEmpty);
    byId("empty").hidden = !isEmpty;
    if (isEmpty) this.#drawEmpty(state, act);
  }

  #drawNav(state) {
    const { counts, classes, num_images: all } = state, shown = this.#coming ?? this.current.view;
    const open = all - counts.labeled - counts.unsure - counts.skipped - counts.failed;
    const numbers = {
      next: open, suggested: classes.reduce((sum, one) => sum + one.suggested, 0), all, labeled: counts.labeled, unsure: counts.unsure,
      skipped: counts.skipped, ...(shown === "similar" ? { similar: this.current.view === "similar" ? this.grid.ids.length : 0 } : {}), ...(counts.failed > 0 ? { errors: counts.failed } : {}),
    };
    for (const [view, number] of Object.entries(numbers)) {
      let button = byId(`view-${view}`);
      if (!button) {
        button = el("button", { type: "button", id: `view-${view}`, on: { click: () => this.open(view, this.#start(view)) } },
          el("span", { text: TITLES[view] }), el("span", { class: "number" }));
        byId("views").append(button);
      }
      button.lastChild.textContent = number.toLocaleString("en");
      button.setAttribute("aria-current", String(view === shown));
    }
    if (this.#inNav !== shown) byId(`view-${(this.#inNav = shown)}`)?.scrollIntoView({ block: "nearest", inline: "nearest" });
    for (const button of byId("views").children) if (!(button.id.slice(5) in numbers)) button.remove();
    this.state = state;
  }

  /** With what a view opens: suggestions of the class that has most. */
  #start(view) {
    if (view === "similar") return this.current;
    if (view === "all") return { search: byId("search").value.trim() };
    return view === "suggested" ? { label: this.#largestGroup() } : {};
  }

  #largestGroup() {
    const most = (this.state?.classes ?? []).toSorted((one, other) => other.suggested - one.suggested)[0];
    return most?.suggested > 0 ? most.name : null;
  }

  #drawGroups({ classes }) {
    const { view, label } = this.current, isSuggested = view === "suggested", has = isSuggested || view === "labeled";
    const shown = !has ? [] : isSuggested ? classes.filter(({ suggested, name }) => suggested > 0 || name === label) : classes.filter(({ count, name }) => count > 0 || name === label);
    byId("groups").hidden = shown.length === 0;
    const chip = (name, text, number) => el("button", {
      type: "button", "aria-pressed": String(label === name), "data-tone": name && this.tones.of(name), title: text,
      on: { click: () => this.open(view, { label: name }) },
    }, name && el("span", { class: isSuggested ? "dot" : "dot full" }), el("span", { text: ` ${text} ` }), el("span", { class: "number", text: number.toLocaleString("en") }));
    const chips = shown.map(({ name, count, suggested }) => [name, name, isSuggested ? suggested : count]);
    if (view === "labeled" && shown.length > 0) chips.unshift([null, "All", classes.reduce((sum, { count }) => sum + count, 0)]);
    const hadFocus = byId("groups").contains(document.activeElement);
    redraw("groups", chips.map((one) => chip(...one)), JSON.stringify([view, label, chips]));
    if (hadFocus && !byId("groups").contains(document.activeElement)) byId("groups").querySelector("[aria-pressed=true]")?.focus();
    if (isSuggested && label === null && this.#largestGroup() !== null && !this.isOpening) {
      this.isOpening = true;
      this.open("suggested", { label: this.#largestGroup() }).finally(() => (this.isOpening = false));
    }
  }

  #drawToolbar() {
    const { view, label, search } = this.current, count = this.confirmable().length;
    const title = label ? (view === "suggested" ? `Suggested as ${label}` : `Labeled ${label}`) : TITLES[view];
    byId("view-title").textContent = title;
    byId("grid").setAttribute("aria-label", `Images: ${title}`);
    byId("view-note").textContent = search ? `${plural(this.grid.ids.length, "image")} with “${search}” in the name` : NOTES[view];
    byId("search").hidden = view !== "all";
    byId("refresh").hidden = !["next", "suggested"].includes(view) || this.grid.ids.length === 0;
    byId("edit-class").hidden = view !== "labeled" || !label;
    byId("confirm").hidden = view !== "suggested" || count === 0;
    redraw("confirm", [`Confirm ${count} as ${label}`, el("kbd", { text: "C" })], `${count} ${label}`);
  }

  #drawEmpty(state, act) {
    const { view, label } = this.current, other = view === "suggested" ? this.#largestGroup() : null;
    const told = EMPTY[view]({ state, label, search: this.current.search, other: other === label ? null : other });
    const doings = {
      next: ["Show the next images", () => this.open("next")], group: [`Show ${other}`, () => this.open("suggested", { label: other })],
      suggested: ["Show the suggestions", () => this.open("suggested", this.#start("suggested"))], classes: ["Type a class", act.focusClasses],
      model: ["Make a model", act.openModel],
    };
    const [text, run] = doings[told.act] ?? [];
    redraw("empty", [el("h3", { text: told.title }), el("p", { text: told.text }),
      ...(text ? [el("button", { type: "button", class: "primary", on: { click: run } }, text)] : [])], JSON.stringify([view, label, told]));
  }

  #belongs(id) {
    return BELONGS[this.current.view](this.records.get(id), this.current);
  }

  /** Of a list of the server, the images that belong here. It may be older than what is known of those that were just acted on. */
  #news(fresh) {
    return fresh.filter((id) => !this.records.isCurrent(id) || this.#belongs(id));
  }

  async #fetch({ view, label, like, search }, kept = []) {
    if (view === "suggested" && label === null) return [];
    const asked = { view, class: label, like: like?.join(","), search, window: this.api.window, kept: kept.join(",") };
    return (await this.api.get("api/list", asked)).ids;
  }

  /** The images from the first one to the last one in view: they stay where they are. */
  #seen() {
    const { grid } = this, last = grid.lookedAt().at(-1);
    return grid.ids.slice(0, last === undefined ? 0 : grid.selection.placeOf(last) + 1);
  }

  #key() {
    const { view, label, like, search } = this.current;
    return JSON.stringify([view, label, like, search]);
  }

  #remember() {
    if (!this.isLoaded) return;
    this.#remembered.set(this.#key(), { ids: this.grid.ids, top: this.grid.top, focus: this.grid.selection.focus });
  }
}
