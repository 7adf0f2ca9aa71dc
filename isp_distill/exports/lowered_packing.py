"""Packed bytes to codes in the standard operators that runtimes are fast at.

A code is a sum of what each byte of its group gives it. Where every pixel has a byte with its high
bits, that is multiplied; the other bytes, which share their bits among pixels, are looked up.
Divisions and remainders of integers, as the specification has them, take onnxruntime more than
twice as long, and its bit operations are not there for every type. All sums are exact in float32.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isp_distill.raw.packings import packing_of, row_bytes, unpack_rows


class Unpacking(nn.Module):
    """Packed rows to codes.

    Args:
        packing: one of :data:`isp_distill.raw.packings.PACKED`.
    """

    factors: Tensor
    tables: Tensor

    def __init__(self, packing: str) -> None:
        super().__init__()
        self.packing = packing
        group = packing_of(packing)
        gives = [_given(packing, byte) for byte in range(group.bytes)]
        own = [byte for byte, table in enumerate(gives) if _is_multiple(table)]
        if len(own) != group.pixels:
            own = []  # not every pixel has one
        #: The bytes with the high bits of one pixel each, evenly spaced, and what multiplies them.
        self.own = slice(own[0], own[-1] + 1, own[1] - own[0]) if own else None
        factors = [float(gives[byte][1].max()) for byte in own]
        self.register_buffer("factors", torch.tensor(factors))
        #: The bytes of a group that are looked up.
        self.shared = [byte for byte in range(group.bytes) if byte not in own]
        found = np.stack([gives[byte] for byte in self.shared])
        self.register_buffer("tables", torch.from_numpy(found))

    def forward(self, rows: Tensor, width: int) -> Tensor:
        """The codes, float32 ``[N, H, width]``, of rows uint8 ``[N, H, bytes]``."""
        size = packing_of(self.packing).bytes
        rows = rows[:, :, : row_bytes(width, self.packing)]
        groups = rows.reshape(rows.shape[0], rows.shape[1], -1, size)
        codes = [
            F.embedding(groups[..., byte].int(), self.tables[place])
            for place, byte in enumerate(self.shared)
        ]
        if self.own is not None:
            codes.insert(0, groups[..., self.own].float() * self.factors)
        total = codes[0]
        for one in codes[1:]:
            total = total + one
        return total.flatten(2)[:, :, :width]


def _given(packing: str, byte: int) -> np.ndarray:
    """What each value of a byte gives to the pixels of its group: float32 ``[256, pixels]``."""
    group = packing_of(packing)
    rows = np.zeros((256, group.bytes), np.uint8)
    rows[:, byte] = np.arange(256)
    return unpack_rows(rows, group.pixels, packing).astype(np.float32)


def _is_multiple(table: np.ndarray) -> bool:
    """Whether a byte gives a multiple of itself, and to one pixel alone."""
    multiples = np.arange(256)[:, None] * table[1]
    return bool((table == multiples).all() and np.count_nonzero(table[1]) == 1)
