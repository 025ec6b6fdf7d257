from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainer.make import make_class_folders, train_here
from tests.trainer.run_folder.test_events import make_history
from tl.errors import RunError
from tl.trainer.run_folder.mlflow_log import MlflowLog

# SQLAlchemy warns about how MLflow declares its tables.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def find_runs() -> list:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def read_metric(run_id: str, name: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    return sorted((figure.step, figure.value) for figure in MlflowClient().get_metric_history(run_id, name))


def test_mlflow_log__options_epochs_and_figures(tmp_path: Path) -> None:
    log = MlflowLog(tmp_path)
    log.begin({"lr": 0.5, "head_sizes": (4, 2)})
    log.write(make_history(1), final=False)
    log.write(make_history(3), final=True)
    log.finish({"val": {"n": 8, "top1_accuracy": 0.75, "confusion": [[1]], "per_class": {"é": {"f1": 1.0}}}}, [])
    (run,) = find_runs()
    assert run.data.params == {"lr": "0.5", "head_sizes": "(4, 2)"}
    assert (run.info.status, run.info.run_name) == ("FINISHED", tmp_path.name)
    wanted = [(row.epoch, row.columns()["val_loss"]) for row in make_history(3)]
    assert read_metric(run.info.run_id, "val_loss") == wanted
    assert run.data.metrics["val.top1_accuracy"] == 0.75
    assert run.data.metrics["val.per_class._.f1"] == 1.0
    assert "val.confusion" not in run.data.metrics


def test_mlflow_log__a_resumed_run_is_the_same_and_repeats_no_epoch(tmp_path: Path) -> None:
    first = MlflowLog(tmp_path)
    first.begin({})
    first.write(make_history(2), final=False)
    again = MlflowLog(tmp_path)
    again.begin({})
    again.write(make_history(3), final=True)
    (run,) = find_runs()
    assert [step for step, _ in read_metric(run.info.run_id, "lr")] == [1, 2, 3]


def test_mlflow_log__finish_brings_what_was_lost(tmp_path: Path) -> None:
    log = MlflowLog(tmp_path)
    log.begin({})
    log.finish({}, [{"epoch": "1", "lr": "0.5", "val_loss": ""}, {"epoch": "2", "lr": "0.25", "val_loss": "2"}])
    (run,) = find_runs()
    assert read_metric(run.info.run_id, "lr") == [(1, 0.5), (2, 0.25)]
    assert read_metric(run.info.run_id, "val_loss") == [(2, 2.0)]


def test_mlflow_log__no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="MLFLOW_TRACKING_URI"):
        MlflowLog(tmp_path).begin({})
    assert not (tmp_path / "mlflow.json").exists()


def test_train__log_mlflow(tmp_path: Path) -> None:
    make_class_folders(tmp_path / "photos")
    result = train_here(tmp_path / "photos", tmp_path / "run", log="mlflow", epochs=2)
    (run,) = find_runs()
    assert run.data.params["epochs"] == "2"
    assert len(read_metric(run.info.run_id, "val_loss")) == 2
    assert np.isclose(run.data.metrics["val.top1_accuracy"], result.metrics["val"]["top1_accuracy"])
