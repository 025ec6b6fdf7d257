"""Log a run to MLflow: options as parameters, the columns of `history.csv` by epoch, `metrics.json` at the end.

The only file that imports MLflow's client. `mlflow.json` in the run folder identifies the corresponding MLflow run.
MLflow's own setting `MLFLOW_TRACKING_URI` decides where runs are stored; default: a database in the working directory.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl.errors import MissingExtraError, RunError
from tl.runtime.output.files import write_text

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from tl.trainer.fit.loop import EpochRow

_EXPERIMENT = "tl"
_LONGEST_VALUE = 500  # of a parameter: the limit that every MLflow server accepts
_MOST_FIGURES = 1000  # MLflow's limit per call
# A name, a value, and the epoch.
_Figure = tuple[str, float, int]
_Named = tuple[str, float]
# Characters that MLflow does not allow in names.
_NOT_ALLOWED = re.compile(r"[^\w\-. :/]", re.ASCII)


class MlflowLog:
    """Appends to the MLflow run that belongs to a run folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "mlflow.json"
        self._told: set[int] | None = None  # epochs that MLflow has; None before the first query

    def begin(self, params: Mapping[str, Any]) -> None:
        """Create the run, or continue an existing one. Raises `RunError`, `MissingExtraError`."""
        with _faults_told():
            if self._path.is_file():
                client, run_id = self._open()
                client.update_run(run_id, status="RUNNING")
                return
            client = _client_class()()
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
            found = client.get_experiment_by_name(name)
            place = found.experiment_id if found else client.create_experiment(name)
            run_id = client.create_run(place, run_name=self._path.parent.name).info.run_id
            for key, value in params.items():
                client.log_param(run_id, key, str(value)[:_LONGEST_VALUE])
            known = {"tracking_uri": client.tracking_uri, "run_id": run_id}
        write_text(self._path, json.dumps(known, indent=2) + "\n")

    def write(self, history: Sequence[EpochRow], *, final: bool) -> None:
        """Write the epochs that MLflow lacks. If it does not respond, the next call or `finish` retries."""
        with suppress(RunError):
            self._write([row.columns() for row in history])

    def finish(self, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> None:
        """Write missing `rows` of history.csv, the numbers in `metrics` (as in `val.top1_accuracy`), and the status.

        Raises `RunError`.
        """
        self._write([{name: float(cell) for name, cell in row.items() if cell} for row in rows])
        self._send([(name, value, 0) for name, value in _numbers(metrics)])
        with _faults_told():
            client, run_id = self._open()
            client.set_terminated(run_id)

    def _write(self, rows: Sequence[Mapping[str, float]]) -> None:
        with _faults_told():
            if self._told is None:
                client, run_id = self._open()
                self._told = {figure.step for figure in client.get_metric_history(run_id, "lr")}
        new = [row for row in rows if int(row["epoch"]) not in self._told]
        self._send([(name, row[name], int(row["epoch"])) for row in new for name in row if name != "epoch"])
        self._told |= {int(row["epoch"]) for row in new}

    def _send(self, figures: Sequence[_Figure]) -> None:
        with _faults_told():
            from mlflow.entities import Metric

            client, run_id = self._open()
            now = int(time.time() * 1000)
            sent = [Metric(name, value, now, epoch) for name, value, epoch in figures]
            for begin in range(0, len(sent), _MOST_FIGURES):
                client.log_batch(run_id, metrics=sent[begin : begin + _MOST_FIGURES])

    def _open(self) -> tuple[MlflowClient, str]:
        known = json.loads(self._path.read_text(encoding="utf-8"))
        return _client_class()(tracking_uri=known["tracking_uri"]), known["run_id"]


def _client_class() -> type[MlflowClient]:
    # By default, MLflow sends telemetry and retries an unresponsive server for four minutes.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise MissingExtraError("log mlflow requires MLflow: pip install 'tl-toolkit[mlflow]'") from error
    return MlflowClient


@contextmanager
def _faults_told() -> Iterator[None]:
    """Convert MLflow's errors to this toolkit's."""
    _client_class()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        said = " ".join(str(error).split())[:200]
        raise RunError(f"MLflow did not accept the run ({said}); check MLFLOW_TRACKING_URI") from error


def _numbers(value: Any, name: str = "") -> Iterator[_Named]:
    """Every finite number in nested mappings, with keys joined by dots; lists are skipped."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield _NOT_ALLOWED.sub("_", name), float(value)
