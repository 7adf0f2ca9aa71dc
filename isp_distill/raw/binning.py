"""Binning: what a sensor does that averages, or adds, neighbours of one colour."""

from __future__ import annotations

from typing import Any

import numpy as np

_BAND_ROWS = 64


def bin_mosaic(mosaic: np.ndarray[Any, Any], factor: int) -> np.ndarray[Any, Any]:
    """Average ``factor`` x ``factor`` sites of one colour into one: ``[H, W]`` to smaller.

    What a sensor's binning mode does; the pattern stays. Periods that do not fill a block are cut.
    Codes are rounded to uint16. Linear values, float32, stay so, and are not rounded.

    Examples:
        >>> isp_distill.bin_mosaic(np.zeros((96, 128), dtype=np.uint16), 2).shape
        (48, 64)
    """
    if factor == 1:
        return mosaic
    rows, columns = mosaic.shape[0] // (2 * factor), mosaic.shape[1] // (2 * factor)
    linear = mosaic.dtype == np.float32
    kind = np.float32 if linear else np.uint16
    binned: np.ndarray[Any, Any] = np.empty((2 * rows, 2 * columns), kind)
    # Bands that fit the cache. Rows are added first, as whole vectors: ten times as fast as a mean
    # over both axes. Sums are exact, so the order makes no difference; of whole linear values
    # those of float64 are.
    step = max(1, _BAND_ROWS // (2 * factor))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        band = mosaic[2 * factor * first : 2 * factor * last, : 2 * factor * columns]
        band = band.reshape(last - first, factor, 2, 2 * factor * columns)
        tall = band.sum(axis=1, dtype=np.float64 if linear else np.uint32)
        tall = tall.reshape(2 * (last - first), columns, factor, 2)
        total = tall[:, :, 0].copy()
        for number in range(1, factor):
            total += tall[:, :, number]
        if linear:
            binned[2 * first : 2 * last] = (total / factor**2).reshape(-1, 2 * columns)
            continue
        mean = total.astype(np.float32) / np.float32(factor * factor)
        binned[2 * first : 2 * last] = np.rint(mean).reshape(-1, 2 * columns)
    return binned


def sum_blocks(codes: np.ndarray[Any, Any], block: int) -> np.ndarray[Any, Any]:
    """The sums of ``block`` x ``block`` neighbours: ``[H, W]`` uint16 to smaller.

    How a Quad-Bayer frame becomes a Bayer mosaic: there neighbours have one colour. Sums beyond
    65535 stop there.

    Args:
        codes: both sides whole multiples of ``block``.
        block: codes a side.
    """
    if block == 1:
        return codes
    rows, columns = codes.shape[0] // block, codes.shape[1] // block
    tall = codes.reshape(rows, block, columns * block).sum(axis=1, dtype=np.uint32)
    total = tall.reshape(rows, columns, block).sum(axis=2, dtype=np.uint32)
    summed: np.ndarray[Any, Any] = np.minimum(total, 0xFFFF).astype(np.uint16)
    return summed
