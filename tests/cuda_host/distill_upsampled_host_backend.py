"""``upsampled_distill_loss`` by the CUDA kernels' source on the CPU, as a backend named "cuda"."""

from __future__ import annotations

import distill_upsampled_host
import torch
from distill_host_call import Blocks, described

from isp_distill import backend
from isp_distill.ops.distill_cuda import CudaKernels, refuses

#: Blocks of both kernels in each call so far.
taken: list[tuple[int, int]] = []


class HostKernels(CudaKernels):
    """The kernels on the CPU, each block's threads in an order shuffled from ``seed``."""

    seed = 0

    def launch_upsampled(
        self, s, t, height, width, align_corners, g, labels, mask, weight, factors, row_losses,
        objective, *numbers,
    ):  # fmt: skip
        """Loss and agreements as tensors of one value."""
        blocks = Blocks(distill_upsampled_host)
        call = described(blocks, s, t, g, labels, mask, weight, factors, row_losses, *numbers)
        call |= {"sizes": (*s.shape[:2], height, width), "size": (height, width)}
        call |= {"student_size": tuple(s.shape[2:]), "teacher_size": tuple(t.shape[2:])}
        call["align_corners"] = align_corners
        HostKernels.seed += 1
        run = distill_upsampled_host.run(call, objective, HostKernels.seed)
        loss, agreed, *counts = run
        blocks.bring_back()
        taken.append(tuple(counts))
        return torch.tensor([loss], dtype=torch.float64), torch.tensor([agreed])


backend.register(backend.Implementation("distill_loss", "cuda", HostKernels(), refuses=refuses))
