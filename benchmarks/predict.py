"""Measure the prediction speed from a folder of images to CSV rows: tl, its peers, and the limits of the machine.

Every tool runs MobileNetV2 with the same ImageNet weights on the same files, each in its own process, in turn; loading
the model is not counted. Runs with the Python created by benchmarks/peers.sh.

    TL_SHARED=... .venv-peers/bin/python benchmarks/predict.py [small] [overhead] [photos] [scaled] [memory] [start]

- small: PACS cartoons, 227 px, by all tools or those in WAYS, as in WAYS=tl,plain; also the bound, the time of two
  parts in turn: onnxruntime alone on prepared batches with its best batch size and thread count, and decoding and
  resizing on the same cores.
- overhead: the same decoding and inference in a bare loop, one image at a time and in groups; through `predict_iter`;
  and with rows written.
- photos: 9 to 12 megapixel JPEGs.
- before: the same with the package of an earlier commit, BEFORE=COMMIT.
- scaled: effect on probabilities of decoding large JPEGs at a fraction of their size.
- memory: peak memory in excess of the open model, over 1,000 and 20,000 files.
- start: time from the start of the command to its first row.
"""

import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SHARED = Path(os.environ["TL_SHARED"])
WEIGHTS = SHARED / "weights"
os.environ["TL_WEIGHTS_DIR"] = str(WEIGHTS)
ROUNDS, BATCH = int(os.environ.get("ROUNDS", "5")), 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def small_files() -> list[str]:
    return sorted(map(str, (SHARED / "data" / "pacs-cartoon").rglob("*.jpg")))


def photo_files() -> list[str]:
    found = sorted(path for path in (SHARED / "data" / "large-photos").iterdir() if path.suffix.lower() == ".jpg")
    return [str(path) for path in found] * 6


# --- models: one set of weights, one file per tool


def make_models(folder: Path) -> None:
    """Write tl's own file, a plain one with float NCHW input in 0..1 and Ultralytics' metadata, and one for optimum."""
    import onnx
    import torch

    from tl.exporter.export import export_pretrained
    from tl.progress import Silent

    paths = small_files()[:4]
    for name, scale in (("tl", "2x"), ("tl-full", "full")):
        export_pretrained("mobilenet_v2", "imagenet", paths, folder / f"{name}.onnx", Silent(), jpeg_scale=scale)
    network = classifier()

    class Plain(torch.nn.Module):
        def forward(self, images):
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
            return torch.softmax(network((images - mean) / std), 1)

    def save(module, path, names):
        torch.onnx.export(
            module,
            (torch.zeros(2, 3, 224, 224),),
            path,
            input_names=names[:1],
            output_names=names[1:],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            opset_version=18,
        )

    save(Plain().eval(), folder / "plain.onnx", ["images", "output0"])
    model = onnx.load(folder / "plain.onnx")
    facts = {"task": "classify", "stride": 1, "batch": 1, "imgsz": [224, 224], "channels": 3, "args": {"dynamic": True}}
    facts["names"] = {i: f"class {i}" for i in range(1000)}
    onnx.helper.set_model_props(model, {key: str(value) for key, value in facts.items()})
    onnx.save(model, folder / "ultralytics.onnx")
    hf = folder / "hf"
    hf.mkdir()
    save(network, hf / "model.onnx", ["pixel_values", "logits"])
    config = {"model_type": "mobilenet_v2", "architectures": ["MobileNetV2ForImageClassification"], "num_labels": 1000}
    (hf / "config.json").write_text(json.dumps(config))
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2}
    processor |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "image_mean": MEAN, "image_std": STD}
    (hf / "preprocessor_config.json").write_text(json.dumps(processor))


def classifier():
    from tl.trainer.models.backbones import build_classifier, find_backbone_info
    from tl.trainer.models.weight_files import find_weights
    from tl.trainer.models.weights import load_into, read_weights

    network = build_classifier("mobilenet_v2")
    load_into(network, read_weights(find_weights(find_backbone_info("mobilenet_v2"), "imagenet"), "mobilenet_v2"))
    return network.eval()


# --- tools: files -> rows, timed from the first file to the last row


def write_csv(rows) -> None:
    with tempfile.TemporaryFile("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def tl_rate(folder: Path, paths: list[str], name: str = "tl") -> float:
    import tl.runtime
    from tl.runtime.output.writers import open_writer

    with tl.runtime.load(folder / f"{name}.onnx", device="cpu") as predictor, tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        with open_writer(Path(out) / "rows.csv", predictor.fields) as writer:
            for result in predictor.predict_iter(paths):
                writer.write(result)
        return len(paths) / (time.perf_counter() - started)


def tl_full_rate(folder: Path, paths: list[str]) -> float:
    """Decode every pixel of a large photo."""
    return tl_rate(folder, paths, "tl-full")


def plain_rate(folder: Path, paths: list[str]) -> float:
    """A plain script, as written in ten minutes."""
    import onnxruntime
    from PIL import Image

    session = onnxruntime.InferenceSession(folder / "plain.onnx", providers=["CPUExecutionProvider"])

    def rows():
        for i in range(0, len(paths), BATCH):
            chunk = paths[i : i + BATCH]
            images = [np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in chunk]
            inputs = np.stack(images).astype(np.float32).transpose(0, 3, 1, 2) / 255
            for path, row in zip(chunk, session.run(None, {"images": inputs})[0], strict=True):
                yield [path, int(row.argmax()), *map(float, row)]

    started = time.perf_counter()
    write_csv(rows())
    return len(paths) / (time.perf_counter() - started)


def ultralytics_rate(folder: Path, paths: list[str]) -> float:
    from ultralytics import YOLO

    model = YOLO(folder / "ultralytics.onnx", task="classify")
    model(paths[0], verbose=False, device="cpu", imgsz=224)
    listed = Path(tempfile.mkdtemp()) / "list.txt"
    listed.write_text("\n".join(paths))

    def rows():
        for result in model(str(listed), stream=True, verbose=False, device="cpu", imgsz=224, batch=BATCH):
            yield [result.path, result.probs.top1, *result.probs.data.tolist()]

    started = time.perf_counter()
    write_csv(rows())
    return len(paths) / (time.perf_counter() - started)


def optimum_rate(folder: Path, paths: list[str]) -> float:
    from optimum.onnxruntime import ORTModelForImageClassification
    from transformers import AutoImageProcessor, pipeline

    model = ORTModelForImageClassification.from_pretrained(folder / "hf")
    processor = AutoImageProcessor.from_pretrained(folder / "hf", use_fast=False)
    classify = pipeline("image-classification", model=model, image_processor=processor, top_k=1000)

    def rows():
        for path, scores in zip(paths, classify(list(paths), batch_size=BATCH), strict=True):
            yield [path, scores[0]["label"], *(score["score"] for score in scores)]

    started = time.perf_counter()
    write_csv(rows())
    return len(paths) / (time.perf_counter() - started)


def torchvision_rate(folder: Path, paths: list[str]) -> float:
    """Eager torch with a DataLoader that has one process per core."""
    import torch
    from PIL import Image
    from torchvision import transforms

    network = classifier()
    change = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            return change(Image.open(paths[i]).convert("RGB"))

    def rows():
        names = iter(paths)
        with torch.inference_mode():
            for images in torch.utils.data.DataLoader(Files(), BATCH, num_workers=os.cpu_count()):
                for row in torch.softmax(network(images), 1):
                    yield [next(names), int(row.argmax()), *row.tolist()]

    started = time.perf_counter()
    write_csv(rows())
    return len(paths) / (time.perf_counter() - started)


RATES = {
    "tl": tl_rate,
    "tl before": lambda folder, paths: tl_rate(folder / "before" / "models", paths),
    "tl, full decoding": tl_full_rate,
    "plain": plain_rate,
    "ultralytics": ultralytics_rate,
    "optimum": optimum_rate,
    "torchvision": torchvision_rate,
}


# --- the bound


def bound_rates(folder: Path, paths: list[str]) -> dict[str, float]:
    """Measure images/s of onnxruntime alone for every batch size, with all cores on one batch and with one core on each
    of several batches; of decoding and resizing alone on all cores; and of the fastest one after the other.
    """
    import onnxruntime

    from tl.runtime.imaging.pipeline import load_input
    from tl.runtime.model_file.contract import parse_contract

    cores = os.cpu_count() or 1

    def open_session(threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(folder / "tl.onnx", options, providers=["CPUExecutionProvider"])

    together, alone = open_session(cores), open_session(1)
    preprocessing = parse_contract(alone.get_modelmeta().custom_metadata_map["tl.contract"], "tl.onnx").preprocessing
    chosen = paths[:512]
    rates = {}
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(lambda path: load_input(path, preprocessing), chosen))  # fills the page cache
        started = time.perf_counter()
        decoded = list(pool.map(lambda path: load_input(path, preprocessing), chosen))
        rates["decode and resize"] = len(chosen) / (time.perf_counter() - started)
        inputs = np.stack(decoded)
        for size in (1, 2, 4, 8, 16, 32):
            batches = [inputs[i : i + size] for i in range(0, len(inputs), size)]
            for name, work, mapped in (("together", together, map), ("one core each", alone, pool.map)):
                started = time.perf_counter()
                list(mapped(lambda batch, work=work: work.run(["probabilities"], {"images": batch}), batches))
                rates[f"onnxruntime, {name}, batch {size}"] = len(chosen) / (time.perf_counter() - started)
    decode, best = rates["decode and resize"], max(rates, key=lambda name: ("onnx" in name) * rates[name])
    kept = {"decode and resize": rates["decode and resize"], "onnxruntime at its best": rates[best]}
    return {**kept, "bound": 1 / (1 / rates[best] + 1 / decode)}


def resident() -> float:
    """Memory of this process in MB. Source: proc(5), statm."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


# --- reports


def apart(*words: str) -> str:
    """Run this script in a separate process and return the last line of its output."""
    is_old = words[0] == "before" or "tl before" in words
    environment = {**os.environ, "PYTHONPATH": str(Path(words[1]) / "before")} if is_old else None
    done = subprocess.run([sys.executable, __file__, "-", *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["failed"])[-1])
    return done.stdout.strip().splitlines()[-1]


def compare(folder: Path, kind: str, ways: list[str]) -> None:
    """Measure every way in turn, in rounds, and print the median and range of tl's ratio to each."""
    rates: dict[str, dict[int, float]] = {}
    for number, way in itertools.product(range(ROUNDS), ways):
        try:
            for name, rate in json.loads(apart("rate", str(folder), kind, way)).items():
                rates.setdefault(name, {})[number] = rate
        except RuntimeError as error:
            print(f"{way}: not measured in round {number + 1} ({error})")
    for name, by_round in rates.items():
        found = by_round.values()
        ratios = [rates["tl"][number] / rate for number, rate in by_round.items()]
        print(
            f"{name}: {statistics.median(found):.1f} images/s ({min(found):.1f} to {max(found):.1f}); tl is "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times as fast",
            flush=True,
        )


def small(folder: Path) -> None:
    ways = [way for way in RATES if way not in ("tl, full decoding", "tl before")]
    compare(folder, "small", [*os.environ.get("WAYS", ",".join(ways)).split(","), "bound"])


def before(folder: Path) -> None:
    """Compare with an earlier commit, whose package is taken from git: BEFORE=COMMIT."""
    old = folder / "before"
    old.mkdir()
    root = Path(__file__).parent.parent
    packed = subprocess.run(["git", "archive", os.environ["BEFORE"], "tl"], cwd=root, check=True, capture_output=True)
    subprocess.run(["tar", "x", "-C", old], input=packed.stdout, check=True)
    apart("before", str(folder))  # files of its own: contracts gain fields
    for kind in ("small", "photos"):
        print(kind)
        compare(folder, kind, ["tl", "tl before"])


def overhead(folder: Path) -> None:
    """Measure the cost between decoding and inference, and rows on disk: in one process, in turn, over 1,000 files."""
    import tl.runtime
    from tl.runtime.imaging.pipeline import load_input
    from tl.runtime.session import Session

    files = small_files()[:1000]
    session = Session(folder / "tl.onnx", device="cpu", threads=1)
    preprocessing = session.contract.preprocessing

    def loop(size: int) -> float:
        def run(group: list[str]) -> None:
            for image in [load_input(path, preprocessing)[None] for path in group]:
                session.run(image, ["probabilities"])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            started = time.perf_counter()
            list(pool.map(run, [files[i : i + size] for i in range(0, len(files), size)]))
            return len(files) / (time.perf_counter() - started)

    def unwritten() -> float:
        with tl.runtime.load(folder / "tl.onnx", device="cpu") as predictor:
            started = time.perf_counter()
            for _ in predictor.predict_iter(files):
                pass
            return len(files) / (time.perf_counter() - started)

    ways = {f"a bare loop in threads, groups of {n}": lambda n=n: loop(n) for n in (1, 4, 8, 16, 32)}
    ways |= {"predict_iter": unwritten, "and rows": lambda: tl_rate(folder, files)}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _, (name, way) in itertools.product(range(ROUNDS), ways.items()):
        found[name].append(way())
    for name, rates in found.items():
        print(f"{name}: {statistics.median(rates):.0f} images/s ({min(rates):.0f} to {max(rates):.0f})")


def photos(folder: Path) -> None:
    """Compare the speed on large photos."""
    compare(folder, "photos", ["tl", "tl, full decoding", "plain", "ultralytics"])


def scaled(folder: Path) -> None:
    """Compare one model's probabilities under both decoding rules, on large photos."""
    import dataclasses

    from tl.runtime.imaging.pipeline import load_input
    from tl.runtime.session import Session

    session = Session(folder / "tl.onnx", device="cpu")
    folders = ("large-photos", "mollusk-landmarks", "imagenet-val-500")
    files = [p for name in folders for p in sorted((SHARED / "data" / name).rglob("*")) if p.suffix.lower() == ".jpg"]
    rows = []
    for path in files:
        preprocessings = [
            dataclasses.replace(session.contract.preprocessing, jpeg_scale=scale) for scale in ("full", "2x")
        ]
        inputs = np.stack([load_input(path, preprocessing) for preprocessing in preprocessings])
        both = session.run(inputs, ["probabilities"])[0]
        rows.append((np.abs(both[0] - both[1]).max(), both[0].argmax() == both[1].argmax()))
    differences, same = zip(*rows, strict=True)
    print(f"{len(rows)} photos: same label {np.mean(same):.1%}, largest |dp| {max(differences):.3f}, ", end="")
    print(f"median of each image's largest {np.median(differences):.4f}")


def memory(folder: Path) -> None:
    for count in (1000, 20000):
        print(f"{count} files: {float(apart('memory', str(folder), str(count))):.0f} MB above the open model")


def start(folder: Path) -> None:
    taken = []
    for _ in range(7):
        started = time.perf_counter()
        command = [sys.executable, "-m", "tl", "predict", *small_files()[:3], "-m", str(folder / "tl.onnx")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
            process.stdout.readline()
            process.stdout.readline()
            taken.append(time.perf_counter() - started)
            process.communicate()
    print(f"start to first row: {statistics.median(taken):.2f} s ({min(taken):.2f} to {max(taken):.2f})")


def one(words: list[str]) -> None:
    """The measurement of a separate process."""
    folder = Path(words[1])
    if words[0] == "rate":
        files, way = small_files() if words[2] == "small" else photo_files(), words[3]
        print(json.dumps(bound_rates(folder, files) if way == "bound" else {way: RATES[way](folder, files)}))
    elif words[0] == "before":
        (folder / "before" / "models").mkdir()
        make_models(folder / "before" / "models")
    elif words[0] == "memory":
        import tl.runtime

        paths = list(itertools.islice(itertools.cycle(small_files()), int(words[2])))
        with tl.runtime.load(folder / "tl.onnx", device="cpu") as predictor:
            list(predictor.predict_iter(paths[:8]))  # onnxruntime allocates its memory in the first run
            before = resident()
            peak = max(resident() for i, _ in enumerate(predictor.predict_iter(paths)) if i % 20 == 0)
        print(peak - before)


if __name__ == "__main__":
    if sys.argv[1:2] == ["-"]:
        one(sys.argv[2:])
    else:
        with tempfile.TemporaryDirectory() as name:
            make_models(Path(name))
            for part in sys.argv[1:] or ["small", "overhead", "photos", "scaled", "memory", "start"]:
                print(f"## {part}", flush=True)
                {
                    "small": small,
                    "overhead": overhead,
                    "photos": photos,
                    "before": before,
                    "scaled": scaled,
                    "memory": memory,
                    "start": start,
                }[part](Path(name))
