// Predictions by the server of this page: `GET info`, `POST predict`. The same interface as local.js of the page that
// runs the model itself: open() and predict().

const BUSY = [429, 502, 503, 504], MAX_TRIES = 6;

class TokenError extends Error {
  needsToken = true;
}

/** Read the token from the page's address, and remove it there, so that it is in no bookmark, history or screenshot. */
function takeToken() {
  const address = new URL(location.href), given = address.searchParams.get("token");
  if (given !== null) {
    sessionStorage.setItem("tl-token", given);
    address.searchParams.delete("token");
    history.replaceState(null, "", address);
  }
  return sessionStorage.getItem("tl-token");
}

const pause = (milliseconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

export class Server {
  isLocal = false;
  inFlight = 2;
  #token = takeToken();

  set token(value) {
    this.#token = value;
    sessionStorage.setItem("tl-token", value);
  }

  /** What the server offers: {models, limits, tl_version}. Throws `TokenError`, or Error with a text for people. */
  async open() {
    const answer = await this.#fetch("info");
    const info = await answer.json();
    this.maxBytes = (info.limits?.max_body_mb ?? 32) * 1e6;
    this.groupSize = Math.max(1, Math.min(4, info.limits?.max_images ?? 4));
    return { ...info, models: info.models.map(withTargets) };
  }

  /** One result for each entry, in order. `choice`: {model, explain, coverage}. */
  async predict(entries, choice, signal) {
    const size = entries.reduce((sum, entry) => sum + entry.file.size, 0);
    if (entries.length === 1 && size > this.maxBytes) {
      const limit = `${(size / 1e6).toFixed(1)} MB, but this server takes at most ${this.maxBytes / 1e6} MB`;
      return [{ path: entries[0].name, error: limit }];
    }
    const form = new FormData();
    form.append("model", choice.model);
    if (choice.explain) form.append("explain", "true");
    if (choice.coverage) form.append("coverage", choice.coverage);
    for (const { file, name } of entries) form.append("images", file, name);
    const answer = await this.#fetch("predict", { method: "POST", body: form }, signal);
    const { results } = await answer.json();
    if (!Array.isArray(results) || results.length !== entries.length) throw new Error("The server's answer is not complete.");
    return results;
  }

  async #fetch(path, options = {}, signal = undefined) {
    const headers = this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
    for (let attempt = 1; ; attempt++) {
      let answer;
      try {
        answer = await fetch(path, { ...options, headers, signal, cache: "no-store" });
      } catch (error) {
        if (signal?.aborted) throw error;
        throw new Error("The server does not answer. Is it still running?", { cause: error });
      }
      if (answer.ok) return answer;
      if (answer.status === 401 || answer.status === 403) {
        if (answer.status === 401) throw new TokenError("This server asks for its access token.");
      } else if (BUSY.includes(answer.status) && attempt < MAX_TRIES) {
        const seconds = Number(answer.headers.get("Retry-After")) || 0.5 * 2 ** attempt;
        await pause(1000 * Math.min(seconds, 30) * (0.75 + Math.random() / 2), signal);
        continue;
      }
      throw new Error(await reasonOf(answer));
    }
  }
}

/** A model with its numbers as the page names them. */
const withTargets = (model) =>
  ({ ...model, target_names: model.targets?.map(({ name }) => name), units: model.targets?.map(({ unit }) => unit) });

/** The text of a refusal: {"error": ...} or {"detail": ...}, or the status. */
async function reasonOf(answer) {
  const fallback = `The server refused the request (${answer.status}).`;
  try {
    const told = await answer.json();
    const text = told.error?.message ?? told.error ?? told.detail;
    return typeof text === "string" && text ? text : fallback;
  } catch {
    return fallback;
  }
}
