from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import tl.runtime
from tests.exporter.any_size.test_graph import photo
from tests.models import make_cam_model, make_contract, make_model
from tests.spots import USUAL_XY, make_spot_model, save_spots
from tl.errors import ConfigError, DataError, DeviceError, EnsembleError, ModelFileError, ParityError
from tl.exporter.any_size import convert
from tl.exporter.any_size.convert import to_any_size
from tl.exporter.export import Exported
from tl.exporter.merging.merge import merge
from tl.progress import Silent
from tl.runtime.bench.measure import run_bench
from tl.runtime.engines.openvino import openvino_fault
from tl.runtime.explain.explanation import explain
from tl.runtime.imaging.decode import decode_image
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.imaging.regions import BoxCrop
from tl.runtime.model_file.contract import RegressionFacts
from tl.runtime.model_file.conversions import Quantization
from tl.runtime.model_file.label_facts import MultilabelFacts
from tl.runtime.model_file.selftest import golden_image, run_selftest
from tl.runtime.results import Classification
from tl.runtime.session import Session
from tl.trainer.run_folder.run import Run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, paths = tmp_path_factory.mktemp("photos"), []
    for seed, hw in enumerate([(40, 60), (90, 50), (8, 8), (200, 300), (31, 17), (64, 65)]):
        path = folder / f"{seed}.png"
        tinted = photo(hw, seed) // 2 + np.array([(90, 20, 10), (5, 80, 40), (10, 30, 99)][seed % 3], np.uint8)
        Image.fromarray(tinted).save(path)
        paths.append(str(path))
    return paths


@pytest.fixture
def any_size(tmp_path: Path, images: list[str]) -> Path:
    """The color model with an input of 8 x 8, as a file that takes any size."""
    return to_any_size(make_model(tmp_path / "fixed.onnx"), tmp_path / "any.onnx", images, Silent()).path


@pytest.mark.skipif(openvino_fault() is not None, reason="OpenVINO cannot be used")
def test_any_size__is_refused_by_openvino_which_resizes_differently(any_size: Path) -> None:
    with pytest.raises(DeviceError, match="OpenVINO resizes images differently than the graph states: use device cpu"):
        Session(any_size, device="openvino")
    bench = run_bench(any_size, image_wh=(60, 40), threads=1, seconds=0.2)
    assert {row.setting.device for row in bench.rows} == {"cpu"}
    assert [*bench.faults] == ["openvino"]


def test_to_any_size__drops_bf16_which_was_compared_without_resizing(tmp_path: Path, images: list[str]) -> None:
    measured = Quantization("test", 0, 0, 50, 1.0, 0.01, 1.9, 1.8, 2.0, 5, 5, "OpenVINO", "a CPU", 2, 1, False)
    plain = make_contract()
    golden = dataclasses.replace(plain.golden, tolerance={"fp32": 1e-4, "bf16": 1e-1})
    contract = dataclasses.replace(plain, precision="bf16", quantization=measured, golden=golden)
    fixed = make_model(tmp_path / "fixed.onnx", contract=contract)
    converted = to_any_size(fixed, tmp_path / "any.onnx", images, Silent()).contract
    assert (converted.precision, converted.quantization) == ("fp32", None)


def test_to_any_size__plain_onnxruntime_gives_the_answer_of_the_runtime(any_size: Path, images: list[str]) -> None:
    session = onnxruntime.InferenceSession(any_size, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape[1:3]) for i in session.get_inputs()] == [("images", "tensor(uint8)", ["H", "W"])]
    with tl.runtime.load(any_size) as converted, tl.runtime.load(any_size.with_name("fixed.onnx")) as fixed:
        for path in images:
            pixels = np.asarray(Image.open(path))[None]
            (plain,) = session.run(["probabilities"], {"images": pixels})
            np.testing.assert_array_equal(converted.predict(path).probabilities, plain[0])
            # One of 255 levels moves a logit of the color model by 0.05.
            np.testing.assert_allclose(fixed.predict(path).probabilities, plain[0], atol=5e-3)


def test_to_any_size__records_how_it_compares(any_size: Path, images: list[str]) -> None:
    contract = Session(any_size, device="cpu").contract
    assert contract is not None
    assert contract.any_size is not None
    assert contract.preprocessing.resized_by == "graph"
    assert contract.preprocessing.jpeg_scale == "full"
    found = contract.any_size
    assert (found.images, found.top1_agreement, found.tolerance) == (len(images), 1.0, convert.MAX_DIFF["2x"])
    assert found.max_abs_diff < 0.005
    assert found.max_pixel_diff <= 4
    assert found.mean_pixel_diff < 0.35


def test_to_any_size__golden_samples_have_other_sizes_than_the_input(any_size: Path, tmp_path: Path) -> None:
    contract = Session(any_size, device="cpu").contract
    assert contract is not None
    shapes = {golden_image(sample, contract, "").shape for sample in contract.golden.samples}
    assert len(shapes) > 1
    assert run_selftest(any_size, device="cpu").max_abs_diff <= 1e-6
    broken = dataclasses.replace(contract.golden.samples[0], expected=(0.2, 0.3, 0.5))
    samples = (broken, *contract.golden.samples[1:])
    model = onnx.load(any_size)
    convert.embed_contract(
        model, dataclasses.replace(contract, golden=dataclasses.replace(contract.golden, samples=samples))
    )
    (tmp_path / "broken.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ParityError, match="golden samples differ"):
        run_selftest(tmp_path / "broken.onnx", device="cpu")


def test_predict__many_sizes_in_one_stream(any_size: Path, images: list[str]) -> None:
    with tl.runtime.load(any_size) as predictor:
        alone = [predictor.predict(path).probabilities for path in images]
        for found, wanted in zip(predictor.predict_iter(images, batch_size=4), alone, strict=True):
            assert isinstance(found, Classification)
            np.testing.assert_array_equal(found.probabilities, wanted)
        assert len(predictor.predict_batch(images)) == len(images)


def test_predict__ensemble_of_fixed_and_any_size(any_size: Path, images: list[str]) -> None:
    fixed = any_size.with_name("fixed.onnx")
    with tl.runtime.load([fixed, any_size]) as both, tl.runtime.load(fixed) as one:
        for path in images:
            found = both.predict(path)
            assert found.votes is not None
            assert found.votes.agreement == 1
            np.testing.assert_allclose(found.probabilities, one.predict(path).probabilities, atol=5e-3)


def test_predict__mirrored_views_are_allowed_and_crops_refused(any_size: Path, images: list[str]) -> None:
    with tl.runtime.load(any_size, tta=["hflip"]) as mirrored, tl.runtime.load(any_size) as plain:
        np.testing.assert_allclose(
            mirrored.predict(images[0]).probabilities, plain.predict(images[0]).probabilities, atol=5e-3
        )
    with pytest.raises(EnsembleError, match="tta crops do not apply"):
        tl.runtime.load(any_size, tta=["crops"])


def test_predict__an_image_above_the_limits_is_a_failure(any_size: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.png"
    Image.new("RGB", (60_000, 1)).save(long)
    header = tmp_path / "bomb.pgm"
    header.write_bytes(b"P5 90000 90000 255\n")
    with tl.runtime.load(to_short_side(tmp_path)) as predictor:
        found = predictor.predict_batch([str(long), str(header)])
    assert [getattr(result, "error", "")[:13] for result in found] == ["too elongated", "declares more"]


def to_short_side(folder: Path) -> Path:
    """A converted model that enlarges the shorter side to 300 pixels."""
    preprocessing = build_preprocessing((280, 280), "short_side", short_side=4000)
    path = folder / "square.png"
    Image.fromarray(photo((30, 30), 0)).save(path)
    fixed = make_model(folder / "short.onnx", preprocessing=preprocessing)
    return to_any_size(fixed, folder / "short-any.onnx", [str(path)], Silent(), golden="synthetic").path


@pytest.mark.parametrize("mode", ["letterbox", "squash"])
def test_to_any_size__points_are_pixels_of_the_given_image(tmp_path: Path, mode: str) -> None:
    hws = [(60, 80), (120, 160), (64, 90)]
    scaled = [USUAL_XY * (hw[1] / 80, hw[0] / 60) for hw in hws]
    paths = [str(save_spots(tmp_path / f"{i}.png", scaled[i], hw)) for i, hw in enumerate(hws)]
    fixed = make_spot_model(tmp_path / "fixed.onnx", build_preprocessing((48, 48), mode))  # type: ignore[arg-type]
    made = to_any_size(fixed, tmp_path / "any.onnx", paths, Silent())
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    with tl.runtime.load_landmarks(made.path) as predictor:
        for path, wanted in zip(paths, scaled, strict=True):
            (plain,) = session.run(["keypoints"], {"images": np.asarray(Image.open(path))[None]})
            np.testing.assert_allclose(plain[0], wanted, atol=0.3)  # a spot of 4 px, resized
            found = predictor.predict(path)
            np.testing.assert_allclose(found.keypoints_xy, plain[0], atol=1e-4)
            assert found.confidence is not None
            assert found.confidence.min() > 0.5


def test_explain__maps_and_covered_parts_of_an_image_of_any_size(tmp_path: Path, images: list[str]) -> None:
    cam = to_any_size(make_cam_model(tmp_path / "cam.onnx"), tmp_path / "cam-any.onnx", images, Silent())
    plain = to_any_size(make_model(tmp_path / "plain.onnx"), tmp_path / "plain-any.onnx", images, Silent())
    with tl.runtime.load(cam.path) as predictor, tl.runtime.load(tmp_path / "cam.onnx") as fixed:
        found, wanted = explain(predictor, images[0]), explain(fixed, images[0])
        assert (found.method, found.placement) == ("cam", wanted.placement)
        np.testing.assert_allclose(found.heat, wanted.heat, atol=0.1)
    with tl.runtime.load(plain.path) as predictor:
        assert explain(predictor, images[0]).heat.shape == (40, 60)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"interpolation": "lanczos"}, "resizes with lanczos, but ONNX antialiases only bilinear and bicubic"),
        ({"interpolation": "nearest"}, "resizes with nearest"),
        ({"channels": ("0",)}, "chooses channels or pages"),
        ({"project": "max"}, "chooses channels or pages"),
    ],
)
def test_to_any_size__refuses_what_a_graph_cannot_do(
    tmp_path: Path, images: list[str], changes: dict[str, object], why: str
) -> None:
    preprocessing = dataclasses.replace(build_preprocessing((8, 8)), **changes)  # type: ignore[arg-type]
    model = make_model(tmp_path / "fixed.onnx", preprocessing=preprocessing)
    with pytest.raises(ModelFileError, match=why):
        to_any_size(model, tmp_path / "any.onnx", images, Silent())
    assert not (tmp_path / "any.onnx").exists()


def test_to_any_size__refuses_regions_and_itself(tmp_path: Path, images: list[str], any_size: Path) -> None:
    boxed = make_model(tmp_path / "boxed.onnx", contract=make_contract(boxes=BoxCrop(0.1, square=False)))
    points = make_spot_model(tmp_path / "points.onnx", region="points", region_margin=0.1)
    for model in boxed, points:
        with pytest.raises(ModelFileError, match="uses a region of each image"):
            to_any_size(model, tmp_path / "out.onnx", images, Silent())
    with pytest.raises(ModelFileError, match="takes images of any size already"):
        to_any_size(any_size, tmp_path / "out.onnx", images, Silent())
    fixed = any_size.with_name("fixed.onnx")
    with pytest.raises(ConfigError, match="would overwrite"):
        to_any_size(fixed, fixed, images, Silent())
    with pytest.raises(DataError, match="no images to compare"):
        to_any_size(fixed, tmp_path / "out.onnx", [], Silent())


def test_to_any_size__writes_nothing_if_the_graph_resizes_differently(
    tmp_path: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph for a crop that is one pixel off, as a wrong rounding would cause."""
    right = convert.resizing_alone
    preprocessing = build_preprocessing((32, 32), "short_side", short_side=34)
    fixed = make_model(tmp_path / "fixed.onnx", preprocessing=preprocessing)
    wrong = dataclasses.replace(preprocessing, short_side=36)
    monkeypatch.setattr(convert, "resizing_alone", lambda _: right(wrong))
    with pytest.raises(ParityError, match=r"resizes 6 images differently than tl.runtime: .* no file was written"):
        to_any_size(fixed, tmp_path / "any.onnx", images, Silent())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed.onnx"]


def test_to_any_size__writes_nothing_if_results_differ(
    tmp_path: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "MAX_DIFF", {"2x": -1.0, "full": -1.0})  # these small images give equal results
    with pytest.raises(ParityError, match=r"differ by .* from those of the fixed-size file"):
        to_any_size(make_model(tmp_path / "fixed.onnx"), tmp_path / "any.onnx", images, Silent())
    assert not (tmp_path / "any.onnx").exists()


def test_merge__refuses_files_of_any_size(any_size: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="merge the file of fixed size"):
        merge([any_size, any_size.with_name("fixed.onnx")], tmp_path / "merged.onnx", Silent())


def test_to_any_size__of_a_merged_file(tmp_path: Path, images: list[str]) -> None:
    members = [make_model(tmp_path / f"{gain}.onnx", gain=gain) for gain in (0.05, 0.02)]
    merged = merge(members, tmp_path / "merged.onnx", Silent())
    made = to_any_size(merged.path, tmp_path / "any.onnx", images, Silent())
    with tl.runtime.load(made.path) as found, tl.runtime.load(merged.path) as wanted:
        for path in images:
            assert found.predict(path).label == wanted.predict(path).label


def test_to_any_size__of_numbers(tmp_path: Path, images: list[str]) -> None:
    names = ("red", "green", "blue")
    facts = RegressionFacts(names, ("",) * 3, (1.0,) * 3, ((0.1,),) * 3, "validation split")
    changes = {"task": "regression", "class_names": (), "regression": facts, "outputs": ("values",)}
    contract = dataclasses.replace(make_contract(), **changes)  # type: ignore[arg-type]
    model = onnx.load(make_model(tmp_path / "shares.onnx"))
    model.graph.node[-1].output[0] = model.graph.output[0].name = "values"
    convert.embed_contract(model, contract)
    (tmp_path / "shares.onnx").write_bytes(model.SerializeToString())
    made = to_any_size(tmp_path / "shares.onnx", tmp_path / "any.onnx", images, Silent())
    assert made.contract.any_size is not None
    assert made.contract.any_size.top1_agreement is None
    with (
        tl.runtime.load_regression(made.path) as found,
        tl.runtime.load_regression(tmp_path / "shares.onnx") as wanted,
    ):
        for path in images:
            np.testing.assert_allclose(found.predict(path).values, wanted.predict(path).values, atol=5e-3)


def test_to_any_size__of_several_labels(tmp_path: Path, images: list[str]) -> None:
    facts = MultilabelFacts(
        temperatures=(1.0,) * 3, thresholds=(0.3,) * 3, rule="fixed", min_precision=None, curve=None
    )
    fixed = make_model(tmp_path / "fixed.onnx", contract=make_contract(task="multilabel", multilabel=facts))
    made = to_any_size(fixed, tmp_path / "any.onnx", images, Silent())
    with tl.runtime.load_multilabel([made.path, fixed]) as both, tl.runtime.load_multilabel(fixed) as wanted:
        for path in images:
            assert both.predict(path).labels == wanted.predict(path).labels


def test_to_any_size__of_a_trained_network(exported: Exported, finished_run: Run, tmp_path: Path, photos: Path) -> None:
    images = [image.path for image in finished_run.images("val")]
    made = to_any_size(exported.path, tmp_path / "any.onnx", images, Silent(), golden="validation")
    assert made.contract.any_size is not None
    assert made.contract.any_size.max_abs_diff < 5e-3
    assert made.contract.parity == exported.contract.parity
    assert made.contract.ood == exported.contract.ood
    with tl.runtime.load(made.path) as found, tl.runtime.load(exported.path) as wanted:
        for path in images:
            pair = found.predict(path), wanted.predict(path)
            assert pair[0].label == pair[1].label
            assert pair[0].ood_score == pytest.approx(pair[1].ood_score, abs=0.02)


def test_to_any_size__runs_on_the_oldest_runtime(any_size: Path, images: list[str]) -> None:
    python = os.environ.get("TL_OLDEST_PYTHON")
    if not python:
        pytest.skip("needs a venv with the oldest supported versions: make test sets TL_OLDEST_PYTHON")
    code = (
        "import sys, numpy, onnxruntime; from PIL import Image\n"
        "session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "for path in sys.argv[2:]:\n"
        "    pixels = numpy.asarray(Image.open(path))[None]\n"
        "    print(*session.run(['probabilities'], {'images': pixels})[0][0])\n"
    )
    done = subprocess.run([python, "-c", code, str(any_size), *images], capture_output=True, text=True, check=True)
    with tl.runtime.load(any_size) as predictor:
        wanted = [predictor.predict(path).probabilities for path in images]
    found = np.array([line.split() for line in done.stdout.splitlines()], float)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_decode_image__is_what_the_graph_gets(any_size: Path, images: list[str]) -> None:
    contract = Session(any_size, device="cpu").contract
    assert contract is not None
    np.testing.assert_array_equal(decode_image(images[0], contract.preprocessing), np.asarray(Image.open(images[0])))
