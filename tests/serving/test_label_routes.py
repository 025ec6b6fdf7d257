"""The HTTP API of `tl label`: a session from the first image to labels.csv, windows, conflicts, undo, refusals."""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.annotation.photos import color_of, make_photos
from tests.full_disk import largest_file
from tests.serving.label_server import Labeling, labeling
from tl.annotation.journal import Journal
from tl.annotation.model_making import MadeModel, Method
from tl.annotation.opening import SessionPlan
from tl.progress import Progress

COUNT = 130


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_photos(tmp_path_factory.mktemp("label") / "photos", COUNT, folders=("a", "b"))
    (folder / "a" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def page(photos: Path, tmp_path: Path) -> Iterator[Labeling]:
    """A session without features."""
    with labeling(SessionPlan(photos, tmp_path / "labels.csv", ["red", "green"])) as page:
        yield page


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_session__from_the_first_image_to_labels(photos: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "labels.csv"
    with labeling(SessionPlan(photos, output, ["red", "green", "blue"]), model) as page:
        state = page.wait(lambda state: state["features"]["done"] == COUNT + 1)
        assert state["counts"] == {"labeled": 0, "unsure": 0, "skipped": 0, "failed": 1}
        assert [(one["name"], one["key"]) for one in state["classes"]] == [("red", "1"), ("green", "2"), ("blue", "3")]
        (broken,) = page.listed("errors")
        assert page.records(broken)[0]["error"]
        random_seen = 0
        for _ in range(3):
            ids = page.listed("next", window="w")
            assert len(ids) == 40
            assert broken not in ids
            for record in page.records(*ids):
                if record["is_reserved"]:
                    random_seen += 1
                    assert record["suggestion"] is record["confidence"] is record["top"] is None
                page.label([record["id"]], color_of(record["name"]))
            fitted = page.get("/api/state")["counts"]["labeled"]
            page.wait(lambda state, fitted=fitted: state["head"] and state["head"]["fitted_to"] == fitted)
            page.wait(lambda state: not state["head"]["is_fitting"])
            for name in ("red", "green", "blue"):
                for record in page.records(*page.listed("suggested", **{"class": name})):
                    assert not record["is_reserved"]
                    assert record["suggestion"] == name == color_of(record["name"])
        assert random_seen >= 8
        state = page.wait(lambda state: state["estimate"], 60)
        assert state["estimate"]["accuracy"] > 0.9
        assert state["estimate"]["low"] < state["estimate"]["accuracy"] <= state["estimate"]["high"]
    written = rows(output)
    assert len(written) == state["counts"]["labeled"]
    assert all(color_of(row["path"]) == row["label"] for row in written)
    assert all((tmp_path / row["path"]).is_file() for row in written)
    assert {row["split"] for row in written} == {"train", "val"}
    assert {row["sampled"] for row in written} <= {"random", "selected"}
    assert list(written[0]) == ["path", "label", "split", "sampled", "note"]
    # The head's opinion of images of the reserve is kept, though nobody was told.
    events = Journal.open(tmp_path / "labels.journal.jsonl")[1]
    guesses = [event.predicted for event in events if event.predicted is not None]
    assert any(guess[0] in ("red", "green", "blue") for guess in guesses)


def test_list__no_image_is_offered_to_two_windows(page: Labeling) -> None:
    first, second = page.listed("next", window="one"), page.listed("next", window="two")
    assert len(first) == len(second) == 40
    assert not set(first) & set(second)
    assert page.listed("next", window="one") == first  # still open: offered again to the same window
    third, fourth = page.listed("next", window="three"), page.listed("next", window="four")
    assert len({*first, *second, *third, *fourth}) == COUNT + 1  # without features, nothing is known to be broken
    assert page.listed("next", window="five") != []  # nothing else is left
    shares = [sum(record["is_reserved"] for record in page.records(*ids)) for ids in (first, second)]
    assert all(6 <= share <= 12 for share in shares)


def test_label__conflict_of_two_windows(page: Labeling) -> None:
    seen = [{"id": i, "version": 0} for i in (0, 1)]
    body = {"window": "one", "images": seen[:1], "do": "label", "label": "red"}
    assert page.post("/api/label", body)["conflicts"] == []
    answer = page.post("/api/label", {"window": "two", "images": seen, "do": "label", "label": "green"})
    assert [record["id"] for record in answer["records"]] == [1]
    assert [(record["id"], record["label"]) for record in answer["conflicts"]] == [(0, "red")]
    assert [record["label"] for record in page.records(0, 1)] == ["red", "green"]
    only = page.post("/api/label", {"window": "two", "images": seen[:1], "do": "skip"})
    assert (only["event"], only["records"], len(only["conflicts"])) == (None, [], 1)
    # A window that acts faster than it is answered is in no conflict with itself.
    again = page.post("/api/label", {"window": "one", "images": seen[:1], "do": "unsure"})
    assert again["records"][0]["status"] == "unsure"


def test_undo__and_redo(page: Labeling) -> None:
    page.label([3, 4], "red")
    page.label([4], "green")
    page.label([5], do="skip")
    assert page.get("/api/state", window="w")["can_undo"] is True
    assert page.get("/api/state", window="other")["can_undo"] is False
    assert page.post("/api/undo", {"window": "w"})["records"][0]["status"] == "open"
    assert [one["label"] for one in page.post("/api/undo", {"window": "w"})["records"]] == ["red"]
    assert [one["label"] for one in page.post("/api/undo", {"window": "w"})["records"]] == [None, None]
    assert "nothing to undo" in page.error(409, "POST", "/api/undo", json={"window": "w"})
    assert [one["label"] for one in page.post("/api/redo", {"window": "w"})["records"]] == ["red", "red"]
    assert page.get("/api/state", window="w")["can_redo"] is True
    page.label([3], do="clear")
    assert "nothing to redo" in page.error(409, "POST", "/api/redo", json={"window": "w"})


def test_undo__not_what_another_window_has_changed(page: Labeling) -> None:
    page.label([6], "red", window="one")
    page.label([7], "red", window="one")
    page.label([7], "green", window="two")
    assert "another window" in page.error(409, "POST", "/api/undo", json={"window": "one"})
    assert page.records(7)[0]["label"] == "green"
    assert page.post("/api/undo", {"window": "one"})["records"][0]["id"] == 6  # the action before can be


def test_note__is_kept_and_written(page: Labeling) -> None:
    answer = page.post("/api/note", {"window": "w", "id": 8, "version": 0, "text": ' blurred\n<b>," ü '})
    assert answer["records"][0]["note"] == 'blurred\n<b>," ü'
    page.label([9], do="unsure")
    page.label([10], do="skip")
    notes = page.session.output.with_name("labels.notes.csv")
    ends = time.monotonic() + 20
    while not (notes.exists() and len(rows(notes)) == 3):
        assert time.monotonic() < ends
        time.sleep(0.02)
    assert [(row["status"], row["note"]) for row in rows(notes)] == [
        ("open", "blurred\n<b>,\" ü"), ("unsure", ""), ("skipped", ""),
    ]  # fmt: skip
    page.error(400, "POST", "/api/note", json={"window": "w", "id": 8, "version": 3, "text": "\x00"})
    page.error(400, "POST", "/api/note", json={"window": "w", "id": 8, "version": 3, "text": "a" * 3000})


def test_classes__add_rename_remove(page: Labeling) -> None:
    page.post("/api/classes", {"window": "w", "do": "add", "name": "  dark   blue "})
    page.label([11], "dark blue")
    page.post("/api/classes", {"window": "w", "do": "rename", "name": "dark blue", "new_name": "Navy"})
    assert page.records(11)[0]["label"] == "Navy"
    body = {"window": "w", "do": "remove", "name": "Navy"}
    assert page.error(409, "POST", "/api/classes", json=body).startswith("1 images have the label")
    page.label([11], do="clear")
    page.post("/api/classes", body)
    assert [one["name"] for one in page.get("/api/state")["classes"]] == ["red", "green"]
    for name, status in (("RED", 409), ("", 400), ("?", 400), ("a\x07", 400), ("x" * 101, 400), ("\u202e", 400)):
        page.error(status, "POST", "/api/classes", json={"window": "w", "do": "add", "name": name})
    page.error(404, "POST", "/api/classes", json={"window": "w", "do": "remove", "name": "gone"})
    page.error(409, "POST", "/api/classes", json={"window": "w", "do": "rename", "name": "red", "new_name": "Green"})
    # The label was cleared before the class was removed: that can be undone no more.
    assert "removed" in page.error(409, "POST", "/api/undo", json={"window": "w"})


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/api/records", {"ids": [0], "more": 1}, "unknown field: more"),
        ("/api/records", {}, "lacks the field ids"),
        ("/api/records", [], "must be an object"),
        ("/api/records", {"ids": "0"}, "must be a list"),
        ("/api/records", {"ids": [1.0]}, "must be a whole number"),
        ("/api/records", {"ids": [True]}, "must be a whole number"),
        ("/api/records", {"ids": list(range(100)) * 5}, "at most 400"),
        ("/api/records", {"ids": [1, 1]}, "given twice"),
        ("/api/label", {"window": "w", "images": [{"id": 0}], "do": "skip"}, "images[0] lacks the field version"),
        ("/api/label", {"window": "w", "images": [], "do": "skip"}, "1 to 2000 images"),
        ("/api/label", {"window": "w", "images": [{"id": 0, "version": 0}], "do": "fly"}, "must be one of label"),
        ("/api/label", {"window": "w", "images": [{"id": 0, "version": 0}], "do": "label"}, "a label is given"),
        ("/api/label", {"window": "", "images": [{"id": 0, "version": 0}], "do": "skip"}, "name of a window"),
        ("/api/label", {"window": "import", "images": [{"id": 0, "version": 0}], "do": "skip"}, "name of a window"),
        ("/api/model", {"method": "magic", "name": "m"}, "must be one of features, finetune"),
        ("/api/model", {"method": "features", "name": "../m"}, "a name has 1 to 80 letters"),
    ],
)  # fmt: skip
def test_bodies__are_checked(page: Labeling, path: str, body: Any, told: str) -> None:
    assert told in page.error(400, "POST", path, json=body)


@pytest.mark.parametrize("i", [-1, COUNT + 1, 10**12, 2**63])
def test_ids__out_of_range(page: Labeling, i: int) -> None:
    assert page.error(404, "POST", "/api/records", json={"ids": [i]}) == "there is no such image"
    body = {"window": "w", "images": [{"id": i, "version": 0}], "do": "skip"}
    assert page.error(404, "POST", "/api/label", json=body) == "there is no such image"


def test_bodies__of_another_kind_or_too_large(page: Labeling) -> None:
    assert "application/json" in page.error(415, "POST", "/api/undo", data={"window": "w"})
    headers = {"content-type": "application/json"}
    assert "not JSON" in page.error(400, "POST", "/api/undo", content=b'{"window":', headers=headers)
    assert "not JSON" in page.error(400, "POST", "/api/undo", content=b'{"window": "\\ud800"}', headers=headers)
    assert "1 MiB" in page.error(413, "POST", "/api/records", content=b" " * (2 << 20), headers=headers)
    assert "not answered" in page.error(405, "GET", "/api/label")
    assert "not answered" in page.error(405, "POST", "/api/state", json={})
    page.error(404, "GET", "/api/nothing")


def test_list__narrowed(page: Labeling) -> None:
    page.label([0, 1, 2], "red")
    page.label([1], "green")
    assert page.listed("labeled") == [1, 0, 2]  # the latest first
    assert page.listed("labeled", **{"class": "red"}) == [0, 2]
    assert len(page.listed("all", status="open")) == COUNT + 1 - 3
    found = page.records(*page.listed("all", search="B/000")[:400])
    assert found
    assert all(record["name"].startswith("b/000") for record in found)
    page.error(404, "GET", "/api/list", params={"view": "labeled", "class": "gone"})
    page.error(400, "GET", "/api/list", params={"view": "gone"})
    page.error(400, "GET", "/api/list", params={"view": "all", "status": "gone"})
    page.error(400, "GET", "/api/list", params={"view": "all", "more": "1"})
    page.error(400, "GET", "/api/list?view=all&view=all")
    page.error(400, "GET", "/api/list", params={"view": "similar"})
    page.error(404, "GET", "/api/list", params={"view": "similar", "like": "1,2.5"})


def test_similar__and_neighbors(photos: Path, model: Path, tmp_path: Path) -> None:
    with labeling(SessionPlan(photos, tmp_path / "labels.csv"), model) as page:
        page.wait(lambda state: state["features"]["done"] == COUNT + 1)
        (start,) = page.records(next(i for i in range(COUNT) if not page.records(i)[0]["is_reserved"]))
        found = page.records(*page.listed("similar", like=start["id"]))
        assert not any(record["is_reserved"] or record["id"] == start["id"] for record in found)
        assert {color_of(record["name"]) for record in found[:10]} == {color_of(start["name"])}
        page.label([record["id"] for record in found[:3]], "mine")
        info = page.get(f"/api/image/{start['id']}/info")
        assert (info["width"], info["height"], info["format"]) == (16, 12, "PNG")
        assert [near["label"] for near in info["neighbors"]] == ["mine"] * 3
        assert info["neighbors"][0]["similarity"] > 0.95
        reserved = next(i for i in range(COUNT) if page.records(i)[0]["is_reserved"])
        assert page.get(f"/api/image/{reserved}/info")["neighbors"] == []


def test_label__full_disk_confirms_nothing(page: Labeling) -> None:
    page.label([0], "red")
    journal = page.session.output.with_name("labels.journal.jsonl")
    body = {"window": "w", "images": [{"id": 1, "version": 0}], "do": "label", "label": "red"}
    with largest_file(journal.stat().st_size + 10):
        assert "cannot be written" in page.error(507, "POST", "/api/label", json=body)
        assert page.records(1)[0]["status"] == "open"
        assert "cannot be written" in page.error(507, "POST", "/api/label", json=body)
    assert page.post("/api/label", body)["records"][0]["label"] == "red"
    events = Journal.open(journal)[1]
    assert [event.do for event in events] == ["open", "label", "label"]


def test_output__that_cannot_be_written_is_told(page: Labeling) -> None:
    page.label([0], "red")
    page.wait(lambda state: page.session.output.stat().st_size > 40)
    page.session.output.unlink()
    page.session.output.mkdir()  # in the way
    try:
        page.label([1], "red")
        assert "labels.csv" in page.wait(lambda state: state["output_error"])["output_error"]
    finally:
        page.session.output.rmdir()
    page.label([2], "red")
    page.wait(lambda state: state["output_error"] is None)


def test_events__tell_revisions_and_end_with_the_server(photos: Path, tmp_path: Path) -> None:
    heard: list[int] = []
    with labeling(SessionPlan(photos, tmp_path / "labels.csv")) as page:
        cookies, url = page.client.cookies, page.access.url.rstrip("/")

        def listen() -> None:
            with httpx.stream("GET", f"{url}/api/events", cookies=cookies, timeout=30) as stream:
                for line in stream.iter_lines():
                    if line.startswith("data: "):
                        heard.append(json.loads(line[6:])["revision"])

        thread = threading.Thread(target=listen)
        thread.start()
        page.wait(lambda state: heard)
        for i in range(20):
            page.label([i], "red")
        revision = page.get("/api/state")["revision"]
        page.wait(lambda state: heard[-1] >= revision)
        began = time.monotonic()
    thread.join(40)
    assert not thread.is_alive()
    assert time.monotonic() - began < 40  # the stream does not hold the server, which would end it after 61 s
    assert heard == sorted(set(heard))
    assert len(heard) < 20  # several changes are told at once


def test_events__a_limited_number_of_streams(page: Labeling) -> None:
    streams = [page.client.stream("GET", "/api/events") for _ in range(4)]
    for stream in streams:
        stream.__enter__()
    assert "too many windows" in page.error(503, "GET", "/api/events")
    for stream in streams:
        stream.__exit__(None, None, None)
    ends = time.monotonic() + 10
    while page.client.send(page.client.build_request("GET", "/api/events"), stream=True).status_code == 503:
        assert time.monotonic() < ends
        time.sleep(0.1)


def make_slowly(labels: Path, model: Path, *, run: Path, making: Path, method: Method, progress: Progress) -> MadeModel:
    """Stands for training: counts labels, until there are no more steps."""
    lines = labels.read_text(encoding="utf-8").splitlines()
    progress.start("training", 1000, "steps")
    for _ in range(1000 if method == "finetune" else 3):
        time.sleep(0.01)
        progress.advance()
    run.mkdir()
    model.write_text(str(len(lines) - 1))
    return MadeModel(model, run, {"val": {"top1_accuracy": 1.0, "ci_low": 0.2, "ci_high": 1.0, "n": 2}}, is_random=True)


def test_model__made_and_canceled(photos: Path, tmp_path: Path) -> None:
    with labeling(SessionPlan(photos, tmp_path / "labels.csv"), make=make_slowly) as page:
        page.label([0, 1], "red")
        page.post("/api/model", {"method": "features", "name": "first"})
        state = page.wait(lambda state: state["model"]["state"] == "done")["model"]
        assert Path(state["file"]).read_text() == "2"  # all labels so far
        assert Path(state["run"]).is_dir()
        told = page.error(409, "POST", "/api/model", json={"method": "features", "name": "first"})
        assert told.startswith("first exists in ")
        page.error(409, "POST", "/api/model/cancel", json={})
        page.post("/api/model", {"method": "finetune", "name": "second"})
        page.wait(lambda state: "training: " in state["model"]["text"])
        told = page.error(409, "POST", "/api/model", json={"method": "finetune", "name": "third"})
        assert "is being made" in told
        page.client.post("/api/model/cancel")
        page.wait(lambda state: state["model"]["text"] == "canceled")
        assert not (tmp_path / "second.onnx").exists()
        page.post("/api/model", {"method": "finetune", "name": "second"})  # ends with the session
