// The head of the page: how much is labeled, how good the model is, how far the images are read.

import { byId, el, percent, plural } from "./dom.js";
import { redraw } from "./describe.js";

const AT_FIRST = 2;

const seconds = (count) => (count < 90 ? `${Math.max(1, Math.round(count))} s` : count < 5400 ? `${Math.round(count / 60)} min` : `${(count / 3600).toFixed(1)} h`);

const baseName = (path) => path.split(/[\\/]/).findLast((part) => part !== "") ?? path;

export function drawStatus(state) {
  const { counts, num_images: all, folder, output } = state;
  document.title = `${baseName(folder)} – label – tl`;
  byId("title").textContent = baseName(folder);
  byId("title").title = folder;
  byId("about").textContent = `${counts.labeled.toLocaleString("en")} of ${all.toLocaleString("en")} labeled · ${baseName(output)}`;
  byId("about").title = output;
  drawFeatures(state);
  drawEstimate(state);
  drawModel(state.model, state.classes);
  byId("make-model").disabled = state.classes.filter(({ count }) => count > 0).length < AT_FIRST && state.model.state !== "running";
  byId("undo").disabled = !state.can_undo;
  byId("redo").disabled = !state.can_redo;
}

function drawFeatures({ features }) {
  const { done, total, eta_s: eta, error } = features, isReading = done < total && !error;
  byId("features").hidden = !isReading && !error;
  byId("features").classList.toggle("bad", Boolean(error));
  byId("features-bar").hidden = !isReading;
  byId("features-bar").max = Math.max(1, total);
  byId("features-bar").value = done;
  const left = eta ? `, ${seconds(eta)} left` : "";
  byId("features-more").hidden = !isReading;
  byId("features-text").textContent = error ? `Suggestions are not possible: ${error}` :
    `Reading images: ${done.toLocaleString("en")} of ${total.toLocaleString("en")}${left}`;
}

/** The accuracy over blind labels with its interval; before that, what is missing. */
function drawEstimate({ estimate, reserve, head, classes }) {
  const key = JSON.stringify([estimate, reserve, Boolean(head), classes.map(({ count }) => count > 0)]);
  if (!estimate) {
    const used = classes.filter(({ count }) => count > 0).length;
    const text = used < AT_FIRST ? "Label images of two classes, and the model starts to learn." :
      reserve.size === 0 ? "The accuracy is not measured: no random images could be set aside." :
      head?.fitted_to ? `The model learns. Its accuracy is shown from ${reserve.needed} random images on: ${reserve.counted} ${reserve.counted === 1 ? "is" : "are"} labeled.` : "The model starts when enough images are read.";
    return redraw("estimate", [el("p", { class: "soft", text })], key);
  }
  const { accuracy, low, high, n, set_aside: aside } = estimate;
  const bar = el("span", { class: "interval", "aria-hidden": "true" }, el("span", { class: "range" }), el("span", { class: "point" }));
  for (const [name, value] of Object.entries({ accuracy, low, high })) bar.style.setProperty(`--${name}`, value);
  redraw("estimate", [
    el("p", { class: "accuracy" }, el("strong", { text: percent(accuracy) }), el("span", { text: " correct" }),
      el("span", { class: "soft interval-word", text: ", 95% interval" }), el("span", { class: "soft", text: ` ${Math.floor(100 * low)} – ${Math.ceil(100 * high)}%` })),
    bar,
    el("p", { class: "soft" }, `from ${plural(n, "random image")}, labeled blind`,
      aside > 0 ? `; ${aside.toLocaleString("en")} not sure or skipped ${aside === 1 ? "is" : "are"} left out.` : ".",
      el("span", { class: "halve", text: halveText(estimate.more_labels_to_halve, reserve.open) })),
  ], key);
}

/** How the interval becomes narrower, as far as there are random images for it. */
function halveText(more, left) {
  if (more <= 0) return "";
  if (more <= left) return ` ${more.toLocaleString("en")} more would halve the interval.`;
  return left === 0 ? " All random images are decided." : ` ${left.toLocaleString("en")} more are left to narrow the interval.`;
}

/** What a model would lack, and whether it can be made at all: two classes with two images each. */
function lacks(classes) {
  const named = (found) => found.map(({ name }) => name).join(", ");
  const used = classes.filter(({ count }) => count > 0), few = used.filter(({ count }) => count < 2), empty = classes.filter(({ count }) => count === 0);
  if (used.length < 2) return { text: "A model needs labels of two classes.", isPossible: false };
  if (few.length > 0) return { text: `A model needs two images of each class: ${named(few)} ${few.length === 1 ? "has" : "have"} one.`, isPossible: false };
  return { text: empty.length > 0 ? `Without labels, and so not in the model: ${named(empty)}.` : "", isPossible: true };
}

function drawModel({ state, text, file }, classes) {
  const lacking = lacks(classes);
  byId("model-lacks").textContent = lacking.text;
  byId("model-lacks").hidden = lacking.text === "";
  byId("model-go").disabled = !lacking.isPossible;
  const isRunning = state === "running";
  byId("make-model").textContent = isRunning ? "Making the model…" : state === "done" ? "Model ready" : "Make a model";
  const form = byId("model-form"), isAgain = state === "done" && form.dataset.again === file;
  form.hidden = isRunning || (state === "done" && !isAgain);
  byId("model-run").hidden = !isRunning;
  byId("model-done").hidden = state !== "done" || isAgain;
  byId("model-failed").hidden = state !== "failed";
  byId("model-text").textContent = text || "Starting…";
  byId("model-failed").textContent = `No model was made: ${text}`;
  if (state !== "done") return;
  const quoted = /^[\w./-]+$/.test(file) ? file : `'${file.replaceAll("'", "'\\''")}'`;
  byId("model-file").textContent = file;
  byId("model-facts").textContent = text;
  byId("model-command").textContent = `tl predict PHOTOS --model ${quoted} -o predictions.csv`;
}
