"""``SensorFormat``: what a headerless frame is, since its file does not say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isp_distill.arguments import whole_number
from isp_distill.raw import fields
from isp_distill.raw.binning import sum_blocks
from isp_distill.raw.companding import MOST_VALUE, Curve, curve_of, is_knots, value_at
from isp_distill.raw.filters import Matrix
from isp_distill.raw.image import RawImage
from isp_distill.raw.metadata import Blacks, Gains
from isp_distill.raw.packings import PACKED, packing_of, row_bytes, unpack_rows
from isp_distill.raw.pixels import Pixels
from isp_distill.raw.sensor_names import named

BYTE_ORDERS = ("little", "big")
BLOCKS = (1, 2, 3)
# Of a mosaic, which is uint16.
_MOST_CODE = 0xFFFF
# Beyond this a frame is a mistake in its description: 4 gigapixels.
_MOST_PIXELS = 1 << 32


@dataclass(frozen=True)
class SensorFormat:
    """How the bytes of a frame become codes, and what the codes mean.

    Attributes:
        width: pixels in a row, a whole number of the filter's periods: even.
        height: rows, likewise.
        packing: how codes lie in bytes: mipi10, mipi12, mipi14, pfnc10p, pfnc12p, gige12packed,
            uint8 or uint16; see :mod:`isp_distill.raw.packings`.
        pattern: colours of the first 2x2 of the frame, row by row: "RGGB", "GRBG", "GBRG", "BGGR",
            or those of another filter, or "mono": see :class:`RawImage`. With ``block``, of its
            first 2x2 blocks.
        black: level of R, Gr, Gb, B in codes; one number stands for all four.
        block: sites a side that share one colour: 1 for Bayer, 2 for Quad-Bayer, 3 for 3x3 blocks.
            Each block is read as one Bayer site, the sum of its codes. The mosaic has ``width /
            block`` columns, and its black and white levels are ``block**2`` times these.
        companding: of a sensor that squeezes a range of up to 24 bits into its codes: knots
            ``[[code, value], ...]``, 2 to 256 of them, or a table of ``2**bits`` values.
            ``black`` and ``white`` are then linear values.
        bits: of a code; those of the packing if None. Of uint16 it is what the sensor gives.
        white: code at which the sensor saturates; ``2**bits - 1`` if None, or the linear value
            of that code.
        stride: bytes from one row to the next; those that the packing needs if None.
        header: bytes before the first frame of a file.
        byte_order: of uint16, "little" or "big".
        shift: of uint16, bits below the code where it lies in the high ones (6 for 10 bits).
        white_balance: gains of R, G, B, green 1.
        ccm: 3x3, white-balanced camera RGB to linear sRGB; each row sums to 1. Of another filter as
            in :class:`RawImage`: there is no default.
        orientation: EXIF orientation of the frames, 1 to 8.
        camera: its name.
        exposure_time: seconds, or None.
        iso: ISO speed, or None.

    Raises:
        TypeError: for a field of another type.
        ValueError: for one out of range, or that does not go with another.

    Example:
        >>> form = isp_distill.SensorFormat.named("SRGGB10P", width=640, height=480, black=64)
        >>> form.packing, form.white, form.frame_bytes
        ('mipi10', 1023.0, 384000)
    """

    width: int
    height: int
    packing: str
    pattern: str
    black: float | Blacks
    bits: int | None = None
    white: float | None = None
    stride: int | None = None
    header: int = 0
    byte_order: str = "little"
    shift: int = 0
    white_balance: float | Gains = (1.0, 1.0, 1.0)
    ccm: Matrix | None = None
    orientation: int = 1
    camera: str = ""
    exposure_time: float | None = None
    iso: float | None = None
    block: int = 1
    companding: Curve | None = None

    def __post_init__(self) -> None:
        self._set("block", whole_number(self.block, "block", least=1))
        if self.block not in BLOCKS:
            raise ValueError(f"block must be 1, 2 or 3 sites a side, got {self.block}")
        period = 2 * self.block
        for name in ("width", "height"):
            value = whole_number(getattr(self, name), name, least=period)
            if value % period:
                wanted = "even" if period == 2 else f"a multiple of {period}"
                raise ValueError(f"{name} must be {wanted}, a whole number of periods, got {value}")
            self._set(name, value)
        if self.width * self.height > _MOST_PIXELS:
            raise ValueError(f"a frame of {self.height} x {self.width} pixels is no frame")
        most = packing_of(self.packing).bits
        bits = most if self.bits is None else whole_number(self.bits, "bits", least=1)
        if bits > most or (bits != most and self.packing not in ("uint16", "uint8")):
            raise ValueError(f"bits is {bits}, and codes of {self.packing} have {most}")
        self._set("bits", bits)
        self._set("pattern", fields.pattern_of(self.pattern))
        self._set("header", whole_number(self.header, "header", least=0))
        self._set("shift", whole_number(self.shift, "shift", least=0))
        needed = row_bytes(self.width, self.packing)
        stride = needed if self.stride is None else whole_number(self.stride, "stride", least=1)
        if stride < needed:
            raise ValueError(
                f"stride is {stride} bytes, and a row of {self.width} pixels in {self.packing} "
                f"takes {needed}"
            )
        self._set("stride", stride)
        if self.byte_order not in BYTE_ORDERS:
            raise ValueError(f"byte_order must be little or big, not {self.byte_order!r}")
        if self.packing != "uint16" and (self.shift or self.byte_order != "little"):
            raise ValueError(f"shift and byte_order are of uint16, and packing is {self.packing}")
        if bits + self.shift > most:
            raise ValueError(f"{bits} bits shifted by {self.shift} do not fit {self.packing}")
        # What a RawImage may be made of, it knows itself.
        self._set("companding", curve_of(self.companding, "companding"))
        self._check_companding(bits)
        black = fields.black_of(self.black)
        white = self._last(bits) if self.white is None else self.white
        self._set("black", black)
        self._set("white", fields.white_of(white, black))
        self._check_sum()
        made = self.image(np.zeros((period, period), np.uint16))
        for name in ("white_balance", "orientation", "exposure_time", "iso"):
            self._set(name, getattr(made, name))
        # One that was not given is the filter's, whatever pattern this is replaced with.
        self._set("ccm", None if self.ccm is None else made.ccm)

    @classmethod
    def named(
        cls, name: str, *, width: int, height: int, black: float | Blacks, **others: Any
    ) -> SensorFormat:
        """A format by the name that drivers and cameras use.

        Args:
            name: of V4L2 or libcamera ("SRGGB10", "SRGGB10P", "SRGGB10_CSI2P", "SBGGR12P", "Y10P",
                "R12_CSI2P"), or of GenICam ("BayerRG12p", "BayerGB12Packed", "BayerRG16",
                "Mono12p").
            width: pixels in a row.
            height: rows.
            black: level in codes; no name says it.
            others: fields of the format that the name does not decide.

        Raises:
            ValueError: for an unknown name, or one of a packing or filter that is not served.
        """
        found = named(name)
        twice = sorted(found.keys() & others.keys())
        if twice:
            raise ValueError(f"{name} says what {twice[0]} is: {found[twice[0]]!r}")
        return cls(width=width, height=height, black=black, **{**found, **others})

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> SensorFormat:
        """A format from plain values, as TOML or JSON has them; ``format`` is a name.

        Raises:
            TypeError: for a field that it has not, or one of another type.
            ValueError: for a value out of range, or one that is missing.
        """
        given = {k: tuples(v) for k, v in values.items()}
        name = given.pop("format", None)
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise TypeError(f"has no field {unknown[0]!r}: there are format, {', '.join(known)}")
        asked = ["width", "height", "black", *(() if name is not None else ("packing", "pattern"))]
        missing = [field for field in asked if field not in given]
        if missing:
            raise ValueError(f"{', '.join(missing)} must be given")
        if name is None:
            return cls(**given)
        if not isinstance(name, str):
            raise TypeError(f"format must be a name, not {name!r}")
        return cls.named(name, **given)

    def replace(self, **changes: Any) -> SensorFormat:
        """The same format with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def frame_bytes(self) -> int:
        """The bytes of one frame, its last row's padding included."""
        assert self.stride is not None
        return self.stride * self.height

    def codes(self, rows: np.ndarray) -> np.ndarray:
        """The codes, uint16 ``[h, width]``, of rows of bytes, uint8 ``[h, stride]``."""
        order = self.byte_order == "big"
        return unpack_rows(rows, self.width, self.packing, shift=self.shift, big_endian=order)

    @property
    def keeps_bytes(self) -> bool:
        """Whether an image of this format may hold the frame's packed bytes as they are."""
        return self.packing in PACKED and self.block == 1

    def image(self, frame: np.ndarray | Pixels, path: str = "") -> RawImage:
        """A frame's codes, uint16 ``[h, width]``, or its pixels, as a RawImage of this format.

        Pixels that are packed stay so where :attr:`keeps_bytes` allows it. The blocks of a filter
        with ``block`` above 1 are summed; a sum stops at 65535, which is above white.
        """
        assert self.white is not None
        assert isinstance(self.black, tuple)
        scale = self.block**2
        r, gr, gb, b = self.black
        pixels = Pixels.of(frame) if isinstance(frame, np.ndarray) else frame
        if not self.keeps_bytes:
            pixels = Pixels.of(sum_blocks(pixels.codes, self.block))
        return RawImage(
            **pixels.fields(),
            pattern=self.pattern,
            black=(scale * r, scale * gr, scale * gb, scale * b),
            white=scale * self.white,
            white_balance=self.white_balance,  # type: ignore[arg-type]  # likewise, for three
            ccm=self.ccm,
            orientation=self.orientation,
            camera=self.camera,
            exposure_time=self.exposure_time,
            iso=self.iso,
            path=path,
            linearise=self.companding,
        )

    def _last(self, bits: int) -> float:
        """What the last code means."""
        last = 2.0**bits - 1
        return last if self.companding is None else value_at(self.companding, last)

    def _check_companding(self, bits: int) -> None:
        """Refuse a curve that does not go with the codes."""
        if self.companding is None:
            return
        if self.block > 1:
            raise ValueError(
                f"block is {self.block}, and the sum of companded codes means nothing: bin the "
                "frames' linear values yourself, or read the sensor binned"
            )
        length = len(self.companding)
        if not is_knots(self.companding) and length != 2**bits:
            raise ValueError(
                f"companding is a table of {length} values, and there are {2**bits} codes of "
                f"{bits} bits: give them all, or knots"
            )
        if self.white is not None and not abs(fields.number("white", self.white)) <= MOST_VALUE:
            raise ValueError(f"white is {self.white:g}, and linear values are up to 2^24")

    def _check_sum(self) -> None:
        """Refuse a white level whose sum over a block does not fit a mosaic."""
        assert self.white is not None
        whole = self.block**2 * self.white
        if self.block > 1 and whole > _MOST_CODE:
            shift = math.ceil(math.log2(whole / _MOST_CODE))
            raise ValueError(
                f"white is {self.white:g}, and the sum of a block of {self.block} x {self.block} "
                f"such codes {whole:g}: a mosaic holds up to {_MOST_CODE}. Write the frames with "
                f"codes shifted down by {shift} bits, levels too, or bin them yourself"
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def tuples(value: Any) -> Any:
    """Lists as tuples, those in them too: what a field holds, of what TOML and JSON have."""
    return tuple(tuples(part) for part in value) if isinstance(value, list) else value
