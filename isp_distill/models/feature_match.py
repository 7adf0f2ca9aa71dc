"""Features of two models brought to one form, and the loss between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from isp_distill.models.projector import width_of
from isp_distill.ops.feature_loss.call import feature_loss
from isp_distill.ops.feature_loss.options import checked_options

# Tokens before those of the picture: a class token and a few registers.
_MOST_LEADING = 8
#: The least standard deviation of a teacher's channel; one that never changes would divide by 0.
_LEAST_DEVIATION = 1e-6


def as_map(tokens: Tensor) -> Tensor:
    """Tokens ``[N, L, D]`` as a map ``[N, D, side, side]``, a view, without the leading ones.

    Raises:
        ValueError: no few leading tokens leave a square.
    """
    for leading in range(min(_MOST_LEADING, tokens.shape[1] - 1) + 1):
        side = math.isqrt(tokens.shape[1] - leading)
        if side * side == tokens.shape[1] - leading:
            places = tokens[:, leading:].transpose(1, 2)
            return places.view(*places.shape[:2], side, side)
    raise ValueError(
        f"tokens {list(tokens.shape)} are no square grid after up to {_MOST_LEADING} leading ones, "
        "so they cannot be compared with a map or another grid"
    )


def aligned(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, tuple[int, int] | None]:
    """Features of one form, and the size at which they are compared where their grids differ.

    Args:
        student: ``[N, D]``, ``[N, L, D]`` or ``[N, D, H, W]``.
        teacher: likewise; its width may be another.

    Raises:
        ValueError: one is of whole pictures and the other of places.
    """
    shapes = _shapes(student, teacher)
    for features in (student, teacher):
        if features.dim() not in (2, 3, 4):
            raise ValueError(f"{shapes}: expected [N, D], [N, L, D] or [N, D, H, W]")
    if (student.dim() == 2) != (teacher.dim() == 2):
        raise ValueError(
            f"{shapes}: one is of a whole picture, the other of its places; match two of a kind"
        )
    if {student.dim(), teacher.dim()} == {3, 4} or (
        student.dim() == 3 and student.shape[1] != teacher.shape[1]
    ):
        student, teacher = (x if x.dim() == 4 else as_map(x) for x in (student, teacher))
    if student.dim() == 4 and student.shape[2:] != teacher.shape[2:]:
        return student, teacher, (teacher.shape[2], teacher.shape[3])
    return student, teacher, None


def check_widths(student: Tensor, teacher: Tensor) -> None:
    """Refuse features of different widths.

    Raises:
        ValueError: that says what to do.
    """
    if width_of(student) != width_of(teacher):
        raise ValueError(
            f"{_shapes(student, teacher)}: their widths differ, so give "
            'project="linear" (or "mlp") in the Match'
        )


def _shapes(student: Tensor, teacher: Tensor) -> str:
    ours, theirs = list(student.shape), list(teacher.shape)
    return f"the student's features are {ours}, the teacher's {theirs}"


class RunningStatistics(nn.Module):
    """Mean and standard deviation of every channel of all features seen so far.

    Sums, not an average that forgets: what was seen counts alike, whatever its place in the run.
    """

    count: Tensor
    sums: Tensor
    squares: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))

    @torch.no_grad()
    def update(self, features: Tensor, total: Callable[[Tensor], Tensor]) -> None:
        """Count in a batch.

        Args:
            features: ``[N, D]``, ``[N, L, D]`` or ``[N, D, H, W]``.
            total: the sum of a tensor over all processes.
        """
        last = features.movedim(1, -1) if features.dim() == 4 else features
        rows = last.reshape(-1, last.shape[-1]).double()
        count = rows.new_full((1,), len(rows))
        found = total(torch.cat([count, rows.sum(0), rows.square().sum(0)]))
        width = rows.shape[1]
        self.count += found[0]
        self.sums += found[1 : width + 1]
        self.squares += found[width + 1 :]

    def current(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, float32 ``[D]``; 0 and 1 where nothing was seen."""
        count = self.count.clamp(min=1)
        mean = self.sums / count
        variance = (self.squares / count - mean.square()).clamp(min=0)
        deviation = variance.sqrt().clamp(min=_LEAST_DEVIATION)
        deviation = torch.where(self.count > 0, deviation, 1.0)
        return mean.float(), deviation.float()


class FeatureMatchLoss(nn.Module):
    """:func:`isp_distill.feature_loss` of features of any two forms.

    Args:
        objective: see there.
        normalise: see there.
        width: of the teacher's features, where it normalises by the teacher's statistics.
    """

    def __init__(self, objective: str, normalise: str | None, width: int) -> None:
        super().__init__()
        self.objective, self.normalise = objective, normalise or "none"
        checked_options(self.objective, self.normalise, "mean")
        self.statistics = RunningStatistics(width) if self.normalise == "teacher" else None

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss and the mean cosine.

        Args:
            student: projected to the teacher's width.
            teacher: features.
            total: the sum over all processes, with which the teacher's statistics are updated
                first; None leaves them as they are.
        """
        if self.statistics is not None and total is not None:
            self.statistics.update(teacher, total)
        check_widths(student, teacher)
        student, teacher, size = aligned(student, teacher)
        options: dict[str, Any] = {"objective": self.objective, "normalise": self.normalise}
        if self.statistics is not None:
            options["mean"], options["std"] = self.statistics.current()
        result = feature_loss(student, teacher, size=size, return_similarity=True, **options)
        return cast("tuple[Tensor, Tensor]", result)
