from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import skimage.data
import torch
from PIL import Image

from tests.trainer.make import (
    Listener,
    make_class_folders,
    make_config,
    make_noise,
    make_png,
    plain_text,
    read_rows,
    train_here,
)
from tl.data.manifests import LabeledImage
from tl.errors import ConfigError, DataError, ParityError, RunError, TlError
from tl.exporter.export import Exported, _export, export_pretrained, export_run, spread
from tl.exporter.export_source import ExportSource, ExtraOutputs
from tl.exporter.publish import synthetic_inputs
from tl.progress import Silent
from tl.runtime.ensembles.selective import SelectivePrediction
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.model_file.contract import METADATA_KEY
from tl.runtime.model_file.selftest import golden_image, run_selftest
from tl.runtime.predictor import load
from tl.runtime.session import Session
from tl.trainer.models.backbones import build_classifier
from tl.trainer.models.build import load_network
from tl.trainer.models.network import Deployed
from tl.trainer.run_folder.checkpoints import load_best
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

FORBIDDEN = (b"/work", b"/home", b"/root", b"/tmp", b"/usr", b"site-packages", b".py")


def assert_nothing_private(path: Path, *private: Path) -> None:
    content = plain_text(onnx.load(path))
    assert b"class_names" in content
    for word in (*FORBIDDEN, *(str(place).encode() for place in (*private, Path.home(), Path.cwd()))):
        assert word not in content, word


def assert_predicts_as_validated(path: Path, run: Run, photos: Path) -> None:
    rows = read_rows(run.folder / ("predictions_fitted.csv" if run.load_config().refit else "predictions_val.csv"))
    with load(path, device="cpu", threads=1) as predictor:
        results = predictor.predict_batch([photos / row["path"] for row in rows])
    for row, result in zip(rows, results, strict=True):
        shown = [float(row[f"p:{name}"]) for name in ("blue", "green", "red")]
        # The tolerance of tl.exporter.parity, plus rounding to six printed digits.
        np.testing.assert_allclose(result.probabilities, shown, rtol=0, atol=1.1e-4)  # type: ignore[union-attr]


def test_export_run__predicts_with_the_fitted_temperature(tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "d", 16)
    run = train_here(data, tmp_path / "r", val_fraction=0.5, lr=1e-4).run  # all 24 are right, and far from certain
    done = export_run(run, tmp_path / "m.onnx", Silent())
    assert done.contract.temperature == load_best(run)[1].temperature < 0.9
    assert_predicts_as_validated(done.path, run, data)


def test_export_run__contract_fields(exported: Exported, finished_run: Run) -> None:
    contract = Session(exported.path, device="cpu", threads=1).contract
    assert contract == exported.contract
    assert (contract.task, contract.precision) == ("classification", "fp32")
    assert contract.temperature == load_best(finished_run)[1].temperature
    assert contract.class_names == ("blue", "green", "red")
    assert contract.outputs == ("probabilities", "embedding", "ood_score")
    assert contract.preprocessing.input_hw == (32, 32)
    assert contract.preprocessing == load_best(finished_run)[1].preprocessing
    parity = contract.parity
    assert (parity.images, parity.batch_sizes, parity.top1_agreement) == (
        6,
        (1, 8),
        1.0,
    )  # a fifth of each class of 12, rounded
    assert set(parity.session_max_abs_diff) == {"probabilities", "embedding", "ood_score"}
    assert max(*parity.session_max_abs_diff.values(), parity.pipeline_max_abs_diff) < parity.tolerance
    assert (contract.golden.source, len(contract.golden.samples)) == ("validation", 4)


def test_export_run__statistics_of_held_out_images(exported: Exported, finished_run: Run) -> None:
    rows = read_rows(finished_run.folder / "predictions_val.csv")
    conformal, unknown = exported.contract.conformal, exported.contract.ood
    assert conformal is not None
    assert unknown is not None
    scores = []
    for row in rows:
        own = float(row[f"p:{row['true_label']}"])
        others = [float(row[f"p:{name}"]) for name in ("blue", "green", "red") if name != row["true_label"]]
        scores.append(sum(p for p in others if p > own) + own / 2)
    # Scores are computed in float32; the file contains all their digits.
    assert conformal.scores == pytest.approx(sorted(scores), abs=1e-6)
    assert (unknown.images, unknown.held_out) == (30, len(rows))
    result = load(exported.path, device="cpu", selective=SelectivePrediction(coverage=0.5, reject_unknown=True))
    with result as predictor:
        near = predictor.predict(finished_run.image_paths("train")[0])
        far = predictor.predict(np.full((40, 40, 3), 255, np.uint8))
    assert near.ood_score < unknown.limit < far.ood_score
    assert (near.label, far.label) == (near.class_set[0], "?")


def test_export_run__class_activation_maps(finished_run: Run, photos: Path, tmp_path: Path) -> None:
    """The mean of a map is the image's logit, so maps and probabilities agree."""
    with pytest.raises(ConfigError, match="this run has head mlp with pooling gap on smallcnn"):
        export_run(finished_run, tmp_path / "m.onnx", Silent(), further=ExtraOutputs(cam=True))
    weights = str(finished_run.folder)
    run = train(make_config(photos, tmp_path / "linear", method="features", weights=weights), Silent()).run
    done = export_run(run, tmp_path / "m.onnx", Silent(), further=ExtraOutputs(cam=True, false_alarm=0.3))
    assert done.contract.outputs == ("probabilities", "embedding", "ood_score", "cam")
    assert set(done.contract.parity.session_max_abs_diff) == set(done.contract.outputs)
    session = Session(done.path, device="cpu")
    samples = done.contract.golden.samples
    images = np.stack([golden_image(sample, done.contract, "here") for sample in samples])
    probabilities, cam = session.run(images, ["probabilities", "cam"])
    assert cam.shape[:2] == (4, 3)
    logits = cam.mean(axis=(2, 3)) / done.contract.temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities, shares / shares.sum(axis=1, keepdims=True), rtol=0, atol=1e-5)
    strict = export_run(run, tmp_path / "strict.onnx", Silent(), further=ExtraOutputs(false_alarm=0.15)).contract.ood
    assert done.contract.ood is not None
    assert strict is not None
    assert done.contract.ood.limit < strict.limit  # fewer validation images may be rejected


def test_export_run__without_training_images(finished_run: Run, tmp_path: Path) -> None:
    plain = export_run(finished_run, tmp_path / "m.onnx", Silent(), further=ExtraOutputs(unknown=False)).contract
    assert (plain.ood, plain.outputs) == (None, ("probabilities", "embedding"))


def test_export_run__provenance(exported: Exported, finished_run: Run) -> None:
    provenance = exported.contract.provenance
    assert (provenance.backbone, provenance.weights, provenance.method) == ("smallcnn", "none", "scratch")
    metrics = json.loads((finished_run.folder / "metrics.json").read_text(encoding="utf-8"))["val"]
    assert provenance.val_metrics == {
        name: value for name, value in metrics.items() if name not in ("per_class", "confusion")
    }
    assert {"ece", "ece_uncalibrated", "boot_low", "macro_f1_boot_high"} <= set(provenance.val_metrics)
    assert provenance.config["data"] == "photos"
    assert provenance.config["head_sizes"] == [512, 256]
    assert "out" not in provenance.config
    rows = read_rows(finished_run.folder / "manifest.csv")
    lines = sorted(f"{row['sha256']}\t{row['label']}\t{row['split']}\n" for row in rows)
    assert provenance.data_hash == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert provenance.versions["torch"] == torch.__version__.split("+")[0]
    assert {"tl-toolkit", "onnx", "torchvision", "pillow"} <= set(provenance.versions)


def test_export_run__versions_and_dynamic_batch(exported: Exported) -> None:
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert model.ir_version <= 10
    assert [prop.key for prop in model.metadata_props] == [METADATA_KEY]
    session = ort.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    for count in (1, 2, 9):
        images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        probabilities, embedding = session.run(["probabilities", "embedding"], {"images": images})
        assert (probabilities.shape, embedding.shape) == ((count, 3), (count, 128))
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=0, atol=1e-6)  # float32 sums of three


def test_export_run__nothing_private_leaks(exported: Exported, finished_run: Run, photos: Path) -> None:
    assert_nothing_private(exported.path, photos.parent, finished_run.folder.parent, exported.path.parent)
    assert list(exported.path.parent.iterdir()) == [exported.path]


def test_export_run__golden_samples_are_validation_images(exported: Exported, finished_run: Run) -> None:
    inputs = {load_input(path, exported.contract.preprocessing).tobytes() for path in finished_run.image_paths("val")}
    for sample in exported.contract.golden.samples:
        with Image.open(BytesIO(base64.b64decode(sample.png))) as image:
            assert np.asarray(image).tobytes() in inputs


def test_export_run__predictions_are_those_of_the_run(exported: Exported, finished_run: Run, photos: Path) -> None:
    assert_predicts_as_validated(exported.path, finished_run, photos)


def test_export_run__passes_verify(exported: Exported) -> None:
    test = run_selftest(exported.path, device="cpu", threads=1)
    assert (test.samples, test.provider) == (4, "CPUExecutionProvider")
    assert test.max_abs_diff <= test.tolerance == 1e-4


def test_export_run__synthetic_golden_embeds_no_photo(finished_run: Run, tmp_path: Path) -> None:
    done = export_run(finished_run, tmp_path / "m.onnx", Silent(), golden="synthetic")
    assert done.contract.golden.source == "synthetic"
    wanted = [image.tobytes() for image in synthetic_inputs((32, 32, 3))]
    found = []
    for sample in done.contract.golden.samples:
        with Image.open(BytesIO(base64.b64decode(sample.png))) as opened:
            found.append(np.asarray(opened).tobytes())
    assert sorted(found) == sorted(wanted)
    run_selftest(done.path, device="cpu", threads=1)


def test_export_run__further_parity_images(finished_run: Run, tmp_path: Path) -> None:
    for i, hw in enumerate(((5, 70), (64, 64), (1, 1))):
        make_png(tmp_path / "odd" / f"{i}.png", make_noise(i, hw=hw))
    listener = Listener()
    done = export_run(finished_run, tmp_path / "m.onnx", listener, parity_images=[tmp_path / "odd"])
    assert done.contract.parity.images == 6 + 3
    assert listener.tasks[-2:] == ["reading images", "exporting"]


def test_export__a_module_that_differs_from_its_graph_leaves_no_file(
    finished_run: Run, exported: Exported, photos: Path, tmp_path: Path
) -> None:
    class Fickle(Deployed):
        """Computes something different after it has been traced."""

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            probabilities, embedding = super().forward(images)
            return (probabilities, embedding) if torch.compiler.is_compiling() else (probabilities.flip(1), embedding)

    network, card, _ = load_network(finished_run)
    contract = exported.contract
    origin = ExportSource(
        Fickle(network, 1.0), ("probabilities", "embedding"), card.class_names, card.preprocessing, contract.provenance
    )
    labeled = [LabeledImage(str(path), path.name, "") for path in sorted(photos.rglob("*.png"))[:4]]
    out = tmp_path / "out" / "m.onnx"
    with pytest.raises(ParityError, match="parity failed on 4 images"):
        _export(origin, out, labeled, [], "validation", Silent())
    assert list(out.parent.iterdir()) == []


def moved_run(finished_run: Run, photos: Path, tmp_path: Path) -> Run:
    """A copy of the run and its images."""
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(finished_run.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    manifest = run.folder / "manifest.csv"
    stored = Path(os.path.relpath(photos, finished_run.folder)).as_posix()
    manifest.write_text(manifest.read_text(encoding="utf-8").replace(stored, "../photos"), encoding="utf-8")
    return run


def test_export_run__images_gone(finished_run: Run, photos: Path, tmp_path: Path) -> None:
    run = moved_run(finished_run, photos, tmp_path)
    for path in run.image_paths("val"):
        Path(path).unlink()
    with pytest.raises(DataError, match=r"the run's validation images no longer exist"):
        export_run(run, tmp_path / "m.onnx", Silent())
    assert not (tmp_path / "m.onnx").exists()


def test_export_run__images_gone_but_others_given(finished_run: Run, photos: Path, tmp_path: Path) -> None:
    run = moved_run(finished_run, photos, tmp_path)
    shutil.rmtree(tmp_path / "photos")
    done = export_run(run, tmp_path / "m.onnx", Silent(), parity_images=[photos / "red"])
    assert done.contract.parity.images == 12


def edit_predictions(run: Run, edit: Callable[[list[list[str]]], None]) -> None:
    """Edit the rows of `predictions_val.csv`, header first."""
    path = run.folder / "predictions_val.csv"
    rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    edit(rows)
    path.write_text("".join(f"{','.join(row)}\n" for row in rows), encoding="utf-8")


def test_export_run__altered_predictions_are_refused(finished_run: Run, photos: Path, tmp_path: Path) -> None:
    run = moved_run(finished_run, photos, tmp_path)

    def shift(rows: list[list[str]]) -> None:
        rows[4][-1] = f"{(float(rows[4][-1]) + 0.5) % 1:.6g}"  # one probability of one image

    edit_predictions(run, shift)
    with pytest.raises(ParityError, match=r"predictions_val.csv and its network differ by 0.5 .*no file was written"):
        export_run(run, tmp_path / "out" / "m.onnx", Silent())
    assert list((tmp_path / "out").iterdir()) == []


def test_export_run__an_altered_image_is_refused(finished_run: Run, photos: Path, tmp_path: Path) -> None:
    run = moved_run(finished_run, photos, tmp_path)
    make_png(Path(run.image_paths("val")[2]), make_noise(7, (255, 255, 255)))
    with pytest.raises(ParityError, match="the run or an image has changed; train again"):
        export_run(run, tmp_path / "m.onnx", Silent())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows.pop(), "has 5 rows for 6 validation images of the manifest"),
        (lambda rows: rows[2].pop(), "predictions_val.csv: cannot be read"),
        (lambda rows: rows[2].__setitem__(-1, "much"), "predictions_val.csv: cannot be read .*'much'"),
        (lambda rows: rows[2].append("1"), "predictions_val.csv: cannot be read"),
        (lambda rows: [row.pop() for row in rows], "predictions_val.csv: has no column 'p:"),
    ],
    ids=["row", "cell", "word", "longer", "column"],
)
def test_export_run__spoilt_predictions_are_named(
    finished_run: Run, photos: Path, tmp_path: Path, edit: Callable[[list[list[str]]], None], message: str
) -> None:
    run = moved_run(finished_run, photos, tmp_path)
    edit_predictions(run, edit)
    with pytest.raises(TlError, match=message):
        export_run(run, tmp_path / "m.onnx", Silent())
    assert not (tmp_path / "m.onnx").exists()


def test_export_run__without_predictions_hints_at_unfinished_training(
    finished_run: Run, photos: Path, tmp_path: Path
) -> None:
    run = moved_run(finished_run, photos, tmp_path)
    (run.folder / "predictions_val.csv").unlink()
    with pytest.raises(RunError, match=r"predictions_val.csv: cannot be read .*did this run's training finish"):
        export_run(run, tmp_path / "m.onnx", Silent())


def test_export_run__a_damaged_image_is_named(finished_run: Run, photos: Path, tmp_path: Path) -> None:
    run = moved_run(finished_run, photos, tmp_path)
    path = Path(run.image_paths("val")[0])
    path.write_bytes(b"")
    with pytest.raises(DataError, match=f"{path.name}: empty file"):
        export_run(run, tmp_path / "m.onnx", Silent())


def test_export_run__refusals(finished_run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.txt: expected a file name that ends in .onnx"):
        export_run(finished_run, tmp_path / "model.txt", Silent())
    with pytest.raises(RunError, match="not a run folder"):
        export_run(Run(tmp_path), tmp_path / "m.onnx", Silent())
    with pytest.raises(TlError, match="no such file or folder"):
        export_run(finished_run, tmp_path / "m.onnx", Silent(), parity_images=[tmp_path / "gone"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "pooling"), [("linear", "gap"), ("linear", "flatten"), ("mlp", "flatten"), ("conv", "gap")]
)
def test_export_run__every_head_and_pooling_keeps_parity(photos: Path, tmp_path: Path, head: str, pooling: str) -> None:
    changes = {"head": head, "pooling": pooling, "resize_mode": "short_side", "epochs": 1}
    run = train_here(photos, tmp_path / "r", **changes).run
    done = export_run(run, tmp_path / "m.onnx", Silent())
    assert done.contract.preprocessing.short_side == 37  # 32 / 0.875
    assert done.contract.parity.top1_agreement == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("head", ["svm", "conv"])
def test_export_run__a_head_on_kept_features_predicts_as_validated(
    finished_run: Run, photos: Path, tmp_path: Path, head: str
) -> None:
    changes = {"method": "features", "weights": str(finished_run.folder), "head": head}
    run = train_here(photos, tmp_path / "r", **changes).run
    done = export_run(run, tmp_path / "m.onnx", Silent())
    assert done.contract.temperature == load_best(run)[1].temperature
    assert done.contract.provenance.weights == "run finished"
    assert_predicts_as_validated(done.path, run, photos)
    assert_nothing_private(done.path, tmp_path, photos, finished_run.folder)


def test_export_pretrained__whole_classifier(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(build_classifier("squeezenet1_0").state_dict(), tmp_path / "w.pth")
    done = export_pretrained("squeezenet1_0", str(tmp_path / "w.pth"), [photos / "red"], tmp_path / "m.onnx", Silent())
    assert (len(done.contract.class_names), done.contract.outputs) == (1000, ("probabilities",))
    assert (done.contract.preprocessing.resize_mode, done.contract.preprocessing.short_side) == ("short_side", 256)
    assert done.contract.parity.images == 12
    assert done.contract.provenance.method == "pretrained"
    assert_nothing_private(done.path, tmp_path, photos)


def test_export_pretrained__bundled_classifier_names_a_cat(tmp_path: Path) -> None:
    cat = tmp_path / "chelsea.png"
    Image.fromarray(skimage.data.chelsea()).save(cat)
    done = export_pretrained("efficientnet_lite0", "imagenet", [cat], tmp_path / "m.onnx", Silent())
    assert len(done.contract.class_names) == 1000
    with load(done.path, device="cpu") as model:
        assert model.predict(cat).label in ("tabby", "tiger cat", "Egyptian cat")


def test_export_pretrained__without_weights(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="would export random numbers"):
        export_pretrained("squeezenet1_0", "none", [photos], tmp_path / "m.onnx", Silent())


@pytest.mark.parametrize("backbone", ["smallcnn", "resnet81"])
def test_export_pretrained__backbone_without_a_classifier(photos: Path, tmp_path: Path, backbone: str) -> None:
    with pytest.raises(ConfigError, match=backbone):
        export_pretrained(backbone, "imagenet", [photos], tmp_path / "m.onnx", Silent())


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(2, ["0", "9"]), (4, ["0", "3", "6", "9"]), (10, list("0123456789")), (99, list("0123456789"))],
)
def test_spread__evenly_from_first_to_last(count: int, wanted: list[str]) -> None:
    assert spread("0123456789", count) == wanted


def test_export_run__synthetic_golden_expects_what_torch_computes(finished_run: Run, tmp_path: Path) -> None:
    done = export_run(finished_run, tmp_path / "m.onnx", Silent(), golden="synthetic")
    network, card, _ = load_network(finished_run)
    with torch.no_grad():
        wanted = Deployed(network, card.temperature)(
            torch.from_numpy(synthetic_inputs(card.preprocessing.input_shape))
        )[0].numpy()
    found = np.array([sample.expected for sample in done.contract.golden.samples], np.float32)
    # The same arithmetic in the same process, stored in full; the samples may be in a different order.
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, wanted.tolist()))
