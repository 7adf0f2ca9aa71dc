"""The distillation loss on the GPU, compiled by nvcc: the kernels of ``csrc/cuda/distill_*``.

They serve forward_kl, reverse_kl, jsd, mse and cross entropy, of logits at their own resolution or
at a lower one; :mod:`isp_distill.ops.distill_loss.triton` serves the rest. Nothing here looks at
values on the device, and nothing is allocated but results, a number for each block and, for the
gradient of upsampled logits, 4 to 12 numbers a pixel, so a call may be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isp_distill.backends import choice, cuda_library
from isp_distill.backends.kernel_arguments import refused_type
from isp_distill.ops.distill_loss.request import Call

# The numbers of `Objective` in csrc/common/distill_loss/call.h; "none" is cross entropy alone.
_NUMBERS = {"none": 0, "forward_kl": 1, "reverse_kl": 2, "jsd": 3, "mse": 6}
#: kMostDense in csrc/cuda/distill_loss/call.h: classes of logits whose classes are no neighbours.
_MOST_DENSE = 160
#: How much larger, along a row, than the full resolution either map may be, than the student's the
#: full resolution and the teacher's map; cells times pixels of an axis (32-bit products). A block's
#: shared memory sets them (csrc/cuda/distill_loss/upsampled_call.h), and its tests hold them to
#: that.
_LARGER_MAP, _LARGER_IMAGE, _LARGER_TEACHER, _PRODUCTS = 4, 512, 64, 2**29


class CudaKernels:
    """See :class:`isp_distill.ops.distill_loss.backend.Kernels`."""

    def logits(
        self,
        student: Tensor,
        teacher: Tensor,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        """Loss and agreement of logits of any strides."""
        row_losses = call.row_losses(student, (student.shape[0], *student.shape[2:]))
        gradient = call.gradient
        s, t, g = four_axes(student, teacher, gradient)
        losses, agreements = self.launch(s, t, g, *_arguments(call, row_losses))
        if gradient is not None and g is not None and g.data_ptr() != gradient.data_ptr():
            gradient.copy_(g.view(gradient.shape))
        return _add_up(losses, agreements, row_losses)

    def launch(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Each block's loss (float64) and agreements; arguments as the operator's schema says."""
        losses, agreements = torch.ops.isp_distill_cuda.distill_loss(*arguments)
        return losses, agreements

    def upsampled(
        self,
        student: Tensor,
        teacher: Tensor,
        size: tuple[int, int],
        align_corners: bool,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        """Loss and agreement at full resolution, gradient at the student's."""
        row_losses = call.row_losses(student, (student.shape[0], *size))
        losses, agreements = self.launch_upsampled(
            student, teacher, *size, align_corners, call.gradient, *_arguments(call, row_losses)
        )
        return _add_up(losses, agreements, row_losses)

    def launch_upsampled(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        """As :meth:`launch`, of the operator ``upsampled_distill_loss``."""
        losses, agreements = torch.ops.isp_distill_cuda.upsampled_distill_loss(*arguments)
        return losses, agreements


def _arguments(call: Call, row_losses: Tensor | None) -> tuple[Any, ...]:
    """What both operators take behind the logits, in the order of their schemas."""
    options = call.options
    return (
        *call.plain_rows(torch.uint8),
        call.factors,
        row_losses,
        _NUMBERS[call.objective],
        (*options.parameters, 0.0)[0],
        options.temperature,
        options.alpha != 1 and call.rows[0] is not None,
        options.ignore_index,
        options.label_smoothing,
        call.gradient_scale,
    )


def _add_up(losses: Tensor, agreements: Tensor, row_losses: Tensor | None) -> tuple[Tensor, Tensor]:
    """The blocks' parts, added in a fixed order (torch.sum uses no atomics)."""
    loss = losses.sum().to(torch.float32) if row_losses is None else row_losses
    return loss, agreements.sum()


def four_axes(
    student: Tensor, teacher: Tensor, gradient: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The logits as ``[N, C, A, B]``, with as long a last axis as their strides allow.

    They are views, but for logits of more than two axes of positions whose strides do not merge,
    and for a gradient of too many classes that are not neighbours in memory.
    """
    tensors = [student, teacher, *([] if gradient is None else [gradient])]
    shape = (*student.shape[:2], 1, student.shape[2:].numel())
    try:
        flat = [x.view(shape) for x in tensors]
    except RuntimeError:
        flat = tensors if student.dim() == 4 else [x.reshape(shape) for x in tensors]
    if gradient is None:
        return flat[0], flat[1], None
    together = flat[0].stride(1) == flat[1].stride(1) == 1
    if together and flat[2].stride(1) != 1 and student.shape[1] > _MOST_DENSE:
        flat[2] = torch.empty_like(flat[2].movedim(1, -1).contiguous()).movedim(-1, 1)
    return flat[0], flat[1], flat[2]


def refuses(**call: Any) -> str | None:
    """Why the kernels cannot serve a call, in one sentence, or None."""
    if (reason := refused_type(call)) is not None:
        return reason
    if call["objective"] not in _NUMBERS:
        return f"it has no kernel for {call['objective']} (triton has one)"
    if call["form"] == "upsampled":
        return _unfit(*call["sizes"])
    if call["form"] == "logits" and call["classes"] > _MOST_DENSE and not call["classes_together"]:
        return (
            f"its kernels take more than {_MOST_DENSE} classes only where a row's classes are "
            "neighbours in memory (triton takes them)"
        )
    return None


def _unfit(student: Sequence[int], teacher: Sequence[int], size: Sequence[int]) -> str | None:
    """Why no tile of these sizes, each (height, width), fits a block's shared memory, or None."""
    for cells in (student, teacher):
        if any((n + 2) * pixels >= _PRODUCTS for n, pixels in zip(cells, size, strict=True)):
            return f"interpolating {tuple(cells)} to {tuple(size)} overflows 32 bits"
        if cells[1] > _LARGER_MAP * size[1]:
            return (
                f"its kernels take maps at most {_LARGER_MAP} times as wide as the size, and one "
                f"of {cells[1]} columns is brought to {size[1]} (triton takes them)"
            )
    if size[1] > _LARGER_IMAGE * student[1] or teacher[1] > _LARGER_TEACHER * student[1]:
        return (
            f"its kernels take a size at most {_LARGER_IMAGE} times and a teacher's map at most "
            f"{_LARGER_TEACHER} times as wide as the student's, which has {student[1]} columns, "
            f"and these have {size[1]} and {teacher[1]} (triton takes them)"
        )
    return None


choice.register(
    choice.Implementation(
        "distill_loss",
        "cuda",
        CudaKernels(),
        devices=("cuda",),
        missing=cuda_library.missing,
        refuses=refuses,
    )
)
