"""The distillation loss on the CPU: the compiled kernels of ``csrc/cpu/distill_loss*``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from isp_distill import backend, extension
from isp_distill.ops.distill_backend import Rows, plain_rows
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
        if options.objective == "cwd" and options.alpha != 0:
            return self._channels(
                student, teacher, rows, factors, options, gradient, gradient_scale
            )
        positions = (student.shape[0], *student.shape[2:])
        losses = None
        if options.reduction == "none":
            losses = student.new_empty(positions, dtype=torch.float32)
        s, t, g = student, teacher, gradient
        if student.dim() > 4:  # the kernels step along three axes of positions
            s, t = student.flatten(2), teacher.flatten(2)
            g = None if gradient is None else gradient.flatten(2)
        loss, agreement = torch.ops.isp_distill_cpu.distill_loss(
            s, t, g, *plain_rows(rows), factors, losses, *_settings(rows, options, gradient_scale)
        )
        _bring_back(g, gradient)
        return loss if losses is None else losses, agreement

    def _channels(
        self,
        student: Tensor,
        teacher: Tensor,
        rows: Rows,
        factors: Tensor,
        options: Options,
        gradient: Tensor | None,
        gradient_scale: float,
    ) -> tuple[Tensor, Tensor]:
        """``cwd``, whose rows are channels; cross entropy, if any, and agreement come apart."""
        _, mask, weight = plain_rows(rows)
        entropy = replace(options, alpha=0.0, reduction="sum")
        of_entropy = None
        if options.alpha != 1 and gradient is not None:
            of_entropy = torch.empty_like(gradient)
        second, agreement = self.logits(
            student, teacher, rows, factors, entropy, of_entropy, gradient_scale
        )
        losses = None
        if options.reduction == "none":
            losses = student.new_empty(student.shape[:2], dtype=torch.float32)
        g = None if gradient is None else gradient.flatten(2)
        loss = torch.ops.isp_distill_cpu.channel_distill_loss(
            student.flatten(2),
            teacher.flatten(2),
            g,
            mask,
            weight,
            factors,
            losses,
            options.temperature,
            gradient_scale,
        )
        _bring_back(g, gradient)
        if gradient is not None and of_entropy is not None:
            gradient += of_entropy
        if losses is not None:
            return losses, agreement
        return loss + second if options.alpha != 1 else loss, agreement

    def upsampled(
        self,
        student: Tensor,
        teacher: Tensor,
        size: tuple[int, int],
        align_corners: bool,
        rows: Rows,
        factors: Tensor,
        options: Options,
        gradient: Tensor | None,
        gradient_scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Loss and agreement at full resolution, gradient at the student's."""
        losses = None
        if options.reduction == "none":
            losses = student.new_empty((student.shape[0], *size), dtype=torch.float32)
        loss, agreement = torch.ops.isp_distill_cpu.upsampled_distill_loss(
            student,
            teacher,
            *size,
            align_corners,
            gradient,
            *plain_rows(rows),
            factors,
            losses,
            *_settings(rows, options, gradient_scale),
        )
        return loss if losses is None else losses, agreement


def _bring_back(flat: Tensor | None, gradient: Tensor | None) -> None:
    """Where flattening the gradient's axes had to make a copy, that is where the kernel wrote."""
    if flat is not None and gradient is not None and flat.data_ptr() != gradient.data_ptr():
        gradient.copy_(flat.view(gradient.shape))


def _refuses(**call: Any) -> str | None:
    for name in ("student", "teacher"):
        if call[name] not in _DTYPES:
            return f"its kernels compute in float32, and the {name} is {call[name]}"
    if call["objective"] == "cwd" and call["form"] == "upsampled":
        return "it has no kernel for cwd of upsampled logits"
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
