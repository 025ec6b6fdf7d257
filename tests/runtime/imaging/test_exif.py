from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.runtime.exif_photos import make_exif, save_photo
from tests.runtime.fuzz import EXAMPLES, mutate, mutations
from tl.runtime.imaging.exif import NOTHING, CaptureFacts, parse_facts, read_facts

BERLIN = {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 36.0)}
SYDNEY = {1: "S", 2: (33.0, 52.0, 0.0), 3: "e", 4: (151.0, 12.0, 0.0)}
WHOLE = {"fraction": "25", "offset": "+02:00", "make": "Reconyx", "model": "HP2X", "serial": "H123", "gps": BERLIN}
TAKEN = "2026:05:01 12:30:15"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_read_facts__of_every_format(tmp_path: Path, suffix: str) -> None:
    facts = read_facts(save_photo(tmp_path / f"a.{suffix}", TAKEN, **WHOLE))
    assert facts.captured == datetime(2026, 5, 1, 12, 30, 15, 250_000, timezone(timedelta(hours=2)))
    assert facts.captured.isoformat() == "2026-05-01T12:30:15.250000+02:00"
    assert (facts.make, facts.model, facts.serial) == ("Reconyx", "HP2X", "H123")
    assert (facts.latitude, facts.longitude) == (52.52, 13.41)


def test_read_facts__of_bytes_files_and_what_has_none(tmp_path: Path) -> None:
    path = save_photo(tmp_path / "a.jpg", TAKEN)
    expected = CaptureFacts(captured=datetime(2026, 5, 1, 12, 30, 15))
    assert read_facts(path.read_bytes()) == expected
    assert read_facts(BytesIO(path.read_bytes())) == expected
    (tmp_path / "bad.jpg").write_bytes(b"nothing like an image")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "plain.png")
    for source in (
        tmp_path / "bad.jpg",
        tmp_path / "missing.jpg",
        tmp_path / "plain.png",
        np.zeros((4, 4, 3), np.uint8),
    ):
        assert read_facts(source) == NOTHING


def test_read_facts__of_a_truncated_photo(tmp_path: Path) -> None:
    path = save_photo(tmp_path / "a.jpg", TAKEN)
    path.write_bytes(path.read_bytes()[:-8])
    assert read_facts(path).captured == datetime(2026, 5, 1, 12, 30, 15)


@pytest.mark.parametrize(
    ("taken", "fraction", "offset", "captured"),
    [
        ("0000:00:00 00:00:00", "", "", None),
        ("    :  :     :  :  ", "", "", None),
        ("2026:02:30 12:00:00", "", "", None),
        ("2026-05-01 12:00:00", "", "", None),
        ("yesterday", "", "", None),
        ("2026:05:01 12:00:00", "abc", "nonsense", datetime(2026, 5, 1, 12)),
        ("2026:05:01 12:00:00", "1234567890", "+99:00", datetime(2026, 5, 1, 12, 0, 0, 123456)),
        ("2026:05:01 12:00:00", "", "-03:30", datetime(2026, 5, 1, 12, tzinfo=timezone(-timedelta(hours=3.5)))),
        ("2026:05:01 12:00:00", "", "+00:00", datetime(2026, 5, 1, 12, tzinfo=UTC)),
        ("9999:12:31 23:59:59", "", "", datetime(9999, 12, 31, 23, 59, 59)),
    ],
)
def test_parse_facts__times(taken: str, fraction: str, offset: str, captured: datetime | None) -> None:
    facts = parse_facts(make_exif(taken, fraction=fraction, offset=offset).tobytes())
    assert facts.captured == captured
    assert captured is None or facts.captured is not None
    assert captured is None or facts.captured.tzinfo == captured.tzinfo


def test_parse_facts__falls_back_on_the_time_of_digitizing() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0x9003: "0000:00:00 00:00:00", 0x9004: "2026:05:01 12:00:00"})
    assert parse_facts(exif.tobytes()).captured == datetime(2026, 5, 1, 12)


@pytest.mark.parametrize(
    ("gps", "place"),
    [
        (SYDNEY, (-33.8666667, 151.2)),
        ({**BERLIN, 2: (99.0, 0.0, 0.0)}, (None, None)),
        ({**BERLIN, 1: "Q"}, (None, None)),
        ({1: "N", 2: (52.0, 0.0, 0.0)}, (None, None)),
        ({**BERLIN, 2: (52.0, 31.0)}, (None, None)),
    ],
)
def test_parse_facts__places(gps: dict[int, object], place: tuple[float | None, float | None]) -> None:
    facts = parse_facts(make_exif(gps=gps).tobytes())
    assert (facts.latitude, facts.longitude) == place


def test_parse_facts__zero_denominators_are_no_place() -> None:
    block = make_exif(gps=BERLIN).tobytes()
    assert parse_facts(block).latitude is not None
    for denominator in (1, 1):
        block = block.replace(struct.pack("<II", 52, denominator), struct.pack("<II", 52, 0))
        block = block.replace(struct.pack(">II", 52, denominator), struct.pack(">II", 52, 0))
    assert parse_facts(block).latitude is None


def test_parse_facts__text_controls_no_terminal() -> None:
    assert parse_facts(make_exif(make="Ca\x1b[31mnon\n").tobytes()).make == "Ca [31mnon"


def test_parse_facts__directories_that_lead_back_end() -> None:
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)  # the directory of Exif tags is the main directory
    gps = struct.pack("<HHII", 0x8825, 4, 1, 8)
    block = b"II*\0" + struct.pack("<IH", 8, 2) + entry + gps + struct.pack("<I", 8)
    assert parse_facts(block) == NOTHING


def test_parse_facts__a_huge_directory_reads_little() -> None:
    class Counting(BytesIO):
        count = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            Counting.count += len(found)
            return found

    entries = b"".join(struct.pack("<HHII", 0x010F, 2, 0xFFFFFFFF, 0) for _ in range(60_000))
    from tl.runtime.imaging.exif import _parse

    assert _parse(Counting(b"II*\0" + struct.pack("<IH", 8, 60_000) + entries)) == NOTHING
    assert Counting.count < 10_000


@EXAMPLES
@given(mutations())
def test_parse_facts__never_fails_on_damaged_data(changes: list[tuple[int, int, bytes]]) -> None:
    facts = parse_facts(mutate(make_exif(TAKEN, **WHOLE).tobytes(), changes))
    assert facts.latitude is None or -90 <= facts.latitude <= 90
    assert facts.captured is None or facts.captured.isoformat()


@EXAMPLES
@given(st.binary(max_size=300))
def test_parse_facts__never_fails_on_any_data(data: bytes) -> None:
    parse_facts(data)
    parse_facts(b"II*\0\x08\0\0\0" + data)
    parse_facts(b"MM\0*\0\0\0\x08" + data)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("photos")
    return [save_photo(folder / f"a.{kind}", TAKEN, **WHOLE).read_bytes() for kind in ("jpg", "png", "webp", "tif")]


@EXAMPLES
@given(st.integers(0, 3), mutations())
@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged files; commands silence them too
def test_read_facts__never_fails_on_a_damaged_photo(
    photos: list[bytes], kind: int, changes: list[tuple[int, int, bytes]]
) -> None:
    facts = read_facts(mutate(photos[kind], changes))
    assert isinstance(facts, CaptureFacts)


def test_read_facts__leaves_a_file_where_it_was(tmp_path: Path) -> None:
    stream = BytesIO(save_photo(tmp_path / "a.jpg", TAKEN).read_bytes())
    stream.seek(7)
    assert read_facts(stream) != NOTHING
    assert stream.tell() == 7
