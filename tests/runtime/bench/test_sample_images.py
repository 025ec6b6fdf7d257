from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tl.runtime.bench.works import sample_jpeg


@pytest.mark.parametrize("size_wh", [(1, 1), (700, 513), (1600, 1200)])
def test_sample_jpeg__has_the_size_asked_for(size_wh: tuple[int, int]) -> None:
    with Image.open(BytesIO(sample_jpeg(size_wh))) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", size_wh, "RGB")


def test_sample_jpeg__is_as_hard_to_decode_as_a_photo() -> None:
    data = sample_jpeg((1600, 1200))
    # Phone photos take 0.1 to 0.4 bytes per pixel; a flat image would take 0.01, and noise more than 1.
    assert 0.1 < len(data) / (1600 * 1200) < 0.4
    with Image.open(BytesIO(data)) as image:
        assert np.asarray(image).std() > 20


def test_sample_jpeg__repeats_by_seed() -> None:
    assert sample_jpeg((64, 48), 1) == sample_jpeg((64, 48), 1) != sample_jpeg((64, 48), 2)
