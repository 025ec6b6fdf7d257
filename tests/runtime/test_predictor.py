from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.models import COLORS, color_probabilities, make_model, solid
from tests.runtime.images import encode, encode_turned, noise
from tl.errors import DeviceError, EnsembleError, ImageReadError, ModelFileError
from tl.runtime import Classification, Failure, Predictor, load
from tl.runtime.ensembles.voting import VOTINGS, Voting
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.predictor import Hint
from tl.runtime.session import Session

ATOL = 1e-6  # float32 softmax in the graph against float64 by hand, on probabilities up to 1


@pytest.fixture(scope="module")
def predictor(color_model: Path) -> Predictor:
    return load(color_model, device="cpu", threads=1)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Members with different class orders, sizes and gains."""
    return [
        make_model(tmp_path / "a.onnx"),
        make_model(tmp_path / "b.onnx", ("blue", "red", "green"), gain=0.02),
        make_model(
            tmp_path / "c.onnx", ("green", "blue", "red"), preprocessing=build_preprocessing((12, 20)), gain=0.01
        ),
    ]


def classified(results: list[Any]) -> NDArray[np.float32]:
    return np.stack([result.probabilities for result in results])


# --- one image


def test_predict__numbers_by_hand(predictor: Predictor) -> None:
    result = predictor.predict(solid((200, 30, 90)))
    expected = color_probabilities(solid((200, 30, 90)))
    assert (result.path, result.label, result.votes) == ("", "red", None)
    assert result.class_names == COLORS
    np.testing.assert_allclose(result.probabilities, expected, atol=ATOL)
    assert result.confidence == result.probabilities[0]
    assert predictor.provider == "CPUExecutionProvider"


def test_predict__sources_agree(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encode_turned(noise(30, 20), 6, "PNG"))
    expected = predictor.predict(noise(30, 20)).probabilities
    with path.open("rb") as stream:
        for source in str(path), path, path.read_bytes(), stream:
            result = predictor.predict(source)
            np.testing.assert_array_equal(result.probabilities, expected)
            assert result.path == ("" if isinstance(source, bytes) else str(path))


def test_predict__unreadable_image(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"missing\.jpg: No such file"):
        predictor.predict(tmp_path / "missing.jpg")


def test_predict__preprocesses_by_the_contract(tmp_path: Path) -> None:
    preprocessing = build_preprocessing((8, 8), "letterbox", pad_rgb=(0, 0, 255))
    with load(make_model(tmp_path / "m.onnx", preprocessing=preprocessing), device="cpu") as model:
        result = model.predict(solid((255, 0, 0), 2, 8))  # a quarter red, the rest padding
    # By hand: 2 of 8 rows are red, 6 are blue padding.
    image = np.concatenate([solid((255, 0, 0), 2, 8), solid((0, 0, 255), 6, 8)])
    np.testing.assert_allclose(result.probabilities, color_probabilities(image), atol=ATOL)
    assert result.label == "blue"


# --- batches


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_predict_iter__batches_equal_single_images(predictor: Predictor, batch_size: int) -> None:
    images = [noise(20, 30, seed) for seed in range(7)]
    batched = list(predictor.predict_iter(images, batch_size=batch_size))
    singles = [predictor.predict(image) for image in images]
    np.testing.assert_allclose(classified(batched), classified(singles), atol=1e-6)  # the guaranteed tolerance
    assert [result.label for result in batched if isinstance(result, Classification)] == [one.label for one in singles]


@given(colors=st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=20), size=st.integers(1, 6))
def test_predict_iter__in_input_order(predictor: Predictor, colors: list[tuple[int, int, int]], size: int) -> None:
    results = list(predictor.predict_iter([solid(color) for color in colors], batch_size=size))
    expected = np.stack([color_probabilities(solid(color)) for color in colors])
    np.testing.assert_allclose(classified(results), expected, atol=ATOL)


def test_predict_batch__failures_stand_in_their_places(predictor: Predictor, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(encode(solid((9, 200, 9)), "PNG"))
    bad.write_bytes(good.read_bytes()[:-30])
    results = predictor.predict_batch([bad, good, b"", solid((9, 9, 200)), str(tmp_path / "none.png")])
    assert [type(result) for result in results] == [Failure, Classification, Failure, Classification, Failure]
    assert [result.path for result in results] == [str(bad), str(good), "", "", str(tmp_path / "none.png")]
    assert [result.label for result in results if isinstance(result, Classification)] == ["green", "blue"]
    assert results[2] == Failure("", "empty file")


def test_predict_batch__nothing_and_failures_alone(predictor: Predictor) -> None:
    assert predictor.predict_batch([]) == []
    assert predictor.predict_batch([b"", b""]) == [Failure("", "empty file")] * 2


def test_predict_iter__is_lazy_and_bounded(color_model: Path) -> None:
    taken = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield solid((1, 2, 3))

    with load(color_model, device="cpu", threads=1) as predictor:
        results = predictor.predict_iter(endless(), batch_size=2)
        assert taken == 0
        for _ in range(10):
            next(results)
        results.close()  # type: ignore[attr-defined]
    # At most 16 images in each of: the group whose results are taken, two groups ahead, and the one being submitted.
    assert 10 <= taken <= 4 * 16 + 2


def test_predict_iter__on_the_cpu_decodes_a_group_then_infers_it(
    color_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    with load(color_model, device="cpu", threads=1) as predictor:
        ensemble: Any = predictor.ensemble
        prepare, results = ensemble.prepare, ensemble.results

        def watched_prepare(*given: Any) -> Any:
            steps.append("decode")
            return prepare(*given)

        def watched_results(names: Any, *given: Any, **options: Any) -> Any:
            steps.append(f"infer {len(names)}")
            return results(names, *given, **options)

        monkeypatch.setattr(ensemble, "prepare", watched_prepare)
        monkeypatch.setattr(ensemble, "results", watched_results)
        assert len(list(predictor.predict_iter([solid((1, 2, 3))] * 60))) == 60
    assert steps[:2] == ["decode", "infer 1"]  # the first result comes at once
    assert ["decode"] * 2 + ["infer 1"] * 2 in [steps[i : i + 4] for i in range(len(steps))]
    assert "decode" * 17 not in "".join(steps)
    assert steps.count("infer 1") == 60


def test_predict_iter__leaves_no_threads(predictor: Predictor) -> None:
    before = threading.active_count()
    list(predictor.predict_iter([solid((1, 2, 3))] * 5))
    assert threading.active_count() == before


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("tta", [(), ("hflip",)])
def test_predict_iter__on_cuda_runs_batches_of_one_size(
    color_model: Path, monkeypatch: pytest.MonkeyPatch, processes: int, tta: Any
) -> None:
    sizes: list[int] = []
    with load(color_model, device="cpu", threads=2, tta=tta, decode_processes=processes) as predictor:
        images = [noise(20, 30, seed) for seed in range(5)]
        sources = [images[0], b"", images[1], images[2], images[3], images[4]]
        expected = predictor.predict_batch(sources)
        run = Session.run

        def watched(self: Session, inputs: NDArray[np.uint8], outputs: Any) -> Any:
            sizes.append(len(inputs) // (len(tta) + 1))
            return run(self, inputs, outputs)

        monkeypatch.setattr(Session, "run", watched)
        monkeypatch.setattr(predictor, "_is_cpu", False)
        found = list(predictor.predict_iter(sources, batch_size=4))
        assert sizes == [4, 4]  # three valid of four, and the remaining two
        list(predictor.predict_iter(images[:2], batch_size=4))
        assert sizes[2:] == [2]  # a small batch alone is not padded
    assert isinstance(found[1], Failure)
    np.testing.assert_allclose(classified(found[:1] + found[2:]), classified(expected[:1] + expected[2:]), atol=1e-6)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_predict_iter__impossible_batch_size(predictor: Predictor, batch_size: int) -> None:
    with pytest.raises(ValueError):
        list(predictor.predict_iter([solid((1, 2, 3))], batch_size=batch_size))


def test_predict_iter__wrong_array_is_a_programming_fault(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        predictor.predict_batch([np.zeros((4, 4), np.uint8)])


@pytest.mark.parametrize("hint", ["throughput", "latency"])
def test_load__hints_and_threads_change_no_result(color_model: Path, predictor: Predictor, hint: Hint) -> None:
    images = [noise(20, 30, seed) for seed in range(5)]
    with load(color_model, device="cpu", threads=3, hint=hint) as other:
        np.testing.assert_allclose(
            classified(other.predict_batch(images)), classified(predictor.predict_batch(images)), atol=1e-6
        )


def test_predict_iter__of_a_closed_predictor(color_model: Path) -> None:
    predictor = load(color_model, device="cpu")
    predictor.close()
    with pytest.raises(ValueError, match="closed"):
        predictor.predict_iter([])


def test_predict__threads(predictor: Predictor) -> None:
    images = [noise(20, 20, seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(predictor.predict, images))
    np.testing.assert_array_equal(classified(results), classified([predictor.predict(image) for image in images]))


# --- ensembles


@pytest.mark.parametrize("vote", VOTINGS)
def test_load__ensemble_of_one_equals_its_member(color_model: Path, predictor: Predictor, vote: Voting) -> None:
    with load([color_model], device="cpu", vote=vote) as ensemble:
        result = ensemble.predict(noise())
    alone = predictor.predict(noise())
    np.testing.assert_array_equal(result.probabilities, alone.probabilities)
    assert (result.label, result.confidence) == (alone.label, alone.confidence)
    assert result.votes is not None
    assert result.votes.labels == (alone.label,)
    assert result.votes.agreement == 1


def test_load__soft_vote_by_hand(three: list[Path]) -> None:
    image = solid((120, 100, 80), 12, 20)
    own = np.stack([color_probabilities(image, gain) for gain in (0.05, 0.02, 0.01)])
    expected = np.average(own, axis=0, weights=[1, 2, 3])
    with load(three, device="cpu", weights=[1, 2, 3]) as ensemble:
        assert ensemble.class_names == COLORS
        assert ensemble.member_names == ("a", "b", "c")
        (result,) = ensemble.predict_batch([image])
    assert isinstance(result, Classification)
    np.testing.assert_allclose(result.probabilities, expected, atol=ATOL)
    assert result.votes is not None
    assert result.votes.labels == ("red", "red", "red")
    np.testing.assert_allclose(result.votes.probabilities, own, atol=ATOL)
    np.testing.assert_allclose(result.votes.entropy, -(expected * np.log(expected)).sum(), atol=ATOL)


def test_load__agreement_counts_members_for_the_label(tmp_path: Path) -> None:
    top = build_preprocessing((8, 8), "short_side", short_side=8)  # sees only the image's center
    models = [make_model(tmp_path / "a.onnx"), make_model(tmp_path / "b.onnx", preprocessing=top, gain=0.01)]
    image = solid((250, 0, 0), 8, 24)
    image[:, 8:16] = (0, 250, 0)
    with load(models, device="cpu") as ensemble:
        votes = ensemble.predict(image).votes
    assert votes is not None
    assert votes.labels == ("red", "green")
    assert votes.agreement == 0.5


# --- opening and closing


def test_load__faults(tmp_path: Path, color_model: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        load(tmp_path / "missing.onnx")
    with pytest.raises(EnsembleError, match="at least one"):
        load([])
    with pytest.raises(DeviceError, match="unknown device"):
        load(color_model, device="tpu")


def test_close__twice_and_then_no_more_predictions(color_model: Path) -> None:
    with load(str(color_model), device="cpu") as model:
        assert model.predict(solid((1, 2, 3))).label == "blue"
    model.close()
    for attempt in (lambda: model.predict(solid((1, 2, 3))), lambda: model.predict_batch([b""])):
        with pytest.raises(ValueError, match="closed"):
            attempt()
