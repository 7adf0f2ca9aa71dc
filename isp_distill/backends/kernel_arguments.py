"""Tensors as compiled kernels take them."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


@overload
def plain(tensor: Tensor) -> Tensor: ...
@overload
def plain(tensor: None) -> None: ...
@overload
def plain(tensor: Tensor | None) -> Tensor | None: ...
def plain(tensor: Tensor | None) -> Tensor | None:
    """A parameter in float32, contiguous, without its history; None stays None."""
    if tensor is None or (
        tensor.dtype == torch.float32 and tensor.is_contiguous() and not tensor.requires_grad
    ):
        return tensor  # each of the three operators below takes a microsecond, even to do nothing
    return tensor.detach().to(torch.float32).contiguous()
