"""How logits of any shape and strides are laid out for the kernels of ``distill_*``.

A row is one position of one sample. Neighbouring axes of positions that every tensor steps through
in one stride are merged, so that ``[N, C]`` and channels_last logits have one axis of rows, and
contiguous ``[N, C, H, W]`` two: samples, and pixels that lie next to each other in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Sizes and strides of one call, in elements; the class axis apart from three axes of rows.

    Attributes:
        sizes: of the row axes, the last of which a program's rows lie along.
        strides: of each tensor, (class, row axis 0, 1, 2).
        rows: strides of a row's number along the row axes.
        along_classes: whether neighbours in memory are classes, not rows.
        unit: a power of two up to 16 that divides every stride but those of the neighbours, and the
            neighbours' number: what the compiler must know to load 16 bytes at once. It finds
            multiples of 16 by itself, but 1000 classes are none.
    """

    sizes: tuple[int, int, int]
    strides: tuple[tuple[int, int, int, int], ...]
    rows: tuple[int, int, int]
    along_classes: bool
    unit: int

    def in_units(self, strides: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """A tensor's strides as the kernels take them: divided by ``unit``, but the neighbours'."""
        c, n, a, b = strides
        if self.along_classes:
            return c, n // self.unit, a // self.unit, b // self.unit
        return c // self.unit, n // self.unit, a // self.unit, b


def layout_of(tensors: list[Tensor]) -> Layout | None:
    """The layout that tensors ``[N, C, ...]`` share; None if more than three row axes remain."""
    shape, classes = tensors[0].shape, tensors[0].shape[1]
    axes = [axis for axis in range(len(shape)) if axis != 1 and shape[axis] > 1]
    # Steps of every tensor along each axis, and of the row's number, which comes last.
    numbers = [
        math.prod(size for k, size in enumerate(shape) if k > axis and k != 1) for axis in axes
    ]
    steps = [[*(t.stride(axis) for t in tensors), n] for axis, n in zip(axes, numbers, strict=True)]
    sizes = [shape[axis] for axis in axes]
    # Rows that a transposed student has as neighbours are to be neighbours here.
    order = sorted(range(len(axes)), key=lambda k: -steps[k][0])
    merged: list[tuple[int, list[int]]] = []
    for k in order:
        if merged and merged[-1][1] == [sizes[k] * step for step in steps[k]]:
            merged[-1] = (merged[-1][0] * sizes[k], steps[k])
        else:
            merged.append((sizes[k], steps[k]))
    if len(merged) > 3:
        return None
    merged = [(1, [0] * (len(tensors) + 1))] * (3 - len(merged)) + merged
    strides = tuple(
        (t.stride(1), merged[0][1][k], merged[1][1][k], merged[2][1][k])
        for k, t in enumerate(tensors)
    )
    rows = (merged[0][1][-1], merged[1][1][-1], merged[2][1][-1])
    all_sizes = (merged[0][0], merged[1][0], merged[2][0])
    along_classes = strides[0][0] == 1 or strides[0][0] < strides[0][3]
    neighbours = classes if along_classes else all_sizes[2]
    apart = 0 if along_classes else 3
    numbers = [stride for s in strides for k, stride in enumerate(s) if k != apart]
    return Layout(all_sizes, strides, rows, along_classes, math.gcd(16, neighbours, *numbers))


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


@dataclass(frozen=True)
class Launch:
    """What ``held_kernel`` or ``streamed_kernel`` is called with, and where its results will be.

    Attributes:
        programs: the grid.
        arguments: positional.
        constants: the keyword arguments, ``num_warps`` among them.
        losses: of each program, float64.
        agreements: of each program, int64.
    """

    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    losses: Tensor
    agreements: Tensor


def tiles_of(
    layout: Layout, width: int, block_rows: int, gradient: Tensor | None
) -> tuple[int, tuple[int, ...]]:
    """How many programs there are, and what every kernel is told of where its tile lies.

    That is the strides of student, teacher and gradient, those of the rows' tensors, and the sizes
    ``neighbours``, ``others`` and ``size_a``.
    """
    size_n, size_a, size_b = layout.sizes
    neighbours, others = (width, size_b) if layout.along_classes else (size_b, width)
    strides = [layout.in_units(s) for s in layout.strides]
    of_gradient = strides[2] if gradient is not None else (0, 0, 0, 0)
    places = (*strides[0], *strides[1], *of_gradient, *layout.rows)
    programs = size_n * size_a * -(-size_b // block_rows)
    return programs, (*places, neighbours // layout.unit, others, size_a)


def arrange(
    layout: Layout,
    tile: tuple[int, int, int],
    student: Tensor,
    teacher: Tensor,
    gradient: Tensor | None,
    row_tensors: tuple[Tensor | None, ...],
    factors: Tensor,
    row_losses: Tensor | None,
    numbers: tuple[Any, ...],
    objective: str,
    cross_entropy: bool,
) -> Launch:
    """The launch over logits ``[N, C, ...]``, a program for each tile of rows.

    ``tile`` is rows, classes and warps; ``row_tensors`` are labels, mask, weight and, for the
    streamed kernel, the mask of classes; ``numbers`` are the kernels' own, from ``k`` on.
    """
    block_rows, block_classes, warps = tile
    programs, places = tiles_of(layout, student.shape[1], block_rows, gradient)
    losses = factors.new_empty(programs)
    agreements = factors.new_empty(programs, dtype=torch.int64)
    arguments = (
        *(student, teacher, gradient, *row_tensors, factors, row_losses, losses, agreements),
        *(*places, student.shape[2:].numel(), *numbers),
    )
    constants = {
        "OBJECTIVE": objective,
        "CROSS_ENTROPY": cross_entropy,
        "SMOOTHED": cross_entropy and numbers[5] != 0,
        "ALONG_CLASSES": layout.along_classes,
        "UNIT": layout.unit,
        "BLOCK_ROWS": block_rows,
        "BLOCK_CLASSES": block_classes,
        "num_warps": warps,
    }
    return Launch(programs, arguments, constants, losses, agreements)


def all_registers(warps: int) -> int:
    """What a thread may have: left to itself, the assembler spills some to fit more blocks in."""
    return min(255, 65536 // (32 * warps))
