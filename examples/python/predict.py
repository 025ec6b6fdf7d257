"""Predict images with a model file of any input size, with onnxruntime and Pillow only.

    python predict.py model.onnx photo.jpg ...

Prints one JSON object per image. The file comes from `tl export --input any-size`; `tl` is not needed here.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read_rgb(path: str) -> np.ndarray:
    """Decode to upright uint8 (H, W, 3) RGB: 16 bits by v >> 8, alpha over white, profiles ignored."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


def main(model: str, paths: list[str]) -> None:
    """Print the label and the probabilities of each image."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    contract = json.loads(session.get_modelmeta().custom_metadata_map["tl.contract"])
    for path in paths:
        (probabilities,) = session.run(["probabilities"], {"images": read_rgb(path)[None]})
        label = contract["class_names"][int(probabilities[0].argmax())]
        answer = {"path": path, "label": label, "probabilities": probabilities[0].tolist()}
        sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
