"""The feature loss on the GPU, in Triton: the kernels of ``kernels/feature_loss``.

Nothing here looks at values on the device, so a call may be captured in a CUDA graph.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from isp_distill.backends import choice, triton_support
from isp_distill.backends.kernel_arguments import refused_type
from isp_distill.ops.feature_loss.backend import Call


class TritonKernels:
    """See :class:`isp_distill.ops.feature_loss.backend.Kernels`."""

    def features(self, student: Tensor, teacher: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Loss and mean cosine of features of any strides."""
        from isp_distill.kernels.distill_loss.layout import layout_of
        from isp_distill.kernels.feature_loss.held import fits, launch_held
        from isp_distill.kernels.feature_loss.streamed import launch_streamed

        options, gradient = call.options, call.gradient
        mean, std, mask, weight = call.plain_rows(torch.uint8)
        scale = None if std is None else 1 / std
        row_losses = call.row_losses(student, (student.shape[0], *student.shape[2:]))
        # At most three axes of positions: the kernels step along them, whatever their strides.
        layout = layout_of([x for x in (student, teacher, gradient) if x is not None])
        assert layout is not None
        numbers = (options.cosine_share, options.element_share, options.beta, call.gradient_scale)
        formula = {
            "COSINE": options.cosine_share != 0,
            "ELEMENTS": options.elements,
            "NORMALISE": options.normalise,
        }
        launch = launch_held if fits(layout, student.shape[1]) else launch_streamed
        on_device = torch.cuda.device(student.device) if student.is_cuda else None
        with on_device or contextlib.nullcontext():
            losses, similarities = launch(
                layout, student, teacher, gradient, (mean, scale, mask, weight), call.factors,
                row_losses, numbers, formula,
            )  # fmt: skip
        # The programs' parts, added in a fixed order: torch.sum uses no atomics.
        loss = losses.sum().to(torch.float32) if row_losses is None else row_losses
        return loss, similarities.sum().to(torch.float32)


def _refuses(**call: Any) -> str | None:
    return refused_type(call)


choice.register(
    choice.Implementation(
        "feature_loss",
        "triton",
        TritonKernels(),
        devices=triton_support.devices(),
        missing=triton_support.missing,
        refuses=_refuses,
    )
)
