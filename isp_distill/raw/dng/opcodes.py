"""The corrections that a DNG asks for: its opcode lists, of which the gain map is applied.

Opcode lists are big-endian whatever the byte order of the file: a count, then for each opcode its
number, the version of the specification, flags, the size of its parameters, and these (DNG
specification 1.4, chapter 7). OpcodeList1 is meant for the stored values, OpcodeList2 for linear
ones, OpcodeList3 for the demosaiced picture.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from isp_distill.raw import tiff
from isp_distill.raw.gain_map import MAX_POINTS, MAX_POINTS_AN_AXIS, GainMap
from isp_distill.raw.metadata import SITE_PLANES

OPCODE_LISTS = {"OpcodeList1": 51008, "OpcodeList2": 51009, "OpcodeList3": 51022}
GAIN_MAP = 9
NAMES = {
    1: "WarpRectilinear",
    2: "WarpFisheye",
    3: "FixVignetteRadial",
    4: "FixBadPixelsConstant",
    5: "FixBadPixelsList",
    6: "TrimBounds",
    7: "MapTable",
    8: "MapPolynomial",
    9: "GainMap",
    10: "DeltaPerRow",
    11: "DeltaPerColumn",
    12: "ScalePerRow",
    13: "ScalePerColumn",
    14: "WarpRectilinear2",
}
_HEAD = struct.Struct(">IIII")
_COUNT = struct.Struct(">I")
_GAIN_MAP = struct.Struct(">10I4dI")
# An area that ends this close to the picture's edge covers it: some end it one period early.
_EDGE = 2


class OpcodeError(ValueError):
    """An opcode list is damaged; the message says how."""


class Opcode(NamedTuple):
    """One opcode: its number and its parameters."""

    number: int
    data: bytes

    @property
    def name(self) -> str:
        """What the specification calls it."""
        return NAMES.get(self.number, f"number {self.number}")


@dataclass(frozen=True)
class Corrections:
    """What the opcode lists of a file ask for.

    Attributes:
        gain_map: over the mosaic, or None.
        unapplied: in words, what is asked for and not done.
    """

    gain_map: GainMap | None = None
    unapplied: list[str] = field(default_factory=list)


class Placement(NamedTuple):
    """Where the mosaic lies in the picture that opcodes count in (the file's ActiveArea).

    Attributes:
        top: row of the active area that is the mosaic's first; may be negative.
        left: its column.
        height: of the active area.
        width: of the active area.
        pattern: of the mosaic.
    """

    top: int
    left: int
    height: int
    width: int
    pattern: str


def corrections_of(directory: tiff.Directory, placement: Placement) -> Corrections:
    """The corrections that the directory of the sensor data asks for.

    Raises:
        OpcodeError: OpcodeList2 is damaged, so how bright the corners should be is not known.
            Damaged lists of which nothing would be applied are named as not applied.
    """
    unapplied = []
    maps: list[Opcode] = []
    for name, tag in OPCODE_LISTS.items():
        try:
            opcodes = _opcodes(directory, tag)
        except OpcodeError as error:
            if name == "OpcodeList2":
                raise OpcodeError(f"its {name} {error}") from error
            unapplied.append(f"{name} (which {error})")
            continue
        applicable = name == "OpcodeList2"
        maps += [o for o in opcodes if applicable and o.number == GAIN_MAP]
        others = [o.name for o in opcodes if not (applicable and o.number == GAIN_MAP)]
        unapplied += [f"{other} of {name}" for other in dict.fromkeys(others)]
    if not maps:
        return Corrections(None, unapplied)
    try:
        gain_map = _combined([_parsed(o.data) for o in maps], placement)
    except _UnappliedError as error:
        return Corrections(None, [f"GainMap of OpcodeList2 ({error})", *unapplied])
    return Corrections(gain_map, unapplied)


class _UnappliedError(Exception):
    """A gain map is sound but of a kind that is not applied; says which."""


class _Map(NamedTuple):
    """The parameters of one GainMap opcode, in the specification's order."""

    top: int
    left: int
    bottom: int
    right: int
    plane: int
    planes: int
    row_pitch: int
    column_pitch: int
    points_y: int
    points_x: int
    spacing_y: float
    spacing_x: float
    origin_y: float
    origin_x: float
    gains: np.ndarray  # float32 [points_y, points_x]

    @property
    def grid(self) -> tuple[float, ...]:
        """Where its points lie, in shares of the picture's sides."""
        return (
            self.points_y, self.points_x, self.spacing_y, self.spacing_x, self.origin_y,
            self.origin_x,
        )  # fmt: skip


def _opcodes(directory: tiff.Directory, tag: int) -> list[Opcode]:
    """The opcodes of one list; [] where the tag is absent."""
    if tag not in directory:
        return []
    value = directory[tag]
    if isinstance(value, tuple) and all(isinstance(v, int) and 0 <= v < 256 for v in value):
        value = bytes(int(v) for v in value)
    if not isinstance(value, bytes) or len(value) < _COUNT.size:
        raise OpcodeError("cannot be read")
    (count,) = _COUNT.unpack_from(value)
    found: list[Opcode] = []
    start = _COUNT.size
    for _ in range(count):
        if start + _HEAD.size > len(value):
            raise OpcodeError(f"says it has {count} opcodes and ends after {len(found)}")
        number, _version, _flags, size = _HEAD.unpack_from(value, start)
        start += _HEAD.size
        if size > len(value) - start:
            raise OpcodeError(
                f"gives {NAMES.get(number, number)} {size} bytes, but has {len(value) - start}"
            )
        found.append(Opcode(number, value[start : start + size]))
        start += size
    return found


def _parsed(data: bytes) -> _Map:
    """A GainMap opcode from its parameters.

    Raises:
        OpcodeError: its numbers contradict each other.
        _UnappliedError: it has more points than any camera's.
    """
    if len(data) < _GAIN_MAP.size:
        raise OpcodeError(f"its GainMap has {len(data)} bytes, less than its {_GAIN_MAP.size}")
    *fixed, map_planes = _GAIN_MAP.unpack_from(data)
    points_y, points_x = fixed[8], fixed[9]
    # Python's integers do not overflow, and nothing is allocated before this is checked.
    wanted = 4 * points_y * points_x * map_planes
    if wanted == 0 or len(data) - _GAIN_MAP.size != wanted:
        raise OpcodeError(
            f"its GainMap says it has {points_y} x {points_x} points of {map_planes} gains, and "
            f"has {(len(data) - _GAIN_MAP.size) // 4} gains"
        )
    if points_y * points_x > MAX_POINTS or max(points_y, points_x) > MAX_POINTS_AN_AXIS:
        raise _UnappliedError(f"of {points_y} x {points_x} points, more than any camera's")
    gains = np.frombuffer(data, ">f4", offset=_GAIN_MAP.size).astype(np.float32)
    # A mosaic has one plane, which takes the first gain of each point.
    return _Map._make((*fixed, gains.reshape(points_y, points_x, map_planes)[:, :, 0]))


def _combined(maps: list[_Map], placement: Placement) -> GainMap:
    """One map of four planes: phones write one opcode for each site of the period, or for all.

    Raises:
        _UnappliedError: together they are no four planes on one grid over the whole mosaic.
    """
    first = maps[0]
    gains = np.ones((2, 2, first.points_y, first.points_x), np.float32)
    for one in maps:
        if one.grid != first.grid:
            raise _UnappliedError("of grids that differ")
        if one.plane != 0 or one.planes < 1:
            raise _UnappliedError(f"for plane {one.plane} of a mosaic, which has one")
        if one.row_pitch not in (1, 2) or one.column_pitch not in (1, 2):
            raise _UnappliedError(f"for every {one.row_pitch}th row, {one.column_pitch}th column")
        whole = (
            one.top < one.row_pitch
            and one.left < one.column_pitch
            and one.bottom >= placement.height - _EDGE
            and one.right >= placement.width - _EDGE
        )
        if not whole:
            area = (one.top, one.left, one.bottom, one.right)
            raise _UnappliedError(f"for a part of the picture, {area}")
        if not (np.isfinite(one.gains).all() and (one.gains > 0).all()):
            raise _UnappliedError("with gains that are not positive")
        # Several for one site follow each other: on one grid, the gains of its points multiply up
        # to the curvature between two points.
        gains[one.top :: one.row_pitch, one.left :: one.column_pitch] *= one.gains
    # Sites of the mosaic's period, then planes.
    planes = np.empty((4, first.points_y, first.points_x), np.float32)
    for site, plane in enumerate(SITE_PLANES[placement.pattern]):
        planes[plane] = gains[
            (site // 2 + placement.top) % 2, (site % 2 + placement.left) % 2
        ]  # fmt: skip
    # Shares of the picture's sides count from its edge, half a site before its first site.
    top, step_y = _axis(first.origin_y, first.spacing_y, first.points_y, placement.height)
    left, step_x = _axis(first.origin_x, first.spacing_x, first.points_x, placement.width)
    try:
        return GainMap(planes, top - placement.top, left - placement.left, step_y, step_x)
    except ValueError as error:
        raise _UnappliedError(f"whose {error}") from error


def _axis(origin: float, spacing: float, points: int, side: int) -> tuple[float, float]:
    """The first point and the step along one axis, in sites; one point alone needs no step."""
    return (0.0, 1.0) if points == 1 else (origin * side - 0.5, spacing * side)
