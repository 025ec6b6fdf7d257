// What a record says, as texts and elements for a tile and for the facts beside an image.

import { byId, el, percent, plural } from "./dom.js";

const STATES = { unsure: "not sure", skipped: "skipped" };

/** A confidence in few characters, for tiles. */
export const brief = (share) => (share >= 0.995 ? ">99%" : `${Math.round(100 * share)}%`);

/** For `Grid`: what a tile shows. A full dot is a label, a ring is a suggestion; the class is always written too. */
export function describe(record, tones) {
  const { name, label, status, suggestion, confidence, note, error } = record;
  const file = name.split("/").at(-1), noted = note ? el("span", { class: "state has-note", title: note }) : null;
  const said = (text) => `${name}, ${text}${note ? `, note: ${note}` : ""}`;
  const told = (kind, tone, text, ...strip) => ({ name, kind, tone, strip: [...strip, noted].filter(Boolean).flatMap((part) => [part, " "]), label: said(text) });
  if (label !== null) {
    return told("labeled", tones.of(label), `labeled ${label}`, el("span", { class: "dot full" }), el("span", { class: "name", text: label }));
  }
  if (error) return told("failed", null, `cannot be read: ${error}`, el("span", { class: "name soft", text: error }));
  if (status in STATES) {
    return told(status, null, STATES[status], el("span", { class: "name soft", text: file }), el("span", { class: "state", text: STATES[status] }));
  }
  if (suggestion !== null) {
    const share = brief(confidence);
    return told("suggested", tones.of(suggestion), `not labeled, suggestion ${suggestion} ${share}`, el("span", { class: "dot" }),
      el("span", { class: "name", text: suggestion }), el("span", { class: "share", text: share }));
  }
  return told("open", null, "not labeled", el("span", { class: "name soft", text: file }));
}

/** Label, the three most probable classes and the note of an image. */
export function decision(record, tones) {
  const { label, status, top, note, error, is_reserved: isReserved } = record, shown = [];
  const tag = label !== null && el("span", { class: "tag", "data-tone": tones.of(label) }, el("span", { class: "dot full" }), ` ${label}`);
  shown.push(el("p", { class: "decision" }, tag || el("span", { class: "soft", text: STATES[status] ?? "Not labeled yet" })));
  if (error) shown.push(el("p", { class: "error", text: error }));
  if (top && label === null) shown.push(bars(top));
  if (isReserved && label === null) {
    shown.push(el("p", { class: "soft hint", text: "A random image that measures the model: it is labeled without a suggestion." }));
  }
  if (note) shown.push(el("p", { class: "noted" }, el("span", { class: "soft", text: "Note: " }), note));
  return shown;
}

function bars(top) {
  return el("ul", { class: "bars", "aria-label": "Most probable classes" }, ...top.map(([name, share], n) => {
    const fill = el("span", { class: "fill" });
    fill.style.setProperty("--share", share);
    return el("li", n === 0 ? { class: "chosen" } : {}, el("span", { class: "name", title: name, text: name }),
      el("span", { class: "share", text: percent(share) }), el("span", { class: "track", "aria-hidden": "true" }, fill));
  }));
}

const FACTS = {
  pixels: ({ width, height }) => (width ? `${width.toLocaleString("en")} × ${height.toLocaleString("en")} px` : null),
  size: ({ bytes }) => (bytes ? (bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} KB` : `${(bytes / 1e6).toFixed(1)} MB`) : null),
  taken: ({ taken }) => (taken ? String(taken).replace("T", ", ").slice(0, 17) : null),
  camera: ({ camera }) => camera,
  format: ({ format }) => format,
};

/** Facts of a file as `GET api/image/{id}/info` answers, and the labeled images that are most like it. */
export function fileFacts(info, tones) {
  const lines = Object.entries(FACTS).map(([name, text]) => [name, text(info)]).filter(([, text]) => text);
  const shown = [el("dl", { class: "facts" }, ...lines.flatMap(([name, text]) => [el("dt", { text: name }), el("dd", { text })]))];
  if (info.neighbors?.length > 0) {
    shown.push(el("h3", { text: "Most similar labeled images" }), el("ul", { class: "neighbors" },
      ...info.neighbors.map(({ id, label }) => el("li", { "data-tone": tones.of(label) },
        el("img", { src: `thumb/${id}`, alt: "", width: 72, height: 72 }), el("span", { class: "name", title: label }, el("span", { class: "dot full" }), ` ${label}`)))));
  }
  return shown;
}

/** How images of Next are chosen, with its source. */
export function aboutRule({ name, source_text: source, random_share: share }) {
  return el("section", {}, el("h3", { text: "How Next chooses" }), el("p", { class: "hint", text: `${name.slice(0, 1).toUpperCase()}${name.slice(1)}: ${source}.` }),
    el("p", { class: "hint", text: `${Math.round(100 * share)}% of the images are drawn at random and labeled without a suggestion. They alone count for the accuracy.` }));
}

/** The name of one image, or how many there are. */
export const imagesText = (ids, records) =>
  (ids.length === 1 ? (records.get(ids[0])?.name.split("/").at(-1) ?? "1 image") : plural(ids.length, "image"));

/** Draw `nodes` into an element only if its text changed, so that nothing flickers. */
export function redraw(id, nodes, key) {
  const place = byId(id);
  if (place.drawnKey === key) return;
  place.drawnKey = key;
  place.replaceChildren(...nodes);
}
