// What a person does to images. The page changes at once; the server's answer follows, and takes back what it refuses.
// Actions are sent one after the other, so that each knows the version that the one before it made.

import { bySuggestion } from "./lists.js";
import { imagesText } from "./describe.js";
import { plural } from "./dom.js";

const MAX_IMAGES = 2000; // as the server
const SAID = { unsure: "marked not sure", skip: "skipped", clear: "without a label again" };
const ASSUMED = {
  label: (label) => ({ label, status: "labeled", suggestion: null, confidence: null, top: null }),
  clear: () => ({ label: null, status: "open" }),
  unsure: () => ({ label: null, status: "unsure", suggestion: null }),
  skip: () => ({ label: null, status: "skipped", suggestion: null }),
};

export class Actions {
  #queue = Promise.resolve();

  /** `views` hears what leaves and comes back; `changed`: called with each answer. */
  constructor({ api, records, views, live, changed }) {
    Object.assign(this, { api, records, views, live, changed });
  }

  /** Label images with a class, which is added if it is new. */
  label(ids, label, confirmed = false) {
    return this.#decide(ids, { do: "label", label, confirmed }, `labeled ${label}`);
  }

  /** `what`: "clear", "unsure" or "skip". */
  mark(ids, what) {
    return this.#decide(ids, { do: what }, SAID[what]);
  }

  /** Take the suggestions of these images as their labels. Returns how many have one. */
  confirm(ids) {
    const groups = bySuggestion(ids.map((id) => this.records.get(id)).filter((record) => record && record.label === null));
    for (const [label, members] of groups) this.label(members, label, true);
    return [...groups.values()].reduce((sum, members) => sum + members.length, 0);
  }

  note(id, text) {
    const hold = this.records.assume([id], (record) => ({ ...record, note: text || null }));
    const send = () => this.api.post("api/note", { id, version: this.records.get(id).version, text });
    return this.#send([id], hold, send, text ? "Note saved." : "Note removed.");
  }

  undo() {
    return this.#replay("undo", "Undone");
  }

  redo() {
    return this.#replay("redo", "Done again");
  }

  async #decide(ids, body, said) {
    if (ids.length === 0 || this.#isBlocked()) return;
    if (ids.length > MAX_IMAGES) {
      return this.live.fail(`${plural(ids.length, "image")} are chosen, but one action takes at most ${MAX_IMAGES.toLocaleString("en")}. Select fewer.`);
    }
    const { records } = this;
    try {
      if (ids.some((id) => !records.get(id))) await records.all(ids);
    } catch (error) {
      return this.live.fail(error.message);
    }
    if (body.do === "clear") ids = ids.filter((id) => records.get(id)?.status !== "open");
    if (ids.length === 0) return this.live.say("There is no label to clear.");
    const text = `${imagesText(ids, records)} ${said}.`;
    const change = ASSUMED[body.do](body.label), hold = records.assume(ids, (record) => ({ ...record, ...change }));
    this.views.leave(ids);
    this.live.say(text, { action: ["Undo", () => this.undo(), "U"], spoken: `${text} U undoes.` });
    const send = () => this.api.post("api/label", { ...body, images: ids.map((id) => ({ id, version: records.get(id).version })) });
    return this.#send(ids, hold, send, null);
  }

  #send(ids, hold, send, said) {
    const sent = this.api.save(this.#queue.then(send).then((answer) => {
      const { conflicts = [] } = answer;
      hold.settle([...answer.records, ...conflicts]);
      this.views.comeBack(conflicts.map(({ id }) => id));
      if (conflicts.length > 0) this.live.fail(conflictText(conflicts.length, ids.length));
      else if (said) this.live.say(said);
      this.changed(answer);
    }, (error) => {
      hold.takeBack();
      this.views.comeBack(ids);
      this.live.fail(`Not saved: ${error.message}`);
    }));
    this.#queue = sent;
    return sent;
  }

  #replay(what, said) {
    if (this.#isBlocked()) return this.#queue;
    this.#queue = this.api.save(this.#queue.then(() => this.api.post(`api/${what}`)).then((answer) => {
      const ids = answer.records.map(({ id }) => id);
      this.records.put(answer.records);
      this.views.returned(ids);
      this.live.say(`${said}: ${imagesText(ids, this.records)}.`);
      this.changed(answer);
    }, (error) => this.live.fail(asSentence(error.message))));
    return this.#queue;
  }

  #isBlocked() {
    if (this.api.isGone) this.live.fail("The server does not answer, so that nothing can be saved now. Wait until it is back.");
    return this.api.isGone;
  }
}

const asSentence = (text) => text.slice(0, 1).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function conflictText(count, all) {
  const which = count === 1 ? "1 image was" : `${plural(count, "image")} were`;
  return `${which} changed in another window meanwhile; look again.${all > count ? " The others are saved." : ""}`;
}
