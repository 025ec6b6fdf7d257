"""Benchmark `tl label` offline: how few labels suffice, by rule, and whether the accuracy that it shows is true.

The labels of sets in $TL_SHARED/data are revealed in batches of 20, as somebody would give them. 30% of each class are
test images, drawn anew for each seed; a random 15% (50 to 400) of the others are the reserve, which gives RANDOM_SHARE
of each batch. `random`: all labels are random. Other rules are named START/NEXT, as in `labeling_rules.py`; `tl` is
what `tl label` does, and `tl-blind` the same with a choice that does not know the random labels. The rule was chosen on
TUNING; the other sets only report.

    TL_SHARED=... python benchmarks/labeling.py rules tuning|report OUT.jsonl SEEDS RULE[@SHARE] ...
    TL_SHARED=... python benchmarks/labeling.py estimate tuning|report OUT.jsonl SEEDS tl|tl-blind[@SHARE] ...
    TL_SHARED=... python benchmarks/labeling.py times
    TL_SHARED=... python benchmarks/labeling.py table OUT.jsonl
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from labeling_data import divide, load
from labeling_rules import FIRST, NEXT

from tl.annotation.estimate import estimate_accuracy
from tl.annotation.learner import FittedHead, fit_head
from tl.annotation.selection import RANDOM_SHARE, choose_images
from tl.data.features import directions, standard_scale
from tl.evaluation.metrics import wilson_interval

TUNING = ("cifar10", "coins", "imagenet-val-500", "brain-mri", "cifar10:long-tail")
REPORT = ("pacs-cartoon", "cats-dogs", "hymenoptera", "tiny-imagenet", "pacs-cartoon:long-tail")
SETS = {"tuning": TUNING, "report": REPORT}
BATCH, MOST, SHOWN = 20, 400, (20, 40, 60, 100, 200, 300, 400)


@dataclass
class Session:
    """Labeling of one pool (N, D). `reserve`: rows still to be offered at random."""

    features: np.ndarray
    ids: np.ndarray
    rule: str
    share: float
    seed: int
    labeled: list[int] = field(default_factory=list)
    is_random: list[bool] = field(default_factory=list)
    head: FittedHead | None = None

    def __post_init__(self) -> None:
        count = len(self.ids)
        order = np.random.default_rng(self.seed + 1000).permutation(count)
        size = min(min(400, max(50, int(0.15 * count))), count // 2)
        if self.rule == "random":
            size, self.share = count, 1.0
        self.reserve, self.free = order[:size].tolist(), np.ones(count, bool)
        self.free[self.reserve] = False
        self.x = directions(self.features, standard_scale(self.features)) if "/" in self.rule else self.features

    def label(self, count: int) -> None:
        """Label a batch, and fit the head."""
        number = min(round(self.share * count), len(self.reserve))
        drawn, self.reserve = self.reserve[:number], self.reserve[number:]
        chosen = self.choose(count - number)
        self.free[chosen] = False
        self.labeled += [*drawn, *chosen]
        self.is_random += [True] * number + [False] * len(chosen)
        self.known, own = np.unique(self.ids[self.labeled], return_inverse=True)
        if len(self.known) > 1:
            self.head = fit_head(self.features[self.labeled], own, tuple(map(str, self.known)))

    def choose(self, count: int) -> list[int]:
        candidates, seed = np.flatnonzero(self.free), self.seed + len(self.labeled)
        count = min(count, len(candidates))
        if not count:
            return []
        head = self.blind_head() if self.rule == "tl-blind" else self.head
        probabilities = None if head is None else head.probabilities(self.features)
        if "/" not in self.rule:
            labeled = np.array(self.labeled, np.intp)
            return choose_images(self.features, probabilities, candidates, labeled, count, seed).tolist()
        first, following = self.rule.split("/")
        x = self.x[candidates]
        if probabilities is None:
            return candidates[FIRST[first](x, count, seed)].tolist()
        return candidates[NEXT[following](x, probabilities[candidates], count, seed)].tolist()

    def blind_head(self) -> FittedHead | None:
        """A head that knows no random label, so that the choice does not depend on them."""
        rows = np.array(self.labeled, np.intp)[~np.array(self.is_random, bool)]
        known, own = np.unique(self.ids[rows], return_inverse=True)
        return fit_head(self.features[rows], own, tuple(map(str, known))) if len(known) > 1 else None

    def is_right(self, features: np.ndarray, ids: np.ndarray) -> np.ndarray:
        if self.head is None:
            return np.zeros(len(ids), bool)
        return self.known[self.head.probabilities(features).argmax(axis=1)] == ids


def sessions(names: tuple[str, ...], seeds: int, rule: str, share: float) -> Iterator[tuple]:
    for name in names:
        features, ids = load(name)
        for seed in range(seeds):
            pool, test = divide(ids, seed)
            yield name, Session(features[pool], ids[pool], rule, share, seed), features[test], ids[test]


def run_rules(names: tuple[str, ...], out: Path, seeds: int, rules: list[str]) -> None:
    for rule in ("all labels", *rules):
        base, _, share = rule.partition("@")
        began, found = time.monotonic(), []
        for name, session, features, ids in sessions(names, seeds, base, float(share or RANDOM_SHARE)):
            if rule == "all labels":
                session.share = 1.0
                session.reserve = list(range(len(session.ids)))
                steps = [len(session.ids)]
            else:
                steps = [BATCH] * (min(MOST, len(session.ids) // 2) // BATCH)
            curve = []
            for step in steps:
                session.label(step)
                curve.append([len(session.labeled), float(session.is_right(features, ids).mean())])
            found.append({"kind": "rule", "set": name, "rule": rule, "seed": session.seed, "curve": curve})
        append(out, found)
        print(f"{rule}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def run_estimates(names: tuple[str, ...], out: Path, seeds: int, rules: list[str]) -> None:
    for rule in rules:
        found = []
        base, _, share = rule.partition("@")
        for name, session, features, ids in sessions(names, seeds, base, float(share or RANDOM_SHARE)):
            while len(session.labeled) + BATCH <= min(MOST, len(session.ids) // 2):
                session.label(BATCH)
                if len(session.labeled) in SHOWN:
                    found += judge(name, session, features, ids)
        append(out, found)


def judge(name: str, session: Session, features: np.ndarray, ids: np.ndarray) -> list[dict]:
    """The estimate as `tl label` shows it, and one that does not know the images without a label."""
    rows = np.array(session.labeled)
    names = tuple(map(str, range(int(session.ids.max()) + 1)))
    own = session.features[rows], session.ids[rows], np.array(session.is_random), names, session.seed
    rest = np.setdiff1d(np.arange(len(session.ids)), rows)
    unlabeled = float(session.is_right(session.features[rest], session.ids[rest]).mean())
    test = float(session.is_right(features, ids).mean())
    case = {
        "kind": "estimate",
        "set": name,
        "seed": session.seed,
        "labels": len(rows),
        "unlabeled": unlabeled,
        "test": test,
        "tests": len(ids),
    }
    found = []
    for suffix, others in (("", session.features[session.reserve]), (" uncorrected", None)):
        estimate = estimate_accuracy(*own, unlabeled=others)
        if estimate is not None:
            share = f"{session.rule}@{session.share:g}{suffix}"
            found.append({**case, "share": share, **vars(estimate), "width": estimate.high - estimate.low})
    return found


def append(out: Path, found: list[dict]) -> None:
    with out.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in found)


def table(out: Path) -> None:
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    curves = defaultdict(list)
    for row in rows:
        if row["kind"] == "rule":
            curves[row["set"], row["rule"]].append(row["curve"])
    print("| set | rule | area | " + " | ".join(map(str, SHOWN)) + " |\n|" + "---|" * (3 + len(SHOWN)))
    for (name, rule), found in curves.items():
        means = {int(n): a for n, a in np.mean(found, axis=0)}
        cells = [f"{means[n]:.3f}" if n in means else "" for n in SHOWN]
        if rule == "all labels":
            cells = [f"{next(iter(means.values())):.3f} with {next(iter(means))}", *[""] * (len(SHOWN) - 1)]
        print(f"| {name} | {rule} | {np.mean(list(means.values())):.4f} | " + " | ".join(cells) + " |")
    print_estimates([row for row in rows if row["kind"] == "estimate"])


def print_estimates(rows: list[dict]) -> None:
    """Estimates by rule and number of labels. `ideal`: how often the interval of as many independent images holds the
    accuracy on as many test images, whose own sampling error counts too.
    """
    titles = "rule@share, labels | cases | random labels | bias to unlabeled, test | interval contains them | ideal"
    print(f"\n| {titles} | width |\n|---|---|---|---|---|---|---|")
    cases = defaultdict(list)
    for row in rows:
        cases[row["share"], row["labels"]].append(row)
        cases[row["share"], "all"].append(row)
    for (share, labels), found in sorted(cases.items(), key=lambda case: (case[0][0], str(case[0][1]).zfill(4))):
        truths = ("unlabeled", "test")
        bias = ", ".join(f"{np.mean([row['accuracy'] - row[truth] for row in found]):+.3f}" for truth in truths)
        inside = ", ".join(f"{np.mean([row['low'] <= row[t] <= row['high'] for row in found]):.1%}" for t in truths)
        width, n = (np.mean([row[k] for row in found]) for k in ("width", "n"))
        print(f"| {share}, {labels} | {len(found)} | {n:.0f} | {bias} | {inside} | {ideal(found):.1%} | {width:.3f} |")


def ideal(rows: list[dict], draws: int = 1000) -> float:
    """Share of draws from binomial distributions with these accuracies whose Wilson intervals hold the truth."""
    rng, inside = np.random.default_rng(0), []
    for row in rows:
        n, tests = row["n"], row["tests"]
        accuracy = rng.beta(row["test"] * tests + 0.5, (1 - row["test"]) * tests + 0.5, draws)  # Jeffreys' posterior
        truths = rng.binomial(tests, accuracy) / tests
        intervals = np.array([wilson_interval(hits, n) for hits in range(n + 1)])[rng.binomial(n, accuracy)]
        inside.append(((intervals[:, 0] <= truths) & (truths <= intervals[:, 1])).mean())
    return float(np.mean(inside))


def times() -> None:
    print("| labels | images | fit | choose, first | choose | estimate |\n|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for total in (5000, 20000):
        features, ids = blobs(total, 20, rng)
        for count in (500, 2000, 5000):
            labeled, candidates = np.arange(min(count, total // 2)), np.arange(min(count, total // 2), total)
            names, is_random = tuple(map(str, range(20))), labeled < len(labeled) / 5
            own = features[labeled], ids[labeled]
            fit, head = timed(lambda own=own, names=names: fit_head(*own, names))
            p = head.probabilities(features)
            first, _ = timed(lambda f=features, c=candidates, n=labeled[:0]: choose_images(f, None, c, n, 40, 0))
            choose, _ = timed(lambda f=features, p=p, c=candidates, n=labeled: choose_images(f, p, c, n, 40, 0))
            others = features[-400:]
            judged, _ = timed(lambda o=own, r=is_random, n=names, u=others: estimate_accuracy(*o, r, n, unlabeled=u))
            cells = " | ".join(f"{seconds:.2f} s" for seconds in (fit, first, choose, judged))
            print(f"| {len(labeled)} | {total} | {cells} |", flush=True)


def blobs(count: int, classes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rectified clouds, as of a trunk with 1,280 features."""
    ids = np.arange(count) % classes
    centers = rng.normal(size=(classes, 1280))
    return np.maximum(0.3 * centers[ids] + rng.normal(size=(count, 1280)), 0).astype(np.float32), ids


def timed(work, times: int = 3) -> tuple[float, object]:
    """The shortest of some runs, in seconds, and its result."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return min(seconds), result


def main() -> None:
    task, *rest = sys.argv[1:]
    if task == "times":
        times()
    elif task == "table":
        table(Path(rest[0]))
    else:
        run = run_rules if task == "rules" else run_estimates
        run(SETS[rest[0]], Path(rest[1]), int(rest[2]), rest[3:])


if __name__ == "__main__":
    main()
