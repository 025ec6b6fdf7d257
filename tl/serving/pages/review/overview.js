// The first screen: what was found, how far to trust it, and how to go on.

import { el, plural } from "./dom.js";

/** `open(kind)`: show the problems of a kind. */
export function overview(state, open) {
  const first = state.kinds.find((kind) => kind.open > 0);
  const lead = state.total === 0
    ? `No doubtful image was found among ${state.num_images.toLocaleString("en")}.`
    : `${state.total.toLocaleString("en")} of ${plural(state.num_images, "image")} deserve a look.`;
  return [
    el("h2", { id: "overview-title", class: "lead", text: lead }),
    el("p", { class: "trust" }, el("strong", { text: "How far to trust this. " }), el("span", { text: state.trust })),
    el("ul", { class: "found" }, ...state.kinds.map((kind) => el("li", {},
      el("button", { type: "button", on: { click: () => open(kind.kind) } },
        el("span", { class: "big", text: kind.total.toLocaleString("en") }),
        el("span", {}, el("strong", { text: kind.name }), el("span", { class: "soft meaning", text: kind.meaning })),
        el("span", { class: "soft number", text: kind.open === 0 ? "all decided" : kind.open < kind.total ? `${kind.open} to decide` : "" }))))),
    first ? el("div", { class: "row" }, el("button", { type: "button", class: "primary", id: "start", on: { click: () => open(first.kind) } },
      state.decided > 0 ? `Go on with: ${first.name}` : `Start with: ${first.name}`)) : null,
    el("h3", { text: "How it works" }),
    el("ul", { class: "steps" },
      step("Look at the image", "then decide: keep its label (", key("K"), "), take the suggested one (", key("Enter"), "), choose another (", key("1"), "–", key("9"), " or ", key("/"), ") or remove it (", key("D"), "). ", key("?"), " lists all keys."),
      step("Nothing is changed in place.", `Your photos and labels stay as they are. ${state.output} gets the data with your decisions, with a list of all changes beside it.`),
      step("Stop whenever you like.", "What the page confirms is on disk; the same command goes on where you left.")),
  ].filter(Boolean);
}

const key = (text) => el("kbd", { text });
const step = (title, ...rest) => el("li", {}, el("strong", { text: title }), " ", ...rest);
