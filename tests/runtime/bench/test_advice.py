"""Advice from invented figures, for which the right answer is known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tl.runtime.bench.measure import Bench, Row, advise
from tl.runtime.bench.works import Images, Setting, Timing
from tl.runtime.predictor import Hint


def timing(rate: float, ms: float = 10.0, spread: float = 0.02) -> Timing:
    return Timing(rate, rate * (1 - spread), rate * (1 + spread), ms, ms, 2 * ms, 100)


def network(
    rate: float,
    ms: float = 10,
    *,
    threads: int = 4,
    hint: Hint | None = "throughput",
    size: int = 1,
    device: str = "cpu",
) -> Row:
    return Row(Setting("network", device, threads, hint, size), timing(rate, ms))


def decode(rate: float, threads: int = 4) -> Row:
    return Row(Setting("decode", "cpu", threads), timing(rate))


def bench(rows: Sequence[Row], rounds: int = 3) -> Bench:
    return Bench("m.onnx", (8, 8), 4, "onnxruntime 1.31.1", Images("x", (b"",)), rounds, tuple(rows), (), None)


CPU = [
    network(200, 20),
    network(205, 80, size=4),
    network(60, 16, threads=1, hint="latency"),
    network(100, 9.9, threads=2, hint="latency"),
    network(102, 9.8, hint="latency"),
    decode(30, 1),
]


def test_advise__the_plainest_of_equally_fast_settings() -> None:
    advice = advise(bench([*CPU, decode(100)]))
    assert advice.many == Setting("network", "cpu", 4, "throughput", 1)  # 205 is less than 5% faster
    assert advice.one == Setting("network", "cpu", 2, "latency", 1)  # and four threads are hardly faster than two
    assert 'load(model, device="cpu", threads=4, hint="throughput"), single images: 200 images/s' in advice.lines[0]
    assert 'load(model, device="cpu", threads=2, hint="latency"): 9.9 ms' in advice.lines[1]


def test_advise__batches_where_they_pay() -> None:
    rows = [network(100), network(150, size=8), network(200, size=16), network(50, threads=1, hint="latency")]
    advice = advise(bench([*rows, decode(100)]))
    assert advice.many.batch_size == 16
    assert "predict_iter(batch_size=16): 200 images/s" in advice.lines[0]


def test_advise__rounds_that_overlap_are_not_told_apart() -> None:
    noisy = Row(Setting("network", "cpu", 4, "throughput", 16), timing(200, spread=0.4))
    rows = [network(130), noisy, network(50, threads=1, hint="latency"), decode(100)]
    assert advise(bench(rows)).many.batch_size == 1


def test_advise__bound_by_decoding() -> None:
    advice = advise(bench([*CPU, decode(50)]))
    # By hand: 1/50 s of decoding and 1/200 s of the network make 25 ms, of which 20 ms are decoding.
    assert advice.bound == "decoding"
    assert advice.decoding_share == pytest.approx(0.8)
    assert "decoding takes 80% of the time per image" in advice.lines[2]


def test_advise__bound_by_the_network_or_both() -> None:
    assert advise(bench([*CPU, decode(1800)])).bound == "network"
    assert advise(bench([*CPU, decode(200)])).bound == "both"


def test_advise__the_gpu_waits_for_decoding() -> None:
    rows = [
        network(900, 2, threads=1, hint=None, device="cuda"),
        network(5000, 7, threads=1, hint=None, size=32, device="cuda"),
    ]
    advice = advise(bench([*CPU, *rows, decode(300)]))
    assert advice.many == rows[1].setting
    assert advice.one == rows[0].setting
    assert advice.bound == "decoding"
    assert 'load(model, device="cuda"), predict_iter(batch_size=32)' in advice.lines[0]
    assert "of the time per image" not in advice.lines[2]  # a GPU works in parallel with the decoding


def test_advise__cautions() -> None:
    quiet = advise(bench([*CPU, decode(50)]))
    assert len(quiet.lines) == 3
    noisy = Row(Setting("decode", "cpu", 4), timing(50, spread=0.3))
    lines = advise(bench([*CPU, noisy], rounds=1)).lines
    assert "only one round" in lines[3]
    assert "1 of 7 measurements differ by more than 20%" in lines[4]


def test_advise__both_together_as_measured() -> None:
    together = Row(Setting("together", "cpu", 4, "throughput", 1), timing(40))
    assert (
        "decoding and network together, measured on cpu as tl predict does it: 40 images/s (39 to 41)"
        in advise(bench([*CPU, decode(50), together])).lines
    )
