"""What a backend of the feature loss provides, and how the operator runs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from isp_distill.backends import choice
from isp_distill.backends.kernel_arguments import plain
from isp_distill.ops import reference_feature_loss as reference
from isp_distill.ops.distill_loss.backend import result_dtype
from isp_distill.ops.feature_loss.options import Options, check_values
from isp_distill.ops.stored_gradient import reference_with_gradient

#: Mean and standard deviation of the teacher's channels; mask (bool) and weight of the rows. Each
#: may be missing.
Others = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


#: Height and width of the positions at which maps are compared; None: as the maps are.
Grid = tuple[int, int] | None


def grid_of(size: Sequence[int]) -> Grid:
    """An operator's list as a grid; an empty one is none."""
    return (size[0], size[1]) if size else None


@dataclass(frozen=True)
class Call:
    """What a fused backend is asked for, beside the features.

    Attributes:
        others: mean, std, mask and weight.
        factors: ``[2]``, float64, on the features' device: what each row's loss and each row's
            cosine is multiplied by, beside the row's weight.
        options: objective, normalisation and reduction.
        gradient: filled, if given, with ``gradient_scale`` times the derivative of the (summed)
            loss.
        gradient_scale: see there.
    """

    others: Others
    factors: Tensor
    options: Options
    gradient: Tensor | None
    gradient_scale: float

    def plain_rows(self, mask_dtype: torch.dtype = torch.bool) -> tuple[Tensor | None, ...]:
        """Mean, std, mask (a byte each) and weight as compiled kernels take them."""
        mean, std, mask, weight = self.others
        mask = None if mask is None else mask.contiguous().view(mask_dtype)
        return plain(mean), plain(std), mask, plain(weight)

    def row_losses(self, student: Tensor, positions: Sequence[int]) -> Tensor | None:
        """Memory for a loss of each row, float32, where they are not to be added up."""
        if self.options.reduction != "none":
            return None
        return student.new_empty(positions, dtype=torch.float32)


class Kernels(Protocol):
    """The function of a fused backend (``Implementation.functions``)."""

    def features(self, student: Tensor, teacher: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Loss and mean cosine of ``[N, D, ...]`` of any strides, float32.

        Rows outside the mask are not read and get a zero gradient. With
        ``options.reduction == "none"`` the loss has one value for each row.
        """
        ...


@runtime_checkable
class ResamplingKernels(Kernels, Protocol):
    """Of a backend that compares maps of different grids without resampling them first."""

    def resampled(
        self, student: Tensor, teacher: Tensor, call: Call, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The same of maps ``[N, D, h, w]``, at another grid; rows are its positions."""
        ...


choice.register(choice.Implementation("feature_loss", "reference", reference.feature_loss))


def choose(student: Tensor, teacher: Tensor, options: Options) -> choice.Implementation:
    """Who serves a call."""
    return choice.choose(
        "feature_loss",
        student.device,
        student=student.dtype,
        teacher=teacher.dtype,
        width=student.shape[1],
        objective=options.objective,
        normalise=options.normalise,
    )


def empty_result(
    student: Tensor, positions: Sequence[int], reduction: str
) -> tuple[Tensor, Tensor]:
    """Loss and mean cosine of the right shape and dtype, without values."""
    dtype = result_dtype(student)
    loss = student.new_empty(tuple(positions) if reduction == "none" else (), dtype=dtype)
    return loss, student.new_empty((), dtype=dtype)


def reduction_factors(
    device: torch.device,
    positions: Sequence[int],
    mask: Tensor | None,
    weight: Tensor | None,
    reduction: str,
) -> Tensor:
    """What a row's loss and its cosine are multiplied by, ``[2]``, float64.

    Without a look at the device, and filled in there: a copy from the host could not be captured in
    a CUDA graph.
    """
    batch, rows = positions[0], math.prod(positions)
    if mask is None and weight is None:
        share = {"mean": 1 / rows, "batchmean": 1 / batch}.get(reduction, 1.0)
        shares = [share, 1 / rows]
        if device.type == "cpu":
            return torch.tensor(shares, dtype=torch.float64)
        return torch.stack([torch.full((), x, dtype=torch.float64, device=device) for x in shares])
    if weight is None:
        assert mask is not None
        total = mask.sum(dtype=torch.float64)
    elif mask is None:
        total = weight.sum(dtype=torch.float64) * (rows // weight.numel())
    elif weight.shape == mask.shape:
        total = torch.where(mask, weight, 0).sum(dtype=torch.float64)
    else:
        total = (mask.reshape(batch, -1).sum(1) * weight.double()).sum()
    mean = 1 / torch.where(total > 0, total, 1)
    if reduction == "mean":
        return torch.stack([mean, mean])
    share = 1 / batch if reduction == "batchmean" else 1.0
    return torch.stack([torch.full_like(mean, share), mean])


def feature_loss(
    student: Tensor,
    teacher: Tensor,
    others: Others,
    options: Options,
    grid: Grid,
    gradient: Tensor | None,
    gradient_scale: float,
) -> tuple[Tensor, Tensor]:
    """Loss and mean cosine of features ``[N, D, ...]``, at a grid; fills ``gradient``."""
    _, std, mask, weight = others
    check_values(weight, std)
    chosen = choose(student, teacher, options)
    if chosen.backend == "reference":
        return reference_with_gradient(
            student,
            lambda leaf: reference_loss(leaf, teacher, others, options, grid),
            gradient,
            gradient_scale,
        )
    positions = (student.shape[0], *(grid or student.shape[2:]))
    factors = reduction_factors(student.device, positions, mask, weight, options.reduction)
    kernels: Kernels = chosen.functions
    call = Call(others, factors, options, gradient, gradient_scale)
    if grid is None:
        return kernels.features(student, teacher, call)
    if isinstance(kernels, ResamplingKernels):
        return kernels.resampled(student, teacher, call, grid)
    return resampled_first(kernels, student, teacher, call, grid)


def resampled_first(
    kernels: Kernels, student: Tensor, teacher: Tensor, call: Call, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """By torch's interpolation and its derivative, around kernels that know one grid."""
    wide = at_grid(student, grid)
    own = None if call.gradient is None else torch.empty_like(wide)
    result = kernels.features(wide, at_grid(teacher, grid), replace(call, gradient=own))
    if own is not None and call.gradient is not None:
        if wide is not student:
            own = torch.ops.aten.upsample_bilinear2d_backward(
                own, list(grid), list(student.shape), False
            )
        call.gradient.copy_(own)
    return result


def at_grid(features: Tensor, grid: Grid) -> Tensor:
    """Maps at a grid, interpolated in float32 or float64."""
    if grid is None or features.shape[2:] == grid:
        return features
    wide = features if features.dtype == torch.float64 else features.float()
    return F.interpolate(wide, grid, mode="bilinear", align_corners=False)


def reference_loss(
    student: Tensor, teacher: Tensor, others: Others, options: Options, grid: Grid = None
) -> tuple[Tensor, Tensor]:
    """Loss and mean cosine by the reference, in operations that know every derivative."""
    mean, std, mask, weight = others
    return reference.feature_loss(
        at_grid(student, grid),
        at_grid(teacher, grid),
        mean=mean,
        std=std,
        mask=mask,
        weight=weight,
        objective=options.objective,
        parameters=options.parameters,
        normalise=options.normalise,
        reduction=options.reduction,
    )
