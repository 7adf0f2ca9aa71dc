"""The feature loss on the CPU: the compiled kernels of ``csrc/cpu/feature_loss``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from isp_distill.backends import choice, cpu_library
from isp_distill.backends.kernel_arguments import refused_type
from isp_distill.ops.feature_loss.backend import Call, resampled_first
from isp_distill.ops.feature_loss.options import NORMALISATIONS

# The order of `Elements` in csrc/cpu/feature_loss/call.h; `Normalise` there is as NORMALISATIONS.
_ELEMENTS = ("none", "mse", "smooth_l1")


class CpuKernels:
    """See :class:`isp_distill.ops.feature_loss.backend.Kernels`."""

    def features(self, student: Tensor, teacher: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Loss and mean cosine of features of any strides."""
        losses = call.row_losses(student, (student.shape[0], *student.shape[2:]))
        loss, similarity = torch.ops.isp_distill_cpu.feature_loss(
            student, teacher, *_arguments(call, losses)
        )
        return loss if losses is None else losses, similarity

    def resampled(
        self, student: Tensor, teacher: Tensor, call: Call, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Loss and mean cosine of maps of any strides, at another grid."""
        # Of tokens torch's interpolation is vectors along the channels, and the kernel's reads are
        # not: it is ahead where the grid is far finer than the student's.
        if student.stride(1) == 1 and math.prod(grid) <= 2 * math.prod(student.shape[2:]):
            return resampled_first(self, student, teacher, call, grid)
        losses = call.row_losses(student, (student.shape[0], *grid))
        loss, similarity = torch.ops.isp_distill_cpu.resampled_feature_loss(
            student, teacher, *grid, *_arguments(call, losses)
        )
        return loss if losses is None else losses, similarity


def _arguments(call: Call, losses: Tensor | None) -> tuple[Any, ...]:
    """What both operators take after the features, in their order."""
    options = call.options
    mean, std, mask, weight = call.plain_rows()
    return (
        call.gradient,
        mean,
        None if std is None else 1 / std,
        mask,
        weight,
        call.factors,
        losses,
        _ELEMENTS.index(options.elements),
        NORMALISATIONS.index(options.normalise),
        options.cosine_share,
        options.element_share,
        options.beta,
        call.gradient_scale,
    )


def _refuses(**call: Any) -> str | None:
    return refused_type(call)


choice.register(
    choice.Implementation(
        "feature_loss",
        "cpu",
        CpuKernels(),
        devices=("cpu",),
        missing=cpu_library.missing,
        refuses=_refuses,
    )
)
