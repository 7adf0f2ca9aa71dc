"""The feature loss: embeddings, tokens or maps of two models in, loss and gradient out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from isp_distill.arguments import is_plain_eager
from isp_distill.ops.distill_loss.options import checked_size, flag
from isp_distill.ops.feature_loss.backend import at_grid, reference_loss
from isp_distill.ops.feature_loss.backend import feature_loss as computed_loss
from isp_distill.ops.feature_loss.operator import Direct
from isp_distill.ops.feature_loss.options import (
    check_features,
    check_values,
    checked_options,
    checked_rows,
    checked_statistics,
)
from isp_distill.ops.stored_gradient import gradient_scale, is_transformed

Result = Tensor | tuple[Tensor, Tensor]


def feature_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    objective: str,
    normalise: str = "none",
    mean: Tensor | None = None,
    std: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    size: int | Sequence[int] | None = None,
    return_similarity: bool = False,
) -> Result:
    """How far the student's features are from the teacher's.

    A row is one position of one sample: ``[N, D]`` has N rows, ``[N, L, D]`` N·L and
    ``[N, D, H, W]`` N·H·W. With ``s`` and ``t`` the normalised rows, the objectives are, per row:

    - ``"cosine"``: ``1 - <s, t> / (|s| |t|)``, in [0, 2]. Lengths are floored at 1e-6; a row of
      length 0 gives 1 and gets no gradient.
    - ``"mse"``: the mean over D of ``(s - t)^2``.
    - ``"smooth_l1"`` or ``"smooth_l1(b)"``: the mean over D of ``|d|^2 / (2 b)`` where
      ``|d| = |s - t| < b`` and ``|d| - b / 2`` elsewhere; b = 1, in [1e-6, 1e6].
    - ``"cosine_smooth_l1"`` or ``"cosine_smooth_l1(x, y, b)"``: ``x cosine + y smooth_l1(b)``,
      x = 0.9, y = 0.1, b = 1: how several teachers' features are distilled at once, Ranzinger et
      al. 2024 (AM-RADIO, arXiv 2312.06709) and Shang et al. 2024 (Theia, arXiv 2407.20179).

    Args:
        student: features of any strides; float32, bfloat16, float16 (computed in float32) or
            float64. A NaN is seen in loss and gradient.
        teacher: features of the same shape (see ``size``), of any of these dtypes. It gets no
            gradient, as if it were detached.
        objective: see above.
        normalise: "none"; "l2" divides each row of both by its length; "layer" takes each row of
            both to mean 0 and variance 1 (epsilon 1e-5); "teacher" takes ``(x - mean) / std`` of
            both with the teacher's statistics, so that teachers of different scales weigh alike:
            Ranzinger et al. 2024 (PHI-S, arXiv 2410.01680) say why.
        mean: ``[D]``, the teacher's running mean of each channel; for "teacher" alone.
        std: ``[D]``, above 0, its running standard deviation.
        mask: bool or integer, a value a row: ``[N]``, ``[N, L]`` or ``[N, H, W]``. Rows where it is
            0 count nothing and are not read.
        weight: finite and not negative, a value a sample ``[N]``, or a row as ``mask``.
        reduction: "mean" divides by the summed weight of the rows that count, "batchmean" by N,
            "sum" by nothing; "none" gives a value per row.
        size: (height, width) or one number for both, of maps ``[N, D, H, W]`` whose grids differ:
            where the loss is taken, and where mask and weight are. Features of another grid are
            resampled as ``torch.nn.functional.interpolate(mode="bilinear")`` does.
        return_similarity: also return the mean cosine of the normalised rows, weighted as "mean"
            is, without a gradient; 0 where no row counts. It costs nothing.

    Returns:
        The loss, float32 (float64 for a float64 student), and the mean cosine if asked for. A batch
        in which no row counts gives 0 and zero gradients. Under a transform of ``torch.func``, or
        with a tangent of forward-mode differentiation, the reference computes it, on any backend.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for a wrong shape, device, name or range.
        RuntimeError: for a second derivative by backward passes, which does not exist (by
            ``torch.func`` it does).
        BackendError: if the backend that was asked for cannot serve the call.

    Examples:
        >>> student = torch.randn(4, 196, 384, requires_grad=True)
        >>> teacher = torch.randn(4, 196, 384)
        >>> loss = isp_distill.feature_loss(student, teacher, objective="cosine")
        >>> loss.backward()
        >>> student.grad.shape
        torch.Size([4, 196, 384])
        >>> _, similarity = isp_distill.feature_loss(
        ...     teacher, teacher, objective="mse", normalise="l2", return_similarity=True
        ... )
        >>> round(float(similarity), 4)
        1.0
    """
    options = checked_options(objective, normalise, reduction)
    return_similarity = flag("return_similarity", return_similarity)
    grid = None if size is None else checked_size(size)
    check_features(student, teacher, grid)
    positions = student.shape[:2] if student.dim() == 3 else (student.shape[0], *student.shape[2:])
    if grid is not None:
        positions = (student.shape[0], *grid)
    width = student.shape[2 if student.dim() == 3 else 1]
    mask, weight = checked_rows(student, positions, mask, weight)
    mean, std = checked_statistics(student, width, normalise, mean, std)
    teacher = teacher.detach()
    with_gradient = torch.is_grad_enabled() and student.requires_grad
    if student.dim() == 3:  # the kernels step by strides: channels come second, in a view
        student, teacher = student.transpose(1, 2), teacher.transpose(1, 2)
    if grid is not None and student.shape[2:] == grid == teacher.shape[2:]:
        grid = None
    if reduction == "none" and with_gradient:
        # A factor for each row comes with the backward pass: the gradient is kept row by row.
        student, teacher, grid = at_grid(student, grid), at_grid(teacher, grid), None
    others = (mean, std, mask, weight)
    if is_transformed(student):
        check_values(weight, std)
        loss, similarity = reference_loss(student, teacher, others, options, grid)
        return (loss, similarity) if return_similarity else loss
    scale = gradient_scale(student, math.prod(positions), reduction, resized=grid is not None)
    teacher = teacher.resolve_neg()
    plain = is_plain_eager(student, teacher, *others)
    if plain and not with_gradient:
        student = student.resolve_neg()
        loss, similarity = computed_loss(student, teacher, others, options, grid, None, scale)
    elif plain:
        loss, similarity = Direct.apply(
            student.resolve_neg(), teacher, others, options, grid, scale
        )
    else:
        loss, similarity, _ = torch.ops.isp_distill.feature_loss(
            student.resolve_neg(),
            teacher,
            *others,
            options.objective,
            list(options.parameters),
            options.normalise,
            options.reduction,
            list(grid or ()),
            with_gradient,
            scale,
        )
    return (loss, similarity) if return_similarity else loss
