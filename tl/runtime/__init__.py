"""Run `tl` model files anywhere with numpy, onnxruntime and image decoding; no torch, no training code.

    import tl.runtime
    with tl.runtime.load("beetles.onnx") as model:
        print(model.predict("photo.jpg").label)

Importing has no side effects on the host program. Read the parts in this order: `recipe` (every preprocessing
decision), `decode`, `geometry`, `preprocess`, `contract` (what a model file says of itself), `session` (onnxruntime),
`voting`, `ensemble`, `landmark_ensemble`, `predictor`, `writers`.
"""

from tl.runtime.caution import Caution
from tl.runtime.contract import Contract
from tl.runtime.decode import ImageSource
from tl.runtime.explanation import Explanation, explain
from tl.runtime.predictor import Predictor, load, load_landmarks
from tl.runtime.recipe import Recipe
from tl.runtime.results import Classification, Failure, Landmarks, MemberVotes, Result
from tl.runtime.selftest import SelfTest, run_selftest
from tl.runtime.voting import Vote, vote

__all__ = [
    "Caution",
    "Classification",
    "Contract",
    "Explanation",
    "Failure",
    "ImageSource",
    "Landmarks",
    "MemberVotes",
    "Predictor",
    "Recipe",
    "Result",
    "SelfTest",
    "Vote",
    "explain",
    "load",
    "load_landmarks",
    "run_selftest",
    "vote",
]
