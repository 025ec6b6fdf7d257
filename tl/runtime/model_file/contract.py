"""Parse, validate and serialize the contract stored in `metadata_props["tl.contract"]` of every model file.

Upgrades contracts of older schema versions and rejects newer ones. Imports neither onnx nor onnxruntime: `session`
reads the text from a file, the exporter embeds it. docs/reference/model-file.md describes the fields.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tl.errors import ModelFileError
from tl.runtime.ensembles.taxonomy import Taxonomy
from tl.runtime.ensembles.voting import Voting
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.regions import BoxCrop
from tl.runtime.model_file.conversions import AnySize, Quantization
from tl.runtime.model_file.label_facts import MultilabelFacts, check_lengths
from tl.runtime.model_file.strict_json import dump_json, from_plain, parse_json
from tl.runtime.sources.names import composed

METADATA_KEY = "tl.contract"
SCHEMA_VERSION = 4
# Far above any real contract (4 golden samples at 512 px are about 3 MB), far below harmful sizes.
MAX_CONTRACT_BYTES = 64 << 20

Task = Literal["classification", "landmarks", "regression", "multilabel"]
# Task -> the output that decides, if not the probabilities.
MAIN_OUTPUTS: dict[Task, str] = {"landmarks": "keypoints", "regression": "values"}
# What the names of a model are names of, for people.
NOUNS: dict[Task, str] = {
    **{"classification": "classes", "multilabel": "labels"},
    **{"landmarks": "points", "regression": "numbers"},
}
# bf16 is an fp32 graph that may be computed in bf16, since that was compared with fp32.
Precision = Literal["fp32", "fp16", "bf16", "int8"]
# Schema version -> fields that it added, with their values for older files.
_ADDED: dict[int, dict[str, Any]] = {
    2: {"ensemble": None, "conformal": None, "unknown": None},
    4: {"taxonomy": None, "regression": None, "boxes": None, "multilabel": None, "any_size": None},
}
# Schema version -> fields that it added to the preprocessing, with their values for older files.
_ADDED_PREPROCESSING: dict[int, dict[str, Any]] = {4: {"channels": None, "project": None, "resized_by": "runtime"}}
# Schema version -> fields and outputs that it renamed, and fields that it dropped.
_RENAMED = {3: {"recipe": "preprocessing", "unknown": "ood", "quantisation": "quantization"}}
_DROPPED = {3: {"thresholds"}}
# Output names in graphs of files before schema 3 -> present names; see `Session`.
OLD_OUTPUTS = {"unknown_score": "ood_score"}


@dataclass(frozen=True)
class Provenance:
    """Origin of a model file.

    `weights`: initial weights of the backbone. `config`: the resolved options without paths. `data_hash`: SHA-256 of
    the images' hashes, labels and splits, "" without training. `val_metrics`: metric name -> value on validation data,
    empty without training. `versions`: library name -> version. `created`: UTC, ISO 8601.
    """

    backbone: str
    weights: str
    method: str
    config: dict[str, Any]
    data_hash: str
    val_metrics: dict[str, float]
    versions: dict[str, str]
    created: str


@dataclass(frozen=True)
class Parity:
    """Results of the export check of the fp32 graph on `images` real images.

    `session_max_abs_diff`: output name -> largest |torch - onnxruntime| over all tested batch sizes.
    `pipeline_max_abs_diff`: largest difference between the trainer's evaluation and `tl.runtime`, from file to result,
    in a probability or in a coordinate in input pixels. `top1_agreement` in [0, 1], None for landmarks. `tolerance`:
    the largest allowed difference of probabilities or coordinates.
    """

    images: int
    batch_sizes: tuple[int, ...]
    session_max_abs_diff: dict[str, float]
    pipeline_max_abs_diff: float
    top1_agreement: float | None
    tolerance: float


@dataclass(frozen=True)
class GoldenSample:
    """One input (`png`: base64 of an RGB PNG, of the input size unless the graph takes any) and its expected output.

    With more than 3 channels, `png` is gray and has the channels one below the other.
    `expected`: the C probabilities, or the K points as x, y, x, y ... in pixels of this image.
    """

    png: str
    expected: tuple[float, ...]


@dataclass(frozen=True)
class Golden:
    """Self-test samples: images of the run's validation split, user-supplied images, or synthetic images.

    `tolerance`: precision -> largest allowed difference from an expected value on any device.
    """

    source: Literal["validation", "images", "synthetic"]
    tolerance: dict[str, float]
    samples: tuple[GoldenSample, ...]


@dataclass(frozen=True)
class LandmarkFacts:
    """Properties of a landmark model, besides the names of its points.

    `flip_pairs`, `skeleton`: as in `LandmarkSet`. `mean_shape`: mean shape of the training images, (x, y) of each
    point, centered and of centroid size 1; None for fewer than three points. A prediction is odd if its Procrustes
    distance to the mean shape is above `shape_limit`. `region`: what the model uses: whole images, drawn boxes, or the
    square around the points; the last two are extended on every side by `region_margin` times their size.
    """

    flip_pairs: tuple[tuple[str, str], ...]
    skeleton: tuple[tuple[str, str], ...]
    mean_shape: tuple[tuple[float, float], ...] | None
    shape_limit: float
    region: Literal["whole", "box", "points"]
    region_margin: float


@dataclass(frozen=True)
class RegressionFacts:
    """What a model predicts: numbers named `target_names`, in `units` ("" if not given).

    `std`: standard deviation of each target in the training images. `scores`: for each target, sorted absolute errors
    of held-out images, which determine intervals for any coverage; `source`: description of those images.
    """

    target_names: tuple[str, ...]
    units: tuple[str, ...]
    std: tuple[float, ...]
    scores: tuple[tuple[float, ...], ...]
    source: str

    def __post_init__(self) -> None:
        if not len(self.target_names) == len(self.units) == len(self.std) == len(self.scores):
            raise ValueError("regression requires a unit, a standard deviation and scores for each target")
        if not all(std > 0 for std in self.std) or any(list(own) != sorted(own) for own in self.scores):
            raise ValueError("regression requires positive standard deviations and sorted scores")


@dataclass(frozen=True)
class MemberFacts:
    """A model file that was merged into another one. `name`: unique among the members."""

    name: str
    provenance: Provenance


@dataclass(frozen=True)
class EnsembleFacts:
    """Members that vote inside the graph, in the order of `member_probabilities`. `weights`: their vote weights."""

    voting: Voting
    weights: tuple[float, ...]
    members: tuple[MemberFacts, ...]

    def __post_init__(self) -> None:
        names = [member.name for member in self.members]
        if len(names) < 2 or len(set(names)) < len(names) or len(self.weights) != len(names):
            raise ValueError(f"{len(self.weights)} weights for the members {names}")
        if not all(weight > 0 for weight in self.weights):
            raise ValueError(f"vote weights must be positive, got {list(self.weights)}")


@dataclass(frozen=True)
class Conformal:
    """Sorted conformal scores of the true classes of held-out images, as from `selective.conformal_scores`.

    `source`: description of those images. The scores determine the prediction sets for any coverage.
    """

    scores: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.scores or list(self.scores) != sorted(self.scores):
            raise ValueError("conformal scores must be sorted numbers, at least one")


@dataclass(frozen=True)
class OodFacts:
    """How `ood_score` was fitted: to `images` training images, in `dimensions` principal components.

    A score above `limit` counts as out-of-distribution. `false_alarm`: share of the `held_out` validation images above
    it.
    """

    images: int
    dimensions: int
    limit: float
    false_alarm: float
    held_out: int


@dataclass(frozen=True)
class Contract:
    """Everything a runtime needs to use a model file. docs/reference/model-file.md describes each field.

    `landmarks`, `multilabel` and `regression` are None for other tasks; `quantization` for fp32, and for an adopted
    file whose precision was reduced by another tool; `any_size` unless the graph takes images of any size; `ensemble`
    for a single model; `conformal` and `ood` if no
    held-out data was available to fit them; `taxonomy` if the classes have no groups; `boxes` unless it is a classifier
    of boxes.
    """

    schema_version: int
    task: Task
    precision: Precision
    class_names: tuple[str, ...]
    keypoint_names: tuple[str, ...]
    landmarks: LandmarkFacts | None
    regression: RegressionFacts | None
    multilabel: MultilabelFacts | None
    preprocessing: Preprocessing
    outputs: tuple[str, ...]
    temperature: float
    ensemble: EnsembleFacts | None
    conformal: Conformal | None
    ood: OodFacts | None
    taxonomy: Taxonomy | None
    boxes: BoxCrop | None
    provenance: Provenance
    parity: Parity
    quantization: Quantization | None
    any_size: AnySize | None
    golden: Golden

    def __post_init__(self) -> None:
        names = self.names
        if not names or len(names) != len(self.class_names) + len(self.keypoint_names) + len(self.target_names):
            raise ValueError(
                f"task {self.task!r} requires class_names for classification and multilabel, keypoint_names for "
                "landmarks, or regression, not several"
            )
        if len(set(names)) != len(names):
            raise ValueError(f"repeated name '{next(name for name in names if names.count(name) > 1)}'")
        needed = {self.main_output, *(("label", "member_probabilities") if self.ensemble else ())}
        needed |= {"ood_score"} if self.ood else set()
        if lacking := sorted(needed - set(self.outputs)):
            raise ValueError(f"this model requires the outputs {lacking}, got {self.outputs}")
        self._check_task()
        mean_shape = None if self.landmarks is None else self.landmarks.mean_shape
        if mean_shape is not None and len(mean_shape) != len(names):
            raise ValueError(f"the mean shape has {len(mean_shape)} points for {len(names)} names")
        if self.precision == "fp32" and self.quantization is not None:
            raise ValueError("precision fp32 must not have 'quantization'")
        if self.taxonomy is not None and any(len(groups) != len(self.class_names) for groups in self.taxonomy.groups):
            raise ValueError(f"the taxonomy must have a group for each of the {len(self.class_names)} classes")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        values = 2 * len(names) if self.task == "landmarks" else len(names)
        for sample in self.golden.samples:
            if len(sample.expected) != values:
                raise ValueError(f"a golden sample has {len(sample.expected)} values, expected {values}")

    def _check_task(self) -> None:
        check_lengths(self.multilabel, self.names)
        for task in ("landmarks", "regression", "multilabel"):
            if (self.task == task) != (getattr(self, task) is not None):
                raise ValueError(f"task {self.task!r} does not match the field {task!r}")
        if self.boxes is not None and self.task != "classification":
            raise ValueError(f"task {self.task!r} does not match the field 'boxes'")
        if (self.any_size is not None) != self.preprocessing.any_size:
            raise ValueError(f"resized_by {self.preprocessing.resized_by!r} does not match the field 'any_size'")

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the numbers; empty for other tasks."""
        return () if self.regression is None else self.regression.target_names

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what the model predicts: classes, points or numbers."""
        by_task = {"landmarks": self.keypoint_names, "regression": self.target_names}
        return by_task.get(self.task, self.class_names)

    @property
    def output_scale(self) -> NDArray[np.float32] | float:
        """What differences of the main output are divided by before they are compared with a tolerance."""
        return 1.0 if self.regression is None else np.array(self.regression.std, np.float32)

    @property
    def main_output(self) -> str:
        """The main output, whose values are stored in golden samples."""
        return MAIN_OUTPUTS.get(self.task, "probabilities")


def parse_contract(text: str, where: str) -> Contract:
    """Parse a contract. `where`: name of the file in messages. Raises `ModelFileError`; never fills in defaults."""
    if len(text) > MAX_CONTRACT_BYTES:
        raise ModelFileError(f"{where}: its contract is larger than {MAX_CONTRACT_BYTES >> 20} MiB")
    try:
        plain = parse_json(text)
        if not isinstance(plain, dict):
            raise ValueError("expected an object")
        version = plain.get("schema_version")
        if type(version) is not int or version < 1:
            raise ValueError(f"missing or invalid schema_version ({version!r})")
        if version > SCHEMA_VERSION:
            known = f"this version of tl reads only up to {SCHEMA_VERSION}"
            raise ValueError(f"schema_version {version} is too new, {known}: upgrade tl-toolkit")
        return _with_composed_names(from_plain(Contract, _upgraded(plain, version), "contract"))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where}: invalid contract: {error}") from error


def _with_composed_names(contract: Contract) -> Contract:
    """Compose the letters of names, which older files have as the file system of the training images wrote them."""
    facts = contract.landmarks
    if facts is not None:
        pairs, lines = (
            tuple((composed(a), composed(b)) for a, b in named) for named in (facts.flip_pairs, facts.skeleton)
        )
        facts = replace(facts, flip_pairs=pairs, skeleton=lines)
    classes, keypoints = tuple(map(composed, contract.class_names)), tuple(map(composed, contract.keypoint_names))
    return replace(contract, landmarks=facts, class_names=classes, keypoint_names=keypoints)


def _upgraded(plain: dict[str, Any], version: int) -> dict[str, Any]:
    """Upgrade an older contract to this version. Raises ValueError for fields that its own version does not have."""
    for newer in range(version + 1, SCHEMA_VERSION + 1):
        added, renamed = _ADDED.get(newer, {}), _RENAMED.get(newer, {})
        dropped: set[str] = _DROPPED.get(newer, set())
        if early := sorted((added.keys() | set(renamed.values())) & plain.keys()):
            raise ValueError(f"contract: unknown field '{early[0]}' in schema_version {newer - 1}")
        if missing := sorted((dropped | renamed.keys()) - plain.keys()):
            raise ValueError(f"contract: missing field '{missing[0]}'")
        kept = {renamed.get(name, name): value for name, value in plain.items() if name not in dropped}
        plain = {**kept, **added, "schema_version": newer}
        if newer == 3:
            plain = _with_present_outputs(plain)
        plain = _with_preprocessing(plain, _ADDED_PREPROCESSING.get(newer, {}), newer)
    return plain


def _with_preprocessing(plain: dict[str, Any], added: dict[str, Any], version: int) -> dict[str, Any]:
    """Add fields to the preprocessing of a contract; leave invalid values to later validation."""
    preprocessing = plain.get("preprocessing")
    if not isinstance(preprocessing, dict):
        return plain
    if early := sorted(added.keys() & preprocessing.keys()):
        raise ValueError(f"contract.preprocessing: unknown field '{early[0]}' in schema_version {version - 1}")
    return {**plain, "preprocessing": {**preprocessing, **added}}


def _with_present_outputs(plain: dict[str, Any]) -> dict[str, Any]:
    """Rename the outputs of a contract to their schema 3 names; leave invalid values to later validation."""
    outputs, parity = plain.get("outputs"), plain.get("parity")
    if isinstance(outputs, list):
        plain = {
            **plain,
            "outputs": [OLD_OUTPUTS.get(name, name) if isinstance(name, str) else name for name in outputs],
        }
    if isinstance(parity, dict) and isinstance(parity.get("session_max_abs_diff"), dict):
        measured = {OLD_OUTPUTS.get(name, name): value for name, value in parity["session_max_abs_diff"].items()}
        plain = {**plain, "parity": {**parity, "session_max_abs_diff": measured}}
    return plain


def dump_contract(contract: Contract) -> str:
    """Return the contract as strict JSON text for `metadata_props["tl.contract"]`."""
    return dump_json(contract)
