"""Mosaics and the cameras' pictures of them, laid over one another once for each camera.

A camera cuts and scales all its pictures alike, so a registration (``registration.py``) is the
median of several of its files. Which ones they are depends on the dataset alone, not on which file
is asked for first: some files are looked at, spread evenly over it. Each file is then measured
against its camera's registration, once. Where that does not fit, the file's own may; else it is
left out, with the number.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from isp_distill.arguments import real_number
from isp_distill.data.camera_picture import CameraPicture
from isp_distill.data.draw import Draw
from isp_distill.data.registration import LEAST_SIDE, WIDTH, Registration, misaligned, register
from isp_distill.errors import RawError
from isp_distill.raw.framing import Rectangle
from isp_distill.raw.image import RawImage

Array = np.ndarray[Any, Any]

#: How far apart the worst part of a pair may be, in pixels of a mosaic 1000 pixels long: less than
#: one of the 224 that a teacher sees.
MAX_MISALIGNMENT = 4.0
# Files that are looked at to learn how the cameras cut their pictures, and how many of one camera.
_SURVEYED, _OF_ONE = 12, 5
# Parts of the grid that must say that a camera's registration holds for a file.
_PARTS = 2
# Pictures are compared at twice the registration's width at most.
_SIDE = 2 * WIDTH

#: Camera, lens, mosaic, default crop, picture and how that was turned: what decides the cut.
Key = tuple[str, str, tuple[int, int], Rectangle | None, tuple[int, int], int]


@dataclass(frozen=True)
class Aligned:
    """A file's picture, and how it lies over its mosaic.

    Attributes:
        picture: the camera's.
        registration: see there.
    """

    picture: CameraPicture
    registration: Registration

    @property
    def within(self) -> Rectangle:
        """The part of the mosaic that both show."""
        return self.registration.shown

    def view(self, window: Rectangle, drawn: Draw, side: int) -> Array:
        """What the teacher sees of a view: uint8 ``[side, side, 3]``, turned over as the mosaic is.

        Args:
            window: the view in the mosaic: top, left, height, width.
            drawn: of it, the mirror and the flip.
            side: of the result.
        """
        cut = self.picture.cut(self.registration.window(window), (side, side))
        cut = cut[:, ::-1] if drawn.mirror else cut
        return np.ascontiguousarray(cut[::-1] if drawn.flip else cut)


#: Makes the i-th upright RAW image and its picture.
Pair = Callable[[int], tuple[RawImage, CameraPicture]]


@runtime_checkable
class PairedSource(Protocol):
    """A source that may know the camera's picture of each of its files."""

    def aligned(self, index: int, raw: RawImage | None = None) -> Aligned | None:
        """The picture of the i-th file; None where the source gives no pictures.

        Args:
            index: of the file.
            raw: the file, where the caller has it already.

        Raises:
            RawError: it has no picture, or that does not lie over the mosaic.
        """
        ...


class Pairs:
    """How the pictures of a dataset lie over its mosaics, found when it is first needed.

    Thread-safe; a copy in another process finds the same.

    Args:
        length: of the dataset.
        max_misalignment: see :class:`isp_distill.RawFolder`.

    Attributes:
        registrations: of each camera, lens and size; None until a file was asked for.

    Raises:
        TypeError: ``max_misalignment`` is no number.
        ValueError: it is not above 0.
    """

    def __init__(self, length: int, max_misalignment: float = MAX_MISALIGNMENT) -> None:
        self.max_misalignment = real_number(max_misalignment, "max_misalignment")
        if not self.max_misalignment > 0:
            raise ValueError(f"max_misalignment must be above 0, not {max_misalignment}")
        self._length = length
        self.registrations: dict[Key, Registration] | None = None
        self._known: dict[int, Registration | str] = {}
        self._lock = threading.Lock()

    def place(
        self, index: int, raw: RawImage | None, picture: CameraPicture, pair: Pair
    ) -> Aligned:
        """Lay the i-th file's picture over its mosaic.

        Args:
            index: of the file.
            raw: the file; None where the caller has not read it, and it is read if need be.
            picture: the camera's.
            pair: reads any file of the dataset, and its picture.

        Raises:
            RawError: the picture does not lie over the mosaic, or too far off.
        """
        known = self._known.get(index)
        if known is None:
            raw = pair(index)[0] if raw is None else raw
            known = self._known[index] = self._placed(raw, picture, pair)
        if isinstance(known, str):
            raise RawError((raw.path if raw is not None else "") or picture.name, known)
        return Aligned(picture, known)

    def _placed(self, raw: RawImage, picture: CameraPicture, pair: Pair) -> Registration | str:
        """How a file's picture lies over its mosaic, or why that is not known well enough."""
        if raw.orientation != 1:
            return (
                f"its mosaic lies on its side (orientation {raw.orientation}), its picture stands "
                "upright: turn it (isp_distill.upright)"
            )
        common = self._surveyed(pair).get(_key(raw, picture))
        if common is not None:
            if math.isinf(self.max_misalignment):
                return common
            found = misaligned(raw, picture.whole(_SIDE), common)
            if found.parts >= _PARTS and found.residual <= self.max_misalignment:
                return found
        try:
            own = registered(raw, picture)
        except RawError as error:
            return error.reason
        if own.residual <= self.max_misalignment:
            return own
        return (
            f"its picture lies up to {own.residual:.1f} pixels (of a width of {WIDTH}) away from "
            f"its mosaic: at most {self.max_misalignment:g} are allowed (max_misalignment)"
        )

    def _surveyed(self, pair: Pair) -> dict[Key, Registration]:
        """The registrations of the cameras of some files, spread evenly over the dataset."""
        with self._lock:
            if self.registrations is None:
                found: dict[Key, list[Registration]] = {}
                count = min(_SURVEYED, self._length)
                for number in range(count):
                    index = number * self._length // count
                    try:
                        raw, picture = pair(index)
                        of_one = found.setdefault(_key(raw, picture), [])
                        if raw.orientation == 1 and len(of_one) < _OF_ONE:
                            of_one.append(registered(raw, picture))
                    except RawError:
                        continue  # whoever reads that file hears why
                self.registrations = {key: _median(ones) for key, ones in found.items() if ones}
            return self.registrations

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"]
        state["_known"] = dict(self._known)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def registered(raw: RawImage, picture: CameraPicture) -> Registration:
    """A picture's registration, of which no more is decoded than that needs.

    Raises:
        RawError: it does not show what the mosaic does.
    """
    pixels = picture.whole(_SIDE)
    if min(pixels.shape[:2]) < LEAST_SIDE:
        height, width = picture.shape
        raise RawError(picture.name, f"its picture of {height} x {width} is too small to be of use")
    return resized(register(raw, pixels), picture.shape)


def resized(found: Registration, picture: tuple[int, ...]) -> Registration:
    """The registration of a picture at another size: height and width."""
    factor = [a / b for a, b in zip(picture, found.picture, strict=True)]
    # Where rounding made the copy's sides unlike, the longer one has the better ratio.
    scale = found.scale * factor[picture[1] >= picture[0]]
    shift = found.shift[0] * factor[0], found.shift[1] * factor[1]
    return dataclasses.replace(found, scale=scale, shift=shift, picture=(picture[0], picture[1]))


def _median(ones: list[Registration]) -> Registration:
    scale, down, right = (
        float(np.median([one[number] for one in ((o.scale, *o.shift) for o in ones)]))
        for number in range(3)
    )
    return dataclasses.replace(ones[0], scale=scale, shift=(down, right))


def _key(raw: RawImage, picture: CameraPicture) -> Key:
    size = raw.height, raw.width
    return (raw.camera, picture.lens, size, raw.default_crop, picture.shape, picture.orientation)
