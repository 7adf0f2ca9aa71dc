"""Colour filters: what stands at the four sites of a 2x2 period, Bayer's and others.

A filter has a first colour, two sites beside it (one in its row, one in its column) and a last
colour across from it. The planes of a packed mosaic are in that order: R, Gr, Gb, B for Bayer.
Where one colour is doubled, it has the two sites in the middle.

A pattern is a filter whose period begins at one of its four sites. It is named by its colours, row
by row ("RYYB"), and numbered ``4 * filter + site of the first colour``. The two lowest bits alone
decide which site goes to which plane, so that is all that a kernel reads; the rest says what the
planes are. This module does not import torch: decode workers load it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Matrix = tuple[tuple[float, ...], ...]

#: Planes of white, of camera to sRGB: three equal channels.
GREY: Matrix = ((1.0,), (1.0,), (1.0,))


@dataclass(frozen=True)
class ColourFilter:
    """What the four planes of a filter are.

    Attributes:
        name: of the filter.
        planes: what stands at the first site, in its row, in its column, and across from it.
        columns: of its colour matrix: 3 where a colour is doubled, 4 where all differ, 1 for mono.
    """

    name: str
    planes: tuple[str, str, str, str]
    columns: int

    @property
    def patterns(self) -> tuple[str, str, str, str]:
        """Its four names, by the site of the first colour."""
        if self.columns == 1:
            return (self.name,) * 4
        zero, one, two, three = (
            "".join(self.planes[first ^ site] for site in range(4)) for first in range(4)
        )
        return zero, one, two, three


def _doubled(first: str, doubled: str, last: str) -> ColourFilter:
    planes = (first, doubled, doubled, last)
    return ColourFilter("".join(planes), planes, 3)


#: By number. In the two with infrared it took the place of either green.
FILTERS = (
    ColourFilter("RGGB", ("R", "G", "G", "B"), 3),
    _doubled("R", "C", "B"),
    _doubled("R", "C", "G"),
    _doubled("R", "Y", "B"),
    _doubled("R", "Y", "Cy"),
    ColourFilter("RGBIr", ("R", "G", "Ir", "B"), 4),
    ColourFilter("RGBIr", ("R", "Ir", "G", "B"), 4),
    ColourFilter("mono", ("grey", "grey", "grey", "grey"), 1),
)
_MONO = 4 * (len(FILTERS) - 1)
#: Every pattern's name, by its number; those of mono, which has no first site, are one.
NAMES = tuple(name for one in FILTERS for name in one.patterns)
#: Every name once.
KNOWN = tuple(dict.fromkeys(NAMES))
_NUMBERS = {name.lower(): 4 * i + first for i, one in reversed([*enumerate(FILTERS)])
            for first, name in reversed([*enumerate(one.patterns)])}  # fmt: skip


def number_of(pattern: object) -> int:
    """The number of a pattern, by its name in any case.

    Raises:
        ValueError: there is none of this name; the message says what to do instead.
    """
    number = _NUMBERS.get(pattern.lower()) if isinstance(pattern, str) else None
    if number is None:
        raise ValueError(
            f"unknown pattern {pattern!r}: expected one of {', '.join(KNOWN)}{_instead(pattern)}"
        )
    return number


def _instead(pattern: object) -> str:
    said = pattern.lower() if isinstance(pattern, str) else ""
    if said in ("x-trans", "xtrans", "x_trans"):
        return "; the 6x6 period of X-Trans is not served"
    if said == "rgbir":
        return (
            "; patterns are named row by row, so that of RGB with infrared is one of "
            f"{', '.join(FILTERS[5].patterns + FILTERS[6].patterns)}"
        )
    letters = re.findall("cy|ir|[a-z]", said)
    if sorted(letters) == ["b", "g", "ir", "r"]:
        return "; red and blue must stand across from each other, as in RGIrB"
    return "; Quad-Bayer and 3x3 blocks are read as one of these with SensorFormat(block=)"


def filter_of(pattern: str | int) -> ColourFilter:
    """The filter of a pattern, by its name or its number."""
    number = number_of(pattern) if isinstance(pattern, str) else pattern
    return FILTERS[number // 4]


def is_bayer(pattern: str | int) -> bool:
    """Whether it is one of RGGB, GRBG, GBRG, BGGR."""
    return (number_of(pattern) if isinstance(pattern, str) else pattern) < 4


def name_of(number: int) -> str:
    """The name of a pattern's number."""
    return NAMES[number]


def moved(pattern: str, rows: int, columns: int) -> str:
    """The pattern of a mosaic that begins so many rows and columns further on.

    A mirror exchanges the two sites of a period too, since mosaics have even sides: it is as one
    column, or one row, further on.
    """
    return NAMES[number_of(pattern) ^ (rows % 2 * 2 + columns % 2)]


def transposed(pattern: str) -> str:
    """The pattern of a mosaic whose rows and columns are exchanged.

    The two planes in the middle change places: see :func:`exchanged`.
    """
    number = number_of(pattern)
    first = (0, 2, 1, 3)[number % 4]
    if FILTERS[number // 4].columns == 4:
        return NAMES[4 * (5 if number // 4 == 6 else 6) + first]
    return NAMES[number // 4 * 4 + first]


def exchanged(matrix: Matrix | None) -> Matrix | None:
    """The colour matrix that goes with a transposed mosaic: of four colours, two change places."""
    if matrix is None or len(matrix[0]) != 4:
        return matrix
    return tuple((a, c, b, d) for a, b, c, d in matrix)


def letter_of(number: int, plane: int) -> str:
    """The colour of a plane of a pattern, for pictures and reports."""
    return FILTERS[number // 4].planes[plane]


def missing_matrix(pattern: str) -> str:
    """What to say where a picture is asked of a filter whose colours nothing explains."""
    planes = filter_of(pattern).planes
    given = planes if filter_of(pattern).columns == 4 else (planes[0], planes[1], planes[3])
    return (
        f"the mosaic's filter is {pattern}, and nothing says what its colours are: give the "
        f"camera's colour matrix from ({', '.join(given)}) to linear sRGB, ccm of 3 rows with "
        f"{len(given)} numbers each, in RawImage, ISP or sensor.toml"
    )
