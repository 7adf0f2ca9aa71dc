"""The distillation loss on the GPU, in Triton: the kernels of ``kernels/distill_*``.

Nothing here looks at values on the device, so a call may be captured in a CUDA graph.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from isp_distill import backend, triton_support
from isp_distill.ops.distill_backend import Rows, plain_rows
from isp_distill.ops.distill_options import Options

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _numbers(options: Options, gradient_scale: float) -> tuple[Any, ...]:
    """The numbers of a call in the order in which every kernel takes them."""
    parameters = (*options.parameters, 0.0, 0.0)
    return (
        1 / (math.log(2) * options.temperature),
        options.temperature,
        parameters[0],
        parameters[1],
        options.ignore_index,
        options.label_smoothing,
        gradient_scale,
    )


def _objective(options: Options) -> str:
    """The objective as the kernels know it: "none" is cross entropy alone."""
    return "none" if options.alpha == 0 else options.objective


def _cross_entropy(options: Options) -> bool:
    return options.alpha != 1


def _add_up(losses: Tensor, agreements: Tensor) -> tuple[Tensor, Tensor]:
    """The programs' parts, added in a fixed order (torch.sum uses no atomics)."""
    return losses.sum().to(torch.float32), agreements.sum()


class TritonKernels:
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
        row_losses = None
        if options.reduction == "none":
            positions = (student.shape[0], *student.shape[2:])
            row_losses = student.new_empty(positions, dtype=torch.float32)
        loss, agreement = _launch(
            student, teacher, gradient, (*plain_rows(rows, torch.uint8), None), factors, row_losses,
            _numbers(options, gradient_scale), _objective(options), _cross_entropy(options),
        )  # fmt: skip
        return loss if row_losses is None else row_losses, agreement

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
        _, mask, weight = plain_rows(rows, torch.uint8)
        of_entropy = None
        if options.alpha != 1 and gradient is not None:
            of_entropy = torch.empty_like(gradient)
        entropy = replace(options, alpha=0.0, reduction="sum")
        second, agreement = self.logits(
            student, teacher, rows, factors, entropy, of_entropy, gradient_scale
        )
        row_losses = None
        if options.reduction == "none":
            row_losses = student.new_empty(student.shape[:2], dtype=torch.float32)
        # Pixels in the place of classes: [N, H * W, C].
        s, t = student.flatten(2).transpose(1, 2), teacher.flatten(2).transpose(1, 2)
        g = None if gradient is None else gradient.flatten(2).transpose(1, 2)
        loss, _ = _launch(
            s, t, g, (None, None, weight, mask), factors, row_losses,
            _numbers(options, gradient_scale), "forward_kl", False, streamed=True,
        )  # fmt: skip
        if gradient is not None and g is not None:
            _bring_back(g, gradient, g.transpose(1, 2).view(gradient.shape))
            if of_entropy is not None:
                gradient += of_entropy
        if row_losses is not None:
            return row_losses, agreement
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
        from isp_distill.kernels.distill_upsampled import launch_upsampled

        row_losses = None
        if options.reduction == "none":
            row_losses = student.new_empty((student.shape[0], *size), dtype=torch.float32)
        settings = (_numbers(options, gradient_scale), _objective(options), _cross_entropy(options))
        logits = (student, teacher, size, align_corners, gradient)
        with _current_device(student):
            parts = launch_upsampled(
                *logits, plain_rows(rows, torch.uint8), factors, row_losses, *settings
            )
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
    factors: Tensor,
    row_losses: Tensor | None,
    numbers: tuple[Any, ...],
    objective: str,
    cross_entropy: bool,
    streamed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss and agreement of logits ``[N, C, ...]``; ``row_tensors`` ends with a mask of classes."""
    from isp_distill.kernels.distill_held import fits, launch_held
    from isp_distill.kernels.distill_layout import layout_of
    from isp_distill.kernels.distill_streamed import launch_streamed

    s, t, g = student, teacher, gradient
    layout = layout_of([s, t] if g is None else [s, t, g])
    if layout is None:
        # More axes than the kernels step along: copies in which they are one.
        s, t = student.contiguous(), teacher.contiguous()
        g = None if gradient is None else gradient.contiguous()
        layout = layout_of([s, t] if g is None else [s, t, g])
        assert layout is not None
    others = (factors, row_losses, numbers, objective, cross_entropy)
    item_size = min(s.element_size(), t.element_size())
    with _current_device(s):
        if streamed or not fits(layout, s.shape[1], item_size, objective, cross_entropy):
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
    for name in ("student", "teacher"):
        if call[name] not in _DTYPES:
            return f"its kernels compute in float32, and the {name} is {call[name]}"
    if call["objective"] == "cwd" and call["form"] == "upsampled":
        return "it has no kernel for cwd of upsampled logits"
    return None


backend.register(
    backend.Implementation(
        "distill_loss",
        "triton",
        TritonKernels(),
        devices=triton_support.devices(),
        missing=triton_support.missing,
        refuses=_refuses,
    )
)
