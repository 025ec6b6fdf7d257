from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.trainer.make import make_noise
from tl.errors import ConfigError
from tl.runtime.imaging.preprocessing import Preprocessing, build_preprocessing
from tl.trainer.fit.augment import PRESETS, Augment, build_augment

RANDOM_PRESETS = [name for name in PRESETS if name != "none"]
HEIGHT, WIDTH = 24, 32  # not square, to detect swapped sides


@pytest.fixture
def preprocessing() -> Preprocessing:
    return build_preprocessing((HEIGHT, WIDTH), "short_side", short_side=36)


def build(name: str, preprocessing: Preprocessing) -> Augment:
    augment = build_augment(name, preprocessing)
    assert augment is not None
    return augment


def save_pipeline(path: Path, make: Callable[[Any], Any], data_format: str = "json") -> str:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    albumentations.save(make(albumentations), str(path), data_format=data_format)
    return str(path)


def working(seed: int = 0) -> NDArray[Any]:
    return make_noise(seed, hw=(36, 60))


def test_build_augment__none_is_no_function(preprocessing: Preprocessing) -> None:
    assert build_augment("none", preprocessing) is None


@pytest.mark.parametrize("name", RANDOM_PRESETS)
def test_build_augment__gives_the_input_size(preprocessing: Preprocessing, name: str) -> None:
    augment = build(name, preprocessing)
    for seed in range(20):
        image = augment(working(), seed)
        assert (image.shape, image.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize("name", RANDOM_PRESETS)
def test_build_augment__depends_on_image_and_seed_alone(preprocessing: Preprocessing, name: str) -> None:
    first, second = build(name, preprocessing), build(name, preprocessing)
    wanted = {seed: first(working(), seed) for seed in range(8)}
    second(working(7), 99)
    np.random.default_rng().random()  # an unseeded generator elsewhere
    for seed in reversed(range(8)):
        np.testing.assert_array_equal(second(working(), seed), wanted[seed])


@pytest.mark.parametrize("name", RANDOM_PRESETS)
def test_build_augment__other_seeds_other_images(preprocessing: Preprocessing, name: str) -> None:
    augment = build(name, preprocessing)
    distinct = {augment(working(), seed).tobytes() for seed in range(16)}
    assert len(distinct) >= (2 if name == "flip" else 12)  # flip has two outcomes; light sometimes changes nothing


@pytest.mark.parametrize("name", RANDOM_PRESETS)
def test_build_augment__leaves_the_image_and_global_randomness_alone(preprocessing: Preprocessing, name: str) -> None:
    image = working()
    before = image.copy()
    image.flags.writeable = False  # like cached images
    state = np.random.get_state()[1].copy()
    for seed in range(10):
        build(name, preprocessing)(image, seed)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_build_augment__flip_is_the_image_or_its_mirror(preprocessing: Preprocessing) -> None:
    exact = build_preprocessing((HEIGHT, WIDTH))
    image = make_noise(3, hw=(HEIGHT, WIDTH))
    outcomes = {build("flip", exact)(image, seed).tobytes() for seed in range(16)}
    assert outcomes == {image.tobytes(), np.ascontiguousarray(image[:, ::-1]).tobytes()}


def test_build_augment__colors_stay_about_what_they_are(preprocessing: Preprocessing) -> None:
    # A red image stays mostly red under the standard preset: hue changes by at most 2%.
    red = make_noise(1, (200, 40, 40), (36, 60))
    for seed in range(10):
        mean = build("standard", preprocessing)(red, seed).reshape(-1, 3).mean(axis=0)
        assert mean[0] > 2 * mean[1]
        assert mean[0] > 2 * mean[2]


@pytest.mark.parametrize(("data_format", "suffix"), [("json", ".json"), ("yaml", ".yaml")])
def test_build_augment__saved_pipeline(
    tmp_path: Path, preprocessing: Preprocessing, data_format: str, suffix: str
) -> None:
    path = save_pipeline(
        tmp_path / f"p{suffix}", lambda a: a.Compose([a.VerticalFlip(p=1), a.CenterCrop(30, 40)]), data_format
    )
    image = build(path, preprocessing)(working(), 0)
    flipped = working()[::-1][3:33, 10:50]  # center 30 x 40 of 36 x 60
    np.testing.assert_array_equal(image, flipped[3:27, 4:36])  # then the center 24 x 32


def test_build_augment__saved_single_transform(tmp_path: Path) -> None:
    path = save_pipeline(tmp_path / "p.json", lambda a: a.HorizontalFlip(p=1))
    image = make_noise(3, hw=(HEIGHT, WIDTH))
    np.testing.assert_array_equal(build(path, build_preprocessing((HEIGHT, WIDTH)))(image, 0), image[:, ::-1])


def test_build_augment__changes_by_name(tmp_path: Path, preprocessing: Preprocessing) -> None:
    # The same as saving them to a file.
    saved = save_pipeline(
        tmp_path / "a.json",
        lambda a: a.Compose([a.HorizontalFlip(p=0.5), a.Affine(rotate=(-10, 10), p=1)]),
    )
    image = make_noise(0, hw=(HEIGHT, WIDTH))
    by_name, by_file = (
        build("HorizontalFlip(p=0.5) + Affine(rotate=(-10, 10), p=1)", preprocessing),
        build(saved, preprocessing),
    )
    for seed in range(8):
        np.testing.assert_array_equal(by_name(image, seed), by_file(image, seed))
    assert build("InvertImg(p=1)", preprocessing)(image, 0).tolist() == (255 - image).tolist()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("HorizontalFlop(p=1)", r"no HorizontalFlop \(nearest: 'HorizontalFlip'\)"),
        ("HorizontalFlip(q=1)", "'q'"),
        ("HorizontalFlip(0.5)", "not a transform with keyword arguments"),
        ("Compose(transforms=[])", "no Compose"),
        ("HorizontalFlip(p=1) - Blur(p=1)", "not a transform with keyword arguments"),
        ("__import__(name='os')", "no __import__"),
        ("HorizontalFlip(p=open('x'))", "expected albumentations transforms"),
        ("HorizontalFlip(p=1", "expected albumentations transforms"),
    ],
)
def test_build_augment__faulty_changes(preprocessing: Preprocessing, text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        build(text, preprocessing)


def test_build_augment__unknown_preset_names_the_nearest(preprocessing: Preprocessing) -> None:
    with pytest.raises(ConfigError, match=r"augment: 'standart' is not a preset .* \(nearest: 'standard'\)"):
        build_augment("standart", preprocessing)


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"__version__": "2", "transform": {"x": 1}}', "[1, 2]"])
def test_build_augment__file_that_is_no_pipeline(tmp_path: Path, preprocessing: Preprocessing, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="not a pipeline saved by albumentations"):
        build_augment(str(path), preprocessing)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda a: a.Compose([a.Normalize()]), "returned float32"),
        (
            lambda a: a.Compose([a.Resize(8, 8)]),
            r"returned uint8 \(8, 8, 3\); expected uint8 of at least " r"\(24, 32, 3\)",
        ),
        (
            lambda a: a.Compose([a.ToGray(num_output_channels=1, p=1)]),
            r"returned uint8 \(36, 60\); expected uint8 of at least \(24, 32, 3\)",
        ),
    ],
)
def test_build_augment__pipeline_that_gives_something_else(
    tmp_path: Path, preprocessing: Preprocessing, make: Callable[[Any], Any], reason: str
) -> None:
    augment = build(save_pipeline(tmp_path / "p.json", make), preprocessing)
    with pytest.raises(ConfigError, match=reason):
        augment(working(), 0)


@pytest.mark.slow
def test_build_augment__import_keeps_its_environment_switch() -> None:
    # In a separate process, because an import runs once per process. OpenCV itself sets other variables.
    code = (
        "import os; from tl.runtime.imaging.preprocessing import build_preprocessing\n"
        "from tl.trainer.fit.augment import build_augment\n"
        "build_augment('flip', build_preprocessing((8, 8)))\n"
        "print(os.environ.get('NO_ALBUMENTATIONS_UPDATE'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")


# --- more than three channels

FIVE = build_preprocessing((24, 24), channels=("0", "1", "2", "3", "4"))


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "none"])
def test_augment__presets_keep_all_channels(preset: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 5), np.uint8)
    augment = build_augment(preset, FIVE)
    seen = [augment(image, seed) for seed in range(20)]
    assert all(one.shape == (24, 24, 5) and one.dtype == np.uint8 for one in seen)
    assert any((one != image).any() for one in seen)
    points = build_augment(preset, FIVE, points=True, mirror=True)
    changed, moved = points.with_points(image, np.array([[3.0, 4.0]]), 1, [0])
    assert changed.shape == (24, 24, 5)
    assert moved.shape == (1, 2)


@pytest.mark.parametrize("change", ["ColorJitter(p=1)", "ToGray(p=1)", "HueSaturationValue(p=1)"])
def test_augment__transforms_of_colors_are_refused(change: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 5), np.uint8)
    with pytest.raises(ConfigError, match=r"augmentation .* failed on an image of 24x24"):
        build_augment(change, FIVE)(image, 0)


@pytest.mark.parametrize(
    "change", ["RandomBrightnessContrast(p=1)", "GaussNoise(p=1)", "GaussianBlur(p=1)", "Affine(rotate=(30, 40), p=1)"]
)
def test_augment__transforms_of_any_channels(change: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 5), np.uint8)
    assert build_augment(change, FIVE)(image, 0).shape == (24, 24, 5)
