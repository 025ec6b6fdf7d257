from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.models import make_contract, make_model
from tests.trainer.make import make_noise, make_png
from tl.errors import ModelFileError, ParityError
from tl.exporter.parity import BATCH_SIZES, CLAIM_TOLERANCE, TOLERANCE, check_claims, check_parity
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.session import Session

RECIPE = build_preprocessing((8, 8))


class Color(nn.Module):
    """The color model of tests.models in torch, with optional faults."""

    def __init__(self, gain: float = 0.05, shift: float = 0.0, channels: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        self.gain, self.shift, self.channels = gain, shift, list(channels)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        means = images.float().mean(dim=(1, 2))[:, self.channels]
        return (torch.softmax(self.gain * means, dim=1) + self.shift,)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [
        make_png(tmp_path / f"{i}.png", make_noise(i, ((i * 70) % 256, 90, 255 - 20 * i), (12 + i, 30)))
        for i in range(11)
    ]


@pytest.fixture
def inputs(paths: list[Path]) -> NDArray[np.uint8]:
    return np.stack([load_input(path, RECIPE) for path in paths])


@pytest.fixture
def session(color_model: Path) -> Session:
    return Session(color_model, device="cpu", threads=1)


def test_check_parity__report(session: Session, paths: list[Path], inputs: NDArray[np.uint8]) -> None:
    report, probabilities = check_parity(Color(), session, paths, inputs, ["probabilities"])
    assert (report.images, report.batch_sizes, report.tolerance) == (11, BATCH_SIZES, TOLERANCE)
    assert report.top1_agreement == 1.0
    assert set(report.session_max_abs_diff) == {"probabilities"}
    # float32 softmax of three classes, in torch and onnxruntime.
    assert report.session_max_abs_diff["probabilities"] < 1e-6
    assert report.pipeline_max_abs_diff < 1e-6
    wanted = Color()(torch.from_numpy(inputs))[0].numpy()
    np.testing.assert_allclose(probabilities, wanted, rtol=0, atol=1e-6)  # batches of 8 against one of 11


def test_check_parity__measures_the_difference(session: Session, paths: list[Path], inputs: NDArray[np.uint8]) -> None:
    report, _ = check_parity(Color(shift=5e-5), session, paths, inputs, ["probabilities"])
    assert report.session_max_abs_diff["probabilities"] == pytest.approx(5e-5, abs=1e-6)  # as above
    assert report.pipeline_max_abs_diff == pytest.approx(5e-5, abs=1e-6)


@pytest.mark.parametrize("module", [Color(gain=0.0501), Color(shift=2e-4), Color(channels=(2, 1, 0))])
def test_check_parity__another_function_is_refused(
    session: Session, paths: list[Path], inputs: NDArray[np.uint8], module: nn.Module
) -> None:
    with pytest.raises(ParityError, match=r"parity failed on 11 images .*output probabilities differs by"):
        check_parity(module, session, paths, inputs, ["probabilities"])


def test_check_parity__swapped_channels_change_labels(
    session: Session, paths: list[Path], inputs: NDArray[np.uint8]
) -> None:
    with pytest.raises(ParityError, match=r"only .*% of the labels agree; no file was written"):
        check_parity(Color(channels=(2, 1, 0)), session, paths, inputs, ["probabilities"])


def test_check_parity__values_that_are_not_finite(
    session: Session, paths: list[Path], inputs: NDArray[np.uint8]
) -> None:
    with pytest.raises(ParityError):
        check_parity(Color(shift=float("nan")), session, paths, inputs, ["probabilities"])


def test_check_parity__a_model_file_that_gives_nan(
    tmp_path: Path, paths: list[Path], inputs: NDArray[np.uint8]
) -> None:
    broken = Session(make_model(tmp_path / "nan.onnx", gain=float("nan"), contract=make_contract()), device="cpu")
    with pytest.raises((ParityError, ModelFileError), match=r"differs by inf|not finite"):
        check_parity(Color(), broken, paths, inputs, ["probabilities"])


def test_check_parity__another_preprocessing_is_refused(
    session: Session, paths: list[Path], inputs: NDArray[np.uint8]
) -> None:
    # The graph is correct on the given inputs, but the runtime prepares different inputs from the same files.
    darker = (inputs // 2).astype(np.uint8)
    with pytest.raises(ParityError, match="between training and runtime") as caught:
        check_parity(Color(), session, paths, darker, ["probabilities"])
    assert "output probabilities" not in str(caught.value)


def test_check_parity__a_image_that_the_runtime_cannot_read(
    session: Session, paths: list[Path], inputs: NDArray[np.uint8]
) -> None:
    paths[3].write_bytes(b"")
    with pytest.raises(ParityError, match=r"3.png: the trainer could read this image, but the runtime could not"):
        check_parity(Color(), session, paths, inputs, ["probabilities"])


def test_check_parity__no_images(session: Session) -> None:
    with pytest.raises(ParityError, match="no images to check parity on"):
        check_parity(Color(), session, [], np.empty((0, 8, 8, 3), np.uint8), ["probabilities"])


def test_check_claims__within_the_tolerance() -> None:
    found = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], np.float32)
    check_claims(found, ["a", "b", "c"], {"a": [0.25, 0.75], "c": [1 - 0.9 * CLAIM_TOLERANCE, 0.0], "gone": [0.0, 1.0]})
    check_claims(found, ["a", "b", "c"], {})  # there are no claims for a pretrained network


@pytest.mark.parametrize(
    ("claimed", "shown"),
    [({"c": [0.75, 0.25]}, "0.25"), ({"a": [0.25, 0.75 + 2 * CLAIM_TOLERANCE]}, "0.02"), ({"b": [0.5, np.nan]}, "nan")],
)
def test_check_claims__another_answer_is_refused(claimed: dict[str, list[float]], shown: str) -> None:
    found = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], np.float32)
    with pytest.raises(ParityError, match=rf"predictions_val.csv and its network differ by {shown} .* train again"):
        check_claims(found, ["a", "b", "c"], claimed)
