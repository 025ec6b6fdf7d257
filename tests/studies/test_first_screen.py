"""The sentence, steps and examples of a page's first screen, with numbers computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from tl.studies.report.class_sections import Judged
from tl.studies.report.first_screen import class_headline, examples
from tl.studies.report.next_steps import class_steps, point_steps, review_command
from tl.studies.report.next_steps import test_step as kept_back

NAMES = ("ant", "bee")


def make_scores(confusion: list[list[int]], low: float, high: float) -> dict[str, Any]:
    rows = {
        name: {"n": sum(confusion[i]), "recall": confusion[i][i] / max(1, sum(confusion[i]))}
        for i, name in enumerate(NAMES)
    }
    count = sum(map(sum, confusion))
    accuracy = (confusion[0][0] + confusion[1][1]) / count
    interval = {"ci_low": low, "ci_high": high}
    return {"n": count, "top1_accuracy": accuracy, **interval, "per_class": rows, "confusion": confusion}


def make_judged(name: str, true_id: int, bee: float) -> Judged:
    return Judged(name, name, true_id, int(bee > 0.5), np.array([1 - bee, bee]))


def test_class_headline__counts_and_the_largest_class() -> None:
    text = class_headline(make_scores([[18, 2], [3, 7]], 0.66, 0.93), "test images")
    assert text == (
        "The model is right for 25 of 30 test images: 83.3% (95% interval 66.0% to 93.0%). "
        "Always naming the largest class would be right for 66.7%."
    )


def test_class_steps__doubtful_labels_weak_class_and_interval() -> None:
    judged = [make_judged(f"{i}", 1, 0.9) for i in range(3)] + [make_judged("odd", 0, 0.97)]
    findings = [{"kind": "labels disagree", "path": "a", "other": "b", "detail": "x"}]
    scores = make_scores([[18, 2], [3, 7]], 0.66, 0.93)
    steps = class_steps(scores, judged, NAMES, findings, {"bee": 12}, review_command("my runs/a"))
    assert [step.title for step in steps] == [
        "Correct labels of equal images",
        "Check 1 doubtful label",
        "Add images of 'bee'",
    ]
    assert steps[0].reason == "a and b: x. One of the labels is wrong."
    assert steps[1].reason == (
        "1 of 1 error was made with a confidence that is usual for right answers. If a label is wrong, correct it and "
        "train again."
    )
    assert steps[2].reason == (
        "7 of its 10 images are found (70%), the least of all classes; 3 are taken for 'ant'. "
        "It has 12 training images."
    )
    review = "tl review 'my runs/a' -o reviewed.csv"
    assert [step.command for step in steps] == [review, review, ""]
    last = class_steps(scores, [], NAMES, [], {})[-1]
    assert (last.title, "About 120 would halve" in last.reason) == ("Evaluate more images", True)


def test_class_steps__one_image_of_each_kind() -> None:
    scores = make_scores([[1, 4], [0, 5]], 0.4, 0.8)
    weakest = class_steps(scores, [], NAMES, [], {"ant": 1})[0]
    assert weakest.reason == (
        "1 of its 5 images is found (20%), the least of all classes; 4 are taken for 'bee'. It has 1 training image."
    )
    interval = class_steps({**scores, "groups": 1}, [], NAMES, [], {})[-1]
    assert interval.title == "Evaluate more groups"
    assert interval.reason.startswith("With 1 group, the accuracy is between 40% and 80%. About 4 would halve")


def test_class_steps__findings_in_their_own_words() -> None:
    """A finding may stand for several classes, or be of other splits than train: the step claims nothing else."""
    rare = "class 'x' has 2 training images, class 'y' 90 (3 more classes are as rare): class_weights balanced helps"
    findings = [
        {"kind": "imbalanced classes", "path": "", "other": "", "detail": rare},
        *({"kind": "few images", "path": "", "other": "", "detail": f"class '{x}' has 2 images"} for x in "xyz"),
        {"kind": "duplicate across splits", "path": "a", "other": "b", "detail": "identical files in val and test"},
    ]
    steps = class_steps(make_scores([[500, 4], [4, 500]], 0.98, 0.995), [], NAMES, findings, {})
    assert [(step.title, step.reason) for step in steps] == [
        (
            "Remove duplicates across splits",
            "a and b: identical files in val and test. Scores of images that training or selection has seen are too "
            "optimistic.",
        ),
        ("Add images to small classes", "Class 'x' has 2 images (2 more findings of this kind)."),
        ("Balance the classes", f"C{rare[1:]}."),
    ]


def test_class_steps__nothing_to_do() -> None:
    assert class_steps(make_scores([[500, 4], [4, 500]], 0.98, 0.995), [], NAMES, [], {}) == []


def test_point_steps__a_point_worse_than_the_others() -> None:
    points = {name: {"error_px": error} for name, error in (("tip", 9.0), ("base", 2.0), ("eye", 3.0), ("toe", None))}
    scores = {"per_keypoint": points, "ci_low": 4.0, "ci_high": 5.0, "error_px": 4.5, "n": 40}
    (step,) = point_steps(scores, [])
    assert step.title == "Check the annotations of 'tip'"
    assert "9 px, 3.0 times" in step.reason


def test_point_steps__no_error_of_most_points() -> None:
    points = {name: {"error_px": error} for name, error in (("tip", 9.0), ("base", 0.0), ("eye", 0.0))}
    assert point_steps({"per_keypoint": points, "ci_low": 2.9, "ci_high": 3.1, "error_px": 3.0, "n": 40}, []) == []


def test_test_step__only_if_test_images_wait() -> None:
    assert kept_back("val", 1, "runs/a")[0].reason.startswith("1 test image was kept back.")
    (step,) = kept_back("val", 239, "runs/a")
    assert "239 test images" in step.reason
    assert kept_back("test", 239, "runs/a") == kept_back("val", 0, "runs/a") == []


def test_examples__classes_in_turn_right_before_wrong() -> None:
    judged = [make_judged(f"a{i}", 0, 0.1 + i / 100) for i in range(5)] + [make_judged("b", 1, 0.8)]
    judged.append(make_judged("w", 0, 0.7))
    assert [each.name for each in examples(judged)] == ["a0", "b", "a1", "a2", "w"]
