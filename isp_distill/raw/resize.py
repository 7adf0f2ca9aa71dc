"""Resizing a mosaic to any size: each colour on its own, every site in its place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from isp_distill.raw.binning import bin_mosaic

Array = np.ndarray[Any, Any]


def resize_mosaic(mosaic: Array, height: int, width: int) -> Array:
    """A mosaic at another size, its pattern unchanged.

    Antialiased linear interpolation among the sites of one colour; a site of the result lies where
    its centre falls in the mosaic (pixel edges aligned, as in ``F.interpolate`` with
    ``align_corners=False``), so the colours stay in register. What is larger by a whole factor is
    binned by it first.

    Args:
        mosaic: uint16 ``[H, W]``, even sides; or linear values, float32.
        height: of the result, even.
        width: likewise.

    Returns:
        uint16 ``[height, width]``, contiguous; of linear values float32, not rounded.
    """
    scales = mosaic.shape[0] / height, mosaic.shape[1] / width
    factor = max(1, math.floor(min(scales)))
    binned = bin_mosaic(mosaic, factor)
    rows = np.empty((height, binned.shape[1]), np.float32)
    for parity in (0, 1):
        sites, shares = _taps(binned.shape[0] // 2, height // 2, scales[0], factor, parity)
        plane = binned[parity::2]
        total = shares[0][:, None] * plane[sites[0]]
        for site, share in zip(sites[1:], shares[1:], strict=True):
            total += share[:, None] * plane[site]
        rows[parity::2] = total
    out = np.empty((height, width), np.float32)
    for parity in (0, 1):
        sites, shares = _taps(binned.shape[1] // 2, width // 2, scales[1], factor, parity)
        plane = np.ascontiguousarray(rows[:, parity::2].T)
        total = shares[0][:, None] * plane[sites[0]]
        for site, share in zip(sites[1:], shares[1:], strict=True):
            total += share[:, None] * plane[site]
        out[:, parity::2] = total.T
    return out if mosaic.dtype == np.float32 else np.rint(out).astype(np.uint16)


def _taps(length: int, wanted: int, scale: float, factor: int, parity: int) -> tuple[Array, Array]:
    """Where ``wanted`` sites of one parity fall among ``length``: indices and weights ``[T, n]``.

    Binning puts a site into the middle of those it was made of: site j of parity p lies at
    ``2 * factor * j + p + factor - 1`` of the mosaic.
    """
    centres = (2 * np.arange(wanted) + parity + 0.5) * scale - 0.5
    centres = (centres - (parity + factor - 1)) / (2 * factor)
    # As wide (in variance) as a triangle that reaches ``scale / factor`` sites, but made of linear
    # interpolation and a mean over an interval, so that a ramp stays exactly a ramp.
    interval = math.sqrt(2 * max(0.0, (scale / factor) ** 2 - 1))
    reach = 1 + interval / 2
    first = np.ceil(centres - reach).astype(np.int64)
    sites = first + np.arange(math.ceil(2 * reach) + 1)[:, None]
    if interval > 1e-3:
        ends = centres + interval / 2 - sites, centres - interval / 2 - sites
        shares = (_below(ends[0]) - _below(ends[1])) / interval
    else:
        shares = np.maximum(0.0, 1.0 - np.abs(sites - centres))
    shares[(sites < 0) | (sites >= length)] = 0.0
    # Beyond the edge there is no site of any weight only where the mosaic is one period wide.
    nearest = np.clip(np.rint(centres).astype(np.int64), 0, length - 1)
    empty = shares.sum(0) == 0
    shares[0, empty], sites[0, empty] = 1.0, nearest[empty]
    return np.clip(sites, 0, length - 1), (shares / shares.sum(0)).astype(np.float32)


def _below(x: Array) -> Array:
    """The integral of the unit triangle ``max(0, 1 - |x|)`` up to x."""
    inner = np.clip(x, -1.0, 1.0)
    below: Array = np.where(inner < 0, (inner + 1) ** 2 / 2, 1 - (1 - inner) ** 2 / 2)
    return below
