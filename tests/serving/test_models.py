"""Opening and reloading of model files."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from tests.models import make_contract, make_model
from tests.serving.conftest import BLUE, RED, Running, StartServer, source
from tests.spots import make_spot_model
from tl.errors import ConfigError, ModelFileError, ParityError
from tl.runtime.imaging.regions import BoxCrop
from tl.serving.models import ModelSource, ModelStore, open_model


def replace(path: Path, new: Path) -> None:
    os.replace(new, path)


def wait_for(running: Running, metric: str, value: float) -> None:
    ends = time.monotonic() + 60
    while running.metric(metric) != value:
        assert time.monotonic() < ends, running.log
        time.sleep(0.05)


LOADED, REFUSED = (f'tl_model_loads_total{{model="m",outcome="{one}"}}' for one in ("loaded", "refused"))


def test_reload__a_replaced_file(start: StartServer, tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx")
    running = start(source(path), reload_s=0.05)
    version = running.models.get("m").version
    assert running.labels(BLUE) == ["blue"]
    os.utime(path)  # the same content: opened again, and the same version
    wait_for(running, LOADED, 2)
    assert running.models.get("m").version == version
    replace(path, make_model(tmp_path / "new", ("sky", "sun", "sea")))
    wait_for(running, LOADED, 3)
    assert running.labels(BLUE) == ["sea"]
    (info,) = running.client.get("/info").json()["models"]
    assert (info["class_names"], info["reload_error"]) == (["sky", "sun", "sea"], None)
    assert info["version"] != version
    assert running.error(404, "GET", f"/v2/models/m/versions/{version}").startswith(
        f"no version '{version}' of model m"
    )
    assert running.log[-1] == f"m: the new file is in use, version {info['version']}"


def test_reload__a_bad_file_keeps_the_old_model(start: StartServer, tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx")
    running = start(source(path), reload_s=0.05)
    (tmp_path / "bad").write_bytes(b"no model")
    replace(path, tmp_path / "bad")
    wait_for(running, REFUSED, 1)
    assert running.labels(RED) == ["red"]
    (info,) = running.client.get("/info").json()["models"]
    assert info["reload_error"].startswith("m: ")
    assert str(tmp_path) not in str(running.client.get("/info").json())
    assert "the new file is not used, and the old model goes on" in running.log[-1]
    # Golden samples of another network.
    replace(path, make_model(tmp_path / "wrong", gain=0.05, contract=make_contract(gain=0.01)))
    wait_for(running, REFUSED, 2)
    assert running.labels(RED) == ["red"]
    path.unlink()
    time.sleep(0.3)
    assert running.labels(RED) == ["red"]
    make_model(path, ("a", "b", "c"))
    wait_for(running, LOADED, 2)
    assert running.labels(RED) == ["a"]
    assert running.client.get("/info").json()["models"][0]["reload_error"] is None


def test_reload__the_open_file_comes_back(start: StartServer, tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx")
    running = start(source(path), reload_s=0.05)
    path.rename(tmp_path / "aside")
    path.write_bytes(b"no model")
    wait_for(running, REFUSED, 1)
    replace(path, tmp_path / "aside")
    ends = time.monotonic() + 60
    while running.models.fault("m") is not None:
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_reload__requests_in_between_are_answered_by_one_of_the_models(start: StartServer, tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx")
    running = start(source(path), reload_s=0.02, threads=2)
    found: set[tuple[str, ...]] = set()
    end = threading.Event()

    def ask() -> None:
        while not end.is_set():
            found.add(tuple(running.labels(RED, BLUE)))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number, names in enumerate([("a", "b", "c"), ("red", "green", "blue")] * 3):
        replace(path, make_model(tmp_path / "new", names))
        wait_for(running, LOADED, number + 2)
    end.set()
    for thread in threads:
        thread.join(60)
    assert found == {("red", "blue"), ("a", "c")}


def test_open_model__what_cannot_be_served(tmp_path: Path) -> None:
    foreign = make_model(tmp_path / "foreign.onnx", contract=None)
    with pytest.raises(ModelFileError, match=r"foreign\.onnx: an ONNX file of another tool: .* with tl adopt"):
        open_model(source(foreign), "cpu")
    with pytest.raises(ModelFileError, match=r"none\.onnx: No such file"):
        open_model(source(tmp_path / "none.onnx"), "cpu")
    boxed = make_model(tmp_path / "boxed.onnx", contract=make_contract(boxes=BoxCrop(0.1, True)))
    with pytest.raises(ModelFileError, match="this model uses a box in each image, and requests have none"):
        open_model(source(boxed), "cpu")
    around = make_spot_model(tmp_path / "around.onnx", region="points", region_margin=0.2)
    with pytest.raises(ModelFileError, match="this model uses a box in each image"):
        open_model(source(around), "cpu")
    wrong = make_model(tmp_path / "wrong.onnx", contract=make_contract(gain=0.01))
    with pytest.raises(ParityError, match="golden samples differ"):
        open_model(source(wrong), "cpu")


def test_model_store__two_models_of_one_name(tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="two models are named m: rename one of the files"):
        ModelStore([source(path), ModelSource("m", (path,))], device="cpu")
