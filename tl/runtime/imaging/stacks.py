"""Choose the channels of a TIFF and project its planes to one, by the rules of the preprocessing.

Computes at the stored depth, plane by plane, and reduces to 8 bits at the end. Works on what `tiff_layout` found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tl.errors import ImageReadError
from tl.runtime.imaging.colors import arrange, check_brightest, find_channels, reduce_depth
from tl.runtime.imaging.preprocessing import PROJECTIONS, Preprocessing
from tl.runtime.imaging.refusals import CHOOSE
from tl.runtime.imaging.tiff_layout import Axis, Layout, Pages, is_tiff, opened_pages
from tl.runtime.imaging.tiff_pages import Pixels, check_pixels

# The most values read for one image: some seconds.
MAX_VALUES = 1 << 31


@dataclass(frozen=True)
class Stack:
    """Channels and planes of a file. `channel_axis`: place among the layout's axes; None: the samples of a page.

    `plane_axis`: place of the axis to project, None if there is a single plane.
    """

    layout: Layout
    channel_axis: int | None
    plane_axis: int | None

    @property
    def num_channels(self) -> int:
        """Number of channels."""
        return self.layout.samples if self.channel_axis is None else self.layout.axes[self.channel_axis].size

    @property
    def planes(self) -> Axis:
        """The axis to project."""
        return Axis("", 1) if self.plane_axis is None else self.layout.axes[self.plane_axis]

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels, or none."""
        names = self.layout.channel_names
        return names if len(names) == self.num_channels else ()

    def place(self, channel: int, plane: int) -> tuple[int, int]:
        """Return the page of a channel and plane, and the sample in it."""
        places = {self.plane_axis: plane, self.channel_axis: channel}
        page = 0
        for number, axis in enumerate(self.layout.axes):
            page = page * axis.size + places.get(number, 0)
        return page, channel if self.channel_axis is None else 0


def find_stack(layout: Layout, chooses_channels: bool, projects: bool) -> Stack:
    """Return which axes of a file are its channels and planes. Raises `ImageReadError` if others are left.

    Without an axis of channels, the pages of a plain file are its channels if `chooses_channels` and not `projects`.
    """
    letters = [axis.letter for axis in layout.axes]
    channel_axis = letters.index("C") if "C" in letters else None
    if channel_axis is not None and layout.samples > 1:
        raise ImageReadError("", f"a TIFF of {layout.axes[channel_axis]} in color: save its channels as gray")
    is_plain = len(letters) == 1 and letters[0] not in "CZT" and layout.samples == 1
    if is_plain and chooses_channels and not projects:
        channel_axis = 0
    others = [number for number in range(len(letters)) if number != channel_axis]
    if len(others) > 1:
        listed = " and ".join(str(layout.axes[number]) for number in others)
        raise ImageReadError("", f"a TIFF of {listed}: save one of these as a file of its own")
    return Stack(layout, channel_axis, others[0] if others else None)


@dataclass(frozen=True)
class OpenStack:
    """An open file and what the preprocessing chooses in it. `planes`: numbers of planes; `channels`: of channels."""

    stack: Stack
    pages: Pages
    channels: tuple[int, ...]
    planes: range
    preprocessing: Preprocessing

    @property
    def num_values(self) -> int:
        """Number of values that `read` decodes."""
        height, width = self.stack.layout.image_hw
        return height * width * len(self.channels) * len(self.planes)

    def read(self) -> NDArray[np.uint8]:
        """Return the chosen channels as stored, not turned: uint8 (H, W, C), see `colors.arrange`.

        Raises `ImageReadError`.
        """
        is_mean = self.preprocessing.project == "mean"
        totals: list[Pixels] = []
        for count, plane in enumerate(self.planes):
            for number, values in enumerate(self._plane(plane)):
                if count == 0:
                    totals.append(values.astype(np.uint32) if is_mean else values)
                elif is_mean:
                    totals[number] += values
                else:
                    np.maximum(totals[number], values, out=totals[number])
        reduce = self._reduce if self.stack.layout.bits == 16 else self._keep
        return arrange([reduce(total // len(self.planes) if is_mean else total) for total in totals])

    def brightest(self) -> int:
        """Return the largest value of the chosen channels and planes. Raises `ImageReadError`."""
        return max(int(values.max()) for plane in self.planes for values in self._plane(plane))

    def _plane(self, plane: int) -> Iterator[Pixels]:
        """Yield the chosen channels of a plane, larger values brighter."""
        last: tuple[int, Pixels] | None = None
        top = 255 if self.stack.layout.bits == 8 else self.preprocessing.bit_depth_max
        for channel in self.channels:
            page, sample = self.stack.place(channel, plane)
            if last is None or last[0] != page:
                last = page, self.pages.read(page)
            values = last[1][:, :, sample]
            check_brightest(int(values.max()), max(top, 255))
            yield (top - values).astype(values.dtype) if self.stack.layout.is_inverted else values.copy()

    def _reduce(self, values: Pixels) -> NDArray[np.uint8]:
        return reduce_depth(values.astype(np.uint32), self.preprocessing.bit_depth_max)

    @staticmethod
    def _keep(values: Pixels) -> NDArray[np.uint8]:
        return values.astype(np.uint8)


@dataclass(frozen=True)
class Channels:
    """How many channels a file has, and their names, if it names them."""

    count: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        names = f" ({', '.join(self.names)})" if self.names else ""
        return f"{self.count} channel{'s' if self.count > 1 else ''}{names}"


def read_channels(path: str) -> Channels | None:
    """Return the channels of a TIFF, read from its tags; None for other and unreadable files."""
    try:
        with open(path, "rb") as stream:
            if not is_tiff(stream.read(4)):
                return None
            with opened_pages(stream, MAX_VALUES) as pages:
                stack = find_stack(pages.layout, chooses_channels=True, projects=len(pages.layout.axes) > 1)
                return Channels(stack.num_channels, stack.channel_names)
    except Exception:  # on damaged files, tifffile raises almost any type; reading the images reports them
        return None


@contextmanager
def opened_stack(stream: BinaryIO, preprocessing: Preprocessing, max_pixels: int) -> Iterator[OpenStack | None]:
    """Open a TIFF for `channels` and `project` of the preprocessing; None for one image of which all is used.

    Raises `ImageReadError` if the file has channels or planes that the preprocessing does not choose from.
    """
    chosen, project = preprocessing.channels, preprocessing.project
    with opened_pages(stream, max_pixels) as pages:
        layout = pages.layout
        if chosen is None and not layout.axes:
            yield None
            return
        check_pixels(pages.series.keyframe.aspage())
        stack = find_stack(layout, chosen is not None, project is not None)
        opened = OpenStack(stack, pages, _channels(stack, chosen), _planes(stack.planes, project), preprocessing)
        if opened.num_values > MAX_VALUES:
            raise ImageReadError("", f"a stack of {opened.num_values} values, but the limit is {MAX_VALUES}: crop it")
        yield opened


def _channels(stack: Stack, chosen: tuple[str, ...] | None) -> tuple[int, ...]:
    if chosen is not None:
        return tuple(find_channels(chosen, stack.num_channels, stack.channel_names))
    if stack.num_channels == 1 or stack.layout.is_color:
        return tuple(range(stack.num_channels))
    raise ImageReadError("", f"a TIFF of {Channels(stack.num_channels, stack.channel_names)}: {_cure('channels')}")


def _planes(axis: Axis, project: str | None) -> range:
    if project is None:
        if axis.size > 1:
            raise ImageReadError("", f"a TIFF of {axis}: {_cure('project')}")
        return range(1)
    if project in PROJECTIONS:
        return range(axis.size)
    if int(project) >= axis.size:
        pages = f"are number 0 to {axis.size - 1}" if axis.size > 1 else "are only number 0"
        raise ImageReadError("", f"page {project} is not in this file, whose pages {pages}")
    return range(int(project), int(project) + 1)


def _cure(option: str) -> str:
    return f"{CHOOSE} ({option} is missing), or save what to use as an image of its own"
