"""Tensors whose memory ends, or begins, at a page that nobody may touch.

A kernel that reads or writes one byte beyond its tensor ends the process instead of reading what
happens to lie there. Linux and macOS.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_PAGE = mmap.PAGESIZE
_NOTHING, _READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
#: What fresh outputs hold: NaN in no type, but far from any result.
_UNWRITTEN = 0xA5

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _bytes_beside_a_page(size: int, at_end: bool) -> Tensor:
    """``size`` bytes, uint8, with a forbidden page right after them, or right before."""
    inside = max(_PAGE, -(-size // _PAGE) * _PAGE)
    whole = inside + 2 * _PAGE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = _libc.mmap(None, whole, _NOTHING, flags, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise MemoryError(f"mmap of {whole} bytes failed")
    if _libc.mprotect(address + _PAGE, inside, _READ_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect failed")
    start = address + _PAGE + (inside - size if at_end else 0)
    memory = (ctypes.c_uint8 * max(size, 1)).from_address(start)
    weakref.finalize(memory, _libc.munmap, address, whole)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]


def guarded(tensor: Tensor, at_end: bool = True) -> Tensor:
    """The same values, strides and dtype, in memory of their own beside a forbidden page."""
    if tensor.numel() == 0 or tensor.dim() == 0:
        return tensor
    reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    flat = _bytes_beside_a_page(reach * tensor.element_size(), at_end).view(tensor.dtype)
    flat.copy_(tensor.detach().as_strided((reach,), (1,)))
    return flat.as_strided(tensor.shape, tensor.stride())


def guarded_like(empty: Tensor) -> Tensor:
    """A tensor like ``empty`` beside a forbidden page, as a base tensor: for a kernel's output."""
    size = empty.untyped_storage().nbytes()
    if empty.device.type != "cpu" or size == 0:
        return empty
    memory = _bytes_beside_a_page(size, True).fill_(_UNWRITTEN)
    made = torch.empty(0, dtype=empty.dtype)
    return made.set_(  # type: ignore[call-overload]  # torch types fewer forms
        memory.untyped_storage(),
        memory.storage_offset() // empty.element_size(),
        empty.shape,
        empty.stride(),
    )


@contextmanager
def guarded_outputs() -> Iterator[None]:
    """Let every operator that recycles memory write into guarded memory instead."""
    changed = []
    for name, module in list(sys.modules.items()):
        if name.startswith("isp_distill.ops") and hasattr(module, "recycled"):
            changed.append((module, module.recycled))
            module.recycled = guarded_like  # type: ignore[attr-defined]  # of some modules
    try:
        yield
    finally:
        for module, own in changed:
            module.recycled = own
