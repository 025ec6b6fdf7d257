// What the page knows of images: records {id, name, version, ...}, fetched in windows of 200 when they are wanted,
// and changed at once when a person acts, before the server has answered.
//
//   const records = new Records((ids) => api.send("api/records", { ids }), (ids) => grid.refresh(ids));
//   records.want(ids);                      // fetch those that are missing or expired
//   const hold = records.assume(ids, (record) => ({ ...record, label: "ant" }));
//   hold.settle(answer.records) or hold.takeBack();
//   records.expire();                       // all may have changed; they stay shown until they are fetched anew

const WINDOW = 200, IN_FLIGHT = 2, SOON_MS = 12, AGAIN_MS = 1500;

export class Records {
  #known = new Map();
  #expired = new Set();
  #held = new Map(); // id -> how many assumptions wait for an answer
  #wanted = new Set();
  #asked = new Set();
  #running = 0;
  #expiries = 0; // how often all expired
  #timer = null;

  /** `fetchRecords`: ids -> promise of {records}; `changed`: hears the ids whose records are new or other. */
  constructor(fetchRecords, changed) {
    this.fetchRecords = fetchRecords;
    this.changed = changed;
  }

  get(id) {
    return this.#known.get(id);
  }

  /** Whether what is known of an image is no older than the last change that was heard of. */
  isCurrent(id) {
    return this.#held.has(id) || (this.#known.has(id) && !this.#expired.has(id));
  }

  /** Fetch what is missing or expired of these, soon and together. */
  want(ids) {
    for (const id of ids) {
      if (!this.#asked.has(id) && (!this.#known.has(id) || this.#expired.has(id))) this.#wanted.add(id);
    }
    if (this.#wanted.size > 0) this.#timer ??= setTimeout(() => this.#fetch(), SOON_MS);
  }

  /** The records of all these, fetched where they are missing: for actions on images that were never shown. */
  async all(ids) {
    const missing = ids.filter((id) => !this.#known.has(id));
    for (let start = 0; start < missing.length; start += WINDOW) {
      this.put((await this.fetchRecords(missing.slice(start, start + WINDOW))).records);
    }
    return ids.map((id) => this.#known.get(id)).filter(Boolean);
  }

  /** Take records of an answer; older ones, and those of images with an action under way, are left out. */
  put(records) {
    const taken = [];
    for (const record of records) {
      if (this.#held.has(record.id) || this.#known.get(record.id)?.version > record.version) continue;
      this.#known.set(record.id, record);
      this.#expired.delete(record.id);
      taken.push(record.id);
    }
    if (taken.length > 0) this.changed(taken);
  }

  expire() {
    this.#expiries++;
    for (const id of this.#known.keys()) this.#expired.add(id);
  }

  /** Change records now. Call one function of the result when the server has answered. */
  assume(ids, change) {
    const before = ids.map((id) => this.#known.get(id)).filter(Boolean);
    for (const record of before) {
      this.#held.set(record.id, (this.#held.get(record.id) ?? 0) + 1);
      this.#known.set(record.id, { ...change(record), isPending: true });
    }
    this.changed(before.map(({ id }) => id));
    const release = (records) => {
      for (const { id } of before) {
        const left = this.#held.get(id) - 1;
        if (left > 0) this.#held.set(id, left);
        else this.#held.delete(id);
      }
      for (const { id, version } of records) { // a second action on an image waits for the version that the first made
        if (this.#held.has(id)) this.#known.set(id, { ...this.#known.get(id), version });
      }
      const later = records.filter(({ id }) => !this.#held.has(id));
      for (const record of later) this.#known.set(record.id, record), this.#expired.delete(record.id);
      this.changed(later.map(({ id }) => id));
    };
    const takeBack = () => {
      release(before.map((record) => ({ ...record, isPending: false })));
      for (const { id } of before) this.#expired.add(id);
      this.want(before.map(({ id }) => id));
    };
    return { settle: release, takeBack };
  }

  async #fetch() {
    this.#timer = null;
    while (this.#running < IN_FLIGHT && this.#wanted.size > 0) {
      const ids = [...this.#wanted].slice(0, WINDOW);
      for (const id of ids) this.#wanted.delete(id), this.#asked.add(id);
      this.#running++;
      const expiries = this.#expiries;
      this.fetchRecords(ids)
        .then(({ records }) => {
          this.put(records);
          if (expiries === this.#expiries) return;
          for (const id of ids) this.#asked.delete(id), this.#expired.add(id); // the answer may be from before the change
          this.want(ids);
        }, (error) => {
          if (error.isGone) setTimeout(() => this.want(ids), AGAIN_MS);
        })
        .finally(() => {
          for (const id of ids) this.#asked.delete(id);
          this.#running--;
          if (this.#wanted.size > 0) this.#fetch();
        });
    }
  }
}
