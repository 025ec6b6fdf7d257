"""Files that are read, but maybe not as meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.runtime.images import encode, noise, png
from tl.data.file_audit import find_file_faults
from tl.data.manifests import LabeledImage
from tl.runtime.imaging.preprocessing import build_preprocessing


def save(folder: Path, contents: list[bytes], split: str = "train") -> list[LabeledImage]:
    images = []
    for i, content in enumerate(contents):
        path = folder / f"{split}-{i}"
        path.write_bytes(content)
        images.append(LabeledImage(str(path), path.name, "a", split))
    return images


def gray16(brightest: int, kind: str = "PNG") -> bytes:
    return encode(np.linspace(0, brightest, 64).astype(np.uint16).reshape(8, 8), kind)


def rgba(alpha: NDArray[np.uint8]) -> bytes:
    return encode(Image.fromarray(np.dstack([noise(8, 8), alpha])), "PNG")


def test_find_file_faults__12_bits_in_16(tmp_path: Path) -> None:
    images = save(tmp_path, [gray16(3000 + 10 * i) for i in range(10)])
    (finding,) = find_file_faults(images, build_preprocessing((8, 8), bit_depth_max=65535))
    assert (finding.kind, finding.path) == ("bit depth", "train-0")
    assert finding.detail == (
        "the brightest value of 10 16-bit images is 3090 of 65535: they become dark, at most 12 of 255; if the camera "
        "has fewer bits, set bit_depth_max=4095"
    )
    assert find_file_faults(images, build_preprocessing((8, 8), bit_depth_max=4095)) == []
    assert find_file_faults(images[:7], build_preprocessing((8, 8), bit_depth_max=65535)) == []


def test_find_file_faults__one_bright_image_among_12_bit_ones(tmp_path: Path) -> None:
    (finding,) = find_file_faults(
        save(tmp_path, [gray16(4000)] * 19 + [gray16(65535)]), build_preprocessing((8, 8), bit_depth_max=65535)
    )
    assert finding.detail.endswith(
        "1 of 20 inspected images exceed it: rescale all images to the full range of 16 bits"
    )
    assert (
        find_file_faults(
            save(tmp_path, [gray16(4000)] * 10 + [gray16(65535)] * 10), build_preprocessing((8, 8), bit_depth_max=65535)
        )
        == []
    )


def test_find_file_faults__12_bit_color_cannot_be_rescaled_here(tmp_path: Path) -> None:
    dark = png(2, 2, bits=16, color=2, rows=np.full((2, 2, 3), 4001, ">u2").tobytes())
    (finding,) = find_file_faults(save(tmp_path, [dark] * 8), build_preprocessing((8, 8), bit_depth_max=65535))
    assert finding.detail.endswith("at most 15 of 255; rescale the images to the full range of 16 bits")


def test_find_file_faults__alpha_that_looks_like_data(tmp_path: Path) -> None:
    (finding,) = find_file_faults(
        save(tmp_path, [rgba(noise(8, 8, i)[:, :, 0]) for i in range(8)]),
        build_preprocessing((8, 8), bit_depth_max=65535),
    )
    assert finding.kind == "transparency"
    assert finding.detail.startswith("8 of 8 inspected images have a half-transparent alpha channel")
    cut_outs = [rgba(np.where(np.eye(8), 0, 255).astype(np.uint8))] * 20
    assert find_file_faults(save(tmp_path, cut_outs), build_preprocessing((8, 8), bit_depth_max=65535)) == []


def test_find_file_faults__invisible_image(tmp_path: Path) -> None:
    (finding,) = find_file_faults(
        save(tmp_path, [rgba(np.zeros((8, 8), np.uint8)), encode(noise(), "PNG")]),
        build_preprocessing((8, 8), bit_depth_max=65535),
    )
    assert (finding.kind, finding.path) == ("transparency", "train-0")
    assert "all pixels are transparent, so the image is white" in finding.detail


def test_find_file_faults__formats_without_checksum(tmp_path: Path) -> None:
    kinds = ["TIFF", "BMP", "TIFF", "JPEG", "PNG", "WEBP"]
    images = save(tmp_path, [encode(noise(), kind) for kind in kinds])
    images += save(tmp_path, [encode(noise(), "GIF")], "val")
    (finding,) = find_file_faults(images, build_preprocessing((8, 8), bit_depth_max=65535))
    assert (finding.kind, finding.path) == ("no checksum", "")
    assert finding.detail == (
        "training images in formats whose decoders do not detect all damage to a file: 2 TIFF, 1 BMP, 1 WebP"
    )


def test_find_file_faults__missing_file(tmp_path: Path) -> None:
    assert (
        find_file_faults(
            [LabeledImage(str(tmp_path / "gone"), "gone", "a", "train")],
            build_preprocessing((8, 8), bit_depth_max=65535),
        )
        == []
    )
