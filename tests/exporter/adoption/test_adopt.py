from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.exporter.adoption.foreign_models import (
    HW,
    expected,
    make_foreign,
    make_huggingface,
    make_ultralytics,
    rewrite,
)
from tests.models import COLORS
from tl.errors import ConfigError, DataError, ModelFileError, OutputError
from tl.exporter.adoption.adopt import Adopted, adopt
from tl.exporter.adoption.imported_model import AdoptOptions
from tl.exporter.adoption.presets import IMAGENET_MEAN, IMAGENET_STD, Overrides
from tl.exporter.parity_images import noise_images
from tl.progress import Silent
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.model_file.contract import METADATA_KEY
from tl.runtime.model_file.selftest import run_selftest
from tl.runtime.predictor import load, load_multilabel
from tl.runtime.results import Classification
from tl.runtime.session import Session


class Listener(Silent):
    """Records messages."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


PRIVATE = (b"/home", b"someone", b"/tmp", b"/work", b".py")
# float32 against float64 through one matrix product.
CLOSE = 1e-5


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("red\ngreen\nblue\n", encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Nine noisy images in three colors and several sizes."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(9):
        image = random.normal(60, 40, (30 + 7 * i, 61 - 3 * i, 3))
        image[..., i % 3] += 90
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / f"{COLORS[i % 3]}{i}.png")
    return folder


def adopt_here(foreign: Path, labels: Path | None, folder: Path | None, **options: Any) -> Adopted:
    given = AdoptOptions(**{"preset": "imagenet", "labels": labels} | options)
    images = [] if folder is None else [folder]
    return adopt(foreign, foreign.parent / "out" / "adopted.onnx", given, Silent(), images=images)


def predicted(done: Adopted, images: Path) -> tuple[np.ndarray, np.ndarray]:
    """The file's predictions, and the inputs from its preprocessing of the same images."""
    paths = sorted(images.iterdir())
    with load(done.path, device="cpu", threads=1) as predictor:
        results = [result for result in predictor.predict_batch(paths) if isinstance(result, Classification)]
    inputs = np.stack([load_input(path, done.contract.preprocessing) for path in paths])
    return np.stack([result.probabilities for result in results]), inputs


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"final": "probabilities"},
        {"layout": "nhwc"},
        {"batch": 1},
        {"batch": 4},
        {"batch": 1, "tail": "reshape"},
        {"hw": ("h", "w")},
        {"opset": 9, "ir_version": 4},
        {"opset": 13},
        {"opset": 18},
        {"opset": 20, "ir_version": 10},
        {"opset": 21, "ir_version": 10},
        {"opset": 23, "ir_version": 11},
        {"input_name": "images", "output_name": "probabilities"},
        {"input_name": "probabilities", "output_name": "images"},
    ],
    ids=str,
)
def test_adopt__gives_what_the_foreign_file_gave(
    tmp_path: Path, labels: Path, images: Path, form: dict[str, Any]
) -> None:
    options = {"image_size": HW} if form.get("hw") else {}
    done = adopt_here(make_foreign(tmp_path / "foreign.onnx", **form), labels, images, **options)
    found, inputs = predicted(done, images)
    np.testing.assert_allclose(found, expected(inputs, IMAGENET_MEAN, IMAGENET_STD), rtol=0, atol=CLOSE)
    assert [COLORS[i] for i in found.argmax(axis=1)] == [path.stem[:-1] for path in sorted(images.iterdir())]
    model = onnx.load(done.path)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert [18 <= entry.version <= 20 for entry in model.opset_import] == [True]
    assert [prop.key for prop in model.metadata_props] == [METADATA_KEY]
    assert run_selftest(done.path, device="cpu", threads=1).samples == 4
    assert [path.name for path in done.path.parent.iterdir()] == ["adopted.onnx"]


def test_adopt__contract(tmp_path: Path, labels: Path, images: Path) -> None:
    done = adopt_here(make_foreign(tmp_path / "foreign.onnx"), labels, images)
    contract = Session(done.path, device="cpu", threads=1).contract
    assert contract == done.contract
    assert (contract.class_names, contract.outputs, contract.precision) == (COLORS, ("probabilities",), "fp32")
    preprocessing, parity, origin = contract.preprocessing, contract.parity, contract.provenance
    assert (preprocessing.input_hw, preprocessing.resize_mode, preprocessing.short_side) == (
        HW,
        "short_side",
        37,
    )  # 32 / 0.875, rounded
    assert (preprocessing.interpolation, preprocessing.jpeg_scale) == ("bilinear", "full")
    assert (parity.images, parity.batch_sizes, parity.top1_agreement) == (9, (1, 8), 1.0)
    assert max(parity.session_max_abs_diff["probabilities"], parity.pipeline_max_abs_diff) < CLOSE
    assert (origin.backbone, origin.method) == ("pytorch", "adopted")
    assert origin.weights.startswith("foreign.onnx (sha256 ")
    assert (origin.config["output"], origin.config["opset_before"], origin.config["opset"]) == ("logits", 17, 18)
    assert (contract.golden.source, done.on_real_images) == ("images", True)


def test_adopt__nothing_private_is_kept(tmp_path: Path, labels: Path, images: Path) -> None:
    foreign = make_foreign(tmp_path / "foreign.onnx", metadata={"where": "/somewhere/someone/runs"})
    content = adopt_here(foreign, labels, images).path.read_bytes()
    assert [word for word in PRIVATE if word in content] == []


def test_adopt__without_images_noise_proves_it(tmp_path: Path, labels: Path, images: Path) -> None:
    done = adopt_here(make_foreign(tmp_path / "foreign.onnx"), labels, None)
    assert (done.on_real_images, done.contract.golden.source) == (False, "synthetic")
    assert done.contract.provenance.config["parity_images"] == "noise"
    assert done.contract.parity.images == len(noise_images()) == 8
    found, inputs = predicted(done, images)
    np.testing.assert_allclose(found, expected(inputs, IMAGENET_MEAN, IMAGENET_STD), rtol=0, atol=CLOSE)


def test_adopt__overrides(tmp_path: Path, labels: Path, images: Path) -> None:
    given = Overrides("squash", None, "lanczos", 1 / 127.5, (1.0, 0.9, 1.1), (1.0, 2.0, 0.5))
    done = adopt_here(make_foreign(tmp_path / "foreign.onnx"), labels, images, overrides=given)
    assert (done.contract.preprocessing.resize_mode, done.contract.preprocessing.interpolation) == ("squash", "lanczos")
    found, inputs = predicted(done, images)
    wanted = expected(inputs, (1.0, 0.9, 1.1), (1.0, 2.0, 0.5), 1 / 127.5)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE)


def test_adopt__ultralytics(tmp_path: Path, images: Path) -> None:
    done = adopt_here(make_ultralytics(tmp_path / "yolo.onnx"), None, images, preset="ultralytics")
    assert (done.contract.preprocessing.short_side, done.contract.class_names) == (HW[0], COLORS)
    found, inputs = predicted(done, images)
    np.testing.assert_allclose(found, expected(inputs, (0, 0, 0), (1, 1, 1)), rtol=0, atol=CLOSE)


def test_adopt__huggingface_folder(tmp_path: Path, images: Path) -> None:
    folder = make_huggingface(tmp_path / "hf")
    done = adopt_here(folder, None, images, preset="huggingface-folder")
    assert (done.contract.preprocessing.short_side, done.contract.preprocessing.input_hw) == (40, (32, 32))
    found, inputs = predicted(done, images)
    np.testing.assert_allclose(found, expected(inputs, [0.5] * 3, [0.5, 0.25, 0.125]), rtol=0, atol=CLOSE)
    by_file = adopt_here(folder / "model.onnx", None, images, preset="huggingface-folder")
    assert by_file.contract.preprocessing == done.contract.preprocessing


def test_adopt__huggingface_crop_is_told(tmp_path: Path, images: Path) -> None:
    told = []
    for processor in ({}, {"size": {"height": 32, "width": 32}, "do_center_crop": False}):
        folder, listener = make_huggingface(tmp_path / "hf", processor=processor), Listener()
        adopt(folder, tmp_path / "out.onnx", AdoptOptions("huggingface-folder"), listener, images=[images])
        told.append([line.split(":")[0] for line in listener.said])
    assert told == [["found", "note"], ["found"]]


def test_adopt__half_precision(tmp_path: Path, labels: Path, images: Path) -> None:
    half = make_foreign(tmp_path / "half.onnx", dtype=onnx.TensorProto.FLOAT16)
    done = adopt_here(half, labels, images)
    assert (done.contract.precision, done.contract.parity.tolerance) == ("fp16", 2e-2)
    found, inputs = predicted(done, images)
    # Logits of a few units with an 11-bit mantissa.
    np.testing.assert_allclose(found, expected(inputs, IMAGENET_MEAN, IMAGENET_STD), rtol=0, atol=5e-3)


def test_adopt__one_output_of_several(tmp_path: Path, labels: Path, images: Path) -> None:
    def add_output(model: onnx.ModelProto) -> None:
        model.graph.output.append(onnx.helper.make_tensor_value_info("means", onnx.TensorProto.FLOAT, ["batch", 3]))

    foreign = rewrite(make_foreign(tmp_path / "foreign.onnx"), add_output)
    with pytest.raises(ModelFileError, match=r"has 2 outputs \(y, means\): choose one of them"):
        adopt_here(foreign, labels, images)
    done = adopt_here(foreign, labels, images, output_name="y")
    assert Session(done.path, device="cpu").outputs == ("probabilities",)


def test_adopt__an_opset_whose_conversion_changes_numbers_stays(tmp_path: Path, labels: Path, images: Path) -> None:
    # onnx 1.23 converts opset 10's Resize with different coordinates.
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 0.7, 0.6], np.float32), "scales")
    resize = onnx.helper.make_node("Resize", ["x", "scales"], ["small"], mode="nearest")
    foreign = make_foreign(tmp_path / "old.onnx", opset=10, first=resize, constant=scales)
    done = adopt_here(foreign, labels, images)
    assert [entry.version for entry in onnx.load(done.path).opset_import] == [done.opset] == [10]
    assert done.contract.parity.session_max_abs_diff["probabilities"] < CLOSE


def test_adopt__an_opset_that_cannot_be_brought_down(tmp_path: Path, labels: Path, images: Path) -> None:
    scale = onnx.numpy_helper.from_array(np.ones(32, np.float32), "scale")
    norm = onnx.helper.make_node("RMSNormalization", ["x", "scale"], ["normed"])  # new in opset 23
    foreign = make_foreign(tmp_path / "new.onnx", opset=23, ir_version=11, first=norm, constant=scale)
    with pytest.raises(
        ModelFileError, match=r"opset 23 cannot be converted to 20.*export it again with opset 20 or lower"
    ):
        adopt_here(foreign, labels, images)


@pytest.mark.parametrize(("final", "asked"), [("sigmoid", None), ("logits", True)])
def test_adopt__several_labels(tmp_path: Path, labels: Path, images: Path, final: str, asked: bool | None) -> None:
    foreign = make_foreign(tmp_path / "foreign.onnx", final=final)
    done = adopt_here(foreign, labels, images, is_multilabel=asked)
    facts = done.contract.multilabel
    assert facts is not None
    assert (done.contract.task, facts.thresholds, facts.rule, facts.curve) == ("multilabel", (0.5,) * 3, "fixed", None)
    run_selftest(done.path, device="cpu")
    with load_multilabel(done.path) as model:
        found = model.predict(images / "red0.png")
    logits = make_foreign(tmp_path / "logits.onnx", final="logits")
    raw = Session(adopt_here(logits, labels, images, is_multilabel=True).path, device="cpu")
    inputs = load_input(images / "red0.png", raw.contract.preprocessing)[None]
    (shares,) = raw.run(inputs, ["probabilities"])
    np.testing.assert_allclose(found.probabilities, shares[0], atol=CLOSE)
    assert found.labels == tuple(np.array(COLORS)[shares[0] >= 0.5])


def test_adopt__several_labels_of_a_huggingface_folder(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "hub"
    make_huggingface(folder)
    config = json.loads((folder / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (folder / "config.json").write_text(json.dumps(config))
    options = AdoptOptions(preset="huggingface-folder")
    assert adopt(folder, tmp_path / "out.onnx", options, Silent(), images=[images]).contract.task == "multilabel"


def test_adopt__a_label_with_the_separator(tmp_path: Path, images: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red;scarlet\ngreen\nblue\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="'red;scarlet' cannot be the name of a label"):
        adopt_here(make_foreign(tmp_path / "foreign.onnx", final="sigmoid"), names, images)


@pytest.mark.parametrize(
    ("form", "options", "error", "message"),
    [
        (
            {"batch": 1, "tail": "stubborn"},
            {},
            ModelFileError,
            "a fixed batch size of 1 .* a dynamic batch",
        ),
        ({"final": "sigmoid"}, {"is_multilabel": False}, ModelFileError, "ends in a sigmoid per class"),
        ({}, {"is_multilabel": True, "outputs": "probabilities"}, ModelFileError, "which are no probabilities"),
        ({}, {"outputs": "probabilities"}, ModelFileError, "rows do not sum to 1"),
        ({"gain": np.ones((3, 2), np.float32)}, {}, ConfigError, "3 class names, but the network has 2 outputs"),
        ({"gain": np.ones((3, 1), np.float32)}, {}, ModelFileError, "with at least two classes"),
        ({"gain": np.full((3, 3), np.nan, np.float32)}, {}, ModelFileError, "values that are not finite"),
        ({"channels": 1}, {}, ModelFileError, "only classifiers of RGB images"),
        ({"channels": "c"}, {}, ModelFileError, "its layout is ambiguous"),
        ({"dtype": onnx.TensorProto.DOUBLE}, {}, ModelFileError, "input 'x' is DOUBLE, expected FLOAT"),
        ({}, {"image_size": (64, 64)}, ModelFileError, "image_size specifies 64x64, but the graph only accepts 32x32"),
        ({}, {"output_name": "z"}, ModelFileError, "no output 'z'; its outputs are y"),
        ({}, {"layout": "nhwc"}, ModelFileError, "which is not NHWC with 3 channels"),
        ({}, {"overrides": Overrides(short_side=20)}, ConfigError, "short_side 20 is smaller than the crop"),
        (
            {},
            {"overrides": Overrides("squash", 40)},
            ConfigError,
            "applies only to resize mode short_side",
        ),
        ({}, {"overrides": Overrides(std=(1.0, 0.0, 1.0))}, ConfigError, "must be finite and nonzero"),
        ({}, {"config": Path("config.json")}, ConfigError, "preset imagenet does not use one"),
        ({}, {"labels": None}, ConfigError, "give a file of labels"),
    ],
)
def test_adopt__refused(
    tmp_path: Path,
    labels: Path,
    images: Path,
    form: dict[str, Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    foreign = make_foreign(tmp_path / "foreign.onnx", **form)
    with pytest.raises(error, match=message):
        adopt_here(foreign, **{"labels": labels, "folder": images} | options)
    assert not (tmp_path / "out").exists()


def test_adopt__images_that_cannot_be_read_are_listed(tmp_path: Path, labels: Path, images: Path) -> None:
    (images / "red0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"fix or remove these 1: .*red0.png: empty file"):
        adopt_here(make_foreign(tmp_path / "foreign.onnx"), labels, images)


def test_adopt__an_empty_folder_of_images(tmp_path: Path, labels: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no images to check parity on in"):
        adopt_here(make_foreign(tmp_path / "foreign.onnx"), labels, tmp_path / "none")


def test_adopt__our_own_file_is_refused(color_model: Path, labels: Path) -> None:
    with pytest.raises(ModelFileError, match="already a tl model file"):
        adopt(color_model, "never.onnx", AdoptOptions("imagenet", labels), Silent())


def test_adopt__names_of_the_output_file(tmp_path: Path, labels: Path) -> None:
    foreign = make_foreign(tmp_path / "foreign.onnx")
    with pytest.raises(ConfigError, match=r"ends in \.onnx"):
        adopt(foreign, tmp_path / "adopted.pt", AdoptOptions("imagenet", labels), Silent())
    with pytest.raises(OutputError, match="cannot be written"):
        adopt(foreign, foreign / "adopted.onnx", AdoptOptions("imagenet", labels), Silent())


def test_adopt__needs_no_torch(tmp_path: Path, labels: Path, images: Path) -> None:
    foreign = make_foreign(tmp_path / "foreign.onnx")
    code = f"""
import sys
sys.argv = ["tl", "adopt", {str(foreign)!r}, "--preset", "imagenet", "--labels", {str(labels)!r},
            "--images", {str(images)!r}, "-o", {str(tmp_path / "adopted.onnx")!r}]
from tl.cli import app
app(standalone_mode=False)
print(sorted({{"torch", "torchvision", "sklearn", "yaml"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "adopted.onnx").is_file()
