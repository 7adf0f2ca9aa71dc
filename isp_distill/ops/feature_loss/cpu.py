"""The feature loss on the CPU: the compiled kernels of ``csrc/cpu/feature_loss``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isp_distill.backends import choice, cpu_library
from isp_distill.backends.kernel_arguments import refused_type
from isp_distill.ops.feature_loss.backend import Call
from isp_distill.ops.feature_loss.options import NORMALISATIONS

# The order of `Elements` in csrc/cpu/feature_loss/call.h; `Normalise` there is as NORMALISATIONS.
_ELEMENTS = ("none", "mse", "smooth_l1")


class CpuKernels:
    """See :class:`isp_distill.ops.feature_loss.backend.Kernels`."""

    def features(self, student: Tensor, teacher: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Loss and mean cosine of features of any strides."""
        options = call.options
        mean, std, mask, weight = call.plain_rows()
        scale = None if std is None else 1 / std
        losses = call.row_losses(student, (student.shape[0], *student.shape[2:]))
        loss, similarity = torch.ops.isp_distill_cpu.feature_loss(
            student,
            teacher,
            call.gradient,
            mean,
            scale,
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
        return loss if losses is None else losses, similarity


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
