from __future__ import annotations

from pathlib import Path

import pytest

from tests.studies.make import make_study
from tl.errors import ConfigError
from tl.studies.plan import parse_forced
from tl.studies.study import read_study


def test_read_study__every_combination_once(tmp_path: Path) -> None:
    study = read_study(
        make_study(
            tmp_path / "try.yaml",
            tmp_path,
            variants={"a": {"optimizer": "sgd"}, "b": {"grid": {"dropout": [0.1, 0.2]}}},
            grid={"lr": [0.1, 0.01]},
            seeds=[0, 1],
            about="x",
        )
    )
    assert (study.plan.name, study.plan.about, study.axes) == ("try", "x", ("lr", "dropout"))
    settings = [cell.setting for cell in study.cells if cell.seed == 0]
    assert settings == [
        *("a lr=0.1", "a lr=0.01"),
        *("b lr=0.1 dropout=0.1", "b lr=0.1 dropout=0.2", "b lr=0.01 dropout=0.1", "b lr=0.01 dropout=0.2"),
    ]
    assert len(study.cells) == 2 * len(settings)
    assert len({cell.name for cell in study.cells}) == len(study.cells)
    assert {(cell.config.lr, cell.config.optimizer) for cell in study.cells if cell.variant == "a"} == {
        (0.1, "sgd"),
        (0.01, "sgd"),
    }


def test_read_study__what_a_variant_has_of_its_own(tmp_path: Path) -> None:
    variants = {"a": {"seeds": [5]}, "b": {"lr": 0.1}, "c": {"lr": None}}
    study = read_study(make_study(tmp_path / "t.yaml", tmp_path, variants=variants, grid={"lr": [0.5, 0.6]}))
    assert [(cell.setting, cell.config.lr) for cell in study.cells] == [
        *(("a lr=0.5", 0.5), ("a lr=0.6", 0.6), ("b", 0.1), ("c", None)),  # an option set by a variant is not its axis
    ]
    study = read_study(make_study(tmp_path / "s.yaml", tmp_path, variants=variants, seeds=[0, 1]), {"lr": 0.3})
    assert [(cell.setting, cell.seed, cell.config.lr) for cell in study.cells] == [
        *(("a", 5, 0.3), ("b", 0, 0.3), ("b", 1, 0.3)),
        *(("c", 0, None), ("c", 1, None)),
    ]


def test_read_study__another_option_is_another_run(tmp_path: Path) -> None:
    (one,) = read_study(make_study(tmp_path / "a.yaml", tmp_path)).cells
    (same,) = read_study(make_study(tmp_path / "b.yaml", tmp_path)).cells
    (other,) = read_study(tmp_path / "a.yaml", {"epochs": 7}).cells
    assert one.name == same.name != other.name
    assert other.config.epochs == 7
    (plain,) = read_study(tmp_path / "a.yaml", {"refit": False}).cells  # a study's default; not part of the name
    assert (plain.name, one.config.refit) == (one.name, False)


def test_read_study__forced_options_stand_above_all(tmp_path: Path) -> None:
    path = make_study(
        tmp_path / "s.yaml",
        tmp_path,
        variants={"a": {"backbone": "resnet18"}, "b": {"backbone": "resnet50"}, "c": {"dropout": 0.5}},
        grid={"lr": [0.1, 0.2]},
    )
    study = read_study(path, parse_forced(["backbone=smallcnn", "lr=0.3"]))
    assert [cell.setting for cell in study.cells] == ["a", "c"]
    assert study.doubled == ("b is identical to a",)
    assert {cell.config.lr for cell in study.cells} == {0.3}


def test_read_study__all_faults_at_once(tmp_path: Path) -> None:
    path = make_study(
        tmp_path / "s.yaml",
        tmp_path,
        variants={"a": {"epohcs": 3}, "b": {"head": "heatmap"}, "c": {"seed": 3}, "d": {"grid": {"lr": 0.1}}},
    )
    with pytest.raises(ConfigError) as caught:
        read_study(path)
    text = str(caught.value)
    assert "a: unknown option 'epohcs' (nearest: 'epochs')" in text
    assert "b: head heatmap is only for landmarks" in text
    assert "seed: set by the study" in text
    assert "grid: lr must be a list of values" in text


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"variant": {}}, r"unknown key 'variant' \(nearest: 'variants'\)"),
        ({"seeds": 3}, "seeds must be a list of whole numbers"),
        ({"test": "false"}, "test must be true or false"),
        ({"ensemble": 1}, "ensemble must be true or false"),
        ({"apart": "lr"}, "apart must be a list"),
        ({"variants": {"a": {"grid": [1]}}}, "variant 'a': grid must be"),
        ({"base": {"backbone": "smallcnn"}}, "data: '' does not exist"),
        ({"base": {"data": "/nowhere"}}, "data: '/nowhere' does not exist"),
        ({"base": [1]}, "base must be 'option: value' lines"),
        ({"variants": {"a": 3}}, "variant 'a' must be a list of options"),
        ({"variants": {"a": {"seeds": []}}}, "variant 'a': seeds must be a list"),
    ],
)
def test_read_study__refused(tmp_path: Path, changes: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        read_study(make_study(tmp_path / "s.yaml", tmp_path, **changes))


def test_read_study__data_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOS", str(tmp_path))
    (tmp_path / "x").mkdir()
    path = make_study(tmp_path / "s.yaml", Path("$PHOTOS/x"))
    assert read_study(path).cells[0].config.data == f"{tmp_path}/x"


def test_parse_forced__refused() -> None:
    with pytest.raises(ConfigError, match=r"set epoch=3: .*nearest: 'epochs'"):
        parse_forced(["epoch=3"])
    assert parse_forced(["freeze=*x"]) == {"freeze": "*x"}
    assert parse_forced(["epochs=3", "lr=auto", "head_sizes=[8, 4]"]) == {
        "epochs": 3,
        "lr": "auto",
        "head_sizes": [8, 4],
    }
