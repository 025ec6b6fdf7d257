// What people decide: shown at once, sent one after the other, taken back if the server refuses.
//
//   const decisions = new Decisions({ api, records, list, live,
//     isShown: (id) => whether the large view shows the card of this image, goOn: () => the large view goes to the next,
//     status: () => "open" | "decided", drawn: () => the list has changed, refresh: () => fetch all anew, undone: (records) => ... });
//   decisions.act("relabel", ids, { label }); decisions.turn("undo");

import { plural } from "./dom.js";
import { askNote } from "./note.js";
import { baseName, told } from "./words.js";

const CHUNK = 5000; // one request, which one undo takes back
const NO_TWIN = "This image has no other that looks the same.";

export class Decisions {
  isSending = false;
  pending = new Set(); // images whose decision is on its way
  #queue = Promise.resolve();
  #waiting = 0;

  constructor(heard) {
    Object.assign(this, heard);
  }

  /** Do something with images: a decision, "accept", "other" or "note". */
  async act(what, ids, { label } = {}) {
    if (ids.length === 0) return;
    if (this.api.isGone) return this.live.fail("The server does not answer: nothing was decided.");
    if (what === "note") return this.#note(ids[0]);
    const records = await this.records.all(ids);
    if (what === "other") return this.#removeOther(records[0]);
    const able = records.filter((record) => isPossible(what, record));
    if (able.length === 0) return this.live.fail(what === "accept" ? "There is no suggested label here: choose a class, or keep it." : NO_TWIN);
    this.#decide(what, able, able, { label });
  }

  /** Remove the other image of a pair, which may not be in the list. */
  async #removeOther(record) {
    if (!record?.twin) return this.live.fail(NO_TWIN);
    const { records } = await this.api.send("api/records", { ids: [record.twin.id] });
    this.records.put(records);
    this.#decide("duplicate", records, [record, ...records], { of: record.id });
  }

  /** Take images off the list at once, and tell the server about `records`. */
  #decide(what, records, leaving, options) {
    const ids = leaving.map(({ id }) => id), gone = new Set(ids), isZooming = ids.some((id) => this.isShown(id));
    this.list.clearSelection();
    if (this.status() === "open") {
      for (const id of ids) this.pending.add(id);
      this.list.change(this.list.ids.filter((id) => !gone.has(id)));
      this.drawn();
      if (isZooming) this.goOn();
    }
    this.#send(async () => {
      const done = [], conflicts = [];
      for (let start = 0; start < records.length; start += CHUNK) {
        const answer = await this.#post(what, records.slice(start, start + CHUNK), options);
        done.push(...answer.records);
        conflicts.push(...answer.conflicts);
      }
      const text = told(what, done, options.label);
      if (conflicts.length > 0) this.live.fail(`${plural(conflicts.length, "image")} stayed as before: another window has changed them. Look again.`);
      else this.live.say(text, { action: ["Undo", () => this.turn("undo"), "U"], spoken: `${text} U undoes.` });
    }, "Nothing was decided", ids);
  }

  async #post(what, records, { label, of }) {
    const images = records.map(({ id }) => ({ id, version: this.records.get(id).version }));
    const answer = await this.api.post("api/decide", { images, do: what, ...(what === "relabel" && { label }), ...(of !== undefined && { of }) });
    this.records.put([...answer.records, ...answer.conflicts]);
    return answer;
  }

  async #note(id) {
    const [record] = await this.records.all([id]);
    const text = await askNote(baseName(record.name), record.note);
    if (!this.isShown(id)) this.list.focus();
    if (text === null || text === record.note) return;
    this.#send(async () => {
      const answer = await this.api.post("api/note", { id, version: this.records.get(id).version, text });
      this.records.put([...answer.records, ...answer.conflicts]);
      if (answer.conflicts.length > 0) this.live.fail("Another window has changed this image: write the note again.");
      else this.live.say(text ? "Note kept." : "Note removed.", { action: ["Undo", () => this.turn("undo"), "U"] });
    }, "The note was not kept");
  }

  /** Undo or redo this window's last action. */
  turn(what) {
    this.#send(async () => {
      const { records } = await this.api.post(`api/${what}`);
      this.records.put(records);
      this.live.say(`${what === "undo" ? "Undone" : "Done again"}: ${records.length === 1 ? baseName(records[0].name) : plural(records.length, "image")}.`);
      await this.undone(records);
    }, "Not possible");
  }

  /** Send after what is being sent. `ids`: images that wait for it. */
  #send(run, failed, ids = []) {
    this.#waiting++;
    this.isSending = true;
    const done = this.#queue.then(async () => {
      try {
        await run();
      } catch (error) {
        this.live.fail(error.isGone ? error.message : `${failed}: ${error.message.replace(/\.?$/, ".")}`);
      }
      for (const id of ids) this.pending.delete(id);
      this.#waiting--;
      this.isSending = this.#waiting > 0;
    });
    this.#queue = this.api.save(done).then(() => this.refresh());
  }
}

/** Whether an action makes sense for an image. */
function isPossible(what, { suggested, label, twin }) {
  if (what === "accept") return suggested !== null && suggested !== label;
  return !["duplicate", "group"].includes(what) || twin !== null;
}
