// The columns of results as a table, the same as of `tl predict -o out.csv`: see tl/runtime/output/columns.py.

const DISAGREEMENT = ["agreement", "entropy", "mutual_information", "margin"];

/** {names, values: result -> cells} for results of one model. `info`: the model, as `GET /info` describes it. */
export function columnsOf(info, results) {
  const good = results.filter((result) => !("error" in result));
  const has = (key) => good.some((result) => key in result);
  const columns = [["path", (result) => result.path], ...TASKS[info.task](info, good, has)];
  columns.push(["error", (result) => result.error]);
  return { names: columns.map(([name]) => name), values: (result) => columns.map(([, value]) => value(result)) };
}

const field = (key, name = key) => [name, (result) => result[key]];
const shares = (info) =>
  info.class_names.map((name) => [`p:${name}`, (result) => own(result.probabilities, name)]);
const own = (object, key) => (object && Object.hasOwn(object, key) ? object[key] : undefined);

function votes(info, has, joined) {
  if (!has("votes")) return [];
  const names = info.member_names ?? [];
  return names.map((name, m) => [`vote:${name}`, (result) => (result.votes ? joined(result.votes[m]) : undefined)]);
}

const TASKS = {
  classification: (info, good, has) => [
    field("label"),
    field("confidence"),
    ...shares(info),
    ...(has("set") ? [["set", (result) => result.set && joinSet(result.set)]] : []),
    ...["ood_score", "reason"].filter(has).map((key) => field(key)),
    ...["rank", "rank_label", "rank_confidence"].filter(has).map((key) => field(key)),
    ...DISAGREEMENT.filter(has).map((key) => field(key)),
    ...votes(info, has, (vote) => vote),
  ],
  multilabel: (info, good, has) => [
    ["labels", (result) => result.labels?.join(";")],
    ...shares(info),
    ...(has("set") ? [["set", (result) => result.set?.join(";")]] : []),
    ...["ood_score", "agreement"].filter(has).map((key) => field(key)),
    ...votes(info, has, (vote) => vote.join(";")),
  ],
  regression: (info, good) => info.target_names.flatMap((name) => numbers(info, name, good)),
  landmarks: (info, good, has) => [
    ...(good.some((result) => result.mm_per_px != null) ? [field("mm_per_px")] : []),
    ...info.keypoint_names.flatMap((name) => point(name, good)),
    ...["centroid_size", "shape_distance"].map((key) => field(key)),
    ["is_odd", (result) => ("is_odd" in result ? (result.is_odd ? "yes" : "no") : undefined)],
  ],
};

function numbers(info, name, good) {
  const ofTarget = (key) => (result) => own(result.targets, name)?.[key];
  const has = (key) => good.some((result) => ofTarget(key)(result) !== undefined);
  const columns = [[name, ofTarget("value")]];
  for (const key of ["low", "high", "spread"]) if (has(key)) columns.push([`${name}_${key}`, ofTarget(key)]);
  if (has("members")) {
    info.member_names.forEach((member, m) => columns.push([`${name}:${member}`, (one) => ofTarget("members")(one)?.[m]]));
  }
  return columns;
}

function point(name, good) {
  const joined = /^\d+$/.test(name) ? name : `_${name}`;
  return [["x", "x"], ["y", "y"], ["p", "confidence"], ["s", "spread_px"]]
    .filter(([, key]) => key.length === 1 || good.some((result) => own(result.keypoints, name)?.[key] !== undefined))
    .map(([sign, key]) => [sign + joined, (result) => own(result.keypoints, name)?.[key]]);
}

/** As `join_set`: classes joined by |, with \ before | and \ in names. */
const joinSet = (names) => names.map((name) => name.replaceAll("\\", "\\\\").replaceAll("|", "\\|")).join("|");

/** A number with the fewest digits that identify it as float32, or as it is if it is none. */
export function shortest(value) {
  if (!Number.isFinite(value) || Math.fround(value) !== value) return String(value);
  for (let digits = 1; digits < 10; digits++) {
    const tried = Number(value.toPrecision(digits));
    if (Math.fround(tried) === value) return String(tried);
  }
  return String(value);
}

function cell(value) {
  if (value === undefined || value === null) return "";
  const text = typeof value === "number" ? shortest(value) : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Results as CSV text. */
export function toCsv(info, results) {
  const { names, values } = columnsOf(info, results);
  return [names, ...results.map(values)].map((row) => `${row.map(cell).join(",")}\n`).join("");
}
