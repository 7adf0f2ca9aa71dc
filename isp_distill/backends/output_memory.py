"""Memory for large outputs on the CPU, kept from one call to the next.

PyTorch gives memory of more than a few megabytes back to the system when a tensor dies, and the
system clears every page of what it hands out anew. For a kernel that is bound by memory that takes
as long as the kernel itself. A training loop makes outputs of the same sizes in every step, so this
module remembers the storages of the outputs that the compiled kernels wrote, and hands one out
again when nothing but this module refers to it any more.

The storages are PyTorch's own, so an output is an ordinary tensor: no view, and it may be resized.
A storage that was resized, moved to shared memory, lent to numpy or otherwise given other bytes is
forgotten.

At most :data:`KEPT_BYTES` are remembered, in use or not, the oldest going first. The environment
variable ``ISP_DISTILL_KEPT_MEMORY`` sets it in MiB, and 0 turns all of this off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_VARIABLE = "ISP_DISTILL_KEPT_MEMORY"
_MIB = 2**20
#: Smaller tensors stay in the C library's own heap.
_SMALLEST = _MIB


def _limit() -> int:
    value = os.environ.get(_VARIABLE, "512")
    if not value.isdecimal():
        raise ValueError(f"{_VARIABLE} is {value!r}: give a number of MiB, 0 to keep none")
    return int(value) * _MIB


#: How many bytes of outputs are remembered.
KEPT_BYTES = _limit()


class _Block(NamedTuple):
    """A storage, and the bytes that it had when it was first handed out."""

    storage: list[torch.UntypedStorage]  # one; see _python_references
    address: int
    size: int


# torch counts the tensors on a storage, Python counts the references to the object that stands for
# it. Where torch does not tell its count, nothing is ever handed out again.
_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


def _python_references(storage: list[torch.UntypedStorage]) -> int:
    # By its place in a list: what a local variable counts for depends on the release of Python.
    return sys.getrefcount(storage[0])


_ALONE = _python_references([torch.empty(0).untyped_storage()])

# In the order of their last use, the oldest first. Several threads may take from it at once: no
# lock, only operations that the dictionary makes whole.
_blocks: dict[int, _Block] = {}


def _in_use(block: _Block) -> bool:
    return (
        _count is None
        or _count(block.storage[0]._cdata) != 1
        or _python_references(block.storage) != _ALONE
    )


def _is_as_it_was(block: _Block) -> bool:
    storage = block.storage[0]
    # Tensor.numpy() takes away that a storage may be resized, and nothing gives it back.
    return (
        storage.nbytes() == block.size
        and storage.data_ptr() == block.address
        and storage.resizable()
    )


def _take(size: int) -> _Block | None:
    """A block of ``size`` bytes that nobody uses, no longer in the dictionary."""
    for key in list(_blocks):
        block = _blocks.get(key)
        if block is None:
            continue
        if not _is_as_it_was(block):
            _blocks.pop(key, None)
        elif block.size == size and not _in_use(block) and _blocks.pop(key, None) is not None:
            # Another thread may have had it in between.
            if not _in_use(block):
                return block
            _blocks[key] = block
    return None


def _remember(block: _Block) -> None:
    _blocks[id(block.storage)] = block
    kept = 0
    # The youngest stay.
    for key in reversed(list(_blocks)):
        other = _blocks.get(key)
        kept += 0 if other is None else other.size
        if kept > KEPT_BYTES:
            _blocks.pop(key, None)


def recycled(empty: Tensor) -> Tensor:
    """A tensor without values like ``empty``, in memory of an earlier output where there is some.

    Args:
        empty: a new tensor that nothing was written to and that owns its storage, of any shape,
            dtype and device, dense in some order of its axes (any memory format).

    Returns:
        ``empty`` itself, which may have been given the storage of an output that is gone.
    """
    storage = empty.untyped_storage()
    size = storage.nbytes()
    if empty.device.type != "cpu" or size < _SMALLEST or size > KEPT_BYTES:
        return empty
    block = _take(size)
    if block is None:
        block = _Block([storage], storage.data_ptr(), size)
    else:
        empty.set_(block.storage[0], 0, empty.shape, empty.stride())
    _remember(block)
    return empty


def release_memory() -> None:
    """Give the memory that lies unused back to the system; the rest goes when its tensors do.

    Examples:
        >>> isp_distill.release_memory()
    """
    _blocks.clear()
