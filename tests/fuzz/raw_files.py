"""Damaged RAW files through the decoding processes."""

from __future__ import annotations

import functools
import random
import tempfile
import warnings
from pathlib import Path

import dng_cases
import lossless_jpeg
import numpy as np

from isp_distill import write_dng
from isp_distill.errors import RawError
from isp_distill.raw.decoding.pool import DecodePool
from isp_distill.raw.image import RawImage

from .area import refusal
from .mutations import damaged_bytes

#: Seconds for one file; a reader that needs longer hangs.
_TIMEOUT = 20.0


@functools.cache
def _pool() -> DecodePool:
    return DecodePool(2, _TIMEOUT)


@functools.cache
def _originals() -> tuple[bytes, ...]:
    """Small files: two patterns and orientations, both byte orders, blacks that differ, JPEG."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.dng"
        for pattern, orientation in (("RGGB", 1), ("GBRG", 6)):
            write_dng(
                path,
                dng_cases.noise((24, 26)),
                pattern=pattern,
                black=(60, 64, 66, 70),
                white=4095,
                white_balance=(2, 1, 1.5),
                orientation=orientation,
                bits=12,
                exposure_time=0.01,
                iso=200,
                active_area=(1, 1, 23, 25),
            )
            found.append(path.read_bytes())
        matrix = dng_cases.rationals(dng_cases.MATRIX)
        tags = [*dng_cases.CFA, (50721, "2i", 9, matrix, True)]
        levels = [(50714, "H", 4, (1, 2, 3, 4), True), (50713, "H", 2, (2, 2), True)]
        for order in ("<", ">"):
            mosaic = dng_cases.noise((32, 32))
            dng_cases.bare_dng(path, mosaic, [*tags, *levels], byteorder=order)
            found.append(path.read_bytes())
        for tile, components in ((None, 1), ((16, 8), 2)):
            mosaic = dng_cases.noise((24, 32)) % 4096
            lossless_jpeg.write(path, mosaic, 12, tile=tile, components=components)
            found.append(path.read_bytes())
    return tuple(found)


def attempt(number: int, folder: Path) -> None:
    """One damaged file: a sound RawImage, or a RawError."""
    draw = random.Random(number)
    path = folder / "damaged.dng"
    path.write_bytes(damaged_bytes(draw.choice(_originals()), draw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            raw = _pool().read(path)
        except RawError as error:
            raise refusal(error, path) from error
    _check(raw)


def _check(raw: RawImage) -> None:
    assert raw.mosaic.dtype == np.uint16
    assert max(raw.black) < raw.white <= 65535
    assert min(raw.black) >= 0
    numbers = [*raw.black, raw.white, *raw.white_balance, *np.ravel(raw.ccm)]
    assert np.isfinite(numbers).all()
    assert min(raw.white_balance) > 0
