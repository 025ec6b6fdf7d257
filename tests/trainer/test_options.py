from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from tl.errors import ConfigError
from tl.trainer.config import Head, Method, Optimizer, TrainConfig
from tl.trainer.config_files import config_from_mapping, dump_config, load_config, own_choices
from tl.trainer.defaults import FAMILY_RATES
from tl.trainer.models.backbone_info import family_of
from tl.trainer.options import can_refit, candidates, is_solved, nearest, resolve

CLASS_HEADS = [head for head in get_args(Head) if head != "heatmap"]
METHODS = [method for method in get_args(Method) if method != "auto"]
STEPPED = [name for name in get_args(Optimizer) if name != "lbfgs"]


def faults_of(**values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(dataclasses.replace(TrainConfig(data="photos"), **values))  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "head", "optimizer", "epochs", "augment", "weights"),
    [
        ("scratch", "linear", "adamw", 30, "standard", "none"),
        ("features", "linear", "lbfgs", None, "none", "imagenet"),
        ("features", "svm", "lbfgs", None, "none", "imagenet"),
        ("features", "mlp", "adamw", 40, "none", "imagenet"),
        ("features", "conv", "adamw", 40, "none", "imagenet"),
        ("finetune", "linear", "adamw", 7, "standard", "imagenet"),
        ("finetune", "conv", "sgd", 10, "standard", "imagenet"),
    ],
)
def test_resolve__fills_what_was_left_open(
    method: str, head: str, optimizer: str, epochs: int, augment: str, weights: str
) -> None:
    config = resolve(TrainConfig(data="photos", method=method, head=head))  # type: ignore[arg-type]
    found = (config.optimizer, config.epochs, config.augment, config.weights)
    assert found == (optimizer, epochs, augment, weights)
    assert is_solved(config) == (optimizer == "lbfgs")
    assert (config.lr is None) == is_solved(config)


@pytest.mark.parametrize(("changes", "solved"), [({}, False), ({"views": 3}, True), ({"optimizer": "adam"}, False)])
def test_resolve__features_that_change_every_epoch_are_not_solved(changes: dict[str, Any], solved: bool) -> None:
    config = resolve(TrainConfig(data="d", method="features", augment="light", **changes))
    assert is_solved(config) == solved
    assert (config.optimizer == "lbfgs") == solved


@pytest.mark.parametrize(
    ("head", "sizes", "c_values"),
    [
        ("linear", (), (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)),
        ("svm", (), (1e-4, 1e-3, 1e-2)),
        ("mlp", (512, 256), ()),
        ("conv", (32, 1024), ()),
    ],
)
def test_resolve__sizes_and_c_values_follow_the_head(
    head: str, sizes: tuple[int, ...], c_values: tuple[float, ...]
) -> None:
    config = resolve(TrainConfig(data="d", method="features", head=head))  # type: ignore[arg-type]
    assert (config.head_sizes, config.c_values) == (sizes, c_values)


def test_resolve__keeps_what_was_given() -> None:
    given = TrainConfig(
        *("d", "o", "classification"),
        method="finetune",
        monitor="val_loss",
        resize_mode="letterbox",
        optimizer="adam",
        epochs=3,
        augment="flip",
        weights="none",
        lr=0.5,
        batch_size=7,
        head="mlp",
        head_sizes=(3,),
        c_values=(2.0,),
        crop_margin=0.1,
        drop_epochs=2,
        head_init="random",
        batch_norm="update",
        interpolate=False,
        layer_lr_decay=0.5,
        val_fraction=0.3,
        soup=1,
    )
    assert resolve(given) == given


def test_resolve__lr_auto_stays_a_word() -> None:
    assert resolve(TrainConfig(data="d", lr="auto")).lr == "auto"


@pytest.mark.parametrize("method", METHODS)
def test_resolve__learning_rate_follows_method_and_optimizer(method: Method) -> None:
    rates = {name: resolve(TrainConfig(data="d", method=method, optimizer=name)).lr for name in STEPPED}
    assert isinstance(rates["sgd"], float)
    # Adaptive optimizers take steps of about lr in every weight; plain gradients are far below 1.
    assert all(isinstance(rate, float) and rate < rates["sgd"] for name, rate in rates.items() if name != "sgd")


@pytest.mark.parametrize(
    ("data", "method", "out"),
    [("a/photos", None, "runs/photos"), ("labels.csv", "finetune", "runs/labels-finetune")],
)
def test_resolve__names_the_run_after_the_data(data: str, method: Method | None, out: str) -> None:
    assert resolve(TrainConfig(data=data, method=method)).out == out


@pytest.mark.parametrize(
    ("method", "head"),
    [("auto", "linear"), *((m, h) for m in METHODS for h in CLASS_HEADS if h != "svm" or m == "features")],
)
def test_resolve__is_idempotent(method: Method, head: Head) -> None:
    once = resolve(TrainConfig(data="photos", method=method, head=head))
    assert resolve(once) == once


# --- method auto


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({}, "auto"),
        ({"head": "linear", "weights": "imagenet"}, "auto"),
        ({"seed": 3, "image_size": 64, "augment": "flip", "c_values": (1.0,), "class_weights": "balanced"}, "auto"),
        ({"refit": False, "test": True, "audit": False, "quality": "fast", "budget": "10m"}, "auto"),
        ({"lr": 0.01}, "finetune"),
        ({"epochs": 3}, "finetune"),
        ({"optimizer": "adamw"}, "finetune"),
        ({"freeze": "half"}, "finetune"),
        ({"interpolate": False}, "finetune"),
        ({"head": "mlp"}, "finetune"),
        ({"pooling": "flatten"}, "finetune"),
        ({"weights": "none"}, "finetune"),
        ({"task": "landmarks"}, "finetune"),
    ],
)
def test_resolve__method_auto_unless_an_option_belongs_to_one_method(changes: dict[str, Any], method: str) -> None:
    assert resolve(TrainConfig(data="d", **changes)).method == method


def test_resolve__method_auto_fills_no_option_of_its_methods() -> None:
    given = TrainConfig(data="d")
    wanted = dataclasses.replace(given, task="classification", method="auto", out="runs/d")
    assert resolve(given) == wanted


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"lr": 0.01, "epochs": 3}, "method auto sets epochs, lr itself: leave them out, or give another method"),
        ({"mixup": 0.2}, "method auto sets mixup itself"),
        ({"views": 2}, "method auto sets views itself"),
        ({"head": "svm"}, "method auto requires head linear"),
        ({"pooling": "flatten"}, "method auto requires pooling gap"),
        ({"weights": "none"}, "method auto requires pretrained weights: give weights, or method scratch"),
        ({"task": "landmarks"}, "method auto is only for classification"),
        ({"budget": "10"}, "budget must be a duration such as 90s, 10m or 2h, found '10'"),
        ({"budget": "0s"}, "budget must be a duration such as 90s, 10m or 2h, found '0s'"),
    ],
)
def test_resolve__method_auto_refuses(changes: dict[str, Any], fault: str) -> None:
    text = faults_of(method="auto", **changes)
    assert fault in text
    assert ";" not in text  # one mistake, one error


def test_resolve__method_auto_checks_the_options_of_both_methods() -> None:
    assert "val_fraction must be between 0 and 1" in faults_of(method="auto", val_fraction=2.0)
    assert "crop: only for landmarks" in faults_of(method="auto", crop="points")


@pytest.mark.parametrize("changes", [{"quality": "best"}, {"quality": "fast"}, {"budget": "10m"}])
@pytest.mark.parametrize("method", METHODS)
def test_resolve__quality_and_budget_need_method_auto(method: Method, changes: dict[str, Any]) -> None:
    assert "quality and budget apply only to method auto" in faults_of(method=method, **changes)


def test_candidates__features_without_augmentation_and_fine_tuning_with_it() -> None:
    auto = resolve(TrainConfig(data="d", augment="light", image_size=64, quality="best", budget="10m", seed=3))
    features, tuned = (resolve(config) for config in candidates(auto))
    assert (features.method, features.augment, is_solved(features)) == ("features", "none", True)
    assert (tuned.method, tuned.augment, tuned.head_init) == ("finetune", "light", "solved")
    for config in (features, tuned):
        assert (config.image_size, config.seed, config.out) == (64, 3, "runs/d")
        assert (config.quality, config.budget) == ("balanced", None)


# --- fine-tuning


@pytest.mark.parametrize(
    ("backbone", "family"),
    [
        ("efficientnet_lite0", "efficientnet lite"),
        ("efficientnet_v2_s", "batch norm"),
        ("timm:tf_efficientnet_lite0.in1k", "efficientnet lite"),
        ("resnet18", "batch norm"),
        ("mobilenet_v2", "batch norm"),
        ("timm:resnet50.a1_in1k", "batch norm"),
        ("vgg16_bn", "batch norm"),
        ("smallcnn", "batch norm"),
        ("convnext_tiny", "layer norm"),
        ("timm:convnextv2_nano.fcmae", "layer norm"),
        ("vit_b_16", "transformer"),
        ("swin_t", "transformer"),
        ("timm:deit_tiny_patch16_224", "transformer"),
        ("timm:maxvit_tiny_tf_224.in1k", "transformer"),
        ("vgg16", "no normalization"),
        ("squeezenet1_0", "no normalization"),
        ("alexnet", "no normalization"),
        ("timm:vgg11.tv_in1k", "no normalization"),
    ],
)
def test_family_of__by_name(backbone: str, family: str) -> None:
    assert family_of(backbone) == family
    config = resolve(TrainConfig(data="d", method="finetune", backbone=backbone))
    assert (config.lr, config.layer_lr_decay) == FAMILY_RATES[family]


def start_of(config: TrainConfig) -> tuple[object, ...]:
    return config.optimizer, config.epochs, config.batch_size, config.head_init, config.batch_norm, config.interpolate


SOLVED_START = ("adamw", 7, 8, "solved", "fixed", True)
RANDOM_START = ("sgd", 10, 32, "random", "update", False)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, SOLVED_START),
        ({"head_init": "solved"}, SOLVED_START),
        ({"optimizer": "sgd"}, RANDOM_START),
        ({"head_init": "random"}, RANDOM_START),
        ({"head": "mlp"}, RANDOM_START),
        ({"pooling": "flatten"}, RANDOM_START),
        ({"weights": "none"}, RANDOM_START),
        ({"monitor": "val_loss"}, (*SOLVED_START[:5], False)),  # selects an epoch
        ({"patience": 2}, (*SOLVED_START[:5], False)),
        ({"batch_norm": "update"}, (*SOLVED_START[:4], "update", False)),
        ({"epochs": 3, "batch_size": 5}, ("adamw", 3, 5, *SOLVED_START[3:])),
        ({"optimizer": "sgd", "head_init": "solved", "interpolate": True}, ("sgd", 10, 32, "solved", "update", True)),
    ],
)
def test_resolve__fine_tuning_starts_from_a_solved_head_unless_told_otherwise(
    changes: dict[str, Any], wanted: tuple[object, ...]
) -> None:
    assert start_of(resolve(TrainConfig(data="d", method="finetune", **changes))) == wanted


@pytest.mark.parametrize("changes", [{"head_init": "random"}, {"patience": 2}, {"head": "mlp"}, {"optimizer": "sgd"}])
def test_resolve__interpolate_needs_a_solved_head_and_the_last_epoch(changes: dict[str, Any]) -> None:
    fault = "interpolate requires head_init solved, and the last epoch: leave out patience"
    assert fault in faults_of(method="finetune", interpolate=True, **changes)


@pytest.mark.parametrize(
    ("changes", "is_possible"),
    [
        ({}, True),
        ({"method": "features"}, True),
        ({"method": "features", "head": "mlp"}, False),
        ({"optimizer": "sgd"}, False),
        ({"interpolate": False}, False),
        ({"schedule": "plateau"}, False),  # validation sets the learning rate
    ],
)
def test_can_refit__where_validation_images_select_nothing_else(changes: dict[str, Any], is_possible: bool) -> None:
    assert can_refit(resolve(TrainConfig(data="d", **{"method": "finetune", **changes}))) == is_possible


def test_resolve__refit_of_an_epoch_chosen_by_validation_is_refused() -> None:
    assert "or fine-tuning with interpolate" in faults_of(method="finetune", optimizer="sgd", refit=True)


# --- landmarks


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head", [None, "heatmap", "linear", "mlp"])
def test_resolve__landmarks(method: Method, head: Head | None) -> None:
    once = resolve(TrainConfig(data="wings.csv", task="landmarks", method=method, head=head))
    assert resolve(once) == once
    assert (once.head, once.resize_mode, once.monitor) == (head or "heatmap", "letterbox", "val_error_px")
    chosen = {
        "task": "landmarks",
        **({"method": method} if method != "finetune" else {}),
        **({"head": head} if head not in (None, "heatmap") else {}),
    }
    assert {name: value for name, value in own_choices(once).items() if name in ("task", "method", "head")} == chosen


def test_find_task__by_the_data(tmp_path: Path) -> None:
    for name, text, task in [
        ("a.csv", "path,x0,y0\na.png,1,2\n", "landmarks"),
        ("b.csv", "path,label\na.png,ant\n", "classification"),
        ("c.csv", "path,label,x,y\na.png,ant,1,2\n", "classification"),
        ("d.tps", "LM=1\n1 2\nIMAGE=a.png\n", "landmarks"),
        ("e.csv", "scorer,me,me\nbodyparts,a,a\ncoords,x,y\n", "landmarks"),
        ("f.csv", "", "classification"),
    ]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert resolve(TrainConfig(data=str(tmp_path / name))).task == task, name
    assert resolve(TrainConfig(data=str(tmp_path))).task == "classification"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "landmarks", "head": "svm"}, "for landmarks use heatmap, linear or mlp"),
        ({"task": "landmarks", "head": "conv"}, "for landmarks use heatmap, linear or mlp"),
        ({"task": "landmarks", "resize_mode": "short_side"}, "use letterbox or squash"),
        ({"task": "landmarks", "mixup": 0.2, "views": 2}, "views, mixup: only for classification"),
        ({"task": "landmarks", "monitor": "val_top1_accuracy"}, "monitor val_top1_accuracy is only for classification"),
        ({"task": "landmarks", "pooling": "flatten"}, "head heatmap requires the feature map"),
        ({"task": "landmarks", "head_sizes": (8, 8)}, "requires exactly one value in head_sizes"),
        ({"task": "landmarks", "flip_pairs": ("a:b", "left")}, "expected NAME:NAME with different names, found 'left'"),
        ({"task": "landmarks", "flip_pairs": ("a:a",)}, "expected NAME:NAME with different names, found 'a:a'"),
        ({"task": "landmarks", "skeleton": ("a-b",)}, "skeleton: expected NAME:NAME with different names, found 'a-b'"),
        ({"task": "landmarks", "mirror": True, "augment": "none"}, "mirror requires an augmentation"),
        ({"task": "landmarks", "head_init": "solved"}, "head_init solved requires classes"),
        ({"crop": "points"}, "crop: only for landmarks, but the task is classification"),
        ({"head": "heatmap"}, "head heatmap is only for landmarks"),
        ({"monitor": "val_error_px"}, "monitor val_error_px does not exist for classification"),
    ],
)
def test_resolve__tasks_have_options_of_their_own(changes: dict[str, Any], message: str) -> None:
    assert message in faults_of(**changes)


COUNTS = ["per_class", "image_size", "views", "epochs", "batch_size", "accumulate", "drop_epochs", "patience"]


@pytest.mark.parametrize("name", [*COUNTS, "threads", "unfreeze_every"])
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
        ("channels", "0,0"),
        ("channels", "0,,2"),
        ("channels", ""),
        ("project", "average"),
        ("project", "-1"),
        ("image_size", 8193),
        ("head_sizes", (8, 0)),
        ("c_values", (0.1, 0.0)),
        ("c_values", (float("nan"),)),
        ("ema_decay", 1.0),
        ("drop_factor", 0.0),
        ("layer_lr_decay", 0.0),
        ("layer_lr_decay", 1.5),
        ("clip_norm", 0.0),
        ("clip_norm", float("inf")),
        ("mixup", -0.1),
        ("cutmix", float("nan")),
    ],
)
def test_resolve__limits(name: str, value: object) -> None:
    assert re.search(rf"{name} must (not )?be", faults_of(**{name: value}))


def test_resolve__features_of_random_weights_are_refused() -> None:
    assert "would freeze a randomly initialized backbone" in faults_of(method="features", weights="none")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"method": "features", "freeze": "half"}, "features freezes the whole backbone"),
        ({"method": "features", "unfreeze_every": 1}, "apply only to method finetune"),
        ({"method": "features", "layer_lr_decay": 0.5}, "apply only to method finetune"),
        ({"freeze": "half", "unfreeze_every": 1}, "with the whole backbone frozen: leave out freeze"),
        ({"views": 2}, "views requires method features and an augmentation"),
        ({"method": "features", "views": 2}, "views requires method features and an augmentation"),
        ({"head": "svm"}, "head svm requires method features"),
        ({"optimizer": "lbfgs"}, "optimizer lbfgs requires method features"),
        (
            {"method": "features", "head": "svm", "augment": "light"},
            "head svm with augmentation requires a number of views",
        ),
        (
            {"method": "features", "head": "mlp", "optimizer": "lbfgs"},
            "lbfgs applies only to the linear head",
        ),
        ({"method": "features", "head": "svm", "optimizer": "adam"}, "head svm uses its own solver"),
        ({"method": "features", "c_values": ()}, "c_values must contain at least one value"),
        ({"head": "conv", "head_sizes": ()}, "head conv requires head_sizes"),
    ],
)
def test_resolve__options_that_do_not_go_together(values: dict[str, Any], reason: str) -> None:
    text = faults_of(**values)
    assert reason in text
    assert ";" not in text  # one mistake, one error


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
    config = config_from_mapping({"head_sizes": [7, 8], "c_values": [0.1, 1]}, "here")
    assert (config.head_sizes, config.c_values) == ((7, 8), (0.1, 1.0))


@pytest.mark.parametrize(("given", "wanted"), [("auto", "auto"), ("0.01", 0.01), (0.01, 0.01), (1, 1.0), (None, None)])
def test_config_from_mapping__lr_is_a_number_or_a_word(given: object, wanted: object) -> None:
    found = config_from_mapping({"lr": given}, "here").lr
    assert (found, type(found)) == (wanted, type(wanted))


@pytest.mark.parametrize("lr", [1e-5, "auto"])
def test_dump_config__yaml_round_trip(tmp_path: Path, lr: float | Literal["auto"]) -> None:
    config = resolve(TrainConfig(data="Käfer: 2/no", out="007", lr=lr, weights="none", head_sizes=(64,)))
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert config_from_mapping(load_config(path), str(path)) == config


def test_load_config__yaml_exponent_without_a_point(tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-3 as a string, but users write it anyway.
    path = tmp_path / "c.yaml"
    path.write_text("lr: 1e-3\n", encoding="utf-8")
    assert config_from_mapping(load_config(path), "c.yaml").lr == 1e-3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a\n- b\n", "expected 'option: value' lines"),
        ("a: [1\n", "not a YAML file"),
        ("", "expected 'option: value'"),
        ("a: " + 3000 * "[", "nested too deeply"),
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


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"method": "scratch"}, "head_init solved requires method finetune, pretrained weights"),
        ({"head": "mlp"}, "head_init solved requires head linear"),
        ({"pooling": "flatten", "weights": "none"}, "head_init solved requires pooling gap, pretrained weights"),
    ],
)
def test_resolve__head_init_solved_needs_a_frozen_linear_head(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        resolve(TrainConfig(data="d", head_init="solved", **changes))


@pytest.mark.parametrize(
    ("backbone", "lr"), [("vgg16", 0.001), ("vgg16_bn", 0.005), ("timm:vgg11.tv_in1k", 0.001), ("resnet18", 0.005)]
)
def test_resolve__a_smaller_rate_for_trunks_without_norm(backbone: str, lr: float) -> None:
    assert resolve(TrainConfig(data="d", backbone=backbone, optimizer="sgd")).lr == lr
    assert resolve(TrainConfig(data="d", backbone=backbone, optimizer="adam")).lr == 1e-4
    assert resolve(TrainConfig(data="d", backbone=backbone, lr=0.3)).lr == 0.3


@pytest.mark.parametrize(
    ("chosen", "also"),
    [
        ({}, set()),
        ({"method": "finetune"}, set()),
        ({"method": "features"}, set()),
        ({"method": "features", "optimizer": "adamw"}, set()),
        ({"method": "features", "lr": 0.01}, set()),
        ({"method": "features", "head": "svm", "c_values": (0.5,)}, set()),
        ({"head": "mlp", "head_sizes": (3,), "epochs": 7, "optimizer": "adam", "lr": 0.2}, set()),
        ({"method": "scratch", "epochs": 30, "schedule": "step"}, {"epochs"}),  # equal to the default
        ({"weights": "none", "augment": "strong", "batch_size": 9}, set()),
    ],
)
def test_own_choices__are_the_fewest_that_resolve_alike(chosen: dict[str, Any], also: set[str]) -> None:
    resolved = resolve(TrainConfig(data="d", **chosen))
    own = own_choices(resolved)
    assert resolve(TrainConfig(**own)) == resolved
    opened = {field.name for field in dataclasses.fields(TrainConfig) if field.default is None}
    kept = {name for name in own if name in opened}
    if chosen != {"method": "features", "optimizer": "adamw"}:  # of rate, epochs and optimizer, one implies another
        assert kept == (set(chosen) - also) & opened
    assert len(kept) <= len(set(chosen) & opened)


def test_config_from_mapping__channels_as_yaml_has_them() -> None:
    for given, wanted in ((0, "0"), ([0, 2], "0,2"), (["DAPI", 1], "DAPI,1"), ("0, GFP", "0, GFP"), (None, None)):
        assert config_from_mapping({"data": "x", "channels": given}, "c").channels == wanted
    assert config_from_mapping({"data": "x", "project": 3}, "c").project == "3"
    with pytest.raises(ConfigError, match="channels"):
        config_from_mapping({"data": "x", "channels": True}, "c")
