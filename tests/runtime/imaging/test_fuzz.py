"""Fuzz images and contracts: any bytes give either a result or the one expected error.

TL_FUZZ_EXAMPLES=20000 tries that many of each, at random.
"""

from __future__ import annotations

import json
import resource
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.models import make_contract
from tests.runtime.fuzz import EXAMPLES, mutate, mutations
from tests.runtime.images import RECIPE
from tests.runtime.tiny_images import IMAGES
from tl.errors import ImageReadError, ModelFileError
from tl.runtime.imaging.decode import FORMATS, MAX_PIXELS, decode_image
from tl.runtime.model_file.contract import dump_contract, parse_contract

CONTRACT = dump_contract(make_contract())
# Memory limit for the largest allowed image, of which conversion holds two or three copies.
MAX_MEMORY_BYTES = 3 * 4 * MAX_PIXELS


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def test_seeds__every_format_is_there_and_good() -> None:
    assert set(FORMATS) <= set(IMAGES)
    for name, data in IMAGES.items():
        assert decode_image(data, RECIPE).shape == (4, 4, 3), name


@pytest.mark.filterwarnings("ignore")  # Pillow warns about unusual tags and many pixels, which are not decoder errors
def test_decode_image__mutated() -> None:
    @EXAMPLES
    @given(st.sampled_from(sorted(IMAGES)), mutations())
    @example("PNG", [(0, 0, b"")])
    @example("GIF", [(6, 1, b"\xff\x7f\xff\x7f")])  # a screen of 32767 x 32767
    def run(name: str, changes: list[tuple[int, int, bytes]]) -> None:
        with suppress(ImageReadError):  # no other exception
            image = decode_image(mutate(IMAGES[name], changes), RECIPE)
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
            assert image.size > 0

    before = peak_bytes()
    run()
    assert peak_bytes() - before < MAX_MEMORY_BYTES


@EXAMPLES
@given(mutations())
@example([])
def test_parse_contract__mutated(changes: list[tuple[int, int, bytes]]) -> None:
    text = mutate(CONTRACT.encode(), changes).decode(errors="replace")
    with suppress(ModelFileError):  # no other exception
        contract = parse_contract(text, "a.onnx")
        assert parse_contract(dump_contract(contract), "a.onnx") == contract


@EXAMPLES
@given(st.recursive(st.none() | st.floats() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=2)))
@example("\ud800")
@example("a\0b")
def test_parse_contract__any_name(name: object) -> None:
    plain = json.loads(CONTRACT)
    plain["class_names"][0] = plain["provenance"]["config"]["x"] = name
    with suppress(ModelFileError):
        dump_contract(parse_contract(json.dumps(plain), "a.onnx")).encode()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 100_000, '"' + "\\u0000" * 1000, "-" * 1000])
def test_parse_contract__without_end(text: str) -> None:
    with pytest.raises(ModelFileError, match=r"a.onnx: invalid contract"):
        parse_contract(text, "a.onnx")
