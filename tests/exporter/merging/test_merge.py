from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.models import COLORS, make_contract, make_model, solid
from tests.spots import make_spot_model
from tl.errors import ConfigError, EnsembleError, ModelFileError, ParityError
from tl.exporter.merging import merge as merge_module
from tl.exporter.merging.merge import Merged, merge
from tl.runtime import load
from tl.runtime.recipe import build_recipe
from tl.runtime.voting import VOTINGS, Voting
from tl.trainer.progress import Silent

PICTURES = [solid(color) for color in ((200, 30, 20), (100, 110, 90), (20, 180, 60), (90, 90, 90), (0, 0, 0))]


@pytest.fixture
def members(tmp_path: Path) -> list[Path]:
    """Three that disagree, one of which has its classes in another order."""
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
        for ours, theirs in zip(merged.predict_batch(PICTURES), apart.predict_batch(PICTURES), strict=True):
            assert ours.label == theirs.label
            assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-6)
            assert ours.votes.labels == theirs.votes.labels
            assert ours.votes.agreement == theirs.votes.agreement
            assert ours.votes.entropy == pytest.approx(theirs.votes.entropy, abs=1e-6)
            assert np.abs(ours.votes.probabilities - theirs.votes.probabilities).max() < 1e-6


def test_merge__as_a_single_model_it_gives_no_votes(members: list[Path], tmp_path: Path) -> None:
    done = do_merge(members, tmp_path / "e.onnx")
    with load(done.path, device="cpu") as merged:
        assert merged.predict(PICTURES[0]).votes is None


def test_merge__what_the_file_says_of_itself(members: list[Path], tmp_path: Path) -> None:
    contract = do_merge(members, tmp_path / "e.onnx", voting="hard", weights=[3, 1, 0.1]).contract
    assert contract.ensemble is not None
    assert [member.name for member in contract.ensemble.members] == ["sharp", "wrong", "dull"]
    assert contract.ensemble.weights == (3.0, 1.0, float(np.float32(0.1)))
    assert contract.provenance.method == "merged"
    assert contract.parity.tolerance == 1e-5
    assert contract.golden.source == "synthetic"  # as the members' are


def test_merge__given_pictures_prove_it(members: list[Path], photos: Path, tmp_path: Path) -> None:
    contract = do_merge(members, tmp_path / "e.onnx", images=[photos]).contract
    assert contract.golden.source == "images"
    hidden = do_merge(members, tmp_path / "h.onnx", images=[photos], golden="synthetic").contract
    assert hidden.golden.source == "synthetic"


def test_merge__members_that_do_not_fit(members: list[Path], tmp_path: Path) -> None:
    larger = make_model(tmp_path / "larger.onnx", recipe=build_recipe((16, 16)))
    with pytest.raises(EnsembleError, match=r"larger.*input_hw \(16, 16\) instead of \(8, 8\).*--ensemble"):
        do_merge([members[0], larger], tmp_path / "e.onnx")
    classes = make_model(tmp_path / "two.onnx", ("red", "green"))
    with pytest.raises(EnsembleError, match="lacks 'blue'"):
        do_merge([members[0], classes], tmp_path / "e.onnx")
    points = make_spot_model(tmp_path / "points.onnx")
    with pytest.raises(EnsembleError, match="landmark models cannot be merged"):
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
        merge_module, "merge_graphs", lambda ballots, hw, voting, weights: true_merge(ballots, hw, "max", (9, 1, 1))
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
