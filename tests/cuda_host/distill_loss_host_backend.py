"""``distill_loss`` by the CUDA kernels' source on the CPU, as a backend named "cuda"."""

from __future__ import annotations

import distill_loss_host
import torch

from isp_distill import backend
from isp_distill.ops.distill_cuda import CudaKernels, refuses

DTYPES = [torch.float32, torch.bfloat16, torch.float16]  # in the order of Dtype
#: The kernel of each call so far (Shape in csrc/cuda/distill_call.h), and whether it used vectors.
taken: set[tuple[int, bool]] = set()


class Blocks:
    """Copies of tensors in blocks of the heap of exactly their size."""

    def __init__(self) -> None:
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
        block = distill_loss_host.allocate(size)
        distill_loss_host.copy(block, tensor.data_ptr(), size)
        self.held.append((tensor, block, tensor.data_ptr(), size))
        return block

    def bring_back(self) -> None:
        """Whatever the kernels wrote, to the tensors; the blocks go."""
        for _, block, address, size in self.held:
            distill_loss_host.copy(address, block, size)
            distill_loss_host.release(block)


class HostKernels(CudaKernels):
    """The kernels on the CPU, each block's threads in an order shuffled from ``seed``."""

    seed = 0

    def launch(self, s, t, g, labels, mask, weight, factors, row_losses, objective, *numbers):
        """Loss and agreements as tensors of one value."""
        blocks = Blocks()
        if g is not None and g.data_ptr() != s.data_ptr():
            g.fill_(float("nan"))
        if row_losses is not None:
            row_losses.fill_(float("nan"))

        def logits(x):
            if x is None:
                return (0, 0, 0, 0, 0, 0)
            steps = (x.stride(1), x.stride(0), x.stride(2), x.stride(3))
            return (blocks.of(x), DTYPES.index(x.dtype), *steps)

        names = ("beta", "temperature", "cross_entropy", "ignore_index", "smoothing")
        call = dict(zip((*names, "gradient_scale"), numbers, strict=True))
        call |= {"student": logits(s), "teacher": logits(t), "gradient": logits(g)}
        call |= {"sizes": tuple(s.shape), "labels": blocks.of(labels), "mask": blocks.of(mask)}
        call |= {"weight": blocks.of(weight), "factors": blocks.of(factors)}
        call |= {"row_losses": blocks.of(row_losses)}
        HostKernels.seed += 1
        loss, agreed, shape, vectors = distill_loss_host.run(call, objective, HostKernels.seed)
        blocks.bring_back()
        taken.add((shape, vectors))
        return torch.tensor([loss], dtype=torch.float64), torch.tensor([agreed])


backend.register(backend.Implementation("distill_loss", "cuda", HostKernels(), refuses=refuses))
