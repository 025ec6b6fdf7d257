"""What the documentation's commands find in their folder: small images, annotations and model files.

`python -m tests.docs.stage PAGE FOLDER` writes a page's files and its Python blocks as scripts, for a check in another
environment.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.blobs import write_blobs
from tests.composites import make_composite, make_composites, save_megadetector
from tests.docs.pages import ROOT, read_blocks
from tests.models import make_model
from tests.runtime.exif_photos import make_exif, save_photo
from tests.spots import USUAL_XY, make_spot_model, save_spots
from tests.stacks import make_cells

BEETLES = {"carabus": (200, 50, 40), "poecilus": (40, 170, 60), "pterostichus": (40, 60, 190)}
INSECTS = {"ants": (90, 50, 40), "bees": (210, 170, 60)}
PARTS = {"good": (120, 120, 120), "scratch": (200, 60, 50), "stain": (60, 60, 190)}


def _noisy(path: Path, rgb: tuple[int, int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-40, 41, (64, 64, 3))
    Image.fromarray(np.clip(np.array(rgb) + noise, 0, 255).astype(np.uint8)).save(path, quality=95)


def _class_folders(root: Path, colors: dict[str, tuple[int, int, int]], count: int, seed: int = 0) -> None:
    for c, (name, rgb) in enumerate(colors.items()):
        for i in range(count):
            _noisy(root / name / f"{i:03d}.jpg", rgb, seed + 100 * c + i)


def beetles(folder: Path) -> None:
    """Labeled, held-out and new images of three classes."""
    _class_folders(folder / "photos", BEETLES, 12)
    _class_folders(folder / "held-out", BEETLES, 8, seed=1000)
    for i, rgb in enumerate(BEETLES.values()):
        _noisy(folder / f"new-photos/{i}.jpg", rgb, 2000 + i)
    shutil.copy(folder / "new-photos/0.jpg", folder / "photo.jpg")


def insects(folder: Path) -> None:
    """Labeled, held-out and new images of two classes."""
    _class_folders(folder / "photos", INSECTS, 12)
    _class_folders(folder / "held-out", INSECTS, 8, seed=1000)
    for i, rgb in enumerate([*INSECTS.values(), (40, 60, 190)]):
        _noisy(folder / f"new-photos/{i:03d}.jpg", rgb, 2000 + i)


def more_beetles(folder: Path) -> None:
    """An archive, a folder in a folder, labels with splits, odd images, a new class, a taxonomy."""
    rows = [
        f"{name},{genus},Carabidae" for name, genus in zip(BEETLES, ("Carabus", "Poecilus", "Poecilus"), strict=True)
    ]
    (folder / "beetles-taxonomy.csv").write_text("\n".join(["species,genus,family", *rows]) + "\n", encoding="utf-8")
    (folder / "species-of-this-region.txt").write_text("carabus\npoecilus\n", encoding="utf-8")
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.write(folder / "new-photos/0.jpg", "0.jpg")
    for name in ("more/deep/1.jpg", "odd/1.jpg", "odd.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "new-photos/1.jpg", folder / name)
    (folder / "last.txt").touch()
    os.utime(folder / "last.txt", (0, 0))
    _class_folders(folder / "new-species", {"abax": (230, 210, 60)}, 6, seed=3000)
    rows = [f"held-out/{name}/{i:03d}.jpg,{name},{'val' if i < 4 else 'test'}" for name in BEETLES for i in range(8)]
    (folder / "labels.csv").write_text("\n".join(["path,label,split", *rows]) + "\n", encoding="utf-8")


def bursts(folder: Path) -> None:
    """Photos of a camera trap with capture times, and tables of visits."""
    rows = []
    for v, rgb in enumerate(BEETLES.values()):
        for i in range(3):
            save_photo(folder / f"camera-1/{v}{i}.jpg", f"2026:05:01 1{v}:00:0{i}", rgb, make="Reconyx", model="HP2X")
            rows.append(f"camera-1/{v}{i}.jpg,visit {v}")
    (folder / "visits.csv").write_text("\n".join(["path,visit", *rows]) + "\n", encoding="utf-8")
    rows = [f"photos/{name}/{i:03d}.jpg,{name},{name} {i // 3}" for name in BEETLES for i in range(12)]
    (folder / "visits-labeled.csv").write_text("\n".join(["path,label,visit", *rows]) + "\n", encoding="utf-8")


def parts(folder: Path) -> None:
    """Images of good and defective parts."""
    _class_folders(folder / "parts", PARTS, 12)
    _class_folders(folder / "held-out", PARTS, 4, seed=1000)
    for i, rgb in enumerate(PARTS.values()):
        _noisy(folder / f"line/{i}.jpg", rgb, 2000 + i)


def wings(folder: Path) -> None:
    """Annotated images of three points, the same as TPS, new images, and boxes."""
    from tests.trainer.landmarks.make import make_spots, moved_spots

    made = make_spots(folder, whole=True)
    with made.open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    splits = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    with (folder / "wings.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(
            [[header[0], "split", *header[1:]]] + [[r[0], s, *r[1:]] for r, s in zip(rows, splits, strict=True)]
        )
    made.unlink()
    for i in range(3):
        save_spots(folder / f"photos/{i}.png", moved_spots(100 + i))
    boxes = [f"photos/{i}.png,5,5,70,50" for i in range(3)]
    (folder / "boxes.csv").write_text("\n".join(["path,box_x,box_y,box_w,box_h", *boxes]) + "\n", encoding="utf-8")
    run = [sys.executable, "-m", "tl", "convert", "wings.csv", "wings.tps"]
    subprocess.run(run, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)


def plants(folder: Path) -> None:
    """A CSV of photos with the height of what they show, new photos, and one photo."""

    def draw(path: Path, height: int, seed: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(seed).integers(180, 220, (64, 64, 3))
        image[64 - height :, 24:40] = (40, 150, 60)
        Image.fromarray(image.astype(np.uint8)).save(path, quality=95)

    heights = np.random.default_rng(0).integers(5, 60, 40).tolist()
    rows = []
    for i, height in enumerate(heights):
        draw(folder / f"plants/{i}.jpg", height, i)
        rows.append(f"plants/{i}.jpg,{'test' if i >= 30 else 'train'},{height / 2}")
    (folder / "plants.csv").write_text("\n".join(["path,split,height", *rows]) + "\n", encoding="utf-8")
    for i in range(3):
        draw(folder / f"new-plants/{i}.jpg", 10 + 15 * i, 100 + i)
    shutil.copy(folder / "new-plants/0.jpg", folder / "plant.jpg")


def scenes(folder: Path) -> None:
    """A CSV of images with columns of labels, new images, and one image."""
    table = write_blobs(folder, times=6, unknown=0.05)
    text = table.read_text(encoding="utf-8").replace("red,green,blue", "sky,water,boat")
    (folder / "scenes.csv").write_text(text, encoding="utf-8")
    table.unlink()
    (folder / "new-scenes").mkdir()
    for name in ("3-0.png", "5-1.png"):
        shutil.copy(folder / name, folder / "new-scenes" / name)
    shutil.copy(folder / "5-1.png", folder / "scene.png")


def color_models(folder: Path) -> None:
    """Classifiers of colors, that of landmarks, and an image for each."""
    make_model(folder / "model.onnx")
    make_model(folder / "other.onnx", gain=0.1)
    Image.fromarray(np.full((40, 30, 3), (10, 220, 30), np.uint8)).save(folder / "photo.png")
    make_spot_model(folder / "wing.onnx")
    save_spots(folder / "wing.png", USUAL_XY)


def cells(folder: Path) -> None:
    """Labeled and new OME-TIFF stacks."""
    make_cells(folder / "cells")
    make_cells(folder / "labeled", per_class=2)
    (folder / "new-cells").mkdir()
    for path in sorted((folder / "labeled").rglob("*.tif")):
        shutil.move(path, folder / "new-cells")
    for name in ("round", "striped"):
        for split in ("train", "val", "test"):
            (folder / "cells" / split / name).mkdir(parents=True)
        for number, path in enumerate(sorted((folder / "cells" / name).iterdir())):
            shutil.move(path, folder / "cells" / ("train", "train", "val", "test")[number % 4] / name)
        (folder / "cells" / name).rmdir()


def beetle_models(folder: Path) -> None:
    """Classifiers that call the beetles by their colors."""
    for name, gain in (("beetles", 0.05), ("a", 0.03), ("b", 0.05), ("c", 0.07)):
        make_model(folder / f"{name}.onnx", tuple(BEETLES), gain=gain)


def several_models(folder: Path) -> None:
    """The members of an ensemble, also in a folder of their own."""
    (folder / "models").mkdir()
    for name in "abc":
        shutil.copy(folder / f"{name}.onnx", folder / "models")


def foreign_models(folder: Path) -> None:
    """Classifiers as other tools export them."""
    from tests.exporter.adoption.foreign_models import make_foreign, make_huggingface, make_ultralytics

    make_foreign(folder / "net.onnx")
    make_foreign(folder / "keras.onnx", layout="nhwc")
    make_ultralytics(folder / "yolo11n-cls.onnx", tuple(BEETLES))
    make_huggingface(folder / "exported")
    (folder / "names.txt").write_text("\n".join(BEETLES) + "\n", encoding="utf-8")
    (folder / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}', encoding="utf-8")


def recipes(folder: Path) -> None:
    """The published studies."""
    shutil.copytree(ROOT / "recipes", folder / "recipes")


def trained(folder: Path) -> None:
    """A trained run, runs/beetles, and its model file."""
    for line in ("train photos/ --out runs/beetles", "export runs/beetles -o beetles.onnx --overwrite"):
        words = [sys.executable, "-m", "tests.docs.quick_tl", *line.split()]
        subprocess.run(words, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)


def animals(folder: Path) -> None:
    """Labeled, held-out and new photos of two small animals, and MegaDetector's files of their boxes."""
    for name, file, count, seed in (("photos", "detections", 12, 0), ("held-out", "held-out-detections", 4, 500)):
        made = make_composites(folder / name, count, seed)
        save_megadetector(folder / f"{file}.json", {f"{name}/{image}": placed for image, placed in made.items()})
    new = {f"{i}.jpg": make_composite(folder / f"new-photos/{i}.jpg", labels, 900 + i) for i, labels in ((0, ["fox"]),)}
    new["1.jpg"] = make_composite(folder / "new-photos/1.jpg", [], 901)
    save_megadetector(folder / "new-detections.json", new)
    for i in range(2):
        with Image.open(photo := folder / f"new-photos/{i}.jpg") as image:
            image.save(photo, quality=95, exif=make_exif(f"2026:05:01 10:00:0{i}").tobytes())


def labeling_tools(folder: Path) -> None:
    """What Label Studio, CVAT, VIA, labelme and Roboflow export of the labeled images."""
    from tests.runtime.labeling.exports import choice, labelme, save_json, task, via_image, via_project

    names = {f"photos/{name}/{i:03d}.jpg": name for name in BEETLES for i in range(12)}
    tasks = [task(n, f"/data/local-files/?d={path}", [choice(name)]) for n, (path, name) in enumerate(names.items())]
    save_json(folder / "export.json", tasks)
    save_json(folder / "via.json", via_project(*(via_image(path, {"species": name}) for path, name in names.items())))
    shapes = "".join(
        f'<image name="{path}" width="64" height="64"><tag label="{name}"/><points label="head" points="9,8"/></image>'
        for path, name in names.items()
    )
    labels = "".join(f"<label><name>{name}</name></label>" for name in (*BEETLES, "head"))
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    (folder / "annotations.xml").write_text(f"<annotations>{meta}{shapes}</annotations>", encoding="utf-8")
    (folder / "labelme").mkdir()
    for split in ("train", "valid"):
        (folder / f"roboflow/{split}").mkdir(parents=True)
        rows = [f"{name}.jpg, {', '.join(str(int(name == other)) for other in BEETLES)}" for name in BEETLES]
        table = "\n".join([f"filename, {', '.join(BEETLES)}", *rows]) + "\n"
        (folder / f"roboflow/{split}/_classes.csv").write_text(table, encoding="utf-8")
    for name in BEETLES:
        for place in ("labelme", "roboflow/train", "roboflow/valid"):
            shutil.copy(folder / f"photos/{name}/000.jpg", folder / place / f"{name}.jpg")
        whole = labelme(f"{name}.jpg", {name: True}) | {"imageHeight": 64, "imageWidth": 64}
        save_json(folder / f"labelme/{name}.json", whole)


# Page -> what its commands find. A page that is not listed has no commands.
STAGES: dict[str, tuple[Callable[[Path], None], ...]] = {
    "README.md": (beetles,),
    "docs/index.md": (beetles,),
    "docs/how-to/install.md": (),
    "docs/how-to/predicting.md": (beetles, more_beetles, beetle_models),
    "docs/how-to/devices.md": (beetles, more_beetles, beetle_models),
    "docs/how-to/sequences.md": (beetles, beetle_models, bursts),
    "docs/how-to/ensembles.md": (beetles, more_beetles, beetle_models, several_models, trained),
    "docs/how-to/boxes.md": (animals,),
    "docs/how-to/landmarks.md": (wings,),
    "docs/how-to/labeling-tools.md": (beetles, beetle_models, labeling_tools),
    "docs/how-to/review.md": (beetles, more_beetles),
    "docs/how-to/numbers.md": (plants,),
    "docs/how-to/several-labels.md": (scenes,),
    "docs/how-to/microscopy.md": (cells,),
    "docs/how-to/studies.md": (beetles,),
    "docs/how-to/adopt.md": (beetles, beetle_models, foreign_models),
    "docs/how-to/embedding.md": (color_models,),
    "docs/how-to/any-language.md": (beetles, beetle_models),
    "docs/reference/model-file.md": (beetles, more_beetles, trained),
    "docs/reference/recipes.md": (beetles, recipes),
    "docs/tutorials/ecologist.md": (insects,),
    "docs/tutorials/morphometrics.md": (wings,),
    "docs/tutorials/inspection.md": (parts,),
    "docs/tutorials/tool-author.md": (color_models,),
}


def write_weights(folder: Path) -> None:
    """Weights of the small network, random but always the same: what an ImageNet download is to a backbone."""
    import torch
    from safetensors.torch import save_file

    from tl.trainer.models.backbones import build_trunk

    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = {name: tensor.contiguous() for name, tensor in build_trunk("smallcnn").state_dict().items()}
    save_file(tensors, folder / "smallcnn.safetensors")


def write_scripts(page: str, folder: Path) -> dict[str, Path]:
    """A page's stage and its Python blocks that run. Place of the block -> script."""
    folder.mkdir(parents=True, exist_ok=True)
    for make in STAGES.get(page, ()):
        make(folder)
    scripts = {}
    for block in read_blocks(page):
        if block.runs and block.language == "python":
            name = re.sub("[^a-z]+", "_", block.heading.lower())
            scripts[block.place] = folder / f"{name}_{len(scripts)}.py"
            scripts[block.place].write_text(block.code, encoding="utf-8")
    return scripts


if __name__ == "__main__":
    write_scripts(sys.argv[1], Path(sys.argv[2]))
