"""The tasks of bench_gpu.py about features: tokens of a transformer, maps of a backbone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from gpu_task import Task, Way, random, with_gradients
from torch import Tensor

from isp_distill import feature_loss, use_backend


def _steps(student: Tensor, teacher: Tensor) -> Tensor:
    channels = 2 if student.dim() == 3 else 1
    cosine = F.cosine_similarity(student, teacher, channels).mean()
    return 0.9 * (1 - cosine) + 0.1 * F.smooth_l1_loss(student, teacher)


def feature_task(
    device: torch.device, compile: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> Task:
    """Cosine and smooth L1 of features of one shape."""
    student = random(device, *shape, dtype=dtype).requires_grad_()
    teacher = random(device, *shape, dtype=dtype).flip(1)
    accurate = student.detach().float().requires_grad_()

    def ours(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        def run() -> Tensor:
            loss = feature_loss(student, teacher, objective="cosine_smooth_l1")
            assert isinstance(loss, Tensor)
            return loss

        return with_gradients(run, [student], None)

    def truth() -> tuple[Tensor, ...]:
        with use_backend("reference"):
            return ours(accurate, teacher.float())

    fast = compile(_steps)
    peers: dict[str, Way] = {
        "eager": lambda: with_gradients(lambda: _steps(student, teacher), [student], None),
        "compile": lambda: with_gradients(lambda: fast(student, teacher), [student], None),
    }
    kind = "tokens" if len(shape) == 3 else "maps"
    return Task(
        "feature_loss",
        f"{kind} {'x'.join(map(str, shape))}, cosine and smooth L1, loss and gradient",
        dtype,
        lambda: ours(student, teacher),
        truth,
        peers,
        traffic=3.0 * student.nbytes,
        unlike=frozenset(peers) if dtype != torch.float32 else frozenset(),
    )
