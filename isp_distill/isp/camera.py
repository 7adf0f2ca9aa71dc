"""``ISP``: what is needed to make a picture of a mosaic, as a frozen dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isp_distill.arguments import whole_number
from isp_distill.isp.curves import batched_curves, table_of_curves
from isp_distill.isp.gain_maps import GainMaps
from isp_distill.isp.matrices import (
    check_columns,
    checked_matrix,
    columns_of,
    joined_matrices,
    matrix_or_default,
    without_matrix,
)
from isp_distill.raw.cfa import pattern_code, pattern_codes, per_sample
from isp_distill.raw.companding import MOST_CODES, tables_of
from isp_distill.raw.gain_map import GainMap
from isp_distill.raw.image import RawImage
from isp_distill.raw.packings import PACKED, PACKINGS

DEMOSAICS = ("superpixel", "bilinear", "malvar")
TONES = ("linear", "srgb", "gamma", "smoothstep", "log")

#: Looks of :meth:`ISP.preset`. "camera" has the contrast of a camera's own pictures, "fast" is one
#: linear filter up to the curve, "linear" is what a physical measurement wants.
ISP_PRESETS = {
    "standard": {"demosaic": "malvar", "tone": "srgb"},
    "camera": {"demosaic": "malvar", "tone": "smoothstep"},
    "fast": {"demosaic": "bilinear", "tone": "srgb"},
    "linear": {"demosaic": "bilinear", "tone": "linear"},
}
Values = float | Sequence[Any] | Tensor


@dataclass(frozen=True)
class ISP:
    """The settings that turn a mosaic, or a batch of mosaics, into a picture.

    Every value may be one for all samples or one per sample (a leading ``[N]`` axis), so that one
    batch mixes cameras.

    Attributes:
        black: black level in sensor units: a number, ``[4]`` (R, Gr, Gb, B) or ``[N, 4]``.
        white: white level in sensor units: a number or ``[N]``.
        pattern: "RGGB", "GRBG", "GBRG", "BGGR" or a pattern of another filter (see
            :class:`~isp_distill.RawImage`), a list of them, or ``[N]`` codes.
        white_balance: gains of R, G and B (green usually 1): ``[3]`` or ``[N, 3]``. Of another
            filter: of the first colour, those in the middle, the last. Mono takes the middle one.
        ccm: white-balanced camera RGB to linear sRGB, rows summing to 1 so that white stays
            white: ``[3, 3]`` or ``[N, 3, 3]``. Of a filter with a doubled colour its columns are
            the first, the doubled and the last colour; of RGB with infrared the four planes,
            ``[3, 4]`` or ``[N, 3, 4]``; of mono ``[3, 1]``, ones. None: the identity for Bayer,
            ones for mono; for others there is none, kept as ``()``, and what needs it says so.
            Codes on an accelerator are not looked at: with those of another filter, give a matrix.
        demosaic: "superpixel" (half size, one pixel a period), "bilinear" or "malvar". RGB with
            infrared takes "superpixel" only. Of mono nothing is missing: "superpixel" is the mean
            of a period, the others leave the mosaic's size.
        tone: "srgb" (IEC 61966-2-1), "gamma" (1/2.2), "smoothstep" (gamma, then 3x^2 - 2x^3: the
            curve that :func:`isp_distill.unprocess` inverts), "log" (mu-law with mu = 5000, which
            keeps the shadows of a range of 20 to 24 bits apart) or "linear".
        exposure: a factor on linear light, before the highlights clip: a number or ``[N]``.
        orientation: EXIF orientation, 1 to 8, of every mosaic in the batch.
        gain_map: lens shading that ``render`` corrects before everything else: a
            :class:`~isp_distill.raw.gain_map.GainMap` for all, a list with one or None for each,
            kept as :class:`~isp_distill.isp.gain_maps.GainMaps`; None for none. ``raw_conv`` takes
            mosaics as they are: see ``RawFolder(gain_map=True)``.
        packing: how the codes lie in the bytes of packed mosaics, see
            :func:`isp_distill.raw_conv`; None where mosaics are codes. ``render`` and students
            read their mosaics so.
        width: of packed mosaics, the pixels in a row.
        linearise: what the codes of companding sensors mean, see :func:`isp_distill.raw_conv`:
            knots ``[K, 2]`` or ``[N, K, 2]``, or a table ``[L]`` or ``[N, L]``; kept as a table,
            float32 ``[1, L]`` or ``[N, L]``. ``black`` and ``white`` are then linear values.
            ``render`` and students read their mosaics so; None where codes are linear.

    Raises:
        TypeError: for an orientation that is no whole number, or a gain map that is not one.
        ValueError: for an unknown name, an orientation outside 1..8, one of packing and width
            without the other, or a matrix that does not go with the pattern.

    Examples:
        >>> isp = isp_distill.ISP.from_raw(isp_distill.read_raw("photos/new.dng"))
        >>> isp.preset("camera").tone
        'smoothstep'
        >>> isp_distill.ISP(black=64, white=1023, white_balance=(2.0, 1.0, 1.5)).gain(1)
        tensor([[2.0000, 1.0000, 1.0000, 1.5000]])
    """

    black: Values = 0.0
    white: Values = 65535.0
    pattern: str | int | Sequence[str] | Tensor = "RGGB"
    white_balance: Values = (1.0, 1.0, 1.0)
    ccm: Values | None = None
    demosaic: str = "malvar"
    tone: str = "srgb"
    exposure: Values = 1.0
    orientation: int = 1
    gain_map: GainMaps | GainMap | Sequence[GainMap | None] | None = None
    packing: str | None = None
    width: int | None = None
    linearise: Sequence[Any] | Tensor | None = None

    def __post_init__(self) -> None:
        if self.demosaic not in DEMOSAICS:
            raise ValueError(f"unknown demosaic {self.demosaic!r}: expected {', '.join(DEMOSAICS)}")
        if self.tone not in TONES:
            raise ValueError(f"unknown tone {self.tone!r}: expected {', '.join(TONES)}")
        object.__setattr__(self, "ccm", matrix_or_default(self.ccm, self.pattern))
        # Frozen, hence by this way: one of numpy's integers becomes Python's.
        object.__setattr__(self, "orientation", whole_number(self.orientation, "orientation"))
        if self.orientation not in range(1, 9):
            raise ValueError(f"orientation {self.orientation!r} is no EXIF orientation (1 to 8)")
        if self.gain_map is not None and not isinstance(self.gain_map, GainMaps):
            object.__setattr__(self, "gain_map", GainMaps.of(self.gain_map))
        if self.packing not in (None, *PACKED):
            raise ValueError(f"unknown packing {self.packing!r}: expected {', '.join(PACKED)}")
        if (self.packing is None) != (self.width is None):
            raise ValueError("packing and width, the pixels of a row, go together: give both")
        if self.linearise is not None:
            object.__setattr__(self, "linearise", table_of_curves(self.linearise))

    @property
    def gain_maps(self) -> GainMaps | None:
        """``gain_map`` as it is kept: tensors, or None."""
        assert self.gain_map is None or isinstance(self.gain_map, GainMaps)
        return self.gain_map

    @property
    def curves(self) -> Tensor | None:
        """``linearise`` as it is kept: a table, float32 ``[1, L]`` or ``[N, L]``; or None."""
        assert self.linearise is None or isinstance(self.linearise, Tensor)
        return self.linearise

    def sides(self, mosaic: Tensor) -> tuple[int, int]:
        """Height and width in pixels of mosaics ``[..., H, W]`` or, packed, ``[..., H, bytes]``."""
        return mosaic.shape[-2], mosaic.shape[-1] if self.width is None else self.width

    @classmethod
    def from_raw(cls, raw: RawImage | Sequence[RawImage], **settings: Any) -> ISP:
        """The ISP of one RAW file, or of a batch of them.

        The exposure is ``2 ** baseline_exposure`` where the file asks for a brighter picture. Where
        it asks for a darker one (negative stops) it is 1: makers mean a curve that keeps white
        white, while a factor below 1 would leave clipped highlights grey and coloured.

        Args:
            raw: what :func:`isp_distill.read_raw` returned, or a list of such.
            **settings: any other field, e.g. ``tone="linear"``; these win over the file, so
                ``exposure=1.0`` leaves the baseline exposure out.

        Raises:
            ValueError: for an empty list, files of different orientation (make them
                :func:`~isp_distill.upright` first), or that are packed in different ways, or mono
                sensors among colour filters.
        """
        raws = [raw] if not isinstance(raw, Sequence) else list(raw)
        if not raws:
            raise ValueError("ISP.from_raw: the list of RAW images is empty")
        orientations = {r.orientation for r in raws}
        if len(orientations) > 1:
            raise ValueError(
                f"ISP.from_raw: the files have orientations {sorted(orientations)}; "
                "turn them upright first (isp_distill.upright)"
            )
        ways = {(r.packing, r.packed_width) for r in raws}
        if len(ways) > 1:
            raise ValueError(
                "ISP.from_raw: the mosaics are packed in different ways, or have different widths; "
                "unpack them first, raw.unpacked()"
            )
        packing, width = ways.pop()
        codes = MOST_CODES if packing is None else 1 << PACKINGS[packing].bits
        tables = tables_of([r.linearise for r in raws], codes)
        found: dict[str, Any] = {
            "packing": packing,
            "width": width,
            "black": torch.tensor([r.black for r in raws], dtype=torch.float32),
            "white": torch.tensor([r.white for r in raws], dtype=torch.float32),
            "pattern": torch.tensor([pattern_code(r.pattern) for r in raws]),
            "white_balance": torch.tensor([r.white_balance for r in raws], dtype=torch.float32),
            "ccm": joined_matrices(
                [None if r.ccm is None else torch.tensor([r.ccm]).float() for r in raws]
            ),
            "orientation": orientations.pop(),
            "gain_map": GainMaps.of([r.gain_map for r in raws]),
            "linearise": None if tables is None else torch.from_numpy(tables),
        }
        stops = [max(0.0, r.baseline_exposure) for r in raws]
        if any(stops):
            found["exposure"] = torch.tensor([2.0**s for s in stops], dtype=torch.float32)
        return cls(**{**found, **settings})

    def preset(self, name: str) -> ISP:
        """The same camera with another look: "standard", "camera", "fast" or "linear".

        Raises:
            ValueError: for an unknown name.
        """
        if name not in ISP_PRESETS:
            raise ValueError(f"unknown preset {name!r}: expected {', '.join(ISP_PRESETS)}")
        return self.replace(**ISP_PRESETS[name])

    def replace(self, **settings: Any) -> ISP:
        """The same ISP with some fields changed."""
        return dataclasses.replace(self, **settings)

    def batched(self, batch: int, device: torch.device | str = "cpu") -> ISP:
        """Every value as a tensor with one entry per sample, on ``device``.

        A curve that all samples share stays one.

        Raises:
            ValueError: if a value fits neither one sample nor ``batch`` samples.
        """
        where, maps = torch.device(device), self.gain_maps
        return self.replace(
            black=per_sample(self.black, batch, (4,), "black", where),
            white=per_sample(self.white, batch, (), "white", where),
            pattern=pattern_codes(self.pattern, batch, where),
            white_balance=per_sample(self.white_balance, batch, (3,), "white_balance", where),
            ccm=checked_matrix(self.ccm, self.pattern, batch, where),
            exposure=per_sample(self.exposure, batch, (), "exposure", where),
            linearise=batched_curves(self.curves, batch, where),
            gain_map=None if maps is None else maps.expand(batch).to(where, non_blocking=True),
        )

    @property
    def colours(self) -> int | None:
        """How many colours the matrix takes: 3, 4 or 1 (mono); None where there is no matrix."""
        return columns_of(self.ccm)

    def matrix(self, batch: int, device: torch.device | str = "cpu") -> Tensor:
        """The colour matrix of each sample: float32 ``[batch, 3, colours]``.

        Raises:
            ValueError: there is none; the message says what to give.
        """
        found = checked_matrix(self.ccm, self.pattern, batch, torch.device(device))
        if found is None:
            raise ValueError(without_matrix(self.pattern))
        return found

    def check_matrix(self) -> None:
        """Refuse a colour matrix that does not go with the pattern.

        Raises:
            ValueError: naming both.
        """
        columns = self.colours
        if columns is not None:
            check_columns(columns if columns in (1, 4) else 3, self.pattern)

    def tensors(self) -> list[Tensor]:
        """Every tensor in it."""
        own = [getattr(self, f.name) for f in dataclasses.fields(self)]
        maps = self.gain_maps
        return [v for v in own if isinstance(v, Tensor)] + ([] if maps is None else maps.tensors())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ISP:
        """The same ISP with its tensors on another device."""
        moved = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), (Tensor, GainMaps))
        }
        return self.replace(**moved)

    def pin_memory(self) -> ISP:
        """The same ISP with its tensors in page-locked memory."""
        pinned = {
            f.name: value.pin_memory()
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), (Tensor, GainMaps))
        }
        return self.replace(**pinned)

    def gain(self, batch: int, device: torch.device | str = "cpu") -> Tensor:
        """White balance times exposure for the planes R, Gr, Gb, B: float32 ``[batch, 4]``.

        The four sites of a mono sensor are alike: all take the gain in the middle.
        """
        where = torch.device(device)
        balance = per_sample(self.white_balance, batch, (3,), "white_balance", where)
        # Not by a list of places, which would be copied to the device first.
        red, green, blue = balance.unbind(1)
        if self.colours == 1:
            red = blue = green
        gain = torch.stack([red, green, green, blue], 1)
        if type(self.exposure) is float and self.exposure == 1:
            return gain
        exposure = per_sample(self.exposure, batch, (), "exposure", where)
        return gain * exposure[:, None]
