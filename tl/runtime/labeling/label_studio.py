"""Read Label Studio's exports: JSON (tasks with annotations) and JSON-MIN (one object per annotation).

Uses choices of whole images and key points; everything else is counted in `remarks`. Sources:
https://labelstud.io/guide/task_format, https://labelstud.io/tags/keypointlabels.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tl.errors import DataError
from tl.runtime.labeling.export import (
    PIXEL_CENTER,
    Passed,
    Reading,
    ToolFile,
    ToolImage,
    ToolPoint,
    check_points,
    names_of,
    number,
    one_name,
    only_name,
    reading_of,
    size_of,
    used_point_names,
)
from tl.runtime.sources.names import composed
from tl.runtime.sources.paths import is_image_name

TOOL = "Label Studio"
# What JSON-MIN adds to the data and the answers of a task.
_MIN_FIELDS = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", "predictions"}
_CHOICES, _POINTS = "choices", "keypointlabels"


@dataclass(frozen=True)
class _Answer:
    """What one annotator says of an image. `rank`: sorts the answers, the one to prefer last.

    `labels`: None if it is not known whether the annotator has judged the image.
    """

    rank: tuple[bool, str]
    labels: tuple[str, ...] | None
    points: tuple[ToolPoint, ...]
    stated_hw: tuple[int, int] | None


@dataclass
class _Context:
    """What the reading of all tasks shares. `control`: the name of the choices in use."""

    reading: Reading
    passed: Passed
    control: str = ""
    several: int = 0


def is_label_studio(parsed: Any) -> bool:
    """Return whether a JSON file looks like an export of Label Studio, or like tasks for it."""
    first = parsed[0] if isinstance(parsed, list) and parsed else None
    return isinstance(first, dict) and (isinstance(first.get("data"), dict) or {"annotation_id", "id"} <= first.keys())


def has_points(parsed: list[Any]) -> bool:
    """Return whether an annotation of a file has a key point, whatever it is called. Raises `DataError`."""
    with reading_of("", TOOL):
        if not isinstance(parsed[0].get("data"), dict):
            return any(_is_points(value) for row in parsed for value in row.values())
        done = [each for task in parsed for each in _annotations(task) if not each.get("was_cancelled")]
        return any(result.get("type") == _POINTS for each in done for result in each["result"])


def read(parsed: list[Any], where: str, reading: Reading) -> ToolFile:
    """Return all annotated images. Raises `DataError` naming the task."""
    context = _Context(reading, Passed())
    with reading_of(where, TOOL):
        is_full = isinstance(parsed[0].get("data"), dict)
        images = _read_tasks(parsed, where, context) if is_full else _read_min(parsed, where, context)
    if context.several:
        how = "the latest counts" if reading.annotators == "latest" else "they are combined"
        context.passed(f"tasks have several annotations: {how}", context.several)
    return ToolFile(where, tuple(images), used_point_names(images), context.passed.remarks())


def _read_tasks(tasks: Sequence[Mapping[str, Any]], where: str, context: _Context) -> list[ToolImage]:
    key = _image_key([task["data"] for task in tasks], where)
    results = [result for task in tasks for each in _annotations(task) for result in each["result"]]
    controls = [result["from_name"] for result in results if _is_class(result)]
    context.control = _control(controls, where, context.reading)
    images = []
    for count, task in enumerate(tasks, start=1):
        place = f"{where}: task {task.get('id', count)}"
        with reading_of(place, TOOL):
            names = names_of(task["data"][key])
            annotations = _annotations(task)
            done = [a for a in annotations if not a.get("was_cancelled")]
            if annotations and not done:
                context.passed("tasks were skipped by their annotators: not labeled")
            elif not done:
                guessed = "with predictions only" if task.get("predictions") else "without an annotation"
                context.passed(f"tasks {guessed}: not labeled")
            answers = [_read_annotation(each, names, place, context) for each in done]
            images.append(_combine(answers, names, place, context))
    return images


def _control(found: Sequence[str], where: str, reading: Reading) -> str:
    """Return the choices in use. For points, classes are of no account: several choices are no fault."""
    if reading.wanted == "points" and reading.label is None:
        return only_name(found)
    return one_name(found, reading.label, where, "choice")


def _annotations(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = task.get("annotations") or task.get("completions") or []
    return found


def _is_class(result: Mapping[str, Any]) -> bool:
    """Whether a result is a choice for the whole image, and not for a region of it."""
    return result.get("type") == _CHOICES and "x" not in result["value"] and not result.get("parentID")


def _read_annotation(annotation: Mapping[str, Any], names: Sequence[str], place: str, context: _Context) -> _Answer:
    labels: list[str] = []
    points: list[ToolPoint] = []
    sizes: set[tuple[int, int]] = set()
    for result in annotation["result"]:
        kind = str(result.get("type"))
        if _is_class(result):
            if result["from_name"] == context.control:
                labels += map(str, result["value"][_CHOICES])
            else:
                context.passed(f"choices '{result['from_name']}' are not used")
        elif kind == _POINTS:
            value = {**result, **result["value"]}
            point, size_hw = _read_point(value, names, place, context)
            points.append(point)
            sizes |= {size_hw}
        else:
            context.passed(f"results of the kind {kind} are not used")
    rank = bool(annotation.get("ground_truth")), str(annotation.get("updated_at") or annotation.get("created_at") or "")
    return _answer(rank, labels, points, sizes, place)


def _answer(
    rank: tuple[bool, str],
    labels: Sequence[str] | None,
    points: Sequence[ToolPoint],
    sizes: set[tuple[int, int]],
    place: str,
) -> _Answer:
    if len(sizes) > 1:
        raise DataError(f"{place}: its points state {len(sizes)} sizes of the image: label it again")
    unique = None if labels is None else tuple(dict.fromkeys(map(composed, labels)))
    return _Answer(rank, unique, check_points(points, place), next(iter(sizes), None))


def _read_point(
    value: Mapping[str, Any], names: Sequence[str], place: str, context: _Context
) -> tuple[ToolPoint, tuple[int, int]]:
    """Return a point, whose coordinates are percent of the width and the height, and the size of the image."""
    labels = value[_POINTS]
    if len(labels) != 1:
        raise DataError(f"{place}: a point has {len(labels)} labels ({', '.join(map(str, labels))}), expected one")
    if value.get("image_rotation") not in (None, 0):
        raise DataError(
            f"{place}: the image was rotated by {value['image_rotation']} degrees in Label Studio: "
            "rotate it back there, and place its points again"
        )
    size_hw = size_of(value.get("original_height"), value.get("original_width"), place)
    if size_hw is None and context.reading.size is None:
        raise DataError(f"{place}: points without original_width and original_height")
    height, width = size_hw or context.reading.size(names)  # type: ignore[misc]
    x, y = (number(value[axis], place, f"{axis} of point '{labels[0]}'") for axis in "xy")
    return (
        ToolPoint(composed(str(labels[0])), x / 100 * width - PIXEL_CENTER, y / 100 * height - PIXEL_CENTER),
        (height, width),
    )


def _combine(answers: Sequence[_Answer], names: tuple[str, ...], place: str, context: _Context) -> ToolImage:
    """Make one image of its answers: the latest, unless one is marked as ground truth; or by majority."""
    if not answers:
        return ToolImage(place, names)
    context.several += len(answers) > 1
    ordered = sorted(answers, key=lambda answer: answer.rank)
    last = ordered[-1]
    labels, points = last.labels, last.points
    if context.reading.annotators == "majority" and not last.rank[0]:
        labels = _most_given(ordered)
        points = _median_points(ordered)
    if len({answer.stated_hw for answer in answers} - {None}) > 1:
        raise DataError(f"{place}: its annotations state several sizes of the image: label it again")
    size_hw = next((answer.stated_hw for answer in reversed(ordered) if answer.stated_hw), None)
    return ToolImage(place, names, labels, points, stated_hw=size_hw)


def _most_given(ordered: Sequence[_Answer]) -> tuple[str, ...] | None:
    """Return the classes that most annotators gave; of several, those given last."""
    counts = Counter(frozenset(answer.labels or ()) for answer in ordered)
    most = max(counts.values())
    return next(answer.labels for answer in reversed(ordered) if counts[frozenset(answer.labels or ())] == most)


def _median_points(ordered: Sequence[_Answer]) -> tuple[ToolPoint, ...]:
    """Return the points that more than half of the annotators placed, each at the median of its places."""
    placed: dict[str, list[ToolPoint]] = {}
    for answer in ordered:
        for point in answer.points:
            placed.setdefault(point.name, []).append(point)
    return tuple(
        ToolPoint(name, statistics.median(p.x for p in found), statistics.median(p.y for p in found))
        for name, found in placed.items()
        if 2 * len(found) > len(ordered)
    )


def _image_key(data: Sequence[Mapping[str, Any]], where: str) -> str:
    """Return the field of the tasks' data that names the image."""
    if all("image" in each for each in data):
        return "image"
    keys = [key for key in data[0] if all(_names_image(each.get(key)) for each in data)]
    if len(keys) != 1:
        found = ", ".join(map(str, data[0])) or "nothing"
        raise DataError(f"{where}: expected one field of the tasks that names an image, such as image; found: {found}")
    return keys[0]


def _names_image(value: Any) -> bool:
    return isinstance(value, str) and any(map(is_image_name, names_of(value)))


def _read_min(rows: Sequence[Mapping[str, Any]], where: str, context: _Context) -> list[ToolImage]:
    key = _image_key(rows, where)
    fields = dict.fromkeys(name for row in rows for name in row if name not in _MIN_FIELDS and name != key)
    choices = [name for name in fields if any(_as_choices(row.get(name)) for row in rows)]
    points = [name for name in fields if any(_is_points(row.get(name)) for row in rows)]
    context.control = _control(choices, where, context.reading)
    _say_taken(rows, context)
    for name in fields:
        if name not in (*points, context.control):
            context.passed(f"fields '{name}' are not used", sum(bool(row.get(name)) for row in rows))
    found: dict[Any, list[_Answer]] = {}
    names: dict[Any, tuple[str, ...]] = {}
    for row in rows:
        task = row["id"]
        place = f"{where}: task {task}"
        with reading_of(place, TOOL):
            names.setdefault(task, names_of(row[key]))
            found.setdefault(task, []).append(_read_row(row, points, names[task], place, context))
    images = []
    for task, answers in found.items():
        done = [answer for answer in answers if answer.labels or answer.points]
        images.append(_combine(done or answers, names[task], f"{where}: task {task}", context))
    return images


def _say_taken(rows: Sequence[Mapping[str, Any]], context: _Context) -> None:
    """Count the classes of a field that nobody has named, and that may be a text of the task's data.

    JSON-MIN writes one choice like such a text, and several choices as an object.
    """
    values = [row.get(context.control) for row in rows]
    is_sure = context.reading.label is not None or any(isinstance(value, dict) for value in values)
    if context.control and context.reading.wanted == "classes" and not is_sure:
        context.passed(f"values of the field '{context.control}' are used as classes", sum(map(bool, values)))


def _read_row(
    row: Mapping[str, Any], point_fields: Sequence[str], names: Sequence[str], place: str, context: _Context
) -> _Answer:
    # A row without choices is of an annotator who chose none, or who skipped the image.
    labels = _as_choices(row.get(context.control)) or None
    points: list[ToolPoint] = []
    sizes: set[tuple[int, int]] = set()
    for name in point_fields:
        for value in row.get(name) or ():
            if isinstance(value, dict) and _POINTS in value:
                point, size_hw = _read_point(value, names, place, context)
                points.append(point)
                sizes |= {size_hw}
            else:
                context.passed(f"results in '{name}' that are no points are not used")
    rank = False, str(row.get("updated_at") or row.get("created_at") or "")
    return _answer(rank, labels, points, sizes, place)


def _as_choices(value: Any) -> tuple[str, ...]:
    """Return the names in a cell of choices: one as text, several as an object; () for other cells."""
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(map(str, value[_CHOICES])) if isinstance(value, dict) and _CHOICES in value else ()


def _is_points(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict) and _POINTS in each for each in value)
