// The client of a local page: JSON requests whose errors are sentences, and server-sent events, by which all windows
// follow each other. It notices that the server is gone, refuses to send meanwhile, and goes on when it is back. If it
// is another run of the command, whose numbers of images are others, the page is loaded anew.
//
//   const api = new Api({ gone: (sentence) => ..., back: () => ..., revision: (number) => ..., unsaved: (count) => ... });
//   await api.named;                               // before the window's id is used
//   api.follow();                                  // events, from now on
//   await api.get("api/list", { view: "next" });   // undefined and null parameters are left out
//   await api.post("api/label", { images, do: "skip" });   // adds this window's id
//   api.save(promise)                              // an action that is shown and not yet saved: closing the page asks first
//   api.isGone, api.window, api.wasReloaded

const PAUSES_MS = [400, 800, 1500, 3000], AGAIN_MS = 3000;
const NO_ANSWER = "The server does not answer. What was confirmed is saved. Is the terminal with the command still open? " +
  "If the command is started anew, open the new link that it shows there; this window can be closed.";
const NO_ACCESS = "This page's access has ended, because the command was started anew. Open the link that the terminal shows; " +
  "this window can be closed.";
const RUN = "tl-run", RELOADED = "tl-reloaded";

/** A refusal, with a sentence for people. `status`: of HTTP, 0 without an answer; `answer`: the parsed body. */
export class ApiError extends Error {
  constructor(message, status = 0, answer = null) {
    super(message);
    Object.assign(this, { status, answer, isGone: status === 0 || status === 401 });
  }
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const makeName = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => (byte % 36).toString(36)).join("");

/** Whether no other window has this name; it is then this window's as long as it is open. */
const take = (name) => new Promise((resolve) => {
  if (!navigator.locks) return resolve(true);
  navigator.locks.request(`tl-window-${name}`, { ifAvailable: true }, (lock) => {
    resolve(lock !== null);
    return lock && new Promise(() => {});
  }).catch(() => resolve(true));
});

/** A name for this window, which stays when the page is loaded again, but not in a copy of the window. */
async function nameWindow() {
  let name = sessionStorage.getItem("tl-window");
  for (const wait of [0, 100, 300]) { // a page that is loaded again may still have its name
    await pause(wait);
    if (name !== null && await take(name)) return name;
    if (name === null) break;
  }
  name = makeName();
  sessionStorage.setItem("tl-window", name);
  await take(name);
  return name;
}

export class Api {
  isGone = false;
  #events = null;
  #isWaiting = false;
  #failures = 0;
  #run = null;
  #unsaved = 0;
  #asksBeforeClosing = (event) => event.preventDefault();

  constructor({ gone = () => {}, back = () => {}, revision = () => {}, unsaved = () => {} } = {}) {
    this.named = nameWindow().then((name) => (this.window = name));
    this.heard = { gone, back, revision, unsaved };
    this.wasReloaded = sessionStorage.getItem(RELOADED) !== null;
    sessionStorage.removeItem(RELOADED);
  }

  /** Count an action as not yet saved until its promise ends. Returns the promise. */
  save(promise) {
    this.#count(1);
    return promise.finally(() => this.#count(-1));
  }

  #count(step) {
    this.#unsaved += step;
    if (this.#unsaved > 0) addEventListener("beforeunload", this.#asksBeforeClosing);
    else removeEventListener("beforeunload", this.#asksBeforeClosing);
    this.heard.unsaved(this.#unsaved);
  }

  /** GET JSON. */
  get(path, parameters = {}) {
    const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null && value !== "");
    const query = new URLSearchParams(given).toString();
    return this.#ask(query ? `${path}?${query}` : path);
  }

  /** POST JSON with this window's id. */
  post(path, body = {}) {
    return this.send(path, { window: this.window, ...body });
  }

  /** POST JSON as it is. */
  send(path, body) {
    return this.#ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  }

  /** Follow the server's events. Where it has no stream for one more window, its state is asked every few seconds. */
  follow() {
    this.#events?.close();
    this.#events = new EventSource("api/events");
    this.#events.addEventListener("open", () => (this.#failures = 0));
    this.#events.addEventListener("message", (event) => this.heard.revision(JSON.parse(event.data).revision));
    this.#events.addEventListener("error", () => this.#lose(new ApiError(NO_ANSWER)));
  }

  async #ask(path, options = {}) {
    if (this.isGone) throw new ApiError(NO_ANSWER);
    try {
      return await this.#fetch(path, options);
    } catch (error) {
      if (error.isGone) this.#lose(error);
      throw error;
    }
  }

  async #fetch(path, options = {}) {
    const headers = { ...options.headers, ...(this.#run && { [RUN]: this.#run }) };
    const { body, run } = await fetchJson(path, { ...options, headers }, (found) => this.#isOtherRun(found));
    this.#run ??= run;
    return body;
  }

  /** Whether an answer is of another run of the command: then the page is loaded anew. */
  #isOtherRun(run) {
    if (!run || !this.#run || run === this.#run) return false;
    removeEventListener("beforeunload", this.#asksBeforeClosing); // what waits cannot be saved: it names images by their numbers
    sessionStorage.setItem(RELOADED, "1");
    location.reload();
    return true;
  }

  /** The server is gone: say so, and try until it is back. */
  async #lose(error) {
    this.#events?.close();
    if (this.#isWaiting) return;
    this.#isWaiting = true;
    this.#failures++;
    let told = null;
    for (let attempt = 0; ; attempt++) {
      // A closed connection alone is no reason for alarm: the first try follows at once.
      if (attempt > 0) await pause(PAUSES_MS[Math.min(attempt, PAUSES_MS.length) - 1]);
      try {
        this.heard.revision((await this.#fetch("api/state")).revision);
        break;
      } catch (found) {
        const reason = found.isGone ? found.message : error.message;
        this.isGone = true;
        if (told !== reason) this.heard.gone((told = reason));
      }
    }
    this.isGone = false;
    if (told !== null) this.heard.back();
    if (this.#failures > 1) await pause(AGAIN_MS);
    this.#isWaiting = false;
    this.follow();
  }
}

/** The body of an answer, and the run of the command that it is of. `isOther`: a run -> whether the answer is of no use. */
async function fetchJson(path, options, isOther) {
  let answer;
  try {
    answer = await fetch(path, { ...options, cache: "no-store" });
  } catch (error) {
    throw new ApiError(NO_ANSWER, 0, error);
  }
  const body = await answer.json().catch(() => null), run = answer.headers.get(RUN);
  if (isOther(run)) return new Promise(() => {}); // the page is being loaded anew
  if (answer.ok && body !== null) return { body, run };
  if (answer.status === 401) throw new ApiError(NO_ACCESS, 401, body);
  const reason = typeof body?.error === "string" && body.error ? body.error : `The server refused the request (${answer.status}).`;
  throw new ApiError(reason, answer.status || 500, body);
}
