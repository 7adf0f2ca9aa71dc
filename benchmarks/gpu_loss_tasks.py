"""The tasks of bench_gpu.py about losses: rows, dense maps, upsampled ones, a linear head."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from gpu_task import Sizes, Task, Way, random, with_gradients
from torch import Tensor

from isp_distill import distill_loss, linear_distill_loss, upsampled_distill_loss, use_backend

TEMPERATURE = 4.0


def _eager_loss(student: Tensor, teacher: Tensor, size: int | None) -> Tensor:
    if size is not None:
        student, teacher = (
            F.interpolate(x, (size, size), mode="bilinear") for x in (student, teacher)
        )
    log_q = F.log_softmax(student / TEMPERATURE, 1)
    log_p = F.log_softmax(teacher / TEMPERATURE, 1)
    per_row = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    return TEMPERATURE**2 * per_row.mean()


def loss_task(
    device: torch.device, compile: Any, shape: tuple[int, ...], size: int | None, dtype: torch.dtype
) -> Task:
    student = (3 * random(device, *shape, dtype=dtype)).requires_grad_()
    teacher = 3 * random(device, *shape, dtype=dtype).flip(1)
    accurate = student.detach().float().requires_grad_()

    def ours(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        def run() -> Tensor:
            if size is not None:
                loss = upsampled_distill_loss(
                    student, teacher, (size, size), temperature=TEMPERATURE
                )
            else:
                loss = distill_loss(student, teacher, temperature=TEMPERATURE)
            assert isinstance(loss, Tensor)
            return loss

        return with_gradients(run, [student], None)

    def truth() -> tuple[Tensor, ...]:
        with use_backend("reference"):
            return ours(accurate, teacher.float())

    fast = compile(_eager_loss)
    peers: dict[str, Way] = {
        "eager": lambda: with_gradients(
            lambda: _eager_loss(student, teacher, size), [student], None
        ),
        "compile": lambda: with_gradients(lambda: fast(student, teacher, size), [student], None),
    }
    if len(shape) == 2 and _liger(device):
        from liger_kernel.transformers import LigerKLDIVLoss

        kl = LigerKLDIVLoss(reduction="batchmean", log_target=True)

        def liger() -> Tensor:
            log_q = F.log_softmax(student / TEMPERATURE, 1)
            return TEMPERATURE**2 * kl(log_q, F.log_softmax(teacher / TEMPERATURE, 1))

        peers["Liger"] = lambda: with_gradients(liger, [student], None)
    kind = "rows" if len(shape) == 2 else "dense" if size is None else "upsampled"
    upsampled = "" if size is None else f" to {size}x{size}"
    return Task(
        "distill_loss",
        f"{kind} {'x'.join(map(str, shape))}{upsampled}, loss and gradient",
        dtype,
        lambda: ours(student, teacher),
        truth,
        peers,
        traffic=3.0 * student.nbytes,
        unlike=frozenset(peers) if dtype != torch.float32 else frozenset(),
    )


def _liger(device: torch.device) -> bool:
    """Whether Liger's Triton kernels can run; they know GPUs only."""
    return device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None


def linear_task(device: torch.device, sizes: Sizes, compile: Any) -> Task:
    """Two heads and the Jensen-Shannon divergence between them: what language models distil by."""
    rows, features, classes = sizes.linear
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x, y = (random(device, rows, features, dtype=dtype) for _ in range(2))
    w, v = (random(device, classes, features, dtype=dtype) / features**0.5 for _ in range(2))
    y, v = y.flip(0), v.flip(0)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    accurate = [leaf.detach().float().requires_grad_() for leaf in leaves]

    def ours(x: Tensor, w: Tensor, y: Tensor, v: Tensor) -> Tensor:
        loss = linear_distill_loss(x, w, None, y, v, None, objective="jsd")
        assert isinstance(loss, Tensor)
        return loss

    def truth() -> tuple[Tensor, ...]:
        with use_backend("reference"):
            return with_gradients(lambda: ours(*accurate, y.float(), v.float()), accurate, None)

    def steps(x: Tensor, w: Tensor, y: Tensor, v: Tensor) -> Tensor:
        log_q, log_p = (
            F.log_softmax(F.linear(x, w).float(), 1),
            F.log_softmax(F.linear(y, v).float(), 1),
        )
        log_m = torch.logaddexp(log_q, log_p) - 0.6931471805599453
        parts = [
            F.kl_div(log_m, log, reduction="batchmean", log_target=True) for log in (log_q, log_p)
        ]
        return 0.5 * (parts[0] + parts[1])

    fast = compile(steps)
    peers: dict[str, Way] = {
        "eager": lambda: with_gradients(lambda: steps(x, w, y, v), leaves, None),
        "compile": lambda: with_gradients(lambda: fast(x, w, y, v), leaves, None),
    }
    if _liger(device):
        from liger_kernel.transformers import LigerFusedLinearJSD

        fused = LigerFusedLinearJSD(jsd_beta=0.5)
        peers["Liger"] = lambda: with_gradients(lambda: fused(x, w, y, v), leaves, None)
    return Task(
        "distill_loss",
        f"linear {features} to {classes}, {rows} rows, JSD, loss and gradients",
        dtype,
        lambda: with_gradients(lambda: ours(x, w, y, v), leaves, None),
        truth,
        peers,
        traffic=float(2 * (x.nbytes + w.nbytes) + y.nbytes + v.nbytes),
        # Two heads, and the gradients of the student's features and weight.
        operations=4 * 2.0 * rows * features * classes,
        unlike=frozenset(peers) if dtype != torch.float32 else frozenset(),
    )
