"""``distill_loss`` by the CUDA kernels' source on the CPU, as a backend named "cuda"."""

from __future__ import annotations

import distill_loss_host
import torch
from distill_host_call import Blocks, described

from isp_distill import backend
from isp_distill.ops.distill_cuda import CudaKernels, refuses

#: The kernel of each call so far (Shape in csrc/cuda/distill_call.h), and whether it used vectors.
taken: set[tuple[int, bool]] = set()


class HostKernels(CudaKernels):
    """The kernels on the CPU, each block's threads in an order shuffled from ``seed``."""

    seed = 0

    def launch(self, s, t, g, labels, mask, weight, factors, row_losses, objective, *numbers):
        """Loss and agreements as tensors of one value."""
        blocks = Blocks(distill_loss_host)
        call = described(blocks, s, t, g, labels, mask, weight, factors, row_losses, *numbers)
        call["sizes"] = tuple(s.shape)
        HostKernels.seed += 1
        loss, agreed, shape, vectors = distill_loss_host.run(call, objective, HostKernels.seed)
        blocks.bring_back()
        taken.add((shape, vectors))
        return torch.tensor([loss], dtype=torch.float64), torch.tensor([agreed])


backend.register(backend.Implementation("distill_loss", "cuda", HostKernels(), refuses=refuses))
