"""Workers and batches: results in order, batches over requests, errors where they are asked for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import tl.runtime
from tests.serving.conftest import BLUE, RED, StartServer, encoded, source
from tl.exporter.any_size.convert import to_any_size
from tl.progress import Silent
from tl.runtime.results import Classification, Failure, Result
from tl.serving import workers as serving_workers
from tl.serving.workers import Batching, Jobs, Workers

GREEN = encoded((10, 200, 10))


def finished(jobs: Jobs[Result]) -> list[Result]:
    done = threading.Event()
    jobs.when_done(done.set)
    assert done.wait(30)
    return jobs.results()


def labels(results: list[Result]) -> list[str]:
    return [one.label if isinstance(one, Classification) else "" for one in results]


@pytest.mark.parametrize("batching", [None, Batching(4, 5.0), Batching(1, 0.0), Batching(64, 20.0)])
@pytest.mark.parametrize("threads", [1, 3])
def test_predict__many_requests_at_once(files: dict[str, Path], batching: Batching | None, threads: int) -> None:
    sizes: list[int] = []
    with (
        tl.runtime.load(files["color"], device="cpu") as color,
        tl.runtime.load([files["color"]], device="cpu") as other,
    ):
        workers = Workers(threads, batching=batching, seen=sizes.append)
        wanted = [RED, BLUE, b"no image", GREEN]
        jobs = [workers.predict(other if n % 3 == 0 else color, wanted[n % 4 :]) for n in range(40)]
        for n, one in enumerate(jobs):
            results = finished(one)
            assert labels(results) == ["red", "blue", "", "green"][n % 4 :]
            is_other = n % 3 == 0
            assert all((r.votes is not None) == is_other for r in results if isinstance(r, Classification))
        workers.close()
    if batching is not None:
        assert sum(sizes) == 10 * (3 + 2 + 1 + 1)
        assert max(sizes) <= batching.max_batch
        if batching.max_batch > 1:
            assert len(sizes) < sum(sizes)


def test_predict__decodes_its_share_of_the_queue_then_predicts_it(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_workers, "_SECONDS_DECODING", 60.0)
    steps: list[str] = []
    with tl.runtime.load(files["color"], device="cpu") as color:
        ensemble = color.ensemble
        prepare, results = ensemble.prepare, ensemble.results
        monkeypatch.setattr(ensemble, "prepare", lambda *given: steps.append("decode") or prepare(*given))  # type: ignore[func-returns-value]
        monkeypatch.setattr(
            ensemble,
            "results",
            lambda *given, **more: steps.append("infer") or results(*given, **more),  # type: ignore[func-returns-value]
        )
        workers, go_on = Workers(1), threading.Event()
        blocking = workers.run([go_on.wait])
        jobs = workers.predict(color, [RED, BLUE, GREEN, b"no image"])
        go_on.set()
        assert labels(finished(jobs)) == ["red", "blue", "green", ""]
        assert blocking.is_done
        workers.close()
    assert steps.count("infer") == 3
    assert "decode decode infer" in " ".join(steps)


def test_run__a_slow_function_does_not_hold_up_images_before_it(files: dict[str, Path]) -> None:
    with tl.runtime.load(files["color"], device="cpu") as color:
        workers, begin, go_on = Workers(1), threading.Event(), threading.Event()
        workers.run([begin.wait])
        jobs = workers.predict(color, [RED])
        slow = workers.run([go_on.wait])
        begin.set()
        assert labels(finished(jobs)) == ["red"]  # would wait for ever
        go_on.set()
        assert slow is not None
        workers.close()


def test_predict__cancelled_images_are_in_no_batch(files: dict[str, Path]) -> None:
    sizes: list[int] = []
    with tl.runtime.load(files["color"], device="cpu") as color:
        workers = Workers(1, batching=Batching(4, 0.0), seen=sizes.append)
        go_on = threading.Event()
        workers.run([go_on.wait])
        jobs = workers.predict(color, [RED] * 8)
        jobs.cancel()
        go_on.set()
        assert labels(finished(workers.predict(color, [BLUE]))) == ["blue"]
        workers.close()
    assert sizes == [1]


def test_predict__images_of_any_size_are_not_batched(files: dict[str, Path], tmp_path: Path) -> None:
    photos = []
    for number, hw in enumerate([(40, 60), (90, 50), (8, 8)]):
        photos.append(tmp_path / f"{number}.png")
        photos[-1].write_bytes(encoded((10, 200, 10), hw=hw))
    made = to_any_size(files["color"], tmp_path / "any.onnx", [str(one) for one in photos], Silent()).path
    with tl.runtime.load(made, device="cpu") as predictor:
        workers = Workers(2, batching=Batching(8, 20.0))
        jobs = workers.predict(predictor, [one.read_bytes() for one in photos])
        assert labels(finished(jobs)) == ["green"] * 3
        workers.close()


def test_predict__pixels_above_the_limit(files: dict[str, Path]) -> None:
    with tl.runtime.load(files["color"], device="cpu") as color:
        workers = Workers(1, max_pixels=599)
        small, large, broken = finished(
            workers.predict(color, [encoded((9, 200, 9), hw=(20, 29)), RED, b"\xff\xd8\xff"])
        )
        assert isinstance(small, Classification)
        assert large == Failure("", "30x20 pixels, but the limit of this server is 0.000599 million")
        assert isinstance(broken, Failure)
        workers.close()


def test_run__an_error_is_raised_and_the_worker_goes_on() -> None:
    def fail() -> int:
        raise MemoryError

    workers = Workers(1)
    jobs = workers.run([lambda: 1, fail, lambda: 3])
    done = threading.Event()
    jobs.when_done(done.set)
    assert done.wait(30)
    with pytest.raises(MemoryError):
        jobs.results()
    after = workers.run([lambda: 1, lambda: 2])
    done = threading.Event()
    after.when_done(done.set)
    assert done.wait(30)
    assert after.results() == [1, 2]
    workers.close()


def test_jobs__cancelled_ones_do_not_run() -> None:
    workers, release, ran = Workers(1), threading.Event(), []
    first = workers.run([lambda: release.wait(30)])
    second = workers.run([lambda: ran.append(1)])
    second.cancel()
    release.set()
    workers.close()
    assert first.is_done
    assert (ran, second.is_done) == ([], False)


def test_server__batches_over_requests(start: StartServer, files: dict[str, Path]) -> None:
    running = start(source(files["color"]), batching=Batching(8, 200.0), threads=4)
    answers: list[list[str]] = []
    threads = [threading.Thread(target=lambda: answers.append(running.labels(RED, BLUE))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [["red", "blue"]] * 8
    assert running.metric("tl_batch_images_sum") == 16
    assert running.metric("tl_batch_images_count") < 16
