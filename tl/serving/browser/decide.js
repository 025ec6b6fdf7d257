// Turns a model's outputs for one image into a result, with the keys and rules of tl/runtime: labels, sets of classes,
// rejected labels, votes, intervals, points in the photo.

import { ModelError, namesOf } from "./contract.js";

/** A model as `GET /info` of `tl serve` describes it. */
export function infoOf(contract, name) {
  const { task, ensemble, landmarks, outputs, ood } = contract;
  const hasScores = contract.conformal || contract.multilabel?.curve || contract.regression?.scores?.every((own) => own.length > 0);
  return {
    name,
    task,
    class_names: contract.class_names,
    keypoint_names: contract.keypoint_names,
    target_names: task === "regression" ? namesOf(contract) : [],
    units: contract.regression?.units,
    skeleton: landmarks?.skeleton,
    input_hw: contract.preprocessing.input_hw,
    ensemble: Boolean(ensemble),
    member_names: ensemble?.members.map((member) => member.name) ?? [],
    has_explanation: task === "classification" && outputs.includes("cam"),
    supports_coverage: Boolean(hasScores),
    supports_reject: task === "classification" && Boolean(ood) && !contract.class_names.includes("?"),
    ood_limit: ood?.limit ?? null,
  };
}

/** The result of one image, without its path. `choice`: {coverage, reject}. Throws `ModelError` for a damaged model. */
export function decide(contract, outputs, placing, choice) {
  for (const [name, { data }] of Object.entries(outputs)) {
    if (data instanceof Float32Array && name !== "cam" && name !== "ood_score" && !data.every(Number.isFinite)) {
      throw new ModelError(`The model file is damaged: its output ${name} is not finite.`);
    }
  }
  return TASKS[contract.task](contract, outputs, placing, choice);
}

const argmax = (values) => values.reduce((best, value, n) => (value > values[best] ? n : best), 0);
const sum = (values) => values.reduce((total, value) => total + value, 0);
/** Places from the highest value to the lowest; equal values keep their order. */
const descending = (values) => values.map((_, n) => n).sort((one, other) => values[other] - values[one]);
const entropy = (shares) => -sum(shares.map((share) => (share > 0 ? share * Math.log(share) : 0))) || 0;

const zip = (names, values) => Object.fromEntries(names.map((name, n) => [name, values[n]]));

const TASKS = {
  classification(contract, outputs, placing, choice) {
    const { class_names: names, ood, ensemble } = contract, shares = [...outputs.probabilities.data];
    const chosen = ensemble ? Number(outputs.label.data[0]) : argmax(shares);
    const result = { label: names[chosen], confidence: shares[chosen], probabilities: zip(names, shares) };
    if (choice.coverage) result.set = predictionSet(contract, shares, Number(choice.coverage));
    if (ood) {
      const [score] = outputs.ood_score.data;
      result.ood_score = score;
      if (choice.reject && !(score <= ood.limit)) {
        result.label = "?";
        result.reason = `out-of-distribution score ${score.toFixed(3)} above ${ood.limit.toFixed(3)}`;
      }
    }
    if (ensemble) Object.assign(result, votesOf(contract, outputs.member_probabilities, shares, chosen));
    return result;
  },

  multilabel(contract, outputs, placing, choice) {
    const { class_names: names, multilabel, ood } = contract, shares = [...outputs.probabilities.data];
    const labels = names.filter((_, n) => shares[n] >= multilabel.thresholds[n]);
    const result = { labels, probabilities: zip(names, shares) };
    if (choice.coverage) {
      const least = setThreshold(multilabel.curve, Number(choice.coverage));
      result.set = descending(shares).filter((n) => shares[n] >= least).map((n) => names[n]);
    }
    if (ood) [result.ood_score] = outputs.ood_score.data;
    return result;
  },

  regression(contract, outputs, placing, choice) {
    const { target_names: names, scores } = contract.regression, targets = {};
    names.forEach((name, t) => {
      const value = outputs.values.data[t];
      targets[name] = { value };
      if (choice.coverage) {
        const width = quantile(scores[t], Number(choice.coverage));
        Object.assign(targets[name], { low: value - width, high: value + width });
      }
    });
    return { targets };
  },

  landmarks(contract, outputs, { image, placed }) {
    const { keypoint_names: names, landmarks } = contract, scaleX = placed.width / image.width, scaleY = placed.height / image.height;
    const keypoints = {}, { data } = outputs.keypoints;
    names.forEach((name, k) => { // as Placement.to_image
      const x = (data[2 * k] - placed.left + 0.5) / scaleX - 0.5, y = (data[2 * k + 1] - placed.top + 0.5) / scaleY - 0.5;
      keypoints[name] = { x, y };
      if (outputs.keypoint_confidence) keypoints[name].confidence = outputs.keypoint_confidence.data[k];
    });
    const found = Object.values(keypoints).map(({ x, y }) => [x, y]);
    const distance = landmarks.mean_shape ? procrustesDistance(found, landmarks.mean_shape) : null;
    return {
      mm_per_px: null, keypoints, centroid_size: centered(found).size, shape_distance: distance,
      is_odd: distance !== null && distance > landmarks.shape_limit,
      image_hw: [image.height, image.width], region_xywh: [0, 0, image.width, image.height],
    };
  },
};

/** The ceil((n + 1) coverage)-th smallest score. Source: split conformal prediction, Vovk et al. 2005. */
function quantile(scores, coverage) {
  const place = Math.ceil((scores.length + 1) * coverage);
  if (place <= scores.length) return scores[place - 1]; // the contract has them sorted
  const needed = Math.ceil(coverage / (1 - coverage) - 1e-9);
  throw new ModelError(`A coverage of ${coverage} needs ${needed} held-out images, but the model file records ${scores.length}: choose less.`);
}

/** Source: adaptive prediction sets, Romano et al. 2020, as in tl/runtime/ensembles/selective.py. */
function predictionSet(contract, shares, coverage) {
  const limit = quantile(contract.conformal.scores, coverage), order = descending(shares);
  let before = 0;
  return order.filter((n, rank) => {
    before += shares[n];
    return rank === 0 || before - shares[n] / 2 <= limit;
  }).map((n) => contract.class_names[n]);
}

/** Source: conformal risk control, Angelopoulos et al. 2022, as in tl/runtime/model_file/label_facts.py. */
function setThreshold({ thresholds, risks, images }, coverage) {
  const allowed = thresholds.filter((_, n) => (images * risks[n] + 1) / (images + 1) <= 1 - coverage + 1e-12);
  if (allowed.length > 0) return Math.max(...allowed);
  throw new ModelError(`The model file records only ${images} held-out images, too few for a coverage of ${coverage}: choose less.`);
}

/** Votes of the members inside the file, as `MemberVotes` in tl/runtime/results.py. */
function votesOf({ class_names: names, ensemble }, { data, dims }, shares, chosen) {
  const [, members, classes] = dims, total = sum(ensemble.weights);
  const each = Array.from({ length: members }, (_, m) => [...data.subarray(m * classes, (m + 1) * classes)]);
  const labels = each.map(argmax), sorted = [...shares].sort((one, other) => other - one);
  const mean = shares.map((_, n) => sum(each.map((own, m) => (ensemble.weights[m] / total) * own[n])));
  const within = sum(each.map((own, m) => (ensemble.weights[m] / total) * entropy(own)));
  return {
    agreement: labels.filter((label) => label === chosen).length / members,
    entropy: entropy(shares),
    mutual_information: Math.max(0, entropy(mean) - within),
    margin: sorted.length > 1 ? sorted[0] - sorted[1] : 1,
    votes: labels.map((label) => names[label]),
  };
}

/** Points around their centroid, and their centroid size. */
function centered(points) {
  const [meanX, meanY] = [0, 1].map((axis) => sum(points.map((point) => point[axis])) / points.length);
  const moved = points.map(([x, y]) => [x - meanX, y - meanY]);
  return { points: moved, size: Math.sqrt(sum(moved.map(([x, y]) => x * x + y * y))) };
}

/** Partial Procrustes distance, null if all points coincide. In the plane, the best rotation is that of a complex sum. */
function procrustesDistance(points, reference) {
  const one = centered(points), other = centered(reference);
  if (one.size === 0 || other.size === 0) return null;
  let real = 0, imaginary = 0;
  one.points.forEach(([x, y], k) => {
    const [u, v] = other.points[k];
    real += (x * u + y * v) / (one.size * other.size);
    imaginary += (x * v - y * u) / (one.size * other.size);
  });
  return Math.sqrt(Math.max(0, 2 - 2 * Math.hypot(real, imaginary)));
}
