"""Mosaics as a sensor packs them, for the tests of every operation that reads them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from isp_distill.raw.packings import PACKED, PACKINGS, pack_rows, row_bytes

WHITE = {name: float(2 ** PACKINGS[name].bits - 1) for name in PACKED}


def packed_mosaic(packing, batch, height, width, padding=0, seed=0):
    """Random codes, uint16 ``[N, H, W]``, and the same packed, random bytes behind each row."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2 ** PACKINGS[packing].bits, (batch, height, width), np.uint16)
    packed = random.integers(
        0, 256, (batch, height, row_bytes(width, packing) + padding), dtype=np.uint8
    )
    packed[..., : row_bytes(width, packing)] = pack_rows(codes, packing)
    return torch.from_numpy(codes), torch.from_numpy(packed)


@st.composite
def windows(draw):
    """How a packed mosaic lies in memory: bytes behind each row, and bytes and rows around it."""
    return draw(st.sampled_from([0, 1, 3, 40])), draw(st.booleans())


def inside(packed, apart):
    """The same bytes as a window of a larger tensor, at an odd address, where ``apart``."""
    if not apart:
        return packed
    batch, height, row = packed.shape
    larger = torch.full((batch, height + 2, row + 8), 0x5A, dtype=torch.uint8)
    larger[:, 1:-1, 3 : 3 + row] = packed
    return larger[:, 1:-1, 3 : 3 + row]
