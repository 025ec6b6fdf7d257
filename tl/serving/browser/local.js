// Predictions in the browser. The same interface as server.js: open() and predict(). The work is done by worker.js, so
// that the page stays responsive.

const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0);

export class LocalModel {
  isLocal = true;
  inFlight = 1;
  groupSize = 1; // so that cancel waits for one image only
  maxBytes = Infinity;
  #calls = new Map();
  #count = 0;

  constructor() {
    this.#start();
  }

  #start() {
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.worker.addEventListener("message", ({ data }) => {
      const { resolve, reject } = this.#calls.get(data.call);
      this.#calls.delete(data.call);
      if ("error" in data) reject(new Error(data.error));
      else resolve(data.answer);
    });
    this.worker.addEventListener("error", (event) => {
      const why = event.message || "a file of this folder is missing, or this browser is too old";
      for (const { reject } of this.#calls.values()) reject(new Error(`The model cannot run: ${why}.`));
      this.#calls.clear();
    });
  }

  #ask(job, message, transfer = []) {
    const call = ++this.#count;
    return new Promise((resolve, reject) => {
      this.#calls.set(call, { resolve, reject });
      this.worker.postMessage({ call, job, ...message }, transfer);
    });
  }

  /** Load the model beside the page. `say`: called with texts on the progress. Throws Error with a text for people. */
  async open(say) {
    const settings = await (await load("settings.json")).json();
    this.settings = settings;
    const answer = await load(encodeURIComponent(settings.model));
    return this.#openBytes(await readAll(answer, say), settings.model, say);
  }

  /** Open a model file of the user. */
  async openFile(file, say) {
    return this.#openBytes(await file.arrayBuffer(), file.name, say);
  }

  async #openBytes(bytes, name, say) {
    say("Opening the model, and testing it with its golden samples…");
    const { info, test } = await this.#ask("open", { bytes, name }, [bytes]);
    const tested = test.samples > 0 ?
      `self-test passed with ${test.samples} golden samples (largest difference ${test.largest.toExponential(0)})` :
      "the file has no golden samples to test it with";
    return { models: [info], tl_version: this.settings?.tl_version ?? "", note: `${name}: ${tested}` };
  }

  async predict(entries, choice, signal) {
    const results = [];
    for (const { file, name } of entries) {
      signal.throwIfAborted();
      results.push(await this.#ask("predict", { file, name, choice }));
    }
    return results;
  }
}

async function load(path) {
  let answer;
  try {
    answer = await fetch(path);
  } catch (error) {
    const isFile = location.protocol === "file:";
    const why = isFile ? "Browsers do not run it from a folder: put it on a web server, or run python -m http.server in it." :
      "The web server does not answer.";
    throw new Error(why, { cause: error });
  }
  if (!answer.ok) throw new Error(`The web server does not have the file ${path} (${answer.status}).`);
  return answer;
}

async function readAll(answer, say) {
  const size = Number(answer.headers.get("Content-Length")), parts = [];
  let count = 0;
  for (const reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    count += value.length;
    const of = size >= count ? ` of ${megabytes(size)}` : ""; // a compressed answer is larger than announced
    say(`Loading the model: ${megabytes(count)}${of} MB`);
  }
  return new Blob(parts).arrayBuffer();
}
