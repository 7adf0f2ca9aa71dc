"""Losses as modules, for training loops that configure them once."""

from __future__ import annotations

from torch import Tensor, nn

from isp_distill.ops.distill_loss import Result, distill_loss
from isp_distill.ops.distill_options import checked_options


class DistillLoss(nn.Module):
    """:func:`isp_distill.distill_loss` with its options kept; they are checked at once.

    Args:
        objective: see :func:`isp_distill.distill_loss`, as for all else.
        temperature: see there.
        alpha: see there.
        ignore_index: see there.
        label_smoothing: see there.
        reduction: see there.
        return_agreement: see there.
        inplace_grad: see there.

    Raises:
        ValueError: for an unknown name, or a number out of range.
    """

    def __init__(
        self,
        objective: str = "forward_kl",
        *,
        temperature: float = 1.0,
        alpha: float = 1.0,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        return_agreement: bool = False,
        inplace_grad: bool = False,
    ) -> None:
        super().__init__()
        checked_options(objective, temperature, alpha, ignore_index, label_smoothing, reduction)
        self.objective = objective
        self.temperature = temperature
        self.alpha = alpha
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.return_agreement = return_agreement
        self.inplace_grad = inplace_grad

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Result:
        """The loss of logits ``[N, C, ...]``, labels and mask ``[N, ...]``, weight ``[N]``."""
        return distill_loss(
            student,
            teacher,
            labels,
            objective=self.objective,
            temperature=self.temperature,
            alpha=self.alpha,
            mask=mask,
            weight=weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            return_agreement=self.return_agreement,
            inplace_grad=self.inplace_grad,
        )

    def extra_repr(self) -> str:
        """The options that matter to a reader of a printed model."""
        text = f"objective={self.objective!r}, temperature={self.temperature}, alpha={self.alpha}"
        if self.alpha != 1:
            text += f", label_smoothing={self.label_smoothing}, ignore_index={self.ignore_index}"
        return f"{text}, reduction={self.reduction!r}"
