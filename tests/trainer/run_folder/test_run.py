from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tests.trainer.make import RunsCode, make_config, make_noise, make_png, make_row, make_store, read_rows
from tl.data.audit import Finding
from tl.data.manifests import LabeledImage
from tl.errors import ConfigError, OutputError, RunError
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.model_file.strict_json import dump_json
from tl.trainer.run_folder.checkpoints import RunCheckpoints, load_best
from tl.trainer.run_folder.network_card import RUN_VERSION, NetworkCard
from tl.trainer.run_folder.run import Run, check_free, create_run, write_csv

CARD = NetworkCard(("a", "Käfer, rot"), (), build_preprocessing((8, 8)), "none", 1.25)
ROW = make_row(1, (1.25, 0.5), (1.5, 0.25), lr=0.001, seconds=2.0, val_macro_f1=0.75, val_ece=0.125)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def tensors() -> dict[str, NDArray[Any]]:
    return {"head.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(3)}


def file_names(run: Run) -> list[str]:
    """Sorted. The suffix of an event file's name with time, host and process is removed."""
    names = (path.name for path in run.folder.iterdir())
    return sorted("events.out.tfevents" if name.startswith("events.out.tfevents.") else name for name in names)


def test_create_run__makes_the_folder_so_that_no_other_run_takes_it(tmp_path: Path) -> None:
    assert create_run(tmp_path / "a", numbered=True) == Run(tmp_path / "a")
    assert create_run(tmp_path / "a", numbered=True) == Run(tmp_path / "a-2")
    assert (tmp_path / "a-2").is_dir()


def test_create_run__folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert create_run(tmp_path / "a", numbered=False).folder == tmp_path / "a"  # an empty folder is free
    (tmp_path / "a" / "x").touch()
    with pytest.raises(RunError, match=r"a: already exists; use another folder, or resume"):
        create_run(tmp_path / "a", numbered=False)
    (tmp_path / "a-2").touch()
    assert create_run(tmp_path / "a", numbered=True).folder == tmp_path / "a-3"


def test_check_free__a_file_or_a_folder_with_something(tmp_path: Path) -> None:
    for free in ("not there", "a"):
        check_free(tmp_path / free)
        (tmp_path / "a").mkdir(exist_ok=True)
    (tmp_path / "a" / ".hidden").touch()
    for used in (tmp_path / "a", tmp_path / "a" / ".hidden"):
        with pytest.raises(RunError, match=r"already exists; use another folder, or resume"):
            check_free(used)


def test_save_config__round_trip(run: Run, tmp_path: Path) -> None:
    config = make_config(tmp_path, run.folder, head_sizes=(3, 4), lr=1e-5)
    run.save_config(config)
    assert run.load_config() == config


def test_load_config__not_a_run(run: Run) -> None:
    with pytest.raises(RunError, match=r"not a run folder, because it contains no config.yaml"):
        run.load_config()
    run.folder.mkdir()
    run.config_path.write_text("epoch: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config.yaml: unknown option 'epoch' \(nearest: 'epochs'\)"):
        run.load_config()


def test_save_best__round_trip(run: Run) -> None:
    weights = tensors()
    # safetensors writes memory as it is laid out; neither of these is laid out in index order.
    values = torch.arange(96.0).view(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    weights["channels last"] = values.numpy()
    weights["transposed"] = np.arange(6, dtype=np.float64).reshape(2, 3).T
    run.save_best(weights, CARD)
    loaded, card = load_best(run)
    assert card == CARD
    assert loaded.keys() == weights.keys()
    for name, tensor in weights.items():
        assert loaded[name].numpy().dtype == tensor.dtype
        np.testing.assert_array_equal(loaded[name].numpy(), tensor)


def test_load_best__missing_or_damaged(run: Run) -> None:
    with pytest.raises(RunError, match=r"contains no best.safetensors: not a finished run"):
        load_best(run)
    run.save_best(tensors(), CARD)
    run.best_path.write_bytes(run.best_path.read_bytes()[:40])
    with pytest.raises(RunError, match=r"best.safetensors: damaged"):
        load_best(run)


@pytest.mark.parametrize("metadata", [None, {"tl.network": "{}"}, {"tl.network": '{"run_version": NaN}'}])
def test_load_best__tensors_without_our_card(run: Run, metadata: dict[str, str] | None) -> None:
    run.folder.mkdir()
    save_file({"x": torch.zeros(1)}, run.best_path, metadata=metadata)
    with pytest.raises(RunError, match="made by another version of tl"):
        load_best(run)


def test_load_best__of_another_version(run: Run) -> None:
    run.save_best(tensors(), dataclasses.replace(CARD, run_version=RUN_VERSION + 1))
    with pytest.raises(
        RunError, match=f"another version of tl .*run_version is {RUN_VERSION + 1}, expected {RUN_VERSION}"
    ):
        load_best(run)


def test_load_best__of_the_first_version(run: Run) -> None:
    # Its card had no temperature.
    run.folder.mkdir()
    card = {key: value for key, value in json.loads(dump_json(CARD)).items() if key != "temperature"}
    save_file({"x": torch.zeros(1)}, run.best_path, metadata={"tl.network": json.dumps({**card, "run_version": 1})})
    with pytest.raises(RunError, match=r"best\.safetensors: damaged, or made by another version of tl"):
        load_best(run)


def test_save_manifest__columns_and_hashes(run: Run, tmp_path: Path) -> None:
    for i, name in enumerate(("a/1.png", "b/2.png")):
        make_png(tmp_path / "data" / name, make_noise(i))
    store = make_store(tmp_path / "data", CARD.preprocessing)
    run.save_manifest(store)
    rows = read_rows(run.folder / "manifest.csv")
    assert list(rows[0]) == ["path", "label", "split", "group", "sha256"]
    assert [(r["path"], r["label"], r["split"], r["group"]) for r in rows] == [
        ("../data/a/1.png", "a", "train", ""),
        ("../data/b/2.png", "b", "train", ""),
    ]
    assert [r["sha256"] for r in rows] == list(store.hashes)
    assert run.image_paths("train") == [str(tmp_path / "data" / name) for name in ("a/1.png", "b/2.png")]
    assert run.image_paths("val") == []


def test_save_manifest__of_other_images_is_refused(run: Run, tmp_path: Path) -> None:
    make_png(tmp_path / "data" / "a" / "1.png", make_noise(1))
    run.save_manifest(make_store(tmp_path / "data", CARD.preprocessing))
    run.save_manifest(make_store(tmp_path / "data", CARD.preprocessing))
    before = (run.folder / "manifest.csv").read_bytes()
    make_png(tmp_path / "data" / "a" / "1.png", make_noise(2))  # the same name, other pixels
    with pytest.raises(RunError, match="images, labels or splits have changed"):
        run.save_manifest(make_store(tmp_path / "data", CARD.preprocessing))
    assert (run.folder / "manifest.csv").read_bytes() == before


def test_image_paths__no_manifest(run: Run) -> None:
    with pytest.raises(RunError, match=r"manifest.csv: cannot be read"):
        run.image_paths("val")


def test_data_hash__depends_on_content_labels_and_splits_alone(run: Run, tmp_path: Path) -> None:
    make_png(tmp_path / "data" / "a" / "1.png", make_noise(1))
    run.save_manifest(make_store(tmp_path / "data", CARD.preprocessing))
    before = run.data_hash()
    manifest = run.folder / "manifest.csv"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("1.png", "2.png"), encoding="utf-8")
    assert run.data_hash() == before
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("train", "val"), encoding="utf-8")
    assert run.data_hash() != before


def test_save_skipped__columns(run: Run) -> None:
    run.save_skipped([(LabeledImage("/d/x.png", "x.png", "a", "train"), "empty file")])
    assert read_rows(run.folder / "skipped.csv") == [{"path": "x.png", "split": "train", "error": "empty file"}]


def test_save_table__history(run: Run) -> None:
    run.save_table("history.csv", [ROW.columns()])
    text = (run.folder / "history.csv").read_text(encoding="utf-8")
    assert text.splitlines() == [
        "epoch,lr,train_loss,train_top1_accuracy,val_loss,val_top1_accuracy,seconds,images_per_s,val_macro_f1,val_ece",
        "1,0.001,1.25,0.5,1.5,0.25,2,10,0.75,0.125",
    ]


def test_save_rows__text_is_quoted_and_no_rows_leave_a_header(run: Run) -> None:
    finding = Finding("few images", "a/1, 2.png", "", "class 'Käfer, \"rot\"' has 0012 images")
    run.save_rows("findings.csv", Finding, [finding])
    assert read_rows(run.folder / "findings.csv") == [dataclasses.asdict(finding)]
    run.save_rows("findings.csv", Finding, [])
    assert (run.folder / "findings.csv").read_text(encoding="utf-8") == "kind,path,other,detail\n"


def test_save_predictions__columns(run: Run) -> None:
    images = [LabeledImage("/d/a/1.png", "a/1.png", "a"), LabeledImage("/d/b/2.png", "b/2.png", "Käfer, rot")]
    run.save_predictions("val", images, np.array([[0.75, 0.25], [0.5, 0.5]], np.float32), CARD.class_names)
    assert read_rows(run.folder / "predictions_val.csv") == [
        {
            "path": "a/1.png",
            "true_label": "a",
            "label": "a",
            "confidence": "0.75",
            "p:a": "0.75",
            "p:Käfer, rot": "0.25",
        },
        {  # a tie goes to the first class
            "path": "b/2.png",
            "true_label": "Käfer, rot",
            "label": "a",
            "confidence": "0.5",
            "p:a": "0.5",
            "p:Käfer, rot": "0.5",
        },
    ]


def test_save_metrics__json(run: Run) -> None:
    run.save_metrics({"best_epoch": 2, "val": {"n": 3, "macro_f1": 0.5, "per_class": {"Käfer": {"n": 3}}}})
    text = (run.folder / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(text)["best_epoch"] == 2
    assert "Käfer" in text
    assert run.load_val_metrics() == {"n": 3.0, "macro_f1": 0.5}


def test_load_val_metrics__unfinished(run: Run) -> None:
    with pytest.raises(RunError, match="not a finished run; an interrupted one can be resumed"):
        run.load_val_metrics()


def test_run_checkpoints__first_and_final_are_written_others_wait(run: Run) -> None:
    checkpoints = RunCheckpoints(run)
    assert checkpoints.load_last() is None
    for number, final in ((1, False), (2, False), (3, True)):
        checkpoints.save({"number": number}, [ROW], final=final)
        assert checkpoints.load_last() == {"run_version": RUN_VERSION, "number": 1 if number < 3 else 3}
    assert len(read_rows(run.folder / "history.csv")) == 1
    assert torch.load(run.last_path, weights_only=True) == {"run_version": RUN_VERSION, "number": 3}
    assert file_names(run) == ["events.out.tfevents", "history.csv", "last.pt"]


def test_run_checkpoints__a_second_stage_has_files_of_its_own(run: Run) -> None:
    RunCheckpoints(run).save({"number": 1}, [ROW], final=True)
    second = RunCheckpoints(run, stage="_2")
    assert second.load_last() is None
    second.save({"number": 2}, [ROW, ROW], final=True)
    assert second.load_last() == {"run_version": RUN_VERSION, "number": 2}
    assert RunCheckpoints(run).load_last() == {"run_version": RUN_VERSION, "number": 1}
    assert [len(read_rows(run.folder / name)) for name in ("history.csv", "history_2.csv")] == [1, 2]
    # Only the first stage has an event file.
    assert file_names(run) == ["events.out.tfevents", "history.csv", "history_2.csv", "last.pt", "last_2.pt"]


def test_run_checkpoints__other_processes_write_nothing(run: Run) -> None:
    RunCheckpoints(run, writes=False).save({"number": 1}, [ROW], final=True)
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"number": 1}, "another version"),
        ({"run_version": 1}, "another version"),
        ({"run_version": 99}, "another version"),
        (None, "cannot be resumed from"),
    ],
)
def test_run_checkpoints__state_that_is_not_ours(run: Run, content: dict[str, Any] | None, reason: str) -> None:
    run.folder.mkdir()
    run.last_path.write_bytes(b"PK half a file") if content is None else torch.save(content, run.last_path)
    with pytest.raises(RunError, match=f"last.pt: .*{reason}"):
        RunCheckpoints(run).load_last()


def test_run_checkpoints__a_state_that_would_run_code_is_refused(run: Run, tmp_path: Path) -> None:
    run.folder.mkdir()
    torch.save({"run_version": RUN_VERSION, "x": RunsCode(tmp_path / "ran")}, run.last_path)
    with pytest.raises(RunError, match="cannot be resumed from"):
        RunCheckpoints(run).load_last()
    run.last_path.write_bytes(pickle.dumps(RunsCode(tmp_path / "ran"), protocol=2))
    with pytest.raises(RunError, match="cannot be resumed from"):
        RunCheckpoints(run).load_last()
    assert not (tmp_path / "ran").exists()


def test_write_csv__quotes_and_leaves_no_partial_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "x" / "t.csv", ("a", "b"), [("1,2", 'say "x"'), ("line\nbreak", "")])
    assert read_rows(tmp_path / "x" / "t.csv") == [{"a": "1,2", "b": 'say "x"'}, {"a": "line\nbreak", "b": ""}]
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["t.csv"]


def test_write_csv__place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_csv(tmp_path / "file" / "t.csv", ("a",), [])


def test_finished_run__files(finished_run: Run) -> None:
    assert file_names(finished_run) == [
        "best.safetensors",
        "config.yaml",
        "environment.json",
        "events.out.tfevents",
        "findings.csv",
        "history.csv",
        "last.pt",
        "manifest.csv",
        "metrics.json",
        "predictions_val.csv",
    ]
    assert load_file(finished_run.best_path).keys() == load_best(finished_run)[0].keys()
