"""The colour matrices of an ISP: what they may be for which filter, and one form for a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from isp_distill.arguments import nobody_looks, readable, transformed
from isp_distill.raw.cfa import on_device, per_sample
from isp_distill.raw.filters import GREY, filter_of, missing_matrix, name_of, number_of
from isp_distill.raw.metadata import IDENTITY

Pattern = str | int | Sequence[str] | Tensor

#: In place of a matrix: none was given, and nobody but the filter's maker knows it.
NONE: tuple[()] = ()


def numbers_of(pattern: Pattern) -> list[int] | None:
    """The patterns' numbers, each once; None where a look would make a device wait.

    What is no pattern is not in it: whoever makes a tensor of them refuses it.
    """
    if isinstance(pattern, Tensor):
        if not readable(pattern) or pattern.dtype.is_floating_point:
            return None
        return sorted(set(pattern.reshape(-1).tolist()))
    found: Iterable[int | str] = [pattern] if isinstance(pattern, (str, int)) else pattern
    try:
        return sorted({number_of(one) if isinstance(one, str) else int(one) for one in found})
    except (TypeError, ValueError):
        return None


def matrix_or_default(ccm: Any, pattern: Pattern) -> Any:
    """A matrix as it was given; else the identity for Bayer, ones for mono, and else :data:`NONE`.

    A default goes with the pattern that it is the default of: replaced with another, it is chosen
    again.
    """
    if ccm is not None and not any(ccm is one for one in (NONE, IDENTITY, GREY)):
        return ccm
    numbers = numbers_of(pattern)
    if numbers is None:
        return IDENTITY if ccm is None else ccm
    if not numbers or numbers[-1] < 4:
        return IDENTITY
    return GREY if {filter_of(number).columns for number in numbers} == {1} else NONE


def checked_matrix(
    ccm: float | Sequence[Any] | Tensor | None,
    pattern: Pattern,
    batch: int,
    device: torch.device,
) -> Tensor | None:
    """Each sample's matrix, ``[N, 3, columns]``: 3 columns, 4 or 1; None where there is none.

    Raises:
        ValueError: for another shape, or one that does not go with the patterns.
    """
    if ccm is None or ccm is NONE:
        return None
    given = ccm if isinstance(ccm, (int, float)) else on_device(ccm, device, torch.float32, "ccm")
    columns = columns_of(given)
    columns = columns if columns in (1, 4) else 3
    matrix = per_sample(given, batch, (3, columns), "ccm", device)
    check_columns(columns, pattern)
    return matrix


def check_columns(columns: int, pattern: Pattern) -> None:
    """Refuse a matrix of so many columns that does not go with the patterns.

    Raises:
        ValueError: naming both.
    """
    if columns == 3 and _is_bayer(pattern):
        return
    for number in numbers_of(pattern) or ():
        wanted = filter_of(number).columns
        # Three columns can be said with four.
        if columns != wanted and (columns, wanted) != (4, 3):
            raise ValueError(
                f"ccm has {columns} columns, and the pattern {name_of(number)} takes {wanted}"
            )


def _is_bayer(pattern: Pattern) -> bool:
    """Whether a quick look, which a frame has time for, shows nothing but Bayer's patterns."""
    if type(pattern) is not Tensor or not pattern.is_cpu or not nobody_looks() or transformed():
        return False
    codes = pattern.tolist()
    return pattern.dim() == 1 and len(codes) > 0 and max(codes) < 4


def columns_of(ccm: float | Sequence[Any] | Tensor | None) -> int | None:
    """How many colours a matrix takes; None where there is none."""
    if ccm is None or ccm is NONE:
        return None
    shape: Sequence[int] = getattr(ccm, "shape", ())
    if isinstance(ccm, Sequence):
        row: Any = ccm
        while len(row) and isinstance(row[0], (Sequence, Tensor)):
            row = row[0]
        return len(row)
    return int(shape[-1]) if len(shape) > 1 else 3


def joined_matrices(each: Sequence[Tensor | None]) -> Tensor | None:
    """The matrices ``[n, 3, columns]`` of several batches as one; None where one has none.

    Three columns become four where others have four: each of the doubled sites takes half.

    Raises:
        ValueError: mono and colour are mixed.
    """
    known = [one for one in each if one is not None]
    if len(known) < len(each):
        return None
    columns = {one.shape[2] for one in known}
    if 1 in columns and len(columns) > 1:
        raise ValueError(
            "a batch mixes mosaics of a mono sensor and of colour filters: train and render them "
            "apart, or give the mono ones as RGGB"
        )
    if columns == {3, 4}:
        known = [of_planes(one) for one in known]
    return torch.cat(known)


def of_planes(matrix: Tensor) -> Tensor:
    """The matrix over the four planes of a period, ``[N, 3, 4]``, of one of any columns."""
    if matrix.shape[2] == 4:
        return matrix
    if matrix.shape[2] == 1:
        return (matrix / 4).expand(-1, 3, 4)
    first, doubled, last = matrix.unbind(2)
    return torch.stack([first, doubled / 2, doubled / 2, last], 2)


#: Of the entries of ``planes_matrix``: which of the nine each is, and how much of it.
with torch.inference_mode(False):  # they are kept for gradients, wherever they were imported
    _ENTRY = torch.tensor([0, 1, 1, 2, 3, 4, 4, 5, 3, 4, 4, 5, 6, 7, 7, 8], device="cpu")
    _SHARE = torch.tensor(
        [1, 0.5, 0.5, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0.5, 0.5, 1], dtype=torch.float32, device="cpu"
    )


def planes_matrix(ccm: Tensor) -> Tensor:
    """A 3x3 colour matrix as one over the planes R, Gr, Gb, B: ``[N, 3, 3]`` to ``[N, 4, 4]``.

    R and B take half of each green; Gr and Gb each stand for green in their own row. Where no
    colour is doubled, ``[N, 3, 4]`` or ``[N, 3, 1]``, both are green.
    """
    if ccm.shape[2] != 3:
        planes = of_planes(ccm)
        return torch.cat([planes[:, :2], planes[:, 1:]], 1)  # R, G, G, B
    entries = ccm.flatten(1)
    # Three calls in place of six, which a single frame's latency feels. A program that is traced
    # and a GPU are given no constants, which would be copied there.
    if ccm.is_cpu and ccm.dtype is torch.float32 and nobody_looks() and not is_fake(ccm):
        return (entries.index_select(1, _ENTRY) * _SHARE).view(-1, 4, 4)
    rr, rg, rb, gr, gg, gb, br, bg, bb = entries.unbind(1)
    rg, bg, none = rg / 2, bg / 2, 0 * gg
    rows = (rr, rg, rg, rb, gr, gg, none, gb, gr, none, gg, gb, br, bg, bg, bb)
    return torch.stack(rows, 1).view(-1, 4, 4)


def after_planes(mix: Tensor, planes: Tensor) -> Tensor:
    """``mix @ planes``, in float32 where autocast or TF32 would round a product of matrices."""
    return (mix[:, :, None] * planes[:, None]).sum(2)


def without_matrix(pattern: Pattern) -> str:
    """What to say where a matrix is needed and there is none."""
    numbers = numbers_of(pattern) or [4]
    return missing_matrix(name_of(next((n for n in numbers if n >= 4), numbers[0])))
