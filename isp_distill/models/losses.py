"""Losses as modules, for training loops that configure them once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isp_distill.ops.dense_logits import full_size
from isp_distill.ops.distill_loss.call import Result, distill_loss, upsampled_distill_loss
from isp_distill.ops.distill_loss.options import checked_options


class DistillLoss(nn.Module):
    """:func:`isp_distill.distill_loss` with its options kept; they are checked at once.

    Dense logits of two resolutions, or with ``size``, go through
    :func:`isp_distill.upsampled_distill_loss`: nothing of the full size is ever allocated. Logits
    of three axes are refused: ``[N, T, C]`` tokens and ``[N, C, L]`` maps look the same.

    Args:
        objective: see :func:`isp_distill.distill_loss`, as for all else.
        temperature: see there.
        alpha: see there.
        ignore_index: see there.
        label_smoothing: see there.
        reduction: see there.
        return_agreement: see there.
        inplace_grad: see there.
        size: of dense logits, the resolution at which the loss is taken: one side or (height,
            width); the teacher's own if None.

    Raises:
        ValueError: for an unknown name, or a number out of range.

    Examples:
        >>> loss = isp_distill.DistillLoss("jsd(0.3)", temperature=2.0)
        >>> student = torch.randn(8, 10, requires_grad=True)
        >>> loss(student, torch.randn(8, 10)).backward()
        >>> student.grad.shape
        torch.Size([8, 10])
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
        size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        options = checked_options(
            objective, temperature, alpha, ignore_index, label_smoothing, reduction
        )
        #: Whether the value depends on labels where there are some.
        self.needs_labels = options.needs_labels
        self.objective = objective
        self.temperature = temperature
        self.alpha = alpha
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.return_agreement = return_agreement
        self.inplace_grad = inplace_grad
        self.size = size

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Result:
        """The loss of logits ``[N, C, ...]``, labels and mask ``[N, ...]``, weight ``[N]``.

        Raises:
            ValueError: for logits of three axes, and as :func:`isp_distill.distill_loss`.
        """
        for name, logits in (("student", student), ("teacher", teacher)):
            if isinstance(logits, Tensor) and logits.dim() == 3:
                raise ValueError(
                    f"{name} has shape {list(logits.shape)}, and three axes do not say which one "
                    "is the classes: give tokens [N, T, C] as flatten(0, 1) of them, and maps "
                    "[N, C, L] as unsqueeze(-1)"
                )
        options: dict[str, Any] = {
            "objective": self.objective,
            "temperature": self.temperature,
            "alpha": self.alpha,
            "mask": mask,
            "weight": weight,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
            "reduction": self.reduction,
            "return_agreement": self.return_agreement,
        }
        if getattr(student, "ndim", 0) == getattr(teacher, "ndim", 0) == 4:
            size = full_size(self.size, teacher)
            if not size == student.shape[2:] == teacher.shape[2:]:
                return upsampled_distill_loss(student, teacher, size, labels, **options)
        return distill_loss(student, teacher, labels, inplace_grad=self.inplace_grad, **options)

    def no_labels(self, teacher: Tensor) -> Tensor:
        """Labels that say of every prediction that it has none: int64 ``[N]`` or ``[N, h, w]``.

        Args:
            teacher: its logits.
        """
        size = full_size(self.size, teacher) if teacher.dim() == 4 else ()
        return torch.full((len(teacher), *size), self.ignore_index, device=teacher.device)

    def positions(self, teacher: Tensor) -> int:
        """How many predictions the loss compares: samples, or pixels at its resolution."""
        if teacher.dim() != 4:
            return teacher.numel() // teacher.shape[1]
        height, width = full_size(self.size, teacher)
        return teacher.shape[0] * height * width

    def extra_repr(self) -> str:
        """The options that matter to a reader of a printed model."""
        text = f"objective={self.objective!r}, temperature={self.temperature}, alpha={self.alpha}"
        if self.alpha != 1:
            text += f", label_smoothing={self.label_smoothing}, ignore_index={self.ignore_index}"
        if self.size is not None:
            text += f", size={self.size}"
        return f"{text}, reduction={self.reduction!r}"
