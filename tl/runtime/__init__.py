"""Run `tl` model files anywhere with numpy, onnxruntime and an image decoder; needs no torch and no training code.

    import tl.runtime
    with tl.runtime.load("beetles.onnx") as model:
        print(model.predict("photo.jpg").label)

Importing has no side effects on the host program. Read the packages in this order: `imaging` (file -> network input),
`model_file` (the contract and the checks made before a file is opened), `session` (onnxruntime), `ensembles` and
`landmarks` (the kinds of prediction), `predictor` (images -> results), `sources`, `output`.
"""

from tl.runtime.ensembles.selective import SelectivePrediction
from tl.runtime.ensembles.sequences import SequenceResult, vote_sequence
from tl.runtime.ensembles.voting import Vote, vote
from tl.runtime.explain.explanation import Explanation, explain
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.regions import Box
from tl.runtime.model_file.contract import Contract
from tl.runtime.model_file.selftest import SelfTest, run_selftest
from tl.runtime.predictor import Predictor, load, load_landmarks, load_multilabel, load_regression
from tl.runtime.results import (
    Classification,
    Failure,
    Landmarks,
    MemberVotes,
    Multilabel,
    NoBox,
    Regression,
    Result,
)
from tl.runtime.sources.box_files import read_boxes
from tl.runtime.sources.boxed_images import BoxedImage, BoxList

__all__ = [
    "Box",
    "BoxList",
    "BoxedImage",
    "Classification",
    "Contract",
    "Explanation",
    "Failure",
    "ImageSource",
    "Landmarks",
    "MemberVotes",
    "Multilabel",
    "NoBox",
    "Predictor",
    "Preprocessing",
    "Regression",
    "Result",
    "SelectivePrediction",
    "SelfTest",
    "SequenceResult",
    "Vote",
    "explain",
    "load",
    "load_landmarks",
    "load_multilabel",
    "load_regression",
    "read_boxes",
    "run_selftest",
    "vote",
    "vote_sequence",
]
