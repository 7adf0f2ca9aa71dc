"""The distillation loss on the CPU: the compiled kernels of ``csrc/cpu/distill_loss*``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isp_distill.backends import choice, cpu_library
from isp_distill.backends.kernel_arguments import refused_type
from isp_distill.ops.distill_loss.request import Call

# The order of `Objective` in csrc/common/distill_loss/call.h; "none" is cross entropy alone.
_NUMBERS = ("none", "forward_kl", "reverse_kl", "jsd", "tvd", "dkd", "mse", "binary_kl")


def _arguments(call: Call, losses: Tensor | None) -> tuple[Any, ...]:
    """What both operators of rows take behind the logits, in the order of their schemas."""
    options = call.options
    parameters = (*options.parameters, 0.0, 0.0)
    return (
        *call.plain_rows(),
        call.factors,
        losses,
        _NUMBERS.index(call.objective),
        parameters[0],
        parameters[1],
        options.temperature,
        options.alpha != 1 and call.rows[0] is not None,
        options.ignore_index,
        options.label_smoothing,
        call.gradient_scale,
    )


class CpuKernels:
    """See :class:`isp_distill.ops.distill_loss.backend.Kernels`."""

    def logits(
        self,
        student: Tensor,
        teacher: Tensor,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        """Loss and agreement of logits of any strides."""
        if call.objective == "cwd":
            return self._channels(student, teacher, call)
        losses = call.row_losses(student, (student.shape[0], *student.shape[2:]))
        gradient = call.gradient
        s, t, g = student, teacher, gradient
        if student.dim() > 4:  # the kernels step along three axes of positions
            s, t = student.flatten(2), teacher.flatten(2)
            g = None if gradient is None else gradient.flatten(2)
        loss, agreement = torch.ops.isp_distill_cpu.distill_loss(s, t, g, *_arguments(call, losses))
        _bring_back(g, gradient)
        return loss if losses is None else losses, agreement

    def _channels(
        self,
        student: Tensor,
        teacher: Tensor,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        """``cwd``, whose rows are channels; cross entropy, if any, and agreement come apart."""
        entropy, gradient, options = call.cross_entropy_alone(), call.gradient, call.options
        _, mask, weight = call.plain_rows()
        second, agreement = self.logits(student, teacher, entropy)
        losses = call.row_losses(student, student.shape[:2])
        g = None if gradient is None else gradient.flatten(2)
        loss = torch.ops.isp_distill_cpu.channel_distill_loss(
            student.flatten(2),
            teacher.flatten(2),
            g,
            mask,
            weight,
            call.factors,
            losses,
            options.temperature,
            call.gradient_scale,
        )
        _bring_back(g, gradient)
        if gradient is not None and entropy.gradient is not None:
            gradient += entropy.gradient
        if losses is not None:
            return losses, agreement
        return loss + second if options.alpha != 1 else loss, agreement

    def upsampled(
        self,
        student: Tensor,
        teacher: Tensor,
        size: tuple[int, int],
        align_corners: bool,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        """Loss and agreement at full resolution, gradient at the student's."""
        losses = call.row_losses(student, (student.shape[0], *size))
        loss, agreement = torch.ops.isp_distill_cpu.upsampled_distill_loss(
            student, teacher, *size, align_corners, call.gradient, *_arguments(call, losses)
        )
        return loss if losses is None else losses, agreement


def _bring_back(flat: Tensor | None, gradient: Tensor | None) -> None:
    """Where flattening the gradient's axes had to make a copy, that is where the kernel wrote."""
    if flat is not None and gradient is not None and flat.data_ptr() != gradient.data_ptr():
        gradient.copy_(flat.view(gradient.shape))


def _refuses(**call: Any) -> str | None:
    if (reason := refused_type(call)) is not None:
        return reason
    if call["objective"] == "cwd" and call["form"] == "upsampled":
        return "it has no kernel for cwd of upsampled logits"
    return None


choice.register(
    choice.Implementation(
        "distill_loss",
        "cpu",
        CpuKernels(),
        devices=("cpu",),
        missing=cpu_library.missing,
        refuses=_refuses,
    )
)
