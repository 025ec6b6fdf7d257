"""Options shared by several commands, functions that open the models they name, and vote-weight files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tl.commands.console import warn
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.evaluation.evaluate import Evaluation
    from tl.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tl.runtime.imaging.geometry import Region
    from tl.runtime.imaging.pipeline import TtaKind
    from tl.runtime.predictor import Predictor
    from tl.runtime.results import Classification, Landmarks


def fit_vote_file(result: Evaluation, path: Path, *, select: bool) -> dict[str, Any]:
    """Fit vote weights on the images of an evaluation and write them to `path`. Returns their row of scores.

    Raises `DataError`, `OutputError`.
    """
    from tl.evaluation.evaluate import fit_votes
    from tl.runtime.output.files import write_text

    fitted = fit_votes(result, select=select)
    kept = {name: round(weight, 6) for name, weight in fitted.weights.items() if weight > 0}
    write_text(path, json.dumps({"vote_weights": kept}, indent=2, ensure_ascii=False) + "\n")
    warn(f"{path}: {', '.join(f'{name} {weight:.3g}' for name, weight in kept.items())}")
    if left_out := [name for name, weight in fitted.weights.items() if weight == 0]:
        warn(f"left out: {', '.join(left_out)}")
    losses = f"{fitted.log_loss:.4f} on images held out from fitting, {fitted.equal_log_loss:.4f} with equal weights"
    is_better = fitted.log_loss < fitted.equal_log_loss
    warn(f"log loss {losses}" + ("" if is_better else ": equal weights are at least as good"))
    return fitted.row


def parse_vote_weights(text: str | None, models: list[Path]) -> list[float] | None:
    """Parse `2,1,1` or a file from `tl evaluate --fit-vote-weights` to one weight per model. Raises `ConfigError`."""
    if text is None:
        return None
    if Path(text).is_file():
        return _read_vote_weights(Path(text), models)
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--vote-weights: expected numbers such as 2,1,1, or a file, found '{text}'") from error


def _read_vote_weights(path: Path, models: list[Path]) -> list[float]:
    from tl.runtime.ensembles.ensemble import member_names
    from tl.runtime.model_file.strict_json import parse_json

    try:
        plain = parse_json(path.read_text(encoding="utf-8"))
        weights = plain["vote_weights"] if isinstance(plain, dict) else None
        if not isinstance(weights, dict) or not all(isinstance(value, int | float) for value in weights.values()):
            raise ValueError("expected vote_weights with a number for each member")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--vote-weights {path}: not a file of tl evaluate --fit-vote-weights ({error})") from error
    names = member_names([str(model) for model in models])
    if lacking := [name for name in weights if name not in names]:
        raise ConfigError(f"--vote-weights {path}: is also for {', '.join(lacking)}, which --ensemble does not name")
    if surplus := [name for name in names if name not in weights]:
        raise ConfigError(f"--vote-weights {path}: leaves out {', '.join(surplus)}; take it out of --ensemble too")
    return [float(weights[name]) for name in names]


ModelFile = Annotated[Path | None, typer.Option("--model", "-m", help="Model file.")]
EnsembleFiles = Annotated[list[Path] | None, typer.Option(help="Model files that vote together, all after one flag.")]
VoteWeights = Annotated[
    str | None, typer.Option(help="One weight per member, as in 2,1,1, or a file from tl evaluate --fit-vote-weights.")
]
Vote = Annotated[Literal["soft", "hard", "max"] | None, typer.Option(help="Voting rule of an ensemble. Default: soft.")]
Classes = Annotated[
    Literal["same", "union"] | None, typer.Option(help="union allows members with different classes. Default: same.")
]
Coverage = Annotated[
    float | None,
    typer.Option(
        help="Also output a set of classes that contains the true one with this probability, such as 0.95.",
        show_default=False,
    ),
]
MinConfidence = Annotated[
    float | None, typer.Option(help='Label images with a lower confidence "?".', show_default=False)
]
RejectUnknown = Annotated[
    bool, typer.Option("--reject-unknown", help='Label images that are unlike the training images "?".')
]
Tta = Annotated[
    str | None,
    typer.Option(
        help="Test-time augmentation: average over views of each image; hflip, vflip and crops, as in hflip,crops. "
        "Time grows with the number of views.",
        show_default=False,
    ),
]
Merge = Annotated[
    Literal["mean", "median", "confidence"] | None,
    typer.Option(help="How to combine the points of an ensemble's members. Default: mean."),
]
Locator = Annotated[
    Path | None, typer.Option(help="Coarse landmark model that locates the region of each photo for --model.")
]
Boxes = Annotated[
    Path | None, typer.Option(help="CSV with path,box_x,box_y,box_w,box_h: the region of each photo to use.")
]
CropMargin = Annotated[
    float | None,
    typer.Option(
        min=0, help="Margin added on every side of the region, as a fraction of its size. Default: as in training."
    ),
]
MmPerPx = Annotated[
    str | None,
    typer.Option(
        help="Landmarks: scale of the photos, or a file that contains it: CSV with path,mm_per_px, TPS, COCO."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")]
DecodeProcesses = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Classes: number of image decoding processes; 0 decodes in threads. Default: all cores but one for many "
        "images on CUDA, else 0.",
    ),
]


def open_models(
    model: Path | None, ensemble: list[Path] | None, device: str = "auto", threads: int | None = None
) -> Session | list[Session]:
    """Open the files of --model or --ensemble, once per command."""
    from tl.runtime.session import Session

    models = named_models(model, ensemble)
    opened = [Session(path, device=device, threads=1) for path in _listed(models)]
    return opened if isinstance(models, list) else opened[0]


def open_predictor(
    models: Session | list[Session],
    *,
    vote: Literal["soft", "hard", "max"] | None = None,
    vote_weights: str | None = None,
    classes: Literal["same", "union"] | None = None,
    coverage: float | None = None,
    min_confidence: float | None = None,
    reject_unknown: bool | None = None,
    tta: str | None = None,
    decode_processes: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Predictor[Classification]:
    """Build a predictor for classifiers and print the execution provider on stderr."""
    from tl.runtime.ensembles.selective import SelectivePrediction
    from tl.runtime.predictor import load

    try:
        selective = SelectivePrediction(coverage, min_confidence, bool(reject_unknown))
    except ValueError as error:
        raise ConfigError(f"--{str(error).replace('_', '-', 1)}") from error

    weights = parse_vote_weights(vote_weights, _paths(models))
    if not isinstance(models, list) and models.contract is not None and models.contract.ensemble is not None:
        refuse_given(
            {"vote": vote, "vote_weights": vote_weights}, f"{models.path} votes by its own rule; tl merge makes others"
        )
    predictor = load(
        models,
        device=device,
        threads=threads,
        vote=vote or "soft",
        weights=weights,
        classes=classes or "same",
        selective=selective,
        tta=parse_tta(tta),
        decode_processes=decode_processes or 0,
    )
    _say_device(predictor)
    return predictor


def parse_tta(text: str | None) -> list[TtaKind]:
    """Parse `"hflip,crops"` to a list of TTA kinds. Raises `ConfigError`."""
    from tl.runtime.imaging.pipeline import build_views

    kinds: list[Any] = [] if text is None else [kind.strip() for kind in text.split(",")]
    try:
        build_views(kinds)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    return kinds


def open_landmark_predictor(
    models: Session | list[Session],
    *,
    vote_weights: str | None = None,
    merge: Literal["mean", "median", "confidence"] | None = None,
    locator: Path | None = None,
    boxes: Mapping[str, Region] | None = None,
    crop_margin: float | None = None,
    mm_per_px: float | Mapping[str, float] | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Predictor[Landmarks]:
    """Build a predictor for landmark models and print the execution provider on stderr."""
    from tl.runtime.predictor import load_landmarks

    predictor = load_landmarks(
        models,
        device=device,
        threads=threads,
        merge=merge or "mean",
        weights=parse_vote_weights(vote_weights, _paths(models)),
        locator=locator,
        boxes=boxes,
        crop_margin=crop_margin,
        mm_per_px=mm_per_px,
    )
    _say_device(predictor)
    return predictor


def refuse_given(options: Mapping[str, object], why: str) -> None:
    """Raise `ConfigError` for given options that do not apply and would be ignored."""
    if named := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
        raise ConfigError(f"{', '.join(named)}: {why}")


def named_models(model: Path | None, ensemble: list[Path] | None) -> Path | list[Path]:
    """Return the paths given by --model or --ensemble. Raises `ConfigError` unless exactly one is given."""
    models = ensemble or model
    if models is None or (ensemble and model):
        raise ConfigError("give either --model a.onnx or --ensemble a.onnx b.onnx c.onnx")
    return models


def finds_landmarks(models: Session | list[Session]) -> bool:
    """Return whether the first model is a landmark model."""
    contract = _sessions(models)[0].contract
    return contract is not None and contract.task == "landmarks"


def model_region(models: Session | list[Session]) -> Literal["whole", "box", "points"]:
    """Return the region that the models use: the first that is not "whole", if any."""
    contracts = [session.contract for session in _sessions(models)]
    found = [c.landmarks.region for c in contracts if c is not None and c.landmarks is not None]
    return next((region for region in found if region != "whole"), "whole")


def _listed(models: Path | list[Path]) -> list[Path]:
    return models if isinstance(models, list) else [models]


def _sessions(models: Session | list[Session]) -> list[Session]:
    return models if isinstance(models, list) else [models]


def _paths(models: Session | list[Session]) -> list[Path]:
    return [Path(session.path) for session in _sessions(models)]


def _say_device(predictor: Predictor[Any]) -> None:
    warn(f"running on {predictor.provider}" + (f" (no CUDA: {predictor.fault})" if predictor.fault else ""))
