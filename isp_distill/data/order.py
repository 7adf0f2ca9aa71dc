"""In which order files are seen: a function of seed and position alone."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


def training_order(length: int, seed: int, position: int) -> int:
    """Which file stands at a position of the run: every epoch a new permutation."""
    epoch, place = divmod(position, length)
    return int(_permutation(length, seed, epoch)[place])


@functools.lru_cache(maxsize=4)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng((seed, epoch)).permutation(length)
