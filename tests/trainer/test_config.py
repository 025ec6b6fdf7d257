from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from tl.errors import ConfigError
from tl.trainer.config import (
    Method,
    Optimizer,
    TrainConfig,
    config_from_mapping,
    dump_config,
    load_config,
    nearest,
    resolve,
)


def faults_of(**values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(dataclasses.replace(TrainConfig(data="photos"), **values))  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "optimizer", "epochs", "augment", "weights"),
    [
        ("scratch", "adamw", 30, "standard", "none"),
        ("features", "adamw", 40, "none", "imagenet"),
        ("finetune", "sgd", 10, "standard", "imagenet"),
    ],
)
def test_resolve__fills_what_was_left_open(
    method: str, optimizer: str, epochs: int, augment: str, weights: str
) -> None:
    config = resolve(TrainConfig(data="photos", method=method))  # type: ignore[arg-type]
    found = (config.optimizer, config.epochs, config.augment, config.weights)
    assert found == (optimizer, epochs, augment, weights)


def test_resolve__keeps_what_was_given() -> None:
    given = TrainConfig(data="d", out="o", optimizer="adam", epochs=3, augment="flip", weights="none", lr=0.5)
    assert resolve(given) == given


@pytest.mark.parametrize("method", get_args(Method))
def test_resolve__learning_rate_follows_method_and_optimizer(method: Method) -> None:
    rates = {name: resolve(TrainConfig(data="d", method=method, optimizer=name)).lr for name in get_args(Optimizer)}
    assert rates["sgd"] is not None
    # Adaptive optimisers take steps of about lr in every weight; plain gradients are far below 1.
    assert all(rate is not None and rate < rates["sgd"] for name, rate in rates.items() if name != "sgd")


@pytest.mark.parametrize(
    ("data", "out"), [("a/photos", "runs/photos-finetune"), ("labels.csv", "runs/labels-finetune")]
)
def test_resolve__names_the_run_after_the_data(data: str, out: str) -> None:
    assert resolve(TrainConfig(data=data)).out == out


def test_resolve__is_idempotent() -> None:
    once = resolve(TrainConfig(data="photos", method="features"))
    assert resolve(once) == once


@pytest.mark.parametrize("name", ["epochs", "batch_size", "image_size", "threads", "patience"])
def test_resolve__counts_must_be_positive(name: str) -> None:
    assert f"{name} must be at least 1, found 0" in faults_of(**{name: 0})


@pytest.mark.parametrize("name", ["momentum", "weight_decay", "warmup_epochs", "workers", "seed"])
def test_resolve__not_negative(name: str) -> None:
    assert f"{name} must not be negative, found -1" in faults_of(**{name: -1})


@pytest.mark.parametrize("name", ["momentum", "weight_decay", "warmup_epochs", "lr", "val_fraction", "dropout"])
def test_resolve__nan_is_refused(name: str) -> None:
    assert name in faults_of(**{name: float("nan")})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", float("inf")),
        ("val_fraction", 0.0),
        ("val_fraction", 1.0),
        ("dropout", 1.0),
        ("label_smoothing", -0.1),
        ("bit_depth_max", 255),
        ("bit_depth_max", 65536),
        ("head_sizes", (8, 0)),
    ],
)
def test_resolve__limits(name: str, value: object) -> None:
    assert f"{name} must be" in faults_of(**{name: value})


def test_resolve__features_of_random_weights_are_refused() -> None:
    assert "would freeze random numbers" in faults_of(method="features", weights="none")


def test_resolve__all_faults_at_once() -> None:
    text = faults_of(epochs=0, val_fraction=2.0, seed=-1)
    assert "epochs" in text
    assert "val_fraction" in text
    assert "seed" in text


def test_config_from_mapping__unknown_key_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"study\.yaml: unknown option 'epoch' \(nearest: 'epochs'\)"):
        config_from_mapping({"epoch": 3}, "study.yaml")


def test_config_from_mapping__all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_mapping({"epoch": 3, "lr": "fast", "method": "magic", "head_sizes": 5}, "here")
    text = str(caught.value)
    assert text.startswith("here: ")
    for part in ("unknown option 'epoch'", "lr: ", "found 'fast'", "method: ", "found 'magic'", "head_sizes: "):
        assert part in text


@pytest.mark.parametrize(("key", "value"), [("epochs", 2.5), ("skip_bad", "perhaps"), ("data", 3), ("seed", None)])
def test_config_from_mapping__wrong_type_names_the_option(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"here: {key}: .*found"):
        config_from_mapping({key: value}, "here")


def test_config_from_mapping__key_that_is_no_text() -> None:
    with pytest.raises(ConfigError, match="unknown option '3'"):
        config_from_mapping({3: 4}, "here")  # type: ignore[dict-item]


def test_config_from_mapping__lists_become_tuples() -> None:
    assert config_from_mapping({"head_sizes": [7, 8]}, "here").head_sizes == (7, 8)


def test_dump_config__yaml_round_trip(tmp_path: Path) -> None:
    config = resolve(TrainConfig(data="Käfer: 2/no", out="007", lr=1e-5, weights="none", head_sizes=(64,)))
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert config_from_mapping(load_config(path), str(path)) == config


def test_load_config__yaml_exponent_without_a_point(tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-3 as a text; people write it all the same.
    path = tmp_path / "c.yaml"
    path.write_text("lr: 1e-3\n", encoding="utf-8")
    assert config_from_mapping(load_config(path), "c.yaml").lr == 1e-3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a\n- b\n", "expected 'option: value' lines"),
        ("a: [1\n", "not a YAML file"),
        ("", "expected 'option: value'"),
    ],
)
def test_load_config__not_a_mapping(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=reason):
        load_config(path)


def test_load_config__missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read \(No such file"):
        load_config(tmp_path / "none.yaml")


def test_load_config__runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: !!python/object/apply:os.getcwd []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="not a YAML file"):
        load_config(path)


def test_nearest__close_and_far() -> None:
    assert nearest("resnet81", ["resnet18", "vgg16"]) == " (nearest: 'resnet18')"
    assert nearest("xyz", ["resnet18", "vgg16"]) == ""


def test_train_config__every_option_has_help_and_panel() -> None:
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata["help"].endswith("."), field.name
        assert field.metadata["panel"] in ("Data", "Model", "Pictures", "Optimisation", "Machine")
