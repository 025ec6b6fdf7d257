// The client of a local page: JSON requests whose errors are sentences, and server-sent events, by which all windows
// follow each other. It notices that the server is gone, refuses to send meanwhile, and goes on when it is back.
//
//   const api = new Api({ gone: (sentence) => ..., back: () => ..., revision: (number) => ... });
//   api.follow();                                  // events, from now on
//   await api.get("api/list", { view: "next" });   // undefined and null parameters are left out
//   await api.post("api/label", { images, do: "skip" });   // adds this window's id
//   api.isGone, api.window

const PAUSES_MS = [400, 800, 1500, 3000], AGAIN_MS = 3000;
const NO_ANSWER = "The server does not answer. What you did so far is saved. Is the terminal with the command still open? " +
  "This page goes on by itself when it is back.";
const NO_ACCESS = "This page's access has ended, because the command was started anew. Open the link that the terminal shows; " +
  "this window then goes on too.";

/** A refusal, with a sentence for people. `status`: of HTTP, 0 without an answer; `answer`: the parsed body. */
export class ApiError extends Error {
  constructor(message, status = 0, answer = null) {
    super(message);
    Object.assign(this, { status, answer, isGone: status === 0 || status === 401 });
  }
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** A name for this window, which stays when the page is loaded again. */
function nameWindow() {
  const made = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => (byte % 36).toString(36)).join("");
  const name = sessionStorage.getItem("tl-window") ?? made;
  sessionStorage.setItem("tl-window", name);
  return name;
}

export class Api {
  isGone = false;
  #events = null;
  #isWaiting = false;
  #failures = 0;

  constructor({ gone = () => {}, back = () => {}, revision = () => {} } = {}) {
    this.window = nameWindow();
    this.heard = { gone, back, revision };
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
      return await fetchJson(path, options);
    } catch (error) {
      if (error.isGone) this.#lose(error);
      throw error;
    }
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
        this.heard.revision((await fetchJson("api/state", {})).revision);
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

async function fetchJson(path, options) {
  let answer;
  try {
    answer = await fetch(path, { ...options, cache: "no-store" });
  } catch (error) {
    throw new ApiError(NO_ANSWER, 0, error);
  }
  const body = await answer.json().catch(() => null);
  if (answer.ok && body !== null) return body;
  if (answer.status === 401) throw new ApiError(NO_ACCESS, 401, body);
  const reason = typeof body?.error === "string" && body.error ? body.error : `The server refused the request (${answer.status}).`;
  throw new ApiError(reason, answer.status || 500, body);
}
