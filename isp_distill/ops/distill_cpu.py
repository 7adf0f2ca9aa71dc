"""The distillation loss on the CPU: the compiled kernels of ``csrc/cpu/distill_loss*``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isp_distill import backend, extension
from isp_distill.ops.distill_backend import Rows
from isp_distill.ops.distill_options import Options

# The order of `Objective` in csrc/common/distill_call.h; "none" is cross entropy alone.
_NUMBERS = ("none", "forward_kl", "reverse_kl", "jsd", "tvd", "dkd", "mse")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _settings(rows: Rows, options: Options, gradient_scale: float) -> tuple[Any, ...]:
    """The numbers of a call in the order of the operators' schemas."""
    objective = "none" if options.alpha == 0 else options.objective
    parameters = (*options.parameters, 0.0, 0.0)
    return (
        _NUMBERS.index(objective),
        parameters[0],
        parameters[1],
        options.temperature,
        options.alpha != 1 and rows[0] is not None,
        options.ignore_index,
        options.label_smoothing,
        gradient_scale,
    )


def _plain(rows: Rows) -> Rows:
    labels, mask, weight = rows
    return (
        None if labels is None else labels.contiguous(),
        None if mask is None else mask.contiguous(),
        None if weight is None else weight.to(torch.float32).contiguous(),
    )


class CpuKernels:
    """See :class:`isp_distill.ops.distill_backend.Kernels`."""

    def logits(
        self,
        student: Tensor,
        teacher: Tensor,
        rows: Rows,
        factors: Tensor,
        options: Options,
        gradient: Tensor | None,
        gradient_scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Loss and agreement of logits of any strides."""
        positions = (student.shape[0], *student.shape[2:])
        losses = None
        if options.reduction == "none":
            losses = student.new_empty(positions, dtype=torch.float32)
        if student.dim() > 4:  # the kernels step along three axes of positions
            flat = None if gradient is None else gradient.flatten(2)
            result = self.logits(
                student.flatten(2), teacher.flatten(2), rows, factors, options, flat, gradient_scale
            )
            if gradient is not None and flat is not None and flat.data_ptr() != gradient.data_ptr():
                gradient.copy_(flat.view(gradient.shape))
            return result[0].view(positions) if losses is not None else result[0], result[1]
        loss, agreement = torch.ops.isp_distill_cpu.distill_loss(
            student,
            teacher,
            gradient,
            *_plain(rows),
            factors,
            losses,
            *_settings(rows, options, gradient_scale),
        )
        return loss if losses is None else losses, agreement


def _refuses(**call: Any) -> str | None:
    for name in ("student", "teacher"):
        if call[name] not in _DTYPES:
            return f"its kernels compute in float32, and the {name} is {call[name]}"
    if call["objective"] == "cwd":
        return "it has no kernel for cwd"
    if call["form"] == "upsampled":
        return "it has no kernel for upsampled_distill_loss"
    return None


backend.register(
    backend.Implementation(
        "distill_loss",
        "cpu",
        CpuKernels(),
        devices=("cpu",),
        missing=extension.missing,
        refuses=_refuses,
    )
)
