"""What a fused backend of the distillation loss is asked for, beside the logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isp_distill.backends.kernel_arguments import plain
from isp_distill.ops.distill_loss.options import Options

#: Labels (int64), mask (bool), weight of the rows; each may be missing.
Rows = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Call:
    """One loss: which rows count, what is computed, where the gradient goes.

    Attributes:
        rows: labels, mask and weight.
        factors: ``[2]``, float64, on the logits' device: alpha and the reduction's denominators. A
            factor of exactly 0 may be skipped only where it is known on the host, from
            ``options.alpha``.
        options: objective, temperature and the like.
        gradient: filled, if given, with ``gradient_scale`` times the derivative of the (summed)
            loss; it may be the student's own memory.
        gradient_scale: see there.
    """

    rows: Rows
    factors: Tensor
    options: Options
    gradient: Tensor | None
    gradient_scale: float

    @property
    def objective(self) -> str:
        """The objective as the kernels know it: "none" is cross entropy alone."""
        return "none" if self.options.alpha == 0 else self.options.objective

    def plain_rows(self, mask_dtype: torch.dtype = torch.bool) -> Rows:
        """Labels, mask (a byte each) and weight as compiled kernels take them."""
        labels, mask, weight = self.rows
        return (
            None if labels is None else labels.contiguous(),
            None if mask is None else mask.contiguous().view(mask_dtype),
            plain(weight),
        )

    def row_losses(self, student: Tensor, positions: Sequence[int]) -> Tensor | None:
        """Memory for a loss of each row, float32, where they are not to be added up."""
        if self.options.reduction != "none":
            return None
        return student.new_empty(positions, dtype=torch.float32)

    def cross_entropy_alone(self) -> Call:
        """What is left of a call whose objective is computed elsewhere, its gradient apart."""
        gradient = None
        if self.options.alpha != 1 and self.gradient is not None:
            gradient = torch.empty_like(self.gradient)
        options = dataclasses.replace(self.options, alpha=0.0, reduction="sum")
        return dataclasses.replace(self, options=options, gradient=gradient)
