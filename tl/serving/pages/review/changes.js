// What was decided, read as a diff: old labels struck through, new ones beside them, with the reasons.

import { el, plural } from "./dom.js";
import { splitName } from "./words.js";

const HEADINGS = {
  relabel: "Other labels", duplicate: "Removed as duplicates", drop: "Removed", group: "Put into one group", keep: "Kept as they are", note: "Notes",
};

/** How many images are other than in the data. */
export const numChanges = ({ keep, ...changes }) => Object.values(changes).reduce((sum, count) => sum + count, 0);

/** `zoom(id)`: show an image. */
export function changesView(changes, state, zoom) {
  const made = numChanges(state.counts);
  const parts = [el("h2", { id: "changes-title", text: changes.length === 0 ? "Nothing is decided yet" : `${plural(made, "change")} to ${state.data}` })];
  if (changes.length === 0) return [...parts, el("p", { class: "soft", text: "Decisions appear here, as a list to read and to check." })];
  parts.push(...goOn(state));
  for (const [change, heading] of Object.entries(HEADINGS)) {
    const rows = changes.filter((one) => one.change === change);
    if (rows.length > 0) parts.push(section(`${heading} (${rows.length.toLocaleString("en")})`, rows, change, zoom));
  }
  return parts;
}

function goOn({ files, commands }) {
  return [
    el("p", {}, "Written to ", ...files.flatMap((file, n) => [n === 0 ? "" : n === files.length - 1 ? " and " : ", ", el("code", { text: file })]), "."),
    el("div", { class: "commands" }, el("h3", { text: "To go on" }), ...commands.map(command)),
  ];
}

function command(text) {
  const copy = el("button", { type: "button", "aria-label": `Copy ${text}` }, "Copy");
  const tell = (told) => {
    copy.textContent = told;
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  };
  copy.addEventListener("click", () => navigator.clipboard.writeText(text).then(() => tell("Copied"), () => tell("Not allowed")));
  return el("div", { class: "command" }, el("code", { text }), copy);
}

function section(title, rows, change, zoom) {
  const shown = rows.slice(0, 500);
  const rest = rows.length - shown.length;
  return el("section", { class: "diff" }, el("h3", { text: title }),
    el("ul", {}, ...shown.map((row) => line(row, change, zoom))),
    rest > 0 ? el("p", { class: "soft", text: `and ${rest.toLocaleString("en")} more in the files` }) : null);
}

function line(row, change, zoom) {
  const image = row.id === null ? null : el("img", { src: `thumb/${row.id}`, alt: "", loading: "lazy" });
  image?.addEventListener("error", () => image.replaceWith(el("span", { class: "no-photo", text: "–" })));
  return el("li", {},
    el("button", { type: "button", class: "photo tiny", "aria-label": `Enlarge ${row.path}`, on: { click: () => zoom(row.id) } }, image),
    el("div", { class: "diff-text" },
      el("p", { class: "diff-head" }, ...labels(row, change)),
      el("p", { class: "path", text: row.path }),
      row.reason ? el("p", { class: "soft", text: row.reason }) : null,
      row.note ? el("p", {}, el("span", { class: "role", text: "Note" }), " ", el("span", { text: row.note })) : null));
}

function labels(row, change) {
  const old = el("span", { class: "label", text: row.old_label });
  if (change === "relabel") return [el("del", { class: "label", text: row.old_label }), " → ", el("ins", { class: "label new", text: row.new_label })];
  if (change === "drop") return [el("del", { class: "label", text: row.old_label }), " removed"];
  if (change === "duplicate") return [el("del", { class: "label", text: row.old_label }), " duplicate of ", el("span", { class: "path", text: row.of })];
  if (change !== "group") return [old];
  const moved = row.new_split && [", ", el("del", { text: splitName[row.old_split] ?? row.old_split }), " → ", el("ins", { text: `${splitName[row.new_split] ?? row.new_split} split` })];
  return [old, " with ", el("span", { class: "path", text: row.of }), row.new_group && ` in group ${row.new_group}`, ...(moved || [])].filter(Boolean);
}
