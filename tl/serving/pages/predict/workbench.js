// The page: collects images, asks a source of predictions, shows the results. The source is a server (server.js) or a
// model in the browser (local.js); both have open() and predict().

import { FAILED, groupsOf } from "./answers.js";
import { card, Detail } from "./cards.js";
import { toCsv } from "./columns.js";
import { byId, el, plural } from "./dom.js";
import { fromDrop, fromList } from "./files.js";
import { drawMeanings } from "./meanings.js";
import { inGroups, runGroups } from "./queue.js";
import { Table } from "./table.js";

const CARDS_AT_ONCE = 60, MAX_FILTERS = 14, REDRAW_MS = 250, ANNOUNCE_MS = 4000, NAMES = 8;
const TASKS = {
  classification: "Classification", multilabel: "Several labels", regression: "Numbers", landmarks: "Landmarks",
};

class Workbench {
  #entries = [];
  #filter = null;
  #shown = CARDS_AT_ONCE;
  #asTable = false;
  #abort = null;
  #timer = null;
  #announced = 0;
  #changed = new Set();

  constructor(source) {
    this.source = source;
    this.detail = new Detail((entry, step) => {
      const visible = this.#visible();
      return visible[visible.indexOf(entry) + step];
    });
    this.table = new Table(byId("table"), (entry) => this.detail.show(this.info, entry));
    this.#listen();
  }

  async open() {
    this.#say(this.source.isLocal ? "Loading the model…" : "Asking the server for its models…");
    try {
      this.offer(await this.source.open((text) => this.#say(text)));
    } catch (error) {
      byId("token-form").hidden = !error.needsToken;
      this.#say(error.message, true);
      if (error.needsToken) byId("token").focus();
    }
  }

  /** Show what can be chosen. `offered`: as `GET /info` answers. */
  offer(offered) {
    this.offered = offered;
    byId("token-form").hidden = true;
    byId("model").replaceChildren(...offered.models.map((model) => el("option", { value: model.name, text: model.name })));
    byId("settings").hidden = false;
    byId("choose").disabled = byId("choose-folder").disabled = false;
    byId("foot").textContent = [`tl ${offered.tl_version}`, offered.note].filter(Boolean).join(" · ");
    this.#say("");
    this.#choose();
  }

  #choose() {
    const chosen = byId("model").value;
    this.info = this.offered.models.find((model) => model.name === chosen) ?? this.offered.models[0];
    const { info } = this;
    byId("model-label").hidden = this.offered.models.length < 2;
    byId("title").textContent = info.name;
    document.title = `${info.name} – tl`;
    const names = { landmarks: info.keypoint_names, regression: info.target_names }[info.task] ?? info.class_names;
    const nouns = { landmarks: "point", regression: "number", multilabel: "label" };
    const count = info.task === "classification" ? `${names.length} classes` : plural(names.length, nouns[info.task]);
    const voters = info.ensemble ? `, ${plural(info.member_names.length, "model")} voting` : "";
    const some = names.slice(0, NAMES).join(", ") + (names.length > NAMES ? " …" : "");
    byId("about").textContent = `${TASKS[info.task]}, ${count}${voters}: ${some}`;
    byId("coverage-text").textContent = { classification: "Set of classes", multilabel: "Set of labels" }[info.task] ?? "Interval";
    byId("place").textContent = this.source.isLocal ?
      "Runs in this browser. Photos stay on this device." : `Photos are sent to ${location.host}.`;
    byId("coverage-label").hidden = !info.supports_coverage;
    byId("explain-label").hidden = !info.has_explanation;
    byId("reject-label").hidden = !info.supports_reject;
    byId("open-model").hidden = !this.source.isLocal;
    drawMeanings(byId("meanings"), info, this.source.isLocal);
  }

  #choice() {
    const { info } = this;
    return {
      model: info.name,
      explain: info.has_explanation && byId("explain").checked,
      coverage: info.supports_coverage ? byId("coverage").value : "",
      reject: Boolean(info.supports_reject) && byId("reject").checked,
    };
  }

  #add({ images, others }) {
    const models = images.filter(({ name }) => /\.onnx$/i.test(name));
    if (models.length > 0 && this.source.isLocal) {
      this.#openModel(models[0].file);
      return;
    }
    if (!this.info) return;
    this.#say(others > 0 ? `${plural(others, "file")} in the folder left out, which by their names are no images.` : "");
    const added = images.map(({ file, name }) => ({
      file, name, url: URL.createObjectURL(file), state: "waiting", result: null,
    }));
    this.#entries.push(...added);
    if (added.length > 0) this.#predict();
  }

  async #openModel(file) {
    this.#abort?.abort();
    this.#clear();
    try {
      this.offer(await this.source.openFile(file, (text) => this.#say(text)));
    } catch (error) {
      this.#say(error.message, true);
    }
  }

  /** Predict all entries that wait. Entries that are added meanwhile are taken by the same run. */
  async #predict() {
    if (this.#abort && !this.#abort.signal.aborted) return this.#redraw();
    const abort = (this.#abort = new AbortController());
    this.started = performance.now();
    this.#redraw();
    try {
      for (;;) {
        const waiting = this.#entries.filter((entry) => entry.state === "waiting");
        if (waiting.length === 0 || abort.signal.aborted) break;
        const groups = inGroups(waiting, this.source.groupSize, this.source.maxBytes);
        await runGroups(groups, this.source.inFlight, (group) => this.#predictGroup(group, abort.signal), abort.signal);
      }
    } finally {
      if (this.#abort === abort) this.#abort = null;
      this.#redraw();
      this.#announce(true);
    }
  }

  async #predictGroup(group, signal) {
    const set = (state, results = []) => group.forEach((entry, n) => {
      if (entry.run !== signal) return; // predicted anew meanwhile, with other settings
      entry.state = state;
      entry.result = results[n] ? { ...results[n], path: entry.name } : null;
      this.#changed.add(entry);
    });
    for (const entry of group) entry.run = signal;
    set("working");
    this.#redrawSoon();
    try {
      set("done", await this.source.predict(group, this.#choice(), signal));
    } catch (error) {
      if (signal.aborted) set("canceled");
      else set("done", group.map(() => ({ error: error.message })));
      if (error.needsToken) {
        this.#abort?.abort();
        byId("token-form").hidden = false;
      }
    }
    this.#redrawSoon();
  }

  /** Predict again, all images or those for which `which` holds. */
  #again(which) {
    this.#abort?.abort();
    this.#abort = null;
    for (const entry of this.#entries.filter(which)) {
      Object.assign(entry, { state: "waiting", result: null, run: null });
    }
    this.#changed = new Set(this.#entries);
    if (this.#entries.length > 0) this.#predict();
  }

  #cancel() {
    this.#abort?.abort();
    for (const entry of this.#entries.filter(({ state }) => state === "waiting")) {
      entry.state = "canceled";
      this.#changed.add(entry);
    }
  }

  #clear() {
    this.#abort?.abort();
    this.#abort = null;
    for (const entry of this.#entries) URL.revokeObjectURL(entry.url);
    this.#entries = [];
    this.#filter = null;
    this.#shown = CARDS_AT_ONCE;
    byId("cards").replaceChildren();
    this.#redraw();
  }

  #visible() {
    if (this.#filter === null) return this.#entries;
    return this.#entries.filter(({ result }) => result && groupsOf(this.info, result).includes(this.#filter));
  }

  #redrawSoon() {
    this.#timer ??= setTimeout(() => this.#redraw(), REDRAW_MS);
  }

  #redraw() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const hasAny = this.#entries.length > 0;
    byId("work").hidden = byId("results").hidden = !hasAny;
    document.body.classList.toggle("busy-page", hasAny);
    if (!hasAny) return;
    this.#drawProgress();
    this.#drawFilters();
    byId("cards").hidden = this.#asTable;
    byId("table").hidden = !this.#asTable;
    if (this.#asTable) this.table.draw(this.info, this.#visible());
    else this.#drawCards();
    for (const entry of this.#changed) this.detail.refresh(entry);
    this.#changed.clear();
  }

  #drawProgress() {
    const all = this.#entries.length, done = this.#entries.filter((entry) => entry.result).length;
    const failed = this.#entries.filter((entry) => entry.result && FAILED in entry.result).length;
    const isRunning = this.#abort !== null;
    byId("progress").max = all;
    byId("progress").value = done;
    const failures = failed > 0 ? `, ${failed} failed` : "";
    const seconds = (performance.now() - this.started) / 1000;
    if (isRunning) byId("count").textContent = `${done} of ${plural(all, "image")}${failures}`;
    else if (done < all) byId("count").textContent = `Stopped: ${done} of ${plural(all, "image")} predicted${failures}`;
    else byId("count").textContent = `${plural(all, "image")}${failures}, last run ${seconds.toFixed(1)} s`;
    byId("work").classList.toggle("running", isRunning);
    byId("cancel").hidden = !isRunning;
    byId("retry").hidden = isRunning || (failed === 0 && done === all);
    byId("retry").textContent = done < all ? "Continue" : "Try failed again";
    byId("csv").disabled = done === 0;
    this.#announce(false);
  }

  /** Tell screen readers the progress, seldom enough to be heard. */
  #announce(isLast) {
    const now = performance.now();
    if (!isLast && now - this.#announced < ANNOUNCE_MS) return;
    this.#announced = now;
    byId("live").textContent = byId("count").textContent;
  }

  #drawFilters() {
    const counts = new Map();
    for (const { result } of this.#entries) {
      for (const group of result ? groupsOf(this.info, result) : []) counts.set(group, (counts.get(group) ?? 0) + 1);
    }
    const groups = [...counts].sort((left, right) => right[1] - left[1]).slice(0, MAX_FILTERS);
    if (this.#filter !== null && !counts.has(this.#filter)) this.#filter = null;
    const chip = (text, count, group) => el("button", {
      type: "button", "aria-pressed": String(this.#filter === group), class: group === FAILED ? "failed" : null,
      "data-group": group, on: { click: () => this.#setFilter(group) },
    }, el("span", { text }), " ", el("span", { class: "number", text: String(count) }));
    const focused = document.activeElement?.closest("#filters button")?.dataset.group;
    const chips = groups.map(([group, count]) => chip(group === FAILED ? "failed" : group, count, group));
    byId("filters").replaceChildren(chip("All", this.#entries.length, null), ...chips);
    if (focused !== undefined) {
      [...byId("filters").children].find((one) => one.dataset.group === focused)?.focus();
    }
  }

  #setFilter(group) {
    this.#filter = group;
    this.#shown = CARDS_AT_ONCE;
    this.#changed = new Set(this.#entries);
    this.#redraw();
  }

  /** Draw the cards that changed; keep the others, so that photos do not flicker and the focus stays. */
  #drawCards() {
    const visible = this.#visible(), shown = visible.slice(0, this.#shown), list = byId("cards");
    const before = new Map([...list.children].map((child) => [child.entry, child]));
    const focused = document.activeElement?.closest("#cards .card")?.entry;
    const wanted = shown.map((entry) => {
      const old = before.get(entry);
      if (old && !this.#changed.has(entry)) return old;
      const made = card(this.info, entry, (one) => this.detail.show(this.info, one));
      made.entry = entry;
      return made;
    });
    if (wanted.length !== list.children.length || wanted.some((one, n) => one !== list.children[n])) {
      wanted.forEach((one, n) => {
        if (list.children[n] === one) return;
        if (list.children[n]?.entry === one.entry) list.children[n].replaceWith(one);
        else list.insertBefore(one, list.children[n] ?? null);
      });
      while (list.children.length > wanted.length) list.lastChild.remove();
      const again = focused && wanted.find((one) => one.entry === focused);
      if (again && !again.contains(document.activeElement)) again.querySelector("button").focus();
    }
    byId("more").hidden = visible.length <= shown.length;
    byId("more").textContent = `Show ${Math.min(CARDS_AT_ONCE, visible.length - shown.length)} more of ${visible.length}`;
  }

  #saveCsv() {
    const results = this.#entries.filter((entry) => entry.result).map((entry) => entry.result);
    const blob = new Blob([toCsv(this.info, results)], { type: "text/csv" });
    const link = el("a", { href: URL.createObjectURL(blob), download: `${this.info.name}-predictions.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  #say(text, isBad = false) {
    const notice = byId("notice");
    notice.textContent = text;
    notice.hidden = text === "";
    notice.classList.toggle("bad", isBad);
  }

  #setView(asTable) {
    this.#asTable = asTable;
    byId("as-photos").setAttribute("aria-pressed", String(!asTable));
    byId("as-table").setAttribute("aria-pressed", String(asTable));
    byId("more").hidden ||= asTable;
    this.#redraw();
  }

  #listen() {
    const click = (id, heard) => byId(id).addEventListener("click", heard);
    const pick = (button, input, taken) => {
      click(button, () => byId(input).click());
      byId(input).addEventListener("change", (event) => {
        taken([...event.target.files]);
        event.target.value = ""; // so that the same files can be chosen again
      });
    };
    pick("choose", "files", (files) => this.#add(fromList(files)));
    pick("choose-folder", "folder", (files) => this.#add(fromList(files)));
    pick("open-model", "model-file", (files) => files.length > 0 && this.#openModel(files[0]));
    click("cancel", () => this.#cancel());
    click("retry", () => this.#again((entry) => !entry.result || FAILED in entry.result));
    click("csv", () => this.#saveCsv());
    click("clear", () => this.#clear());
    click("more", () => ((this.#shown += CARDS_AT_ONCE), this.#redraw()));
    click("as-photos", () => this.#setView(false));
    click("as-table", () => this.#setView(true));
    byId("model").addEventListener("change", () => (this.#choose(), this.#again(() => true)));
    for (const id of ["coverage", "explain", "reject"]) {
      byId(id).addEventListener("change", () => this.#again(() => true));
    }
    byId("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.source.token = byId("token").value;
      this.open();
    });
    document.addEventListener("paste", (event) => this.#add(fromList(event.clipboardData.files)));
    this.#listenToDrops();
  }

  #listenToDrops() {
    const over = (event, isOver) => {
      if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
      event.preventDefault();
      document.body.classList.toggle("over", isOver);
    };
    document.addEventListener("dragover", (event) => over(event, true));
    document.addEventListener("dragleave", (event) => event.relatedTarget === null && over(event, false));
    document.addEventListener("drop", async (event) => {
      over(event, false);
      const found = fromDrop(event.dataTransfer);
      try {
        this.#add(await found);
      } catch (error) {
        this.#say(`These files cannot be read: ${error.message}`, true);
      }
    });
  }
}

/** Build the page around a source of predictions. */
export function start(source) {
  const workbench = new Workbench(source);
  workbench.open();
  return workbench;
}
