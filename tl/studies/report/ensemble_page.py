"""Build the report of an ensemble's evaluation: scores of members and votes, agreement, where voting helps or hurts."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl.evaluation.evaluate import Evaluation
from tl.runtime.ensembles.voting import VOTINGS, Voting, vote
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.studies.report.charts import bar_chart, reliability_chart
from tl.studies.report.page import Card, Chart, Code, Gallery, Note, Page, Section, Table, write_page
from tl.studies.report.tables import metric_table
from tl.studies.report.thumbnails import thumbnail

_SIDE, _MOST_CARDS = 144, 36


def write_ensemble_report(evaluation: Evaluation, preprocessing: Preprocessing, split: str, path: Path) -> Path:
    """Write the page; `preprocessing` decodes the images shown. Raises `OutputError`, `MissingExtraError`."""
    write_page(build_ensemble_page(evaluation, preprocessing, split, shlex.join(["tl", *sys.argv[1:]])), path)
    return path


def build_ensemble_page(evaluation: Evaluation, preprocessing: Preprocessing, split: str, command: str) -> Page:
    """Build the page. `command`: command line that repeats the evaluation."""
    return _Told(evaluation, preprocessing).page(split, command)


class _Told:
    """Contents of the page. Images are grouped by the voting rule with the highest accuracy."""

    def __init__(self, evaluation: Evaluation, preprocessing: Preprocessing) -> None:
        self._evaluation, self._preprocessing = evaluation, preprocessing
        members, truth = evaluation.members, evaluation.true_ids
        self._member_ids: NDArray[np.int64] = members.argmax(axis=2)
        self._member_right = self._member_ids == truth[:, None]
        self._best = int(self._member_right.sum(axis=0).argmax())
        voted = {rule: vote(members, rule, evaluation.weights).label_ids for rule in VOTINGS}
        self._rule: Voting = max(VOTINGS, key=lambda rule: int((voted[rule] == truth).sum()))
        self._decided = voted[self._rule]
        self._right = self._decided == truth

    def page(self, split: str, command: str) -> Page:
        names, right = self._evaluation.member_names, self._right
        helped = right & ~self._member_right[:, self._best]
        hurt = ~right & self._member_right[:, self._best]
        lost = ~right & self._member_right.any(axis=1) & ~hurt
        hopeless = ~self._member_right.any(axis=1)
        best = names[self._best]
        figures = [
            (f"{self._rule} vote", f"{right.mean():.1%}"),
            (f"best member, {best}", f"{self._member_right[:, self._best].mean():.1%}"),
            ("any member correct", f"{(~hopeless).mean():.1%}"),
            ("all members agree", f"{(self._agreement() == 1).mean():.1%}"),
            ("images", str(len(right))),
        ]
        sections = [
            self._rows(),
            self._agreements(),
            *self._gallery("Where voting helps", helped, f"The {self._rule} vote is correct and {best} is not"),
            *self._gallery("Where voting hurts", hurt, f"{best} is correct and the {self._rule} vote is not"),
            *self._gallery(
                "Where only other members are correct", lost, f"A member other than {best} is correct, the vote is not"
            ),
            *self._gallery("Where no member is correct", hopeless, "All members are wrong, or the label is"),
            Section("Repeat", [Code(command)]),
        ]
        subtitle = f"{len(names)} models on the split '{split}'. Images are grouped by the {self._rule} vote."
        headline = (
            f"The {self._rule} vote is right for {int(right.sum())} of {len(right)} images: {right.mean():.1%}. It "
            f"corrects {int(helped.sum())} errors of {best}, the best member, and adds {int(hurt.sum())}."
        )
        return Page("Ensemble", subtitle, figures, sections, kicker=f"{len(names)} models together", headline=headline)

    def _rows(self) -> Section:
        rows, columns = self._evaluation.rows, self._evaluation.columns
        shown = [row for row in rows if row["top1_accuracy"] is not None]
        chart = bar_chart(
            "Members and votes",
            "top-1 accuracy",
            [f"{row['model']} {row['voting']}".strip() for row in shown],
            [row["top1_accuracy"] for row in shown],
        )
        note = (
            "p against the best member: probability of a difference from it at least this large if both are equally "
            "good. "
            "The oracle is correct if any member is."
        )
        return Section(
            "Members and votes",
            [
                metric_table(columns, rows),
                Chart(chart),
                Note(note),
            ],
        )

    def _agreements(self) -> Section:
        names = self._evaluation.member_names
        pairs = []
        for i in range(len(names)):
            for j in range(i + 1, len(names)):
                alike = self._member_ids[:, i] == self._member_ids[:, j]
                both_wrong = ~self._member_right[:, i] & ~self._member_right[:, j]
                pairs.append((names[i], names[j], float(alike.mean()), float(both_wrong.mean())))
        shares = self._agreement()
        levels = sorted(set(shares.tolist()))
        chart = reliability_chart(
            "Share of members that agree",
            levels,
            [float(self._right[shares == level].mean()) for level in levels],
            [int((shares == level).sum()) for level in levels],
            "share of members for the predicted class",
        )
        note = (
            "Members that fail on different images complement each other; two that always fail on the "
            "same images are no better than one."
        )
        table = Table(("member", "other", "same class", "both wrong"), pairs)
        return Section("Agreement", [Chart(chart), table, Note(note)])

    def _agreement(self) -> NDArray[np.float64]:
        return np.asarray((self._member_ids == self._decided[:, None]).mean(axis=1).round(6))

    def _gallery(self, title: str, which: NDArray[np.bool_], note: str) -> list[Section]:
        places = np.flatnonzero(which)
        if not len(places):
            return []
        more = f"; {_MOST_CARDS} are shown" if len(places) > _MOST_CARDS else ""
        cards = [self._card(int(place)) for place in places[:_MOST_CARDS]]
        return [Section(title, [Gallery(cards, f"{note}: {len(places)} images{more}.")])]

    def _card(self, place: int) -> Card:
        names = self._evaluation.class_names
        path = self._evaluation.paths[place]
        said = self._evaluation.members[place]
        lines = [
            Path(path).name,
            f"true: {names[self._evaluation.true_ids[place]]}",
            f"{self._rule}: {names[self._decided[place]]}",
            *self._votes(said),
        ]
        return Card(thumbnail(path, self._preprocessing, _SIDE), lines)

    def _votes(self, said: NDArray[np.float32]) -> Sequence[str]:
        names = self._evaluation.class_names
        return [
            f"{member}: {names[row.argmax()]} {row.max():.0%}"
            for member, row in zip(self._evaluation.member_names, said, strict=True)
        ]
