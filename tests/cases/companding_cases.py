"""Companding curves, for the tests of every operation that linearises."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from isp_distill.raw.packings import PACKINGS

#: A curve of 12-bit codes for a 24-bit sensor, in whole values.
KNOTS_24 = [[0, 0], [1024, 1024], [2048, 66560], [3072, 1115136], [4095, 16777215]]


def bits_of(dtype, packing=None):
    """How many bits the codes of a mosaic have."""
    if packing is not None:
        return PACKINGS[packing].bits
    return 8 if dtype == torch.uint8 else 11


@st.composite
def curves(draw, batch, bits, white):
    """Knots or a table, shared or one a sample: code 0 to about ``white`` at the last one."""
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    shape = draw(st.sampled_from([(), (1,), (batch,)]))
    if draw(st.booleans()):
        count = draw(st.integers(2, 9))
        codes = np.sort(random.choice(2**bits, (*shape, count) if shape else count, replace=False))
        if shape:  # choice draws no code twice, so each row has its own
            codes = np.sort(
                [random.choice(2**bits, count, replace=False) for _ in range(shape[0])], axis=-1
            )
        values = np.sort(random.uniform(0, 1.2 * white, codes.shape), axis=-1)
        return torch.from_numpy(np.stack([codes, values], -1))
    # Shorter than the codes, as long, or longer: beyond its end the last value holds.
    length = draw(st.sampled_from([3, 2**bits - 5, 2**bits, 2**bits + 7]))
    table = np.sort(random.uniform(0, 1.2 * white, (*shape, length)), axis=-1)
    return torch.from_numpy(table).to(draw(st.sampled_from([torch.float32, torch.float64])))
