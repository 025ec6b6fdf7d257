"""Run `tl` model files anywhere with numpy, onnxruntime and an image decoder; needs no torch and no training code.

    import tl.runtime
    with tl.runtime.load("beetles.onnx") as model:
        print(model.predict("photo.jpg").label)

Importing has no side effects on the host program. Read the packages in this order: `imaging` (file -> network input),
`model_file` (the contract and the checks made before a file is opened), `session` (onnxruntime), `ensembles` and
`landmarks` (the kinds of prediction), `predictor` (images -> results), `sources`, `output`.
"""

from tl.runtime.ensembles.selective import SelectivePrediction
from tl.runtime.ensembles.voting import Vote, vote
from tl.runtime.explain.explanation import Explanation, explain
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.model_file.contract import Contract
from tl.runtime.model_file.selftest import SelfTest, run_selftest
from tl.runtime.predictor import Predictor, load, load_landmarks, load_multilabel, load_regression
from tl.runtime.results import Classification, Failure, Landmarks, MemberVotes, Multilabel, Regression, Result

__all__ = [
    "Classification",
    "Contract",
    "Explanation",
    "Failure",
    "ImageSource",
    "Landmarks",
    "MemberVotes",
    "Multilabel",
    "Predictor",
    "Preprocessing",
    "Regression",
    "Result",
    "SelectivePrediction",
    "SelfTest",
    "Vote",
    "explain",
    "load",
    "load_landmarks",
    "load_multilabel",
    "load_regression",
    "run_selftest",
    "vote",
]
