from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.models import COLORS, make_cam_model, make_contract, make_model, solid
from tests.spots import make_spot_model
from tests.trainer.make import make_manifest, make_png
from tl.data.manifests import LabeledImage
from tl.errors import ConfigError, DataError, EnsembleError, ModelFileError, ParityError
from tl.evaluation.vote_weights import log_loss
from tl.exporter.export import Exported
from tl.exporter.merging import merge as merge_module
from tl.exporter.merging.merge import Merged, merge
from tl.exporter.refitting.refit import refit
from tl.exporter.refitting.seen import RefitOptions
from tl.progress import Silent
from tl.runtime import load
from tl.runtime.ensembles.selective import SelectivePrediction
from tl.runtime.ensembles.voting import VOTINGS, Voting, soften
from tl.runtime.imaging.preprocessing import build_preprocessing

IMAGES = [solid(color) for color in ((200, 30, 20), (100, 110, 90), (20, 180, 60), (90, 90, 90), (0, 0, 0))]


@pytest.fixture
def members(tmp_path: Path) -> list[Path]:
    """Three members that disagree, one of them with its classes in another order."""
    return [
        make_model(tmp_path / "sharp.onnx", gain=0.05),
        make_model(tmp_path / "wrong.onnx", gain=-0.02),
        make_model(tmp_path / "dull.onnx", ("blue", "red", "green"), gain=0.01),
    ]


def do_merge(models: list[Path], out: Path, **options: object) -> Merged:
    return merge(models, out, Silent(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [None, [2, 1, 1]])
@pytest.mark.parametrize("voting", VOTINGS)
def test_merge__votes_as_the_separate_files(
    voting: Voting, weights: list[float] | None, members: list[Path], tmp_path: Path
) -> None:
    done = do_merge(members, tmp_path / "e.onnx", voting=voting, weights=weights)
    assert done.contract.class_names == COLORS
    with load(members, vote=voting, weights=weights, device="cpu") as apart, load([done.path], device="cpu") as merged:
        assert merged.member_names == ("sharp", "wrong", "dull")
        for ours, theirs in zip(merged.predict_batch(IMAGES), apart.predict_batch(IMAGES), strict=True):
            assert ours.label == theirs.label
            assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-6)
            assert ours.votes.labels == theirs.votes.labels
            assert ours.votes.agreement == theirs.votes.agreement
            assert ours.votes.entropy == pytest.approx(theirs.votes.entropy, abs=1e-6)
            assert np.abs(ours.votes.probabilities - theirs.votes.probabilities).max() < 1e-6


def test_merge__has_ood_score_images(exported: Exported, photos: Path, tmp_path: Path) -> None:
    """The mean of the members' scores, with its limit fitted on the calibration images."""
    other = refit(
        exported.path, [photos], tmp_path / "other.onnx", Silent(), RefitOptions(seed=1, false_alarm=0.2)
    ).path
    held_out = [LabeledImage(str(path), path.name, path.parent.name) for path in sorted(photos.rglob("*.png"))]
    paths = [image.path for image in held_out]
    members = [exported.path, other]
    done = do_merge(members, tmp_path / "e.onnx", held_out=held_out, false_alarm=0.2)
    assert done.contract.outputs[-1] == "ood_score"
    assert done.contract.parity.session_max_abs_diff["ood_score"] < 1e-5
    alone = []
    for path in members:
        with load(path, device="cpu") as model:
            alone.append([result.ood_score for result in model.predict_batch(paths)])
    wanted = np.mean(alone, axis=0)
    facts = done.contract.ood
    assert facts is not None
    above = wanted > facts.limit * (1 + 1e-5)  # the limit is the score of one of these images, in float32
    assert facts.false_alarm == above.mean() <= 0.2
    assert facts.limit == pytest.approx(sorted(wanted)[int(np.ceil(0.8 * (len(wanted) + 1))) - 1], abs=1e-5)
    with (
        load(done.path, device="cpu", selective=SelectivePrediction(reject_unknown=True)) as merged,
        load(members) as apart,
    ):
        for found in (merged.predict_batch(paths), apart.predict_batch(paths)):
            np.testing.assert_allclose([result.ood_score for result in found], wanted, rtol=1e-5)
        assert merged.predict(np.full((40, 40, 3), 255, np.uint8)).label == "?"
    with pytest.raises(EnsembleError, match="merge the members into one file and calibrate it"):
        load(members, selective=SelectivePrediction(reject_unknown=True))
    assert do_merge(members, tmp_path / "plain.onnx").contract.ood is None


@pytest.mark.parametrize("voting", VOTINGS)
def test_merge__averages_views_as_the_separate_files(voting: Voting, members: list[Path], tmp_path: Path) -> None:
    """Each member averages over all views, then they vote; a calibrated file applies its temperature after that."""
    done = do_merge(members, tmp_path / "e.onnx", voting=voting, weights=[2, 1, 1])
    halves = [np.concatenate([a, b], axis=1) for a in IMAGES for b in IMAGES]
    options = {"device": "cpu", "tta": ("crops", "hflip")}
    with load(members, vote=voting, weights=[2, 1, 1], **options) as apart, load(done.path, **options) as merged:
        for ours, theirs in zip(merged.predict_batch(halves), apart.predict_batch(halves), strict=True):
            assert ours.label == theirs.label
            np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=0, atol=1e-6)


def test_merge__as_a_single_model_it_gives_no_votes(members: list[Path], tmp_path: Path) -> None:
    done = do_merge(members, tmp_path / "e.onnx")
    with load(done.path, device="cpu") as merged:
        assert merged.predict(IMAGES[0]).votes is None


def test_merge__what_the_file_says_of_itself(members: list[Path], tmp_path: Path) -> None:
    contract = do_merge(members, tmp_path / "e.onnx", voting="hard", weights=[3, 1, 0.1]).contract
    assert contract.ensemble is not None
    assert [member.name for member in contract.ensemble.members] == ["sharp", "wrong", "dull"]
    assert contract.ensemble.weights == (3.0, 1.0, float(np.float32(0.1)))
    assert contract.provenance.method == "merged"
    assert contract.parity.tolerance == 1e-5
    assert contract.golden.source == "synthetic"  # like the members'


def test_merge__given_images_prove_it(members: list[Path], photos: Path, tmp_path: Path) -> None:
    contract = do_merge(members, tmp_path / "e.onnx", images=[photos]).contract
    assert contract.golden.source == "images"
    hidden = do_merge(members, tmp_path / "h.onnx", images=[photos], golden="synthetic").contract
    assert hidden.golden.source == "synthetic"


def test_merge__says_what_the_file_leaves_out(run_tl: RunTl, members: list[Path], tmp_path: Path) -> None:
    explained = make_cam_model(tmp_path / "cam.onnx")
    assert do_merge(members, tmp_path / "e.onnx").left_out == {}
    assert do_merge([members[1], explained], tmp_path / "f.onnx").left_out == {"cam": ("cam",)}
    done = run_tl("merge", members[1], explained, "-o", tmp_path / "g.onnx", "--json")
    assert "left out: the output cam (of cam), so tl predict --explain uses occlusion" in done.err
    assert json.loads(done.out)["left_out"] == ["cam"]


def test_merge__outputs_of_an_exported_run_that_are_left_out(exported: Exported, tmp_path: Path) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(exported.path.read_bytes())
    done = do_merge([exported.path, copy], tmp_path / "e.onnx")
    assert list(done.left_out) == ["embedding", "ood_score"]


def test_predict__ood_score_ignores_views(run_tl: RunTl, exported: Exported, photos: Path) -> None:
    said = "ood_score is that of the whole image, without --tta"
    plain = run_tl("predict", photos, "--model", exported.path)
    augmented = run_tl("predict", photos, "--model", exported.path, "--tta", "hflip")
    assert (said in plain.err, said in augmented.err) == (False, True)
    scores = [[row["ood_score"] for row in done.rows()] for done in (plain, augmented)]
    np.testing.assert_allclose(*np.array(scores, float), rtol=1e-4)  # batches of one image and of two views


def test_merge__members_that_do_not_fit(members: list[Path], tmp_path: Path) -> None:
    larger = make_model(tmp_path / "larger.onnx", preprocessing=build_preprocessing((16, 16)))
    with pytest.raises(EnsembleError, match=r"larger.*input_hw \(16, 16\) instead of \(8, 8\).*as an ensemble"):
        do_merge([members[0], larger], tmp_path / "e.onnx")
    classes = make_model(tmp_path / "two.onnx", ("red", "green"))
    with pytest.raises(EnsembleError, match="lacks 'blue'"):
        do_merge([members[0], classes], tmp_path / "e.onnx")
    points = make_spot_model(tmp_path / "points.onnx")
    with pytest.raises(EnsembleError, match="models for landmarks cannot be merged"):
        do_merge([points, points], tmp_path / "e.onnx")
    with pytest.raises(EnsembleError, match="at least two"):
        do_merge(members[:1], tmp_path / "e.onnx")
    with pytest.raises(EnsembleError, match="2 positive vote weights"):
        do_merge(members[:2], tmp_path / "e.onnx", weights=[1, 0])
    with pytest.raises(ConfigError, match=r"ends in \.onnx"):
        do_merge(members, tmp_path / "e.bin")
    with pytest.raises(ModelFileError):
        do_merge([members[0], tmp_path / "nothing.onnx"], tmp_path / "e.onnx")
    done = do_merge(members, tmp_path / "e.onnx")
    with pytest.raises(EnsembleError, match="merge its members instead"):
        do_merge([done.path, members[0]], tmp_path / "f.onnx")
    assert not (tmp_path / "f.onnx").exists()


def test_merge__a_graph_that_counts_otherwise_is_no_file(
    members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_merge = merge_module.merge_graphs
    monkeypatch.setattr(
        merge_module,
        "merge_graphs",
        lambda ballots, hw, *rest, **options: true_merge(ballots, hw, "max", (9, 1, 1)),
    )
    with pytest.raises(ParityError):
        do_merge(members, tmp_path / "e.onnx")
    assert sorted(path.name for path in tmp_path.glob("e.*")) == []


def test_merge__lower_precision_of_one_is_that_of_all(members: list[Path], tmp_path: Path) -> None:
    known = make_contract()
    golden = replace(known.golden, tolerance={"int8": 0.1})
    contract = replace(known, precision="int8", golden=golden)
    rough = make_model(tmp_path / "rough.onnx", contract=contract)
    assert do_merge([members[0], rough], tmp_path / "e.onnx").contract.precision == "int8"


def test_merge__needs_no_torch(members: list[Path], tmp_path: Path) -> None:
    code = f"""
import sys
sys.argv = ["tl", "merge", *{[str(member) for member in members]!r}, "-o", {str(tmp_path / "e.onnx")!r}]
from tl.cli import app
app(standalone_mode=False)
print(sorted({{"torch", "torchvision", "sklearn", "yaml"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert "3 members, verified" in done.stderr


@pytest.mark.parametrize("voting", VOTINGS)
def test_merge__calibrated_votes(voting: Voting, members: list[Path], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    held_out = []
    for i, color in enumerate(random.integers(60, 200, (60, 3))):
        path = make_png(tmp_path / f"{i}.png", solid(tuple(color)))
        label = COLORS[int(color.argmax())] if i % 5 else COLORS[i % 3]  # one in five has an arbitrary label
        held_out.append(LabeledImage(str(path), path.name, label))
    plain = do_merge(members, tmp_path / "plain.onnx", voting=voting)
    done = do_merge(members, tmp_path / "e.onnx", voting=voting, held_out=held_out)
    temperature = done.contract.temperature
    assert plain.contract.temperature == 1
    assert voting == "hard" or temperature != 1  # vote shares are not probabilities to be softened
    truth = np.array([COLORS.index(image.label) for image in held_out])
    paths = [image.path for image in held_out]
    with (
        load(plain.path, device="cpu") as before,
        load(done.path, device="cpu", selective=SelectivePrediction(coverage=0.9)) as after,
    ):
        raw, calibrated = before.predict_batch(paths), after.predict_batch(paths)
    assert [result.label for result in raw] == [result.label for result in calibrated]
    voted = np.stack([result.probabilities for result in raw])
    softened = np.stack([result.probabilities for result in calibrated])
    np.testing.assert_allclose(softened, soften(voted, temperature), atol=1e-6)
    assert log_loss(softened, truth) <= log_loss(voted, truth)
    held = [image.label in result.class_set for image, result in zip(held_out, calibrated, strict=True)]
    assert np.mean(held) >= 0.9


def test_merge__calibration_needs_readable_images(members: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(DataError, match="1 of 1 calibration images cannot be read"):
        do_merge(members, tmp_path / "e.onnx", held_out=[LabeledImage(str(tmp_path / "bad.png"), "bad.png", "red")])


def test_merge__calibrates_on_the_validation_split_alone(
    members: list[Path], photos: Path, tmp_path: Path, run_tl: RunTl
) -> None:
    done = run_tl("merge", *members, "--calibrate", photos, "-o", tmp_path / "e.onnx")
    assert "calibrated: temperature" in done.err
    rows = [(str(path), path.parent.name, "test") for path in photos.rglob("*.*")]
    labels = make_manifest(tmp_path / "labels.csv", rows, ("path", "label", "split"))
    refused = run_tl("merge", *members, "--calibrate", labels, "-o", tmp_path / "f.onnx")
    assert (refused.code, "no val split to calibrate on" in refused.err) == (1, True)
