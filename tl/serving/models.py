"""The models that a server offers: opened, tested, and opened again when their files are replaced.

A model that is in use stays until its last request is finished. Knows nothing of HTTP.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl.errors import ConfigError, ModelFileError, TlError, first_line
from tl.runtime.devices import usable_cores
from tl.runtime.ensembles.selective import SelectivePrediction
from tl.runtime.ensembles.voting import Voting
from tl.runtime.model_file.contract import Contract, Task
from tl.runtime.model_file.selftest import golden_image, run_golden_samples
from tl.runtime.predictor import Predictor, load, load_landmarks, load_multilabel, load_regression
from tl.runtime.providers import runs_on_cpu
from tl.runtime.session import Session
from tl.runtime.sources.paths import hash_file

# Predictors with a coverage that are kept, beside the one without.
_MAX_VARIANTS = 32


@dataclass(frozen=True)
class ModelSource:
    """The files of a model. `votes`: an ensemble, with the members' votes in results, even if it has one member."""

    name: str
    paths: tuple[Path, ...]
    votes: bool = False
    voting: Voting = "soft"
    weights: tuple[float, ...] | None = None

    def signature(self) -> tuple[tuple[int, int, int], ...]:
        """Return what changes when a file is replaced: inode, size and time. Raises OSError."""
        return tuple((found.st_ino, found.st_size, found.st_mtime_ns) for found in map(os.stat, self.paths))


@dataclass(frozen=True)
class ServedModel:
    """A model that is ready. `version`: changes with the content of its files. `contract`: that of the first file."""

    source: ModelSource
    version: str
    predictor: Predictor[Any]
    contract: Contract
    signature: tuple[tuple[int, int, int], ...]
    _variants: dict[float, Predictor[Any]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The name in addresses."""
        return self.source.name

    @property
    def task(self) -> Task:
        """What it predicts."""
        return self.contract.task

    @property
    def has_explanation(self) -> bool:
        """Whether labels can be explained at the cost of a prediction."""
        return not self.source.votes and self.task == "classification" and "cam" in self.contract.outputs

    @property
    def supports_coverage(self) -> bool:
        """Whether the file contains what sets or intervals with a coverage need."""
        if self.source.votes:
            return False
        multilabel, regression = self.contract.multilabel, self.contract.regression
        return (
            self.contract.conformal is not None
            or (multilabel is not None and multilabel.curve is not None)
            or (regression is not None and all(regression.scores))
        )

    def with_coverage(self, coverage: float) -> Predictor[Any]:
        """Return a predictor of sets or intervals with this coverage, which shares the sessions.

        Raises `ConfigError`, `EnsembleError` or `ModelFileError` if the model does not support it.
        """
        if not 0 < coverage < 1:
            raise ConfigError(f"coverage must be between 0 and 1, got {coverage:g}")
        if self.task == "landmarks":
            raise ConfigError("coverage does not apply to landmarks")
        found = self._variants.get(coverage)
        if found is None:
            found = _open_predictor(self.source, list(self.predictor.ensemble.sessions), self.task, coverage)
            if len(self._variants) < _MAX_VARIANTS:
                self._variants[coverage] = found
        return found

    def without_paths(self, text: str) -> str:
        """Return a message without the folders of the model files."""
        for session in self.predictor.ensemble.sessions:
            text = text.replace(session.path, Path(session.path).stem)
        return text


def open_model(source: ModelSource, device: str = "auto") -> ServedModel:
    """Open and test the files of a model. Raises any `TlError` of a file that cannot be used here."""
    try:
        signature = source.signature()
        hashes = [hash_file(path) for path in source.paths]
    except OSError as error:
        raise ModelFileError(f"{error.filename}: {error.strerror}") from error
    sessions = [_open_session(path, device) for path in source.paths]
    for session in sessions:
        if session.contract is not None and session.contract.golden.samples:
            run_golden_samples(session)
    contract = sessions[0].contract
    if contract is None or contract.boxes is not None or (contract.landmarks and contract.landmarks.region != "whole"):
        raise ModelFileError(
            f"{sessions[0].path}: this model uses a box in each image, and requests have none: predict its images with "
            "tl predict, or train a model on whole images"
        )
    predictor = _open_predictor(source, sessions, contract.task, None)
    if source.signature() != signature:
        raise ModelFileError(f"{sessions[0].path}: the file changed while it was being opened: try again")
    version = "-".join(one[:12] for one in hashes)
    return ServedModel(source, version, predictor, contract, signature)


def warm_up(model: ServedModel, sizes: Sequence[int]) -> None:
    """Predict batches of these sizes, so that no request waits for the search for kernels."""
    if not model.contract.golden.samples:
        return
    image = golden_image(model.contract.golden.samples[0], model.contract, model.name)
    ensemble = model.predictor.ensemble
    for size in sizes:
        batch = ensemble.stack([ensemble.prepare(image, "")] * size)
        ensemble.results([""] * size, batch, with_votes=model.predictor.with_votes)


def _open_session(path: Path, device: str) -> Session:
    try:
        return Session(path, device=device, threads=1)
    except ModelFileError as error:
        if "not a tl model file" in str(error):
            raise ModelFileError(
                f"{path}: an ONNX file of another tool: make it a model file with tl adopt, which adds the class names "
                "and the preprocessing"
            ) from error
        raise


def _open_predictor(source: ModelSource, sessions: list[Session], task: Task, coverage: float | None) -> Predictor[Any]:
    models = sessions if source.votes else sessions[0]
    threads, weights = usable_cores(), source.weights
    if task == "landmarks":
        return load_landmarks(models, threads=threads, weights=weights)
    if task == "regression":
        return load_regression(models, threads=threads, weights=weights, coverage=coverage)
    if task == "multilabel":
        return load_multilabel(models, threads=threads, weights=weights, coverage=coverage)
    selective = SelectivePrediction(coverage)
    return load(models, threads=threads, vote=source.voting, weights=weights, selective=selective)


class ModelStore:
    """The models by name. Thread-safe. `watch` reopens models whose files are replaced.

    `opened`: called with each model's name and whether it was loaded. `say`: called with lines for the log. `warm`:
    sizes of batches that are predicted before a model is offered.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        *,
        device: str = "auto",
        opened: Callable[[str, bool], None] = lambda name, loaded: None,
        say: Callable[[str], None] = lambda line: None,
        warm: Sequence[int] = (),
    ) -> None:
        self._device, self._opened, self._say = device, opened, say
        self._warm = tuple(warm)
        self._models: dict[str, ServedModel] = {}
        # Name -> the files that were refused, and why.
        self._refused: dict[str, tuple[object, str]] = {}
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        for source in sources:
            if source.name in self._models:
                raise ConfigError(f"two models are named {source.name}: rename one of the files")
            self._models[source.name] = self._open(source)
            opened(source.name, True)

    def all(self) -> list[ServedModel]:
        """Return all models, in the order in which they were named."""
        return list(self._models.values())

    def get(self, name: str | None, version: str = "") -> ServedModel:
        """Return a model, the first for None. Raises KeyError with a message."""
        if name is None:
            return next(iter(self._models.values()))
        model = self._models.get(name)
        if model is None:
            raise KeyError(f"no model {name!r}: this server has {', '.join(self._models)}")
        if version not in ("", model.version):
            raise KeyError(f"no version {version!r} of model {name}: this server has {model.version}")
        return model

    def fault(self, name: str) -> str | None:
        """Return why the present file of a model is not used, None if it is."""
        refused = self._refused.get(name)
        return None if refused is None else refused[1]

    def watch(self, seconds: float) -> None:
        """Look for replaced files every so many seconds, in a thread, until `close`."""
        self._thread = threading.Thread(target=self._watch, args=(seconds,), name="reload", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, seconds: float) -> None:
        seen: dict[str, object] = {}
        while not self._end.wait(seconds):
            for name, model in list(self._models.items()):
                try:
                    found = model.source.signature()
                except OSError:  # it is being replaced, or was removed: the open model goes on
                    continue
                # A file that still grows differs from one look to the next.
                if found == model.signature:  # the open file came back
                    self._refused.pop(name, None)
                if found not in (model.signature, self._refused.get(name, (None,))[0]) and seen.get(name) == found:
                    self._reopen(model, found)
                seen[name] = found

    def _reopen(self, model: ServedModel, found: object) -> None:
        try:
            new = self._open(model.source)
        except Exception as error:  # whatever a new file causes, the open model goes on
            reason = model.without_paths(str(error) if isinstance(error, TlError) else first_line(error))
            self._refused[model.name] = (found, reason)
            self._opened(model.name, False)
            self._say(f"{model.name}: the new file is not used, and the old model goes on: {reason}")
            return
        self._models[model.name] = new
        self._refused.pop(model.name, None)
        self._say(f"{model.name}: the new file is in use, version {new.version}")
        self._opened(model.name, True)

    def _open(self, source: ModelSource) -> ServedModel:
        model = open_model(source, self._device)
        if not runs_on_cpu(model.predictor.provider):
            warm_up(model, self._warm)
        return model
