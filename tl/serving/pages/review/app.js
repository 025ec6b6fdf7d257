// The page of a review: kinds of problems at the left, cards in the middle, classes at the right.

import { Api } from "./api.js";
import { changesView, numChanges } from "./changes.js";
import { Classes } from "./classes.js";
import { Decisions } from "./decisions.js";
import { byId, el, plural } from "./dom.js";
import { keepFocus } from "./focus.js";
import { Keys } from "./keys.js";
import { Latest } from "./latest.js";
import { ProblemList } from "./list.js";
import { Live } from "./live.js";
import { overview } from "./overview.js";
import { Records } from "./records.js";
import { splitName } from "./words.js";
import { Zoom } from "./zoom.js";

const ALL = "";

class Page {
  view = "overview";
  kind = ALL;
  status = "open";
  state = null;
  #asked = 0;
  #inNav = null; // the kind whose button was scrolled to
  #isRefreshing = false;
  #isStale = false;
  #zoomed = null; // the image of the card that the large view belongs to

  constructor() {
    this.live = new Live(document.querySelector(".work"));
    this.api = new Api({
      gone: (sentence) => this.live.banner(sentence),
      back: () => (this.live.banner(null), this.records.expire(), this.refresh()),
      revision: (revision) => revision !== this.state?.revision && this.refresh(),
      unsaved: (count) => this.live.unsaved(count),
    });
    this.reading = new Latest(() => this.api.get("api/state", { window: this.api.window }), (state) => (this.state = state));
    this.records = new Records((ids) => this.api.send("api/records", { ids }), () => (this.list.draw(), this.zoom.refresh()));
    this.list = new ProblemList(this.records, {
      act: (what, ids, options) => this.act(what, ids, options),
      zoom: (owner, id) => this.openZoom(owner, id),
      select: (id, isExtending) => this.list.select(id, isExtending),
      focus: (id) => this.list.noticeFocus(id),
      selected: () => this.#drawSelection(),
    });
    this.classes = new Classes(byId("side"), { choose: (label) => (this.act("relabel", this.#targets(), { label }), this.list.focus()), leave: () => this.list.focus() });
    this.zoom = new Zoom({
      neighbor: (id, step) => this.#zoomOrder()[this.#zoomOrder().indexOf(id) + step] ?? null,
      name: (id) => this.#brief(id)?.name ?? "",
      facts: (id) => this.#facts(id),
      // The dialog says that it was closed a moment later, when the box of classes may already have the focus.
      left: () => this.view === "problems" && document.activeElement !== this.classes.box && this.list.focus(),
      key: (event) => this.#zoomKey(event),
    });
    this.decisions = new Decisions({
      api: this.api, records: this.records, list: this.list, live: this.live, status: () => this.status, drawn: () => this.#drawEmpty(),
      isShown: (id) => this.zoom.isOpen && id === this.#zoomed, goOn: () => this.#zoomOn(),
      refresh: () => this.refresh(), undone: (records) => this.#showUndone(records),
    });
    this.keys = this.#makeKeys();
    this.#listen();
    keepFocus(() => this.#focusView());
  }

  async start() {
    await this.api.named;
    await this.reading.now();
    if (this.api.wasReloaded) this.live.say("The server is back. It was started anew, and this page was loaded again.");
    this.open(this.state.decided > 0 && this.state.kinds.some(({ open }) => open > 0) ? "problems" : "overview", this.#firstOpen());
    this.api.follow();
  }

  #firstOpen() {
    return this.state.kinds.find(({ open }) => open > 0)?.kind ?? ALL;
  }

  /** Show a view, and of problems those of a kind. */
  async open(view, kind = this.kind, { status = "open", focus = null } = {}) {
    const asked = ++this.#asked;
    try {
      const found = view === "problems" ? await this.#fetchIds(kind, status) : view === "changes" ? await this.api.get("api/changes") : {};
      if (asked === this.#asked) this.#show({ view, kind, status }, found, focus); // only now, so that title and list agree
    } catch (error) {
      if (!error.isGone) this.live.fail(error.message);
    }
  }

  #show({ view, kind, status }, { ids, changes, revision = this.state.revision }, focus) {
    Object.assign(this, { view, kind, status });
    for (const name of ["overview", "changes", "problems"]) byId(name).hidden = name !== view;
    document.body.dataset.view = view;
    byId("changes-button").setAttribute("aria-pressed", String(view === "changes"));
    this.#drawState();
    if (view === "problems") {
      this.list.show(this.#undecided(ids), { focus });
      this.#drawEmpty();
    } else {
      if (view === "changes") this.#drawChanges(changes);
      byId(view).scrollTop = 0;
      byId(view).focus();
    }
    if (revision !== this.state.revision) this.refresh();
  }

  /** Focus the main part of the view. */
  #focusView() {
    if (this.view !== "problems") byId(this.view).focus();
    else if (this.list.ids.length > 0) this.list.focus();
    else (byId("empty").querySelector("button") ?? document.querySelector("#kinds [aria-current=true]")).focus();
  }

  /** Something has changed, here or in another window: fetch state and list anew, and draw what differs. */
  async refresh() {
    this.#isStale = true;
    if (this.#isRefreshing || this.decisions.isSending) return; // when all is sent, it is called again
    this.#isRefreshing = true;
    try {
      while (this.#isStale) {
        this.#isStale = false;
        await this.reading.now();
        this.#drawState();
        const { view, kind, status } = this, isSame = () => this.view === view && this.kind === kind && this.status === status;
        if (view === "problems") {
          this.records.expire();
          const { ids } = await this.#fetchIds(kind, status);
          if (isSame()) this.list.change(this.#undecided(ids)), this.#drawEmpty();
        } else if (view === "changes") {
          const { changes } = await this.api.get("api/changes");
          if (isSame()) this.#drawChanges(changes);
        }
      }
    } catch (error) {
      if (!error.isGone) this.live.fail(error.message);
    } finally {
      this.#isRefreshing = false;
    }
  }

  #fetchIds(kind, status) {
    return this.api.get("api/list", { kind, status });
  }

  /** Without those whose decision is on its way. */
  #undecided(ids) {
    return this.status === "open" ? ids.filter((id) => !this.decisions.pending.has(id)) : ids;
  }

  /** Decide about images of the list. */
  act(what, ids, options = {}) {
    if (this.view === "problems") this.decisions.act(what, ids, options).catch((error) => this.live.fail(error.message));
  }

  /** Show the images that an undo brought back. */
  async #showUndone(records) {
    await this.reading.now();
    this.#drawState();
    if (this.view !== "problems") return;
    const { kind, status } = this, found = await this.#fetchIds(kind, status);
    if (this.view !== "problems" || this.kind !== kind || this.status !== status) return;
    const ids = this.#undecided(found.ids);
    this.list.change(ids, { focus: records.find(({ id }) => ids.includes(id))?.id ?? null });
    this.#drawEmpty();
    this.list.focus();
  }

  // Large view: the image of a card, and those that are shown with it

  openZoom(owner, id = owner) {
    this.#zoomed = owner;
    this.zoom.open(id);
  }

  #zoomOn() {
    if (this.list.focused === null) this.zoom.close();
    else this.records.all([this.list.focused]).then(() => this.openZoom(this.list.focused));
  }

  #zoomOrder() {
    const record = this.records.get(this.#zoomed);
    return record ? [...new Set([record.id, record.twin?.id, ...record.neighbors.map(({ id }) => id)].filter((id) => id !== undefined))] : [this.zoom.id];
  }

  #brief(id) {
    const record = this.records.get(this.#zoomed);
    return [record, record?.twin, ...(record?.neighbors ?? [])].find((one) => one?.id === id) ?? this.records.get(id);
  }

  #facts(id) {
    const one = this.#brief(id), record = id === this.#zoomed ? this.records.get(id) : null;
    if (!one) return [];
    const rows = [["Label", one.now ?? "removed"], ["Split", splitName[one.split] ?? one.split], ["Group", one.group], ["Suggested", record?.suggested ?? ""]].filter(([, text]) => text);
    return [el("p", { class: "role", text: record ? "The image in question" : "For comparison" }),
      el("dl", { class: "facts" }, ...rows.flatMap(([name, text]) => [el("dt", { text: name }), el("dd", { text })])),
      ...(record?.reasons.map((text) => el("p", { text })) ?? []),
      el("p", { class: "soft" }, el("kbd", { text: "←" }), " ", el("kbd", { text: "→" }), ` compare with similar images.${this.view === "problems" ? " The keys that decide work here too." : ""}`)];
  }

  // Drawing

  #drawState() {
    const { state } = this;
    document.title = state.total > state.decided ? `(${state.total - state.decided}) Review labels` : "Review labels";
    byId("about").textContent = `${state.data} → ${state.output}`;
    byId("about").title = byId("about").textContent;
    byId("count").textContent = `${state.decided.toLocaleString("en")} of ${state.total.toLocaleString("en")} decided`;
    byId("progress").max = Math.max(1, state.total);
    byId("progress").value = state.decided;
    byId("undo").disabled = !state.can_undo;
    byId("num-changes").textContent = numChanges(state.counts).toLocaleString("en");
    byId("fault").hidden = state.fault === "";
    byId("fault").textContent = state.fault && `The output cannot be written: ${state.fault}. Your decisions are kept; mend this and go on.`;
    this.list.names = Object.fromEntries(state.kinds.filter(({ kind }) => kind !== this.kind).map(({ kind, name }) => [kind, name]));
    this.#drawKinds();
    this.#drawSelection();
    if (this.view === "overview") byId("overview").replaceChildren(...overview(state, (kind) => this.open("problems", kind)));
    const kind = state.kinds.find((one) => one.kind === this.kind);
    byId("kind-name").textContent = kind?.name ?? "All problems";
    byId("kind-meaning").textContent = kind?.meaning ?? "The most doubtful images of each kind first.";
    byId("kind-source").textContent = kind ? `${kind.meaning} ${kind.source}` : "";
    byId("source-button").hidden = !kind;
    byId("show-open").setAttribute("aria-pressed", String(this.status === "open"));
    byId("show-decided").setAttribute("aria-pressed", String(this.status === "decided"));
  }

  #drawKinds() {
    const { state } = this, focused = document.activeElement?.closest("#kinds button")?.dataset.kind;
    const item = (view, kind, name, count, total) => el("button", {
      type: "button", "data-kind": `${view} ${kind}`, "aria-current": String(this.view === view && (view === "overview" || this.kind === kind)),
      on: { click: () => this.open(view, kind) },
    }, el("span", { text: name }), total === null ? null : el("span", { class: "number", "aria-label": `${count} to decide`, text: count === 0 && total > 0 ? "✓" : count.toLocaleString("en") }));
    byId("kinds").replaceChildren(item("overview", ALL, "Overview", 0, null),
      item("problems", ALL, "All problems", state.total - state.decided, state.total),
      ...state.kinds.map((kind) => item("problems", kind.kind, kind.name, kind.open, kind.total)));
    const now = `${this.view} ${this.kind}`, current = byId("kinds").querySelector("[aria-current=true]");
    if (this.#inNav !== now) current?.scrollIntoView({ block: "nearest", inline: "nearest" });
    this.#inNav = now;
    if (focused) [...byId("kinds").children].find((one) => one.dataset.kind === focused)?.focus();
  }

  #drawSelection() {
    if (!this.state) return;
    const count = this.list.selection.selected.size, isWorking = this.view === "problems" && this.list.ids.length > 0;
    const button = (text, key, act) => el("button", { type: "button", on: { click: act } }, text, el("kbd", { "aria-hidden": "true", text: key }));
    byId("selected").hidden = count === 0;
    if (count > 0) {
      byId("selected").replaceChildren(el("strong", { text: `${plural(count, "image")} selected` }),
        button("Accept suggestions", "↵", () => this.act("accept", this.#targets())), button("Keep", "K", () => this.act("keep", this.#targets())),
        this.kind === "duplicate" ? button("Remove as duplicates", "M", () => this.act("duplicate", this.#targets())) : button("Remove", "D", () => this.act("drop", this.#targets())),
        button("Clear", "Esc", () => this.list.clearSelection()));
    }
    byId("side").hidden = !isWorking;
    this.classes.show(this.state.classes, count > 0 ? `For the ${count === 1 ? "selected image" : plural(count, "selected image")}.` : "For the framed image. Press / to type.");
  }

  #drawEmpty() {
    const isEmpty = this.list.ids.length === 0, next = this.#firstOpen();
    byId("empty").hidden = !isEmpty;
    byId("side").hidden = isEmpty;
    if (!isEmpty) return;
    const isDone = this.state.decided >= this.state.total, name = this.state.kinds.find(({ kind }) => kind === next)?.name;
    const isOpen = this.status === "open";
    byId("empty").replaceChildren(
      el("h3", { text: !isOpen ? "Nothing is decided here yet" : isDone ? "All are decided" : "All of this kind are decided" }),
      el("p", { text: isDone ? `${this.state.output} has the data with your decisions.` : isOpen ? "What you decided can still be changed: see Decided." : "Decisions on images of this kind appear here." }),
      isOpen && isDone ? el("button", { type: "button", class: "primary", on: { click: () => this.open("changes") } }, "Read the changes")
        : isOpen && name ? el("button", { type: "button", class: "primary", on: { click: () => this.open("problems", next) } }, `Go on with: ${name}`) : "");
  }

  #drawChanges(changes) {
    byId("changes").replaceChildren(...changesView(changes, this.state, (id) => this.records.all([id]).then(() => this.openZoom(id))));
  }

  // Keys and buttons

  #targets() {
    return this.zoom.isOpen ? [this.#zoomed] : this.list.targets();
  }

  #makeKeys() {
    const keys = new Keys({ blocked: () => this.zoom.isOpen });
    const add = (names, title, what, shown) => keys.add("Decide", names, title, () => this.act(what, this.#targets()), shown);
    keys.describe("Decide", "Enter", "take the suggested label");
    add(["k"], "keep: the label is right", "keep", "K");
    keys.add("Decide", Array.from("123456789"), "label with the class of this number", (_, key) => this.#relabel(this.classes.ofKey(key)), "1 – 9");
    keys.add("Decide", ["/"], "type another class", () => this.view === "problems" && this.#openBox(), "/");
    add(["d", "Delete"], "remove this image from the data; the file stays", "drop", "D");
    keys.add("Decide", ["m"], "remove this image as a duplicate of the other", (event) => this.act(event.shiftKey ? "other" : "duplicate", this.#targets()), "M");
    keys.describe("Decide", "Shift + M", "remove the other image of the pair");
    add(["g"], "same specimen: keep both, in one group", "group", "G");
    add(["n"], "write a note", "note", "N");
    keys.add("Decide", ["u", "Ctrl+z"], "undo", () => this.decisions.turn("undo"), "U or Ctrl + Z");
    keys.add("Decide", ["Ctrl+Shift+z", "Ctrl+y"], "do it again", () => this.decisions.turn("redo"), "Ctrl + Shift + Z");
    keys.describe("Move and select", "↑ – ↓", "previous and next image");
    keys.describe("Move and select", "Space", "select or leave out");
    keys.describe("Move and select", "Shift + ↓", "select several");
    keys.add("Move and select", ["Ctrl+a"], "select all of the list", () => this.view === "problems" && this.list.selectAll(), "Ctrl + A");
    keys.add("Move and select", ["Escape"], "clear the selection", () => this.list.clearSelection(), "Esc");
    keys.add("Look", ["z"], "enlarge; ← and → compare with similar images", () => this.view === "problems" && this.list.focused !== null && this.openZoom(this.list.focused), "Z");
    keys.add("Look", ["c"], "read the changes", () => this.open(this.view === "changes" ? "problems" : "changes"), "C");
    keys.add("Look", ["?"], "these keys", () => keys.help.open(), "?");
    keys.otherwise = (event) => this.#moreKeys(event);
    return keys;
  }

  #zoomKey(event) {
    if (event.target.closest("button")) return ![" ", "Enter"].includes(event.key) && this.keys.handle(event);
    if (event.key === "Enter") return !event.repeat && this.act("accept", this.#targets()), true;
    return this.keys.handle(event);
  }

  /** Keys that buttons and boxes also use. */
  #moreKeys(event) {
    if (this.view !== "problems" || event.isComposing || event.target.closest("button, a, input, select, textarea, summary")) return;
    if (event.key === "Enter") !event.repeat && this.act("accept", this.#targets());
    else return void this.list.key(event);
    event.preventDefault();
  }

  #relabel(label) {
    if (label !== undefined) this.act("relabel", this.#targets(), { label });
  }

  #openBox() {
    if (this.zoom.isOpen) this.zoom.close();
    this.classes.open();
  }

  #listen() {
    const click = (id, heard) => byId(id).addEventListener("click", heard);
    click("undo", () => this.decisions.turn("undo"));
    click("help", () => this.keys.help.open());
    click("changes-button", () => this.open(this.view === "changes" ? (this.state.decided > 0 ? "problems" : "overview") : "changes"));
    click("show-open", () => this.open("problems", this.kind));
    click("show-decided", () => this.open("problems", this.kind, { status: "decided" }));
    click("source-button", () => {
      const isShown = byId("kind-source").hidden;
      byId("kind-source").hidden = !isShown;
      byId("source-button").setAttribute("aria-expanded", String(isShown));
    });
  }
}

const page = new Page();
page.start().catch((error) => page.live.fail(`The page cannot start: ${error.message}`));
