"""What the kernels of the feature loss are launched with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isp_distill.kernels.distill_loss.layout import Layout, tiles_of
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """Arguments of either kernel, and where its results will be.

    Attributes:
        programs: the grid.
        arguments: positional.
        constants: the keyword arguments, ``num_warps`` among them.
        losses: of each program, float64.
        similarities: weighted cosines of each program, float64.
    """

    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    losses: Tensor
    similarities: Tensor


def arrange(
    layout: Layout,
    block: tuple[int, int, int],
    student: Tensor,
    teacher: Tensor,
    gradient: Tensor | None,
    row_tensors: tuple[Tensor | None, ...],
    factors: Tensor,
    row_losses: Tensor | None,
    numbers: tuple[float, ...],
    formula: dict[str, Any],
) -> Launch:
    """The launch over features ``[N, D, ...]``, a program for each tile of rows.

    ``block`` is rows, channels and warps; ``row_tensors`` are mean, 1 / std, mask and weight;
    ``numbers`` are the kernels' own, from ``cosine_share`` on; ``formula`` its constants.
    """
    block_rows, block_channels, warps = block
    programs, places = tiles_of(layout, student.shape[1], block_rows, gradient)
    losses, similarities = factors.new_empty(programs), factors.new_empty(programs)
    weight = row_tensors[3]
    rows = student.numel() // student.shape[1]
    arguments = (
        *(student, teacher, gradient, *row_tensors, factors, row_losses, losses, similarities),
        *(*places, 1 if weight is None else rows // weight.numel(), *numbers),
    )
    constants = {
        **formula,
        "ALONG_CHANNELS": layout.along_classes,
        "UNIT": layout.unit,
        "BLOCK_ROWS": block_rows,
        "BLOCK_CHANNELS": block_channels,
        "num_warps": warps,
    }
    return Launch(programs, arguments, constants, losses, similarities)
