// A problem as a card: the image, what speaks against its label, and what can be done. Cards only draw and report.

import { el, percent } from "./dom.js";
import { baseName, outcome, splitName } from "./words.js";

/**
 * Draw a card. `heard`: {act(do, ids, options), zoom(owner, id), select(id, isExtending), focus(id)}.
 * `names`: kind -> its name, of kinds that are not said elsewhere.
 */
export function card(record, { names, heard, isSelected }) {
  const { id, name } = record, title = `title-${id}`;
  const check = el("input", {
    type: "checkbox", "aria-label": `Select ${name}`, tabindex: "-1",
    on: { click: (event) => heard.select(id, event.shiftKey) },
  });
  check.checked = isSelected;
  const made = el("article", { class: "card", tabindex: "-1", "aria-labelledby": title, "data-id": id },
    el("div", { class: "card-head" }, check, el("h3", { id: title, title: name, text: name }),
      el("span", { class: "tags" }, ...record.kinds.filter((kind) => names[kind]).map((kind) => el("span", { class: "tag kind", text: names[kind] })))),
    el("div", { class: "card-inner" }, el("div", { class: "card-body" }, el("div", { class: "pair" }, subject(record, heard), record.twin && twin(record, heard)), facts(record, heard)),
      actions(record, heard)),
  );
  made.classList.toggle("selected-card", isSelected);
  made.addEventListener("focusin", () => heard.focus(id));
  return made;
}

function photo(id, text, size, heard, owner) {
  const button = el("button", {
    type: "button", class: `photo ${size}`, title: text, "aria-label": `Enlarge ${text}`, on: { click: () => heard.zoom(owner, id) },
  });
  const image = el("img", { src: `thumb/${id}`, alt: "", decoding: "async", loading: "lazy" });
  image.addEventListener("error", () => {
    button.setAttribute("aria-label", `Cannot be shown: ${text}`);
    button.replaceChildren(el("span", { class: "no-photo", text: "Cannot be shown" }));
  });
  button.append(image);
  return button;
}

function subject(record, heard) {
  const { suggested, label, split, now } = record, isOther = suggested !== null && suggested !== label;
  return el("figure", {}, photo(record.id, record.name, "large", heard, record.id),
    el("figcaption", {}, el("span", { class: "role", text: record.twin ? "This image" : "Label" }),
      el("span", { class: "labels" }, ...(now === label || now === null ? [el("span", { class: isOther ? "label doubtful" : "label", text: label })]
        : [el("s", { class: "label", text: label }), " → ", el("span", { class: "label new", text: now })])),
      place(split, record.group)));
}

const place = (split, group) => split || group ? el("span", { class: "soft place-of", text:
  [split && `${splitName[split] ?? split} split`, group && `group ${group}`].filter(Boolean).join(", ") }) : null;

function twin(record, heard) {
  const { id, name, label, split, group, now } = record.twin;
  const shown = now === null ? el("span", { class: "label", text: `${label} (removed)` }) : el("span", { class: now === record.label ? "label" : "label differs", text: now });
  return el("figure", {}, photo(id, name, "large", heard, record.id),
    el("figcaption", {}, el("span", { class: "role", text: record.twin.is_equal ? "The same file" : "Looks the same" }), shown, place(split, group),
      el("span", { class: "soft file", title: name, text: name })));
}

function facts(record, heard) {
  const parts = [el("ul", { class: "reasons" }, ...record.reasons.map((text) => el("li", { text })))];
  const isLabelInQuestion = !record.twin || record.suggested !== null || record.twin.label !== record.label;
  if (record.twin) parts.push(el("p", { class: "soft" }, el("strong", { text: record.twin.is_equal ? "The same photo: " : "Nearly the same photo: " }), "remove one of the two.",
    record.twin.is_equal ? "" : " Two photos of one specimen: put both into one group. Both stay, and training keeps a group on one side of the split."));
  if (record.top.length > 0 && isLabelInQuestion) {
    parts.push(el("div", {}, el("h4", { text: "What the held-out prediction says" }), el("ul", { class: "bars" }, ...shownShares(record).map(([name, share]) =>
      el("li", { class: name === record.suggested ? "chosen" : null }, el("span", { class: "name", text: name === record.label ? `${name} (label in the data)` : name }),
        el("span", { class: "share", text: percent(share) }), bar(share))))));
  }
  if (record.neighbors.length > 0 && isLabelInQuestion) {
    parts.push(el("div", {}, el("h4", { text: "Most similar images" }), el("ul", { class: "near" }, ...record.neighbors.map((near) =>
      el("li", {}, photo(near.id, near.name, "small", heard, record.id),
        el("span", { class: near.now === record.suggested ? "label new" : near.now === record.label ? "label same" : "label", title: near.name, text: near.now ?? "removed" }))))));
  }
  if (record.note) parts.push(el("p", { class: "note" }, el("span", { class: "role", text: "Note" }), " ", el("span", { text: record.note })));
  return el("div", { class: "facts-of" }, ...parts);
}

/** The likeliest classes, and the present label if it is not among them. */
function shownShares({ top, label, label_confidence: share }) {
  return share == null || top.some(([name]) => name === label) ? top : [...top.slice(0, 2), [label, share]];
}

function bar(share) {
  const fill = el("span", { class: "fill" });
  fill.style.setProperty("--share", share);
  return el("span", { class: "track" }, fill);
}

function actions(record, heard) {
  const button = (what, text, key, { options = {}, tone = null, about = null } = {}) => el("button", {
    type: "button", class: tone, tabindex: "-1", title: about, on: { click: () => heard.act(what, [record.id], options) },
  }, el("span", { text }), el("kbd", { "aria-hidden": "true", text: key }));
  const made = [];
  if (record.suggested !== null && record.suggested !== record.now && record.suggested !== record.label) made.push(button("accept", `Label ${record.suggested}`, "↵", { tone: "primary" }));
  made.push(button("keep", record.twin ? "Keep both" : `Keep ${record.label}`, "K", { about: "The label is right: leave everything as it is" }));
  if (record.twin) {
    made.push(button("duplicate", "Remove this one", "M", { about: `Remove ${baseName(record.name)} as a duplicate of ${baseName(record.twin.name)}` }),
      button("other", "Remove the other", "⇧M", { about: `Remove ${baseName(record.twin.name)} as a duplicate of ${baseName(record.name)}` }),
      button("group", "Same group", "G", { about: "Two photos of one specimen: keep both, on one side of the split" }));
  }
  else made.push(button("drop", "Remove", "D", { about: "Leave this image out of the data; the file stays" }));
  made.push(button("note", record.note ? "Change note" : "Note", "N"));
  const state = record.decision && el("p", { class: "decision" }, el("span", { class: "done", "aria-hidden": "true", text: "✓" }), " ", el("span", { text: outcome(record.decision) }));
  return el("div", { class: "actions" }, state, ...made);
}
