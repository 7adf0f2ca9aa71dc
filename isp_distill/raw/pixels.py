"""``Pixels``: rows of a mosaic, as codes or still as the sensor's packed bytes.

Here alone it is decided what packed bytes live through. They stay packed where rows are chosen or
turned upside down, and where columns are chosen that begin with a whole group. Whatever else moves
or changes pixels sees their codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from isp_distill.raw.packings import packing_of, row_bytes, unpack_rows


@dataclass(frozen=True, eq=False)
class Pixels:
    """Rows of a mosaic.

    Attributes:
        array: codes ``[h, width]``, any integer type; or packed bytes, uint8 ``[h, bytes]``.
        packing: how the codes lie in the bytes; None where they are codes.
        width: pixels in a row.
    """

    array: np.ndarray[Any, Any]
    packing: str | None
    width: int

    @classmethod
    def of(cls, codes: np.ndarray[Any, Any]) -> Pixels:
        """Of codes ``[h, w]``."""
        return cls(codes, None, codes.shape[1])

    @property
    def height(self) -> int:
        """The number of rows."""
        return int(self.array.shape[0])

    def unpacked(self) -> Pixels:
        """The same as codes; what is unpacked is uint16."""
        if self.packing is None:
            return self
        return Pixels.of(unpack_rows(self.array, self.width, self.packing))

    @property
    def codes(self) -> np.ndarray[Any, Any]:
        """The codes, ``[h, width]``."""
        return self.unpacked().array

    def window(self, top: int, left: int, height: int, width: int) -> Pixels:
        """A rectangle, a view of this where it can be; no other pixels are unpacked."""
        rows = self.array[top : top + height]
        if self.packing is None:
            return Pixels.of(rows[:, left : left + width])
        group = packing_of(self.packing)
        first, before = divmod(left, group.pixels)
        start = first * group.bytes
        end = start + row_bytes(before + width, self.packing)
        found = Pixels(rows[:, start:end], self.packing, before + width)
        if not before:
            return found
        return Pixels.of(found.codes[:, before:])

    def flipped(self) -> Pixels:
        """Upside down."""
        return Pixels(self.array[::-1], self.packing, self.width)

    def mirrored(self) -> Pixels:
        """Left and right exchanged: codes."""
        return Pixels.of(self.codes[:, ::-1])

    def transposed(self) -> Pixels:
        """Rows as columns: codes."""
        return Pixels.of(self.codes.T)

    def copied(self) -> Pixels:
        """In memory of its own."""
        return Pixels(self.array.copy(), self.packing, self.width)

    def fields(self) -> dict[str, Any]:
        """What a RawImage of these pixels has for mosaic, packing and packed_width."""
        packed_width = None if self.packing is None else self.width
        return {"mosaic": self.array, "packing": self.packing, "packed_width": packed_width}
