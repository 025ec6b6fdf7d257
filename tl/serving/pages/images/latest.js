// Reads something that changes, such as the state of the session: one request at a time, so that an older answer never
// comes after a newer one.
//
//   const reading = new Latest(() => api.get("api/state"), (state) => draw(state));
//   await reading.now();   // shown is what was so at this call, or later: a request that was already under way does not count

export class Latest {
  #running = null;
  #next = null;

  /** `fetch`: a promise of what is so now; `take`: hears each answer, in order. */
  constructor(fetch, take) {
    Object.assign(this, { fetch, take });
  }

  /** Read, and once more after a request that is under way. Those who wait meanwhile share the next one. */
  now() {
    if (this.#running === null) return (this.#running = this.#read().finally(() => (this.#running = null)));
    return (this.#next ??= this.#running.catch(() => {}).then(() => {
      this.#next = null;
      return this.now();
    }));
  }

  async #read() {
    this.take(await this.fetch());
  }
}
