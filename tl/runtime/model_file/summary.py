"""Summarize a model file's contract in readable text."""

from __future__ import annotations

from tl.runtime.imaging.preprocessing import PROJECTIONS, Preprocessing
from tl.runtime.metric_names import plain_name
from tl.runtime.model_file.contract import Contract, Parity
from tl.runtime.model_file.conversions import AnySize


def summarize_contract(contract: Contract) -> list[tuple[str, str]]:
    """Return (name, text) pairs, the most frequently needed first."""
    preprocessing, origin, parity = contract.preprocessing, contract.provenance, contract.parity
    names = contract.names
    shown = ", ".join(names[:10]) + (f" ... and {len(names) - 10} more" if len(names) > 10 else "")
    resize = f"{preprocessing.resize_mode}, {preprocessing.interpolation}, antialiased"
    if preprocessing.short_side is not None:
        resize += f", short side {preprocessing.short_side} then center crop"
    metrics = "; ".join(
        f"{plain_name(name)} {value:.4g}" for name, value in origin.val_metrics.items() if "boot" not in name
    )
    return [
        ("task", f"{contract.task}, {contract.precision}, schema {contract.schema_version}"),
        ("names", f"{len(names)}: {shown}"),
        ("input", _input_text(preprocessing)),
        ("outputs", ", ".join(contract.outputs)),
        *_landmark_rows(contract),
        *_regression_rows(contract),
        *_multilabel_rows(contract),
        *_stack_rows(preprocessing),
        *_box_row(contract),
        ("resize", resize),
        (
            "pixels",
            f"orientation {preprocessing.orientation}, alpha over {preprocessing.alpha}, "
            f"16 bit up to {preprocessing.bit_depth_max}",
        ),
        ("backbone", f"{origin.backbone}, {origin.method}, weights {origin.weights}"),
        ("validation", metrics or "none recorded"),
        ("parity", f"{parity.images} images, {parity_text(parity)}"),
        *_precision_row(contract),
        *_any_size_row(contract),
        *_confidence_rows(contract),
        ("self-test", f"{len(contract.golden.samples)} {contract.golden.source} samples"),
        ("created", f"{origin.created} with {', '.join(f'{k} {v}' for k, v in origin.versions.items())}"),
    ]


def _input_text(preprocessing: Preprocessing) -> str:
    height, width, channels = preprocessing.input_shape
    if preprocessing.any_size:
        return f"images uint8 (N, H, W, 3) RGB of any size; the graph resizes them to {width}x{height}"
    return f"images uint8 (N, {height}, {width}, {channels}){' RGB' if channels == 3 else ''}"


def _stack_rows(preprocessing: Preprocessing) -> list[tuple[str, str]]:
    """Return which channels and pages of a file are used, if they are chosen."""
    rows = []
    if (channels := preprocessing.channels) is not None:
        kinds = {1: "as gray", 2: "as red and green", 3: "as red, green and blue"}
        rows.append(("channels", f"{', '.join(channels)}, {kinds.get(len(channels), 'each as stored')}"))
    if (project := preprocessing.project) is not None:
        rows.append(("pages", f"{project} of all pages or planes" if project in PROJECTIONS else f"page {project}"))
    return rows


def _landmark_rows(contract: Contract) -> list[tuple[str, str]]:
    facts = contract.landmarks
    if facts is None:
        return []
    looked_at = {"whole": "whole photos", "box": "drawn boxes", "points": "the square around the points"}[facts.region]
    margin = f", {facts.region_margin:g} of its size added on every side" if facts.region != "whole" else ""
    pairs = [("flip pairs", ", ".join(":".join(pair) for pair in facts.flip_pairs))] if facts.flip_pairs else []
    return [("looks at", looked_at + margin), *pairs]


def _regression_rows(contract: Contract) -> list[tuple[str, str]]:
    facts = contract.regression
    if facts is None:
        return []
    units = ", ".join(f"{name} in {unit}" for name, unit in zip(facts.target_names, facts.units, strict=True) if unit)
    intervals = f"from {min(map(len, facts.scores))} errors of the {facts.source}"
    return [*([("units", units)] if units else []), ("coverage", f"intervals, {intervals}")]


_RULES = {"f1": "highest F1", "precision": "lowest with precision", "fixed": "fixed"}


def _multilabel_rows(contract: Contract) -> list[tuple[str, str]]:
    facts = contract.multilabel
    if facts is None:
        return []
    pairs = [f"{name} {value:.3g}" for name, value in zip(contract.class_names, facts.thresholds, strict=True)]
    rule = _RULES[facts.rule] + ("" if facts.min_precision is None else f" {facts.min_precision:g}")
    shown = ", ".join(pairs[:10]) + (f" ... and {len(pairs) - 10} more" if len(pairs) > 10 else "")
    rows = [("thresholds", f"{rule}: {shown}")]
    if len(set(facts.temperatures)) > 1 or facts.temperatures[0] != 1:
        rows.append(("temperatures", ", ".join(f"{value:.3g}" for value in facts.temperatures[:10])))
    if facts.curve is not None:
        rows.append(("coverage", f"sets of labels, from {facts.curve.images} images of the {facts.curve.source}"))
    return rows


def _box_row(contract: Contract) -> list[tuple[str, str]]:
    crop = contract.boxes
    if crop is None:
        return []
    shape = ", extended to a square" if crop.square else ""
    return [("looks at", f"boxes around objects, {crop.margin:g} of their size added on every side{shape}")]


def _confidence_rows(contract: Contract) -> list[tuple[str, str]]:
    """Return the rows on voting, calibration, coverage and out-of-distribution detection."""
    rows = []
    if contract.ensemble is not None:
        facts = contract.ensemble
        pairs = zip(facts.members, facts.weights, strict=True)
        rows.append(("ensemble", f"{facts.voting}: " + ", ".join(f"{m.name} (weight {w:g})" for m, w in pairs)))
    if contract.task == "classification":
        rows.append(("temperature", f"{contract.temperature:.4g}"))
    if contract.taxonomy is not None:
        counts = [len(set(groups)) for groups in contract.taxonomy.groups]
        pairs_ = zip(contract.taxonomy.ranks[1:], counts, strict=True)
        rows.append(("taxonomy", ", ".join(f"{count} of rank {rank}" for rank, count in pairs_)))
    if contract.conformal is not None:
        count = len(contract.conformal.scores)
        rows.append(("coverage", f"prediction sets, from {count} scores of the {contract.conformal.source}"))
    if contract.ood is not None:
        found = contract.ood
        text = (
            f"score above {found.limit:.4g}, exceeded by {found.false_alarm:.1%} of {found.held_out} validation images"
        )
        rows.append(("unknown", f"{text}; from {found.images} training images in {found.dimensions} dimensions"))
    return rows


def _precision_row(contract: Contract) -> list[tuple[str, str]]:
    found = contract.quantization
    if found is None:
        return []
    text = f"{found.method}; agrees with fp32 on {found.top1_agreement:.1%} of {found.images} images"
    speed = f"{found.speedup:.2f} x the speed of fp32 on {found.provider} ({found.processor})"
    return [("precision", f"{text}, {speed}{', kept although it is not faster' if found.kept_slower else ''}")]


def _any_size_row(contract: Contract) -> list[tuple[str, str]]:
    return [] if contract.any_size is None else [("resizing", any_size_text(contract.any_size, contract))]


def any_size_text(found: AnySize, contract: Contract) -> str:
    """Return how a graph that resizes images compares with the fixed-size file that it was made from."""
    unit = {"landmarks": "px of the input", "regression": "standard deviations"}.get(contract.task, "in a probability")
    labels = "" if found.top1_agreement is None else f", labels agree on {found.top1_agreement:.0%}"
    return (
        f"{found.images} images: pixels differ by {found.mean_pixel_diff:.2g} of 255 on average, at most "
        f"{found.max_pixel_diff}; results by at most {found.max_abs_diff:.1e} {unit} "
        f"(allowed {found.tolerance:g}){labels}"
    )


def parity_text(parity: Parity) -> str:
    """Return the largest difference, its limit and, for classification, the agreement."""
    if "values" in parity.session_max_abs_diff:
        worst = max(parity.session_max_abs_diff["values"], parity.pipeline_max_abs_diff)
        return f"max difference {worst:.1e} standard deviations (allowed {parity.tolerance:.0e})"
    if "keypoints" in parity.session_max_abs_diff:
        return f"max difference {parity.pipeline_max_abs_diff:.1e} px of the input (allowed {parity.tolerance:g})"
    worst = max(parity.session_max_abs_diff["probabilities"], parity.pipeline_max_abs_diff)
    most = f"probabilities differ by at most {worst:.1e} (allowed {parity.tolerance:.0e})"
    return most if parity.top1_agreement is None else f"{most}, top-1 agreement {parity.top1_agreement:.0%}"
