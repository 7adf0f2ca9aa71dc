"""Memory for large outputs on the CPU, kept from one call to the next.

PyTorch gives memory of more than a few megabytes back to the system when a tensor dies, and the
system clears every page of what it hands out anew. For a kernel that is bound by memory that takes
as long as the kernel itself. A training loop makes outputs of the same sizes in every step, so the
compiled kernels write theirs into blocks that return here when the last tensor on them dies, as
PyTorch's own allocator does on a GPU.

At most :data:`KEPT_BYTES` lie unused, the oldest blocks going first; what tensors use is not
counted. The environment variable ``ISP_DISTILL_KEPT_MEMORY`` sets it in MiB, and 0 turns all of
this off.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_VARIABLE = "ISP_DISTILL_KEPT_MEMORY"
_MIB = 2**20
#: Smaller tensors stay in the C library's own heap.
_SMALLEST = _MIB
#: Huge pages are this large; blocks of whole ones also serve outputs that differ by a little.
_GRANULE = 2 * _MIB

_Memory = npt.NDArray[np.uint8]


def _limit() -> int:
    value = os.environ.get(_VARIABLE, "512")
    if not value.isdecimal():
        raise ValueError(f"{_VARIABLE} is {value!r}: give a number of MiB, 0 to keep none")
    return int(value) * _MIB


#: How many bytes may lie unused.
KEPT_BYTES = _limit()

# By identity, oldest first. Blocks return from whichever thread drops the last tensor on them, at
# any moment, a garbage collection in the middle of these functions included: so no lock, only
# operations that the dictionary makes whole.
_unused: dict[int, _Memory] = {}


class _Lease(np.ndarray[Any, np.dtype[np.uint8]]):
    """A block's bytes while tensors use them. The block returns when the last one is gone."""

    block: _Memory | None = None

    def __del__(self) -> None:
        if self.block is not None:
            _return(self.block)


def _return(block: _Memory) -> None:
    _unused[id(block)] = block
    kept = 0
    # The youngest stay.
    for key in reversed(list(_unused)):
        other = _unused.get(key)
        kept += 0 if other is None else other.nbytes
        if kept > KEPT_BYTES:
            _unused.pop(key, None)


def _take(size: int) -> _Memory:
    for key in list(_unused):
        block = _unused.get(key)
        # Another thread may be first.
        if block is not None and block.nbytes == size and _unused.pop(key, None) is not None:
            return block
    return np.empty(size, np.uint8)


def recycled(empty: Tensor) -> Tensor:
    """A tensor without values like ``empty``, in kept memory where that is worth it.

    Args:
        empty: a new tensor that nothing was written to, of any shape, dtype and device, dense in
            some order of its axes (any memory format).

    Returns:
        A tensor of the same shape, strides and dtype: ``empty`` itself where it is small or not on
        the CPU. Its storage cannot be resized.
    """
    size = empty.untyped_storage().nbytes()
    if empty.device.type != "cpu" or size < _SMALLEST or KEPT_BYTES == 0:
        return empty
    block = _take(-(-size // _GRANULE) * _GRANULE + _GRANULE)
    # Aligned to a huge page, so that all of it can lie in such pages.
    start = -block.ctypes.data % _GRANULE
    lease = block[start : start + size].view(_Lease)
    lease.block = block
    flat = torch.from_numpy(lease).view(empty.dtype)
    return flat.as_strided(empty.shape, empty.stride())


def release_memory() -> None:
    """Give what lies unused back to the system."""
    _unused.clear()
