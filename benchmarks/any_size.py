"""Compare files that take images of any size with `tl.runtime` and the fixed-size files that they were made from.

For each network and set of images, one line: the number of images, the largest difference of a probability, and on how
many images the labels agree. The any-size graph is run by onnxruntime alone, on images decoded at full size; the
fixed-size file by `tl.runtime`, with its own preprocessing. The network's input is compared too. Then the time of both
on a 12-megapixel photo, after decoding, on one thread.

    TL_SHARED=... python benchmarks/any_size.py [efficientnet_lite0-full] [mobilenet_v2-2x] ...
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime

import tl.runtime
from tl.errors import ImageReadError
from tl.exporter.any_size.convert import to_any_size
from tl.exporter.any_size.graph import PREPARED, resizing_alone
from tl.exporter.export import export_pretrained
from tl.progress import Silent
from tl.runtime.imaging.decode import decode_image
from tl.runtime.imaging.geometry import crop_to_input, working_image
from tl.runtime.imaging.preprocessing import JpegScale, Preprocessing
from tl.runtime.session import Session
from tl.runtime.sources.paths import find_images

DATA = Path(os.environ["TL_SHARED"]) / "data"
os.environ.setdefault("TL_WEIGHTS_DIR", str(DATA.parent / "weights"))
SETS = ("imagenet-val-500", "cats-dogs", "large-photos", "odd-images")
# Network, scale of JPEGs: efficientnet_lite0 resizes bicubically, mobilenet_v2 bilinearly.
NETWORKS: list[tuple[str, JpegScale]] = [
    ("efficientnet_lite0", "full"),
    ("efficientnet_lite0", "2x"),
    ("mobilenet_v2", "full"),
    ("mobilenet_v2", "2x"),
]
ROUNDS = 9


def plain_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """onnxruntime without `tl`, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def decoded(paths: list[str], preprocessing: Preprocessing) -> Iterator[tuple[str, np.ndarray]]:
    """The readable images, upright and at full size."""
    for path in paths:
        try:
            yield path, decode_image(path, preprocessing)
        except ImageReadError:  # broken files of odd-images
            continue


def compare(fixed: Path, converted: Path, preprocessing: Preprocessing, paths: list[str]) -> str:
    """The row of one network and set of images."""
    session, resizing = plain_session(converted), plain_session(resizing_alone(preprocessing).SerializeToString())
    worst, alike, count, largest, means = 0.0, 0, 0, 0, []
    with tl.runtime.load(fixed, device="cpu", threads=1) as predictor:
        for path, image in decoded(paths, preprocessing):
            try:
                wanted = predictor.predict(path).probabilities
                prepared = crop_to_input(working_image(image, preprocessing), preprocessing)
            except ImageReadError:  # too elongated to be resized
                continue
            (found,) = session.run(["probabilities"], {"images": image[None]})
            (pixels,) = resizing.run([PREPARED], {"images": image[None]})
            difference = np.abs(pixels[0].astype(int) - prepared)
            largest, count = max(largest, int(difference.max())), count + 1
            means.append(difference.mean())
            worst = max(worst, float(np.abs(found[0] - wanted).max()))
            alike += int(found[0].argmax() == wanted.argmax())
    return f"{count} | {largest} | {np.mean(means):.1g} | {worst:.1e} | {alike} of {count}"


def milliseconds(call) -> str:
    """Median and range of the duration."""
    call()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return f"{np.median(times):.0f} ms ({min(times):.0f} to {max(times):.0f})"


def time_photo(preprocessing: Preprocessing) -> None:
    """Print the time to resize one decoded photo of 12 megapixels, by Pillow and by the graph."""
    path = max(find_images([DATA / "large-photos"]).paths, key=lambda one: decode_image(one, preprocessing).size)
    image = decode_image(path, preprocessing)
    session = plain_session(resizing_alone(preprocessing).SerializeToString())
    by_pillow = milliseconds(lambda: crop_to_input(working_image(image, preprocessing), preprocessing))
    by_graph = milliseconds(lambda: session.run([PREPARED], {"images": image[None]}))
    size = f"{image.shape[1]}x{image.shape[0]}"
    print(f"{preprocessing.interpolation}, {size}: tl.runtime {by_pillow}, graph {by_graph}", flush=True)


def main(names: list[str]) -> None:
    """Print a Markdown table and the times, of all networks or of those named."""
    print(
        "| network | resize | JPEGs in the fixed-size file | images | n | pixels: max | mean | max dp | labels agree |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        shown: dict[str, Preprocessing] = {}
        for name, scale in NETWORKS:
            if names and f"{name}-{scale}" not in names:
                continue
            fixed, converted = Path(folder) / f"{name}-{scale}.onnx", Path(folder) / f"{name}-{scale}-any.onnx"
            export_pretrained(name, "imagenet", [DATA / "imagenet-val-500"], fixed, Silent(), jpeg_scale=scale)
            to_any_size(fixed, converted, find_images([DATA / "imagenet-val-500"]).paths[::50], Silent())
            contract = Session(fixed, device="cpu").contract
            assert contract is not None
            shown[name] = preprocessing = contract.preprocessing
            for images in SETS:
                row = compare(fixed, converted, preprocessing, find_images([DATA / images]).paths)
                print(f"| {name} | {preprocessing.interpolation} | {scale} | {images} | {row} |", flush=True)
        for preprocessing in shown.values():
            time_photo(preprocessing)


if __name__ == "__main__":
    main(sys.argv[1:])
