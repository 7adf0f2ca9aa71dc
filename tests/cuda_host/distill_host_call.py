"""A call of the distillation loss's CUDA kernels, as their host modules take it."""

from __future__ import annotations

import torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]  # in the order of Dtype
NUMBERS = (
    *("beta", "temperature", "cross_entropy", "ignore_index", "smoothing"),
    "gradient_scale",
)


class Blocks:
    """Copies of tensors in blocks of the heap of exactly their size."""

    def __init__(self, module) -> None:
        self.module = module
        self.held: list[tuple[torch.Tensor, int, int, int]] = []

    def of(self, tensor: torch.Tensor | None) -> int:
        """Address of a copy of a tensor's memory, gaps included; a tensor in place of another is
        the same copy."""
        if tensor is None:
            return 0
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        size = span * tensor.element_size()
        for _, block, address, held in self.held:
            if address == tensor.data_ptr() and held == size:
                return block
        block = self.module.allocate(size)
        self.module.copy(block, tensor.data_ptr(), size)
        self.held.append((tensor, block, tensor.data_ptr(), size))
        return block

    def bring_back(self) -> None:
        """Whatever the kernels wrote, to the tensors; the blocks go."""
        for _, block, address, size in self.held:
            self.module.copy(address, block, size)
            self.module.release(block)


def described(blocks, s, t, g, labels, mask, weight, factors, row_losses, *numbers):
    """The call by names (tests/cuda_host/distill_call_of.h), its sizes missing; what the kernels
    have to write is NaN."""
    if g is not None and g.data_ptr() != s.data_ptr():
        g.fill_(float("nan"))
    if row_losses is not None:
        row_losses.fill_(float("nan"))

    def logits(x):
        if x is None:
            return (0, 0, 0, 0, 0, 0)
        steps = (x.stride(1), x.stride(0), x.stride(2), x.stride(3))
        return (blocks.of(x), DTYPES.index(x.dtype), *steps)

    call = dict(zip(NUMBERS, numbers, strict=True))
    call |= {"student": logits(s), "teacher": logits(t), "gradient": logits(g)}
    call |= {"labels": blocks.of(labels), "mask": blocks.of(mask)}
    call |= {"weight": blocks.of(weight), "factors": blocks.of(factors)}
    return call | {"row_losses": blocks.of(row_losses)}
