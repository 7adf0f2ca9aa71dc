"""Tensors as compiled kernels take them, and which they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor

from isp_distill.arguments import check_stored


@overload
def plain(tensor: Tensor) -> Tensor: ...
@overload
def plain(tensor: None) -> None: ...
@overload
def plain(tensor: Tensor | None) -> Tensor | None: ...
def plain(tensor: Tensor | None) -> Tensor | None:
    """A parameter in float32, contiguous, without its history; None stays None."""
    made = floats(tensor)
    if made is None or made.is_contiguous():
        return made
    check_stored(made, "a tensor")
    return made.contiguous()


def floats(tensor: Tensor | None) -> Tensor | None:
    """As :func:`plain`, but of any strides."""
    if tensor is None or (
        tensor.dtype == torch.float32 and not (tensor.requires_grad and torch.is_grad_enabled())
    ):
        return tensor  # each of the two operators below takes a microsecond, even to do nothing
    check_stored(tensor, "a tensor")  # the kernels look themselves, torch's copy does not
    return tensor.detach().to(torch.float32)


#: What kernels that compute in float32 read and write.
FLOAT32_INSIDE = (torch.float32, torch.bfloat16, torch.float16)


def refused_type(call: Mapping[str, Any]) -> str | None:
    """Why kernels that compute in float32 do not take the two models' tensors; None if they do.

    Args:
        call: with the dtypes "student" and "teacher".
    """
    for name in ("student", "teacher"):
        if call[name] not in FLOAT32_INSIDE:
            return f"its kernels compute in float32, and the {name} is {call[name]}"
    return None
