// What a result says, as elements: label, bars of probabilities, marks of doubt, points on the photo. Used by cards,
// by the large view and by the table. Results have the keys of a line of `tl predict -o out.jsonl`.

import { el, percent, plural, short } from "./dom.js";

export const REJECTED = "?", FAILED = "error";
// As in tl/runtime/explain/drawing.py: colors that most readers can distinguish. Source: Okabe & Ito 2008.
const POINT_COLORS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"];

/** The groups that an image belongs to in the filter: its label, its labels, "error". */
export function groupsOf(info, result) {
  if ("error" in result) return [FAILED];
  if (info.task === "classification") return [result.label];
  if (info.task === "multilabel") return result.labels.length > 0 ? result.labels : ["no label"];
  return info.task === "landmarks" && result.is_odd ? ["unusual shape"] : [];
}

/** The answer in a few words. */
export function headline(info, result) {
  if ("error" in result) return "Not predicted";
  if (info.task === "classification") return result.label;
  if (info.task === "multilabel") return result.labels.length > 0 ? result.labels.join(", ") : "no label";
  if (info.task === "landmarks") return plural(info.keypoint_names.length, "point");
  return info.target_names.map((name) => `${name} ${numberText(info, name, result.targets[name])}`).join(", ");
}

function numberText(info, name, target) {
  const unit = info.units?.[info.target_names.indexOf(name)];
  return short(target.value) + (unit ? ` ${unit}` : "");
}

/** The classes with their probabilities, most probable first. */
export function ranked(info, result) {
  const shares = info.class_names.map((name) => [name, result.probabilities[name]]);
  return shares.sort((left, right) => right[1] - left[1]);
}

/** The whole answer: `count` of the classes as bars. */
export function answer(info, result, count) {
  if ("error" in result) return el("p", { class: "error", text: sentence(result.error) });
  const shown = el("div", { class: "answer" });
  if (info.task === "classification") shown.append(title(info, result));
  if (info.task === "multilabel") shown.append(labelChips(result));
  if (result.probabilities) shown.append(bars(info, result, count));
  if (info.task === "regression") shown.append(numbers(info, result));
  if (info.task === "landmarks") shown.append(el("p", { class: "label", text: headline(info, result) }));
  const marks = doubts(info, result, count > 3);
  if (marks.length > 0) shown.append(el("ul", { class: "marks" }, ...marks));
  return shown;
}

function title(info, result) {
  if (result.label !== REJECTED || info.class_names.includes(REJECTED)) {
    return el("p", { class: "label" }, el("strong", { text: result.label }));
  }
  return el("p", { class: "label rejected" }, el("strong", { text: "?" }), el("span", { text: "no answer" }));
}

function labelChips(result) {
  if (result.labels.length === 0) return el("p", { class: "label soft", text: "no label" });
  return el("p", { class: "tags" }, ...result.labels.map((name) => el("span", { class: "tag", text: name })));
}

function bars(info, result, count) {
  const all = ranked(info, result), list = el("ul", { class: "bars" });
  for (const [name, share] of all.slice(0, count)) {
    const filled = el("span", { class: "fill" });
    filled.style.setProperty("--share", share);
    const isAnswer = name === result.label || result.labels?.includes(name);
    const track = el("span", { class: "track", "aria-hidden": "true" }, filled);
    list.append(el("li", isAnswer ? { class: "chosen" } : {},
      el("span", { class: "name", title: name, text: name }), el("span", { class: "share", text: percent(share) }), track));
  }
  if (all.length > count) list.append(el("li", { class: "rest soft", text: `and ${all.length - count} more` }));
  return list;
}

function numbers(info, result) {
  const list = el("dl", { class: "numbers" });
  for (const name of info.target_names) {
    const target = result.targets[name];
    list.append(el("dt", { text: name }));
    const found = el("dd", {}, el("strong", { text: numberText(info, name, target) }));
    if ("low" in target) found.append(el("span", { class: "soft", text: ` ${short(target.low)} to ${short(target.high)}` }));
    if ("spread" in target) found.append(el("span", { class: "soft", text: ` ± ${short(target.spread)} between models` }));
    list.append(found);
  }
  return list;
}

/** Reasons to look twice, and other facts of the decision. */
function doubts(info, result, isLarge) {
  const marks = [];
  const mark = (text, isWarning) => marks.push(el("li", isWarning ? { class: "warn", text } : { text }));
  if (result.reason) mark(sentence(result.reason), true);
  const isUnlike = result.ood_score !== undefined && info.ood_limit != null && !(result.ood_score <= info.ood_limit);
  if (isUnlike && !result.reason?.includes("out-of-distribution")) {
    mark(`Unlike the training images: score ${short(result.ood_score)}, limit ${short(info.ood_limit)}`, true);
  } else if (result.ood_score !== undefined && isLarge) mark(`OOD score ${short(result.ood_score)}`);
  if (result.set) mark(result.set.length > 0 ? `Set: ${result.set.join(", ")}` : "Set: no label");
  if (result.agreement !== undefined) mark(agreementText(result), result.agreement < 0.999);
  if (result.rank_label) mark(`${result.rank}: ${result.rank_label}, ${percent(result.rank_confidence)}`);
  if (result.is_odd) mark("Unusual shape: check the points", true);
  return marks;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function agreementText(result) {
  const count = result.votes.length;
  if (Array.isArray(result.votes[0])) return `Models agree on ${percent(result.agreement)} of the labels`;
  const same = Math.round(result.agreement * count);
  return same === count ? `All ${count} models agree` : `${same} of ${count} models voted for it`;
}

/** The votes of an ensemble's members, for the large view. */
export function memberVotes(info, result) {
  if (!result.votes || !info.member_names?.length) return null;
  const rows = info.member_names.map((name, m) => {
    const vote = result.votes[m];
    return el("li", {}, el("span", { class: "soft", text: `${name}: ` }), Array.isArray(vote) ? vote.join(", ") || "no label" : vote);
  });
  return el("div", {}, el("h3", { text: "Votes" }), el("ul", { class: "votes" }, ...rows));
}

/** The points of a result as a drawing over its photo, or null. */
export function points(info, result, withNames) {
  if (!result.keypoints) return null;
  const [height, width] = result.image_hw, size = Math.max(3, Math.max(width, height) / 90);
  const svg = el("svg", {
    class: "points", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${plural(info.keypoint_names.length, "point")} on the photo`,
  });
  const at = (name) => result.keypoints[name];
  for (const [from, to] of info.skeleton ?? []) {
    if (!at(from) || !at(to)) continue;
    svg.append(el("line", {
      x1: at(from).x + 0.5, y1: at(from).y + 0.5, x2: at(to).x + 0.5, y2: at(to).y + 0.5, "stroke-width": size / 3,
    }));
  }
  info.keypoint_names.forEach((name, k) => {
    const { x, y } = at(name), fill = POINT_COLORS[k % POINT_COLORS.length];
    svg.append(el("circle", { cx: x + 0.5, cy: y + 0.5, r: size, fill }, el("title", { text: name })));
    if (withNames) {
      svg.append(el("text", { x: x + 1.6 * size, y: y - 0.8 * size, fill, "font-size": 2.4 * size, text: name }));
    }
  });
  return svg;
}
