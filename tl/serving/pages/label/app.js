// The page of `tl label`: brings its parts together. The server's API is in tl/serving/label/routes.py.

import { Actions } from "./actions.js";
import { Api } from "./api.js";
import { Classes } from "./classes.js";
import { aboutRule, decision, describe, fileFacts, redraw } from "./describe.js";
import { byId, el, plural } from "./dom.js";
import { keepFocus } from "./focus.js";
import { Grid } from "./grid.js";
import { Keys, nameOf } from "./keys.js";
import { Latest } from "./latest.js";
import { Live } from "./live.js";
import { ModelDialog } from "./model.js";
import { Records } from "./records.js";
import { drawStatus } from "./status.js";
import { Tones } from "./tones.js";
import { Views } from "./views.js";
import { Zoom } from "./zoom.js";

const FOLLOW_MS = 900, FEW = 12, SEARCH_MS = 250, MAX_LIKE = 20, MAX_INFOS = 300;
const NOT_IN_ZOOM = ["Ctrl+a", "r", "z", "Escape"];

class LabelPage {
  state = null;
  live = new Live(document.querySelector(".work"));
  tones = new Tones();
  #revision = 0;
  #timer = null;
  #isFollowing = false;
  #frame = null;
  #infos = new Map();

  constructor() {
    this.api = new Api({
      gone: (sentence) => this.live.banner(sentence),
      back: () => this.#back(),
      revision: (number) => number > this.#revision && this.#followSoon(),
      unsaved: (count) => this.live.unsaved(count),
    });
    this.reading = new Latest(() => this.api.get("api/state", { window: this.api.window }), (state) => this.#show(state));
    this.records = new Records((ids) => this.api.send("api/records", { ids }), (ids) => this.#recordsChanged(ids));
    this.views = new Views({ api: this.api, records: this.records, live: this.live, tones: this.tones, drawn: () => this.#drawSoon() });
    this.actions = new Actions({ api: this.api, records: this.records, views: this.views, live: this.live, changed: (answer) => this.#answered(answer) });
    this.grid = this.views.grid = new Grid(byId("grid"), this.records, {
      describe: (record) => describe(record, this.tones),
      focus: () => this.#drawSoon(), selection: () => this.#drawSoon(), seen: () => this.#drawSoon(),
      open: (id) => this.zoom.open(id),
    });
    this.zoom = new Zoom({
      neighbor: (id, step) => this.grid.ids[this.grid.selection.placeOf(id) + step] ?? null,
      name: (id) => this.records.get(id)?.name ?? "", facts: (id) => this.#facts(id),
      left: (id) => this.#zoomLeft(id), key: (event) => !NOT_IN_ZOOM.includes(nameOf(event)) && this.keys.handle(event),
    });
    this.classes = new Classes(this.tones, {
      label: (name) => this.label(name), add: (name) => this.#changeClass({ do: "add", name }, `Class ${name} added.`),
      rename: (name, renamed) => this.#changeClass({ do: "rename", name, new_name: renamed }, `Class ${name} is now ${renamed}.`),
      merge: (name, into, images) => this.#changeClass({ do: "merge", name, new_name: into }, `${images} of ${name} labeled ${into}.`),
      remove: (name) => this.#changeClass({ do: "remove", name }, `Class ${name} removed.`),
      show: (label) => this.views.open("labeled", { label }), leave: () => this.grid.focus(), count: () => this.targets().length,
    });
    this.model = new ModelDialog(this.api, this.live);
    this.keys = new Keys({ typesCapitals: true });
    this.#bindKeys();
    this.#listen();
    keepFocus(() => this.#focusImages());
  }

  async start() {
    await this.api.named;
    try {
      await this.reading.now();
    } catch (error) {
      this.live.banner(error.message);
      if (!error.isGone) return;
    }
    this.api.follow();
    if (!this.state) return;
    this.#begin();
    if (this.api.wasReloaded) this.live.say("The server is back. It was started anew, and this page was loaded again.");
  }

  #begin() {
    this.views.open("next");
    if (this.state.classes.length === 0 && matchMedia("(hover: hover)").matches) byId("class-box").focus();
    else this.grid.focus();
  }

  /** Focus the images, or where there are none, what to do about it. */
  #focusImages() {
    if (byId("empty").hidden) this.grid.focus();
    else (byId("empty").querySelector("button") ?? byId(`view-${this.views.current.view}`)).focus();
  }

  /** What an action goes to: the large image, the selected ones, or the one with the focus. */
  targets() {
    return this.zoom.isOpen ? [this.zoom.id] : this.grid.targets();
  }

  label(name) {
    const ids = this.targets();
    if (ids.length === 0) return this.live.say("There is no image to label here.");
    this.#act(() => this.actions.label(ids, name));
  }

  #mark(what) {
    const ids = this.targets();
    if (ids.length > 0) this.#act(() => this.actions.mark(ids, what));
  }

  /** Confirm what is selected, the large image, or in a group of suggestions all that is seen. */
  #confirm() {
    const isGroup = this.views.current.view === "suggested" && !this.zoom.isOpen && this.grid.selection.selected.size === 0;
    const ids = isGroup ? this.views.confirmable() : this.targets();
    const isSuggested = ({ label, suggestion }) => label === null && suggestion !== null;
    if (!ids.some((id) => this.records.get(id) && isSuggested(this.records.get(id)))) return this.live.say("There is no suggestion to confirm here.");
    this.#act(() => this.actions.confirm(ids));
  }

  /** Act; in the large view, go on to the image that took the place. */
  #act(run) {
    const { zoom, grid } = this, place = grid.selection.placeOf(zoom.id), was = zoom.id;
    run();
    if (!zoom.isOpen || this.api.isGone) return;
    if (grid.ids.length === 0) return zoom.close();
    if (place < 0) return zoom.open(grid.selection.focus); // it had left the list before, by an action in another window
    const stays = grid.selection.placeOf(was) >= 0;
    zoom.open(grid.ids[Math.min(stays ? place + 1 : place, grid.ids.length - 1)]);
  }

  #similar() {
    const like = this.targets().slice(0, MAX_LIKE);
    if (like.length === 0) return;
    if (this.zoom.isOpen) this.zoom.close();
    this.views.open("similar", { like });
    this.live.say(`Images most like ${like.length === 1 ? this.records.get(like[0])?.name.split("/").at(-1) ?? "it" : plural(like.length, "image")}.`);
  }

  #note() {
    const id = this.zoom.isOpen ? this.zoom.id : this.grid.selection.focus;
    const record = this.records.get(id);
    if (!record) return;
    this.noted = id;
    byId("note-title").textContent = `Note on ${record.name.split("/").at(-1)}`;
    byId("note-text").value = record.note ?? "";
    byId("note-dialog").showModal();
  }

  #openBox(letter = "") {
    if (this.zoom.isOpen) this.zoom.close();
    this.classes.open(letter);
  }

  async #changeClass(body, said) {
    try {
      await this.#answered(await this.api.post("api/classes", body)); // what is said is seen in the list of classes too
      this.live.say(said, body.do === "merge" ? { action: ["Undo", () => this.actions.undo(), "U"] } : {});
      this.records.expire();
      const { view, label } = this.views.current;
      if (body.do !== "add" && label === body.name) this.views.open(view, { label: body.new_name ?? null });
      await this.#follow();
    } catch (error) {
      this.live.fail(`The class was not changed: ${error.message}`);
    }
  }

  /** An action was answered: classes and counts follow at once. Returns when they are shown. */
  #answered({ revision }) {
    this.#revision = Math.max(this.#revision, revision ?? 0);
    this.#followSoon(this.grid.ids.length < FEW ? 0 : FOLLOW_MS);
    return this.reading.now().catch(() => {});
  }

  #followSoon(milliseconds = FOLLOW_MS) {
    if (milliseconds === 0) clearTimeout(this.#timer), (this.#timer = null);
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      this.#follow();
    }, milliseconds);
  }

  /** Take up what changed: state, records that are seen, and the shown list. */
  async #follow() {
    if (this.#isFollowing) return this.#followSoon();
    this.#isFollowing = true;
    try {
      const before = this.state;
      await this.reading.now();
      this.records.expire();
      const { view, label } = this.views.current;
      if (before === null) this.#begin();
      else if (label && !this.classes.names.includes(label)) await this.views.open(view); // renamed or merged in another window
      else await this.views.follow();
      this.grid.draw();
    } catch (error) {
      if (!error.isGone) this.live.fail(error.message);
    } finally {
      this.#isFollowing = false;
    }
  }

  #show(state) {
    this.#revision = Math.max(this.#revision, state.revision);
    const tones = JSON.stringify(state.classes.map(({ name }) => name));
    const isRecolored = this.state && tones !== JSON.stringify(this.state.classes.map(({ name }) => name));
    this.model.follow(this.state?.model, state);
    this.state = state;
    this.classes.update(state.classes);
    if (isRecolored) this.grid.refresh();
    drawStatus(state);
    this.live.banner(state.output_error ?? null, false);
    this.#drawSoon();
  }

  #back() {
    this.live.banner(null);
    this.live.say("The server is back.");
    this.grid.retryImages();
    this.#follow();
  }

  #recordsChanged(ids) {
    this.grid.refresh(ids);
    if (this.zoom.isOpen && ids.includes(this.zoom.id)) this.zoom.refresh();
    if (this.views.hasStrays(ids)) this.#followSoon();
    this.#drawSoon();
  }

  #drawSoon() {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      if (!this.state) return;
      this.views.draw(this.state, { focusClasses: () => byId("class-box").focus(), openModel: () => this.model.open() });
      this.#drawFocused();
    });
  }

  #drawFocused() {
    const { focus, selected } = this.grid.selection, record = this.records.get(focus), count = selected.size;
    byId("chosen").textContent = count > 0 ? `${plural(count, "image")} selected` : focus === null ? "" : "Image with the focus";
    byId("focused-name").textContent = record?.name ?? "";
    redraw("focused-facts", record ? decision(record, this.tones) : [], JSON.stringify(record ?? null));
    for (const button of document.querySelectorAll(".actions [data-do]:not(#undo, #redo)")) button.disabled = focus === null;
  }

  /** For the large view: the decision, and facts of the file as soon as they are there. */
  #facts(id) {
    const record = this.records.get(id), info = this.#infos.get(id);
    if (!info) this.#readInfo(id);
    const buttons = el("div", { class: "class-buttons", role: "group", "aria-label": "Label" }, ...this.state.classes.map(({ name, key }) =>
      el("button", { type: "button", "data-tone": this.tones.of(name), on: { click: () => this.label(name) } },
        key && el("kbd", { text: key }), el("span", { class: "dot full" }), el("span", { class: "name", text: name }))));
    return [...(record ? decision(record, this.tones) : []), buttons, ...(info ? fileFacts(info, this.tones) : [])];
  }

  async #readInfo(id) {
    try {
      const info = await this.api.get(`api/image/${id}/info`);
      if (this.#infos.size > MAX_INFOS) this.#infos.clear();
      this.#infos.set(id, info);
      if (this.zoom.id === id) this.zoom.refresh();
    } catch (error) {
      if (!error.isGone && error.status !== 422) this.live.fail(error.message);
    }
  }

  #zoomLeft(id) {
    this.#infos.clear(); // the most similar labeled images change with each label
    if (this.grid.selection.placeOf(id) >= 0) this.grid.go(id);
    if (document.activeElement !== byId("class-box")) this.grid.focus();
  }

  #bindKeys() {
    const { keys } = this, digits = [..."123456789"];
    keys.add("Label", digits, "Label with the class of this number", (event, key) => {
      if (!this.state) return; // the page is still being loaded
      const found = this.state.classes.find((one) => one.key === key);
      if (found) this.label(found.name);
      else this.live.say(`No class has the number ${key}. Press / and type a name.`);
    }, "1 – 9");
    keys.add("Label", ["/"], "Label with a typed class; other letters open the box too", () => this.#openBox());
    keys.add("Label", ["c"], "Confirm the suggestion; in Suggested, of all images in view", () => this.#confirm(), "C");
    keys.add("Label", ["x"], "Not sure", () => this.#mark("unsure"), "X");
    keys.add("Label", ["s"], "Skip", () => this.#mark("skip"), "S");
    keys.add("Label", ["Delete", "Backspace"], "Clear the label", () => this.#mark("clear"), "Delete");
    keys.add("Label", ["n"], "Write a note", () => this.#note(), "N");
    keys.add("Label", ["u", "Ctrl+z"], "Undo", () => this.actions.undo(), "U or Ctrl + Z");
    keys.add("Label", ["Ctrl+Shift+z", "Ctrl+y"], "Redo", () => this.actions.redo(), "Ctrl + Shift + Z");
    keys.describe("Select", "← ↑ ↓ →", "Move the focus; with Shift, select");
    keys.describe("Select", "Space", "Select or deselect the image with the focus");
    keys.add("Select", ["Ctrl+a"], "Select all of the view", () => this.grid.selectAll(), "Ctrl + A");
    keys.add("Select", ["Escape"], "Select none; from similar images, back", () => this.#escape(), "Esc");
    keys.describe("Select", "Home End", "To the first or last image");
    keys.add("Look", ["z"], "Large view", () => this.grid.selection.focus !== null && this.zoom.open(this.grid.selection.focus), "Z or Enter");
    keys.describe("Look", ["+", "−", "0"], "In the large view: larger, smaller, whole; arrows move or go on");
    keys.add("Look", ["f"], "Find more like the chosen images", () => this.#similar(), "F");
    keys.add("Look", ["r"], "Take the newest order of Next and Suggested", () => !byId("refresh").hidden && this.views.renew(), "R");
    keys.add("Look", ["?"], "This list", () => keys.help.open());
    keys.help.more = () => (this.state ? [aboutRule(this.state.rule)] : []);
    keys.otherwise = (event) => this.#otherKey(event);
  }

  /** Select none; from similar images, back to the view before them. */
  #escape() {
    this.live.hide();
    if (this.grid.selection.selected.size > 0) this.grid.clearSelection();
    else if (this.views.current.view === "similar") this.views.goBack();
  }

  #otherKey(event) {
    const { target, key } = event;
    if (target.closest?.("input, textarea, select")) return;
    if ((target === byId("grid") || target === document.body) && !event.ctrlKey && !event.metaKey && this.grid.key(event)) return;
    if (/^\p{L}$/u.test(key) && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      this.#openBox(key);
    }
  }

  #listen() {
    const click = (id, heard) => byId(id).addEventListener("click", heard);
    const doings = {
      unsure: () => this.#mark("unsure"), skip: () => this.#mark("skip"), clear: () => this.#mark("clear"), note: () => this.#note(),
      similar: () => this.#similar(), zoom: () => this.zoom.open(this.grid.selection.focus), undo: () => this.actions.undo(), redo: () => this.actions.redo(),
    };
    document.querySelector(".actions").addEventListener("click", (event) => doings[event.target.closest("[data-do]")?.dataset.do]?.());
    click("confirm", () => this.#confirm());
    click("refresh", () => this.views.renew());
    click("help", () => this.keys.help.open());
    click("make-model", () => this.model.open());
    click("edit-class", () => this.classes.edit(this.views.current.label));
    // After a click, keys go to the grid again; who uses the keyboard stays where he is.
    document.addEventListener("click", (event) => {
      if (event.detail > 0 && event.target.closest(".nav button, .side button, .toolbar button, .groups button") && !document.querySelector("dialog[open]")) this.grid.focus();
    });
    this.#listenToForms();
  }

  #listenToForms() {
    const dialog = byId("note-dialog"), size = byId("size");
    const save = () => (dialog.close(), this.actions.note(this.noted, byId("note-text").value.trim()));
    byId("note-form").addEventListener("submit", (event) => (event.preventDefault(), save()));
    byId("note-text").addEventListener("keydown", (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && (event.preventDefault(), save()));
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    size.value = localStorage.getItem("tl-label-size") ?? (innerWidth < 600 ? 110 : 160);
    this.grid.setSize(Number(size.value));
    size.addEventListener("input", () => {
      localStorage.setItem("tl-label-size", size.value);
      this.grid.setSize(Number(size.value));
    });
    let timer = null;
    byId("search").addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.views.open("all", { search: byId("search").value.trim() }), SEARCH_MS);
    });
  }
}

new LabelPage().start();
