"""The distillation loss on the GPU, in Triton: the kernels of ``kernels/distill_*``.

Nothing here looks at values on the device, so a call may be captured in a CUDA graph.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isp_distill.backends import choice, triton_support
from isp_distill.backends.kernel_arguments import refused_type
from isp_distill.ops.distill_loss.request import Call


def _numbers(call: Call) -> tuple[Any, ...]:
    """The numbers of a call in the order in which every kernel takes them."""
    options = call.options
    parameters = (*options.parameters, 0.0, 0.0)
    return (
        1 / (math.log(2) * options.temperature),
        options.temperature,
        parameters[0],
        parameters[1],
        options.ignore_index,
        options.label_smoothing,
        call.gradient_scale,
    )


class _Formula(NamedTuple):
    """What the kernels compute of each row."""

    factors: Tensor
    numbers: tuple[Any, ...]  # see _numbers
    objective: str
    cross_entropy: bool

    @classmethod
    def of(cls, call: Call) -> _Formula:
        return cls(call.factors, _numbers(call), call.objective, call.options.alpha != 1)


def _add_up(losses: Tensor, agreements: Tensor) -> tuple[Tensor, Tensor]:
    """The programs' parts, added in a fixed order (torch.sum uses no atomics)."""
    return losses.sum().to(torch.float32), agreements.sum()


class TritonKernels:
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
        row_losses = call.row_losses(student, (student.shape[0], *student.shape[2:]))
        rows = (*call.plain_rows(torch.uint8), None)
        loss, agreement = _launch(
            student, teacher, call.gradient, rows, row_losses, _Formula.of(call)
        )
        return loss if row_losses is None else row_losses, agreement

    def _channels(
        self,
        student: Tensor,
        teacher: Tensor,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        """``cwd``, whose rows are channels; cross entropy, if any, and agreement come apart."""
        entropy, gradient = call.cross_entropy_alone(), call.gradient
        _, mask, weight = call.plain_rows(torch.uint8)
        second, agreement = self.logits(student, teacher, entropy)
        row_losses = call.row_losses(student, student.shape[:2])
        # Pixels in the place of classes: [N, H * W, C].
        s, t = student.flatten(2).transpose(1, 2), teacher.flatten(2).transpose(1, 2)
        g = None if gradient is None else gradient.flatten(2).transpose(1, 2)
        formula = _Formula.of(call)._replace(objective="forward_kl", cross_entropy=False)
        loss, _ = _launch(s, t, g, (None, None, weight, mask), row_losses, formula, streamed=True)
        if gradient is not None and g is not None:
            _bring_back(g, gradient, g.transpose(1, 2).view(gradient.shape))
            if entropy.gradient is not None:
                gradient += entropy.gradient
        if row_losses is not None:
            return row_losses, agreement
        return loss + second if call.options.alpha != 1 else loss, agreement

    def upsampled(
        self,
        student: Tensor,
        teacher: Tensor,
        size: tuple[int, int],
        align_corners: bool,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        """Loss and agreement at full resolution, gradient at the student's."""
        from isp_distill.kernels.distill_loss.upsampled import launch_upsampled

        row_losses = call.row_losses(student, (student.shape[0], *size))
        with _current_device(student):
            parts = launch_upsampled(
                student, teacher, size, align_corners, call.gradient, call.plain_rows(torch.uint8),
                call.factors, row_losses, *_Formula.of(call)[1:],
            )  # fmt: skip
        loss, agreement = _add_up(*parts)
        return loss if row_losses is None else row_losses, agreement


def _current_device(logits: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the one that holds the logits."""
    return torch.cuda.device(logits.device) if logits.is_cuda else contextlib.nullcontext()


def _launch(
    student: Tensor,
    teacher: Tensor,
    gradient: Tensor | None,
    row_tensors: tuple[Tensor | None, ...],
    row_losses: Tensor | None,
    formula: _Formula,
    streamed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss and agreement of logits ``[N, C, ...]``; ``row_tensors`` ends with a mask of classes."""
    from isp_distill.kernels.distill_loss.held import fits, launch_held
    from isp_distill.kernels.distill_loss.layout import layout_of
    from isp_distill.kernels.distill_loss.streamed import launch_streamed

    s, t, g = student, teacher, gradient
    layout = layout_of([s, t] if g is None else [s, t, g])
    if layout is None:
        # More axes than the kernels step along: copies in which they are one.
        s, t = student.contiguous(), teacher.contiguous()
        g = None if gradient is None else gradient.contiguous()
        layout = layout_of([s, t] if g is None else [s, t, g])
        assert layout is not None
    factors, *rest = formula
    others = (factors, row_losses, *rest)
    item_size = min(s.element_size(), t.element_size())
    with _current_device(s):
        if streamed or not fits(layout, s.shape[1], item_size, *formula[2:]):
            parts = launch_streamed(layout, s, t, g, row_tensors, *others)
        else:
            parts = launch_held(layout, s, t, g, row_tensors[:3], *others)
    if gradient is not None and g is not None:
        _bring_back(g, gradient, g)
    return _add_up(*parts)


def _bring_back(written: Tensor, gradient: Tensor, values: Tensor) -> None:
    """Where a change of the gradient's axes made a copy, that is where the kernel wrote."""
    if written.data_ptr() != gradient.data_ptr():
        gradient.copy_(values)


def _refuses(**call: Any) -> str | None:
    if (reason := refused_type(call)) is not None:
        return reason
    if call["objective"] == "cwd" and call["form"] == "upsampled":
        return "it has no kernel for cwd of upsampled logits"
    return None


choice.register(
    choice.Implementation(
        "distill_loss",
        "triton",
        TritonKernels(),
        devices=triton_support.devices(),
        missing=triton_support.missing,
        refuses=_refuses,
    )
)
