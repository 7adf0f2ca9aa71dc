"""The specification of :func:`isp_distill.feature_loss`, in plain PyTorch.

Nothing here is fast; see reference.py. Features come as ``[N, D, ...]``, a row being one position
of one sample. float64 in means float64 throughout, anything else computes in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: A shorter row counts as one of this length where its length divides.
NORM_FLOOR = 1e-6
#: What layer norm adds to the variance, as torch.nn.LayerNorm does.
LAYER_EPSILON = 1e-5


def _without_zero_rows(rows: Tensor) -> Tensor:
    """The same rows; those of length 0 have no direction and so get no gradient."""
    return torch.where(rows.norm(dim=-1, keepdim=True) == 0, 0.0, rows)


def _length(rows: Tensor) -> Tensor:
    """The length of each row ``[rows, 1]``, floored; a zero row's has no derivative either."""
    square = rows.square().sum(-1, keepdim=True)
    floored = square <= NORM_FLOOR**2
    return torch.where(floored, NORM_FLOOR, square.masked_fill(floored, 1).sqrt())


def normalised(rows: Tensor, normalise: str, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """Rows ``[rows, D]``, each brought to the scale at which the two models are compared."""
    if normalise == "l2":
        rows = _without_zero_rows(rows)
        return rows / _length(rows)
    if normalise == "layer":
        return F.layer_norm(rows, rows.shape[-1:], eps=LAYER_EPSILON)
    if normalise == "teacher":
        assert mean is not None
        assert std is not None
        return (rows - mean.to(rows.dtype)) / std.to(rows.dtype)
    return rows


def cosine(s: Tensor, t: Tensor) -> Tensor:
    """The cosine of the angle between rows ``[rows, D]``, to ``[rows]``; of a zero row 0."""
    s = _without_zero_rows(s)
    return ((s / _length(s)) * (t / _length(t))).sum(-1)


def feature_rows(
    s: Tensor, t: Tensor, objective: str, parameters: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """The objective of normalised rows ``[rows, D]``, and their cosines, both ``[rows]``."""
    similarity = cosine(s, t)
    if objective == "cosine":
        return 1 - similarity, similarity
    if objective == "mse":
        return (s - t).square().mean(-1), similarity
    of_cosine, of_smooth_l1 = 0.0, 1.0
    if objective == "cosine_smooth_l1":  # Ranzinger et al. 2024 (AM-RADIO), section 3.3
        of_cosine, of_smooth_l1 = parameters[:2]
    elif objective != "smooth_l1":
        raise ValueError(f"unknown objective {objective!r}")
    smooth_l1 = F.smooth_l1_loss(s, t, reduction="none", beta=parameters[-1]).mean(-1)
    loss = of_smooth_l1 * smooth_l1
    return (loss + of_cosine * (1 - similarity) if of_cosine != 0 else loss), similarity


def feature_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mean: Tensor | None,
    std: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    objective: str,
    parameters: tuple[float, ...],
    normalise: str,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """The loss, and the mean cosine of student and teacher over the rows that count.

    Features ``[N, D, ...]``; mask ``[N, ...]``; weight ``[N]`` or ``[N, ...]``; mean and std
    ``[D]``. Rows outside the mask count nothing and are not read. ``mean`` divides by the summed
    weight of the rows that count, as the mean cosine always does; ``batchmean`` divides by N.
    """
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    batch, width = student.shape[:2]
    positions = (batch, *student.shape[2:])

    counted = torch.ones(positions, dtype=torch.bool, device=student.device)
    counted = (counted if mask is None else mask.bool()).reshape(-1)

    def rows(features: Tensor) -> Tensor:
        flat = features.to(dtype).movedim(1, -1).reshape(-1, width)
        return normalised(flat.masked_fill(~counted[:, None], 0), normalise, mean, std)

    of_row = torch.ones(batch, dtype=dtype, device=student.device) if weight is None else weight
    missing = len(positions) - of_row.dim()
    of_row = of_row.to(dtype).reshape(*of_row.shape, *[1] * missing).expand(positions).reshape(-1)
    of_row = of_row.masked_fill(~counted, 0)
    total = of_row.sum()
    total = torch.where(total > 0, total, 1)

    loss, similarity = feature_rows(rows(student), rows(teacher.detach()), objective, parameters)
    loss = loss.masked_fill(~counted, 0) * of_row
    similarity = (similarity.detach().masked_fill(~counted, 0) * of_row / total).sum()
    if reduction == "none":
        return loss.view(positions), similarity
    # Each row is divided, not the sum: torch gives a tensor of no axes over a number a tangent of
    # float64.
    if reduction == "mean":
        return (loss / total).sum(), similarity
    return (loss / batch if reduction == "batchmean" else loss).sum(), similarity
