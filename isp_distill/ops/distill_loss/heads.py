"""The two linear heads whose logits are compared, checked."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from isp_distill.arguments import autocast_type
from isp_distill.ops.distill_loss.options import (
    Options,
    check_dense,
    check_device,
    check_logits,
    whole_number,
)

_TILE = 16  # rows


class Head(NamedTuple):
    """What ``torch.nn.functional.linear`` makes logits of, in its order, all of one dtype."""

    features: Tensor  # [N, D]
    weight: Tensor  # [C, D]
    bias: Tensor | None  # [C]


def checked_head(name: str, features: Tensor, weight: Tensor, bias: Tensor | None) -> Head:
    """One head, in the type of autocast where that is on.

    Args:
        name: "student" or "teacher", for the errors.
        features: ``[N, D]``.
        weight: ``[C, D]``.
        bias: ``[C]`` or None.

    Raises:
        TypeError: for a wrong type, or dtypes that differ.
        ValueError: for a wrong shape or device.
    """
    parts = [("features", features), ("weight", weight)]
    for part, tensor in parts + ([] if bias is None else [("bias", bias)]):
        check_dense(f"{name}_{part}", tensor)
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name}_{part} must be a floating-point tensor, not {tensor.dtype}")
        if part != "bias" and (tensor.dim() != 2 or 0 in tensor.shape):
            raise ValueError(f"{name}_{part} has shape {list(tensor.shape)}: expected [n, D]")
    if features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{name}_features has {features.shape[1]} columns, {name}_weight {weight.shape[1]}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"{name}_bias has shape {list(bias.shape)}: expected [{weight.shape[0]}]")
    dtype = autocast_type(features.device)
    if dtype is not None:
        features, weight = features.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if weight.dtype != features.dtype or (bias is not None and bias.dtype != features.dtype):
        raise TypeError(f"{name}: features, weight and bias must have the same dtype")
    return Head(features, weight, bias)


def check_pair(student: Head, teacher: Head, options: Options) -> None:
    """Refuse heads whose logits cannot be compared.

    Raises:
        TypeError: for a dtype that logits cannot have.
        ValueError: for other devices, rows or classes.
    """
    check_device(
        student.features,
        student_weight=student.weight,
        student_bias=student.bias,
        teacher_weight=teacher.weight,
        teacher_bias=teacher.bias,
    )
    count, classes = len(student.features), len(student.weight)
    if len(teacher.features) != count or len(teacher.weight) != classes:
        raise ValueError(
            f"student has {count} rows and {classes} classes, "
            f"teacher {len(teacher.features)} and {len(teacher.weight)}"
        )
    # Logits of the right shape and dtype that take no memory.
    stand_ins = [head.features[:1, :1].expand(count, classes) for head in (student, teacher)]
    check_logits(stand_ins[0], stand_ins[1], options)


def checked_chunk(chunk_rows: int | None, student: Head) -> int:
    """How many rows' logits exist at a time.

    Raises:
        TypeError: for anything but a whole number or None.
        ValueError: if it is below 1.
    """
    if chunk_rows is not None:
        chunk_rows = whole_number("chunk_rows", chunk_rows)
    else:
        budget = 2**25 if student.features.device.type == "cpu" else 2**27
        most = budget // (len(student.weight) * student.features.element_size()) // _TILE * _TILE
        # Chunks of one height, in whole tiles of a matrix product. Low chunks cost: each one reads
        # and writes the gradient of the whole weight.
        count = len(student.features)
        chunks = -(-count // max(most, _TILE))
        chunk_rows = -(-count // (chunks * _TILE)) * _TILE
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    return chunk_rows
