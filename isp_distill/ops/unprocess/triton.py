"""``unprocess`` and ``expose`` on the GPU: hands the tensors to the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from isp_distill.backends import choice, triton_support
from isp_distill.ops.unprocess.operator import (
    ExposeCall,
    Functions,
    UnprocessCall,
    kernel_arguments,
    mosaic_like,
)

#: What a GPU takes along the second axis of a grid.
LARGEST_BATCH = 65535


def refuses(
    *, dtype: torch.dtype, picture: bool, batch: int, only_reference: str | None = None, **_: object
) -> str | None:
    """Why the Triton kernels cannot serve a call, or None."""
    if only_reference:
        return only_reference
    if picture and dtype == torch.float64:
        return "it reads pictures of uint8, float16, bfloat16 or float32, and this one is float64"
    if batch > LARGEST_BATCH:
        return f"its kernels take up to {LARGEST_BATCH} samples at once"
    return None


def unprocess(call: UnprocessCall) -> Tensor:
    """The mosaics, uint16 ``[N, H, W]``."""
    from isp_distill.kernels.unprocess.kernel import launch_unprocess

    out = mosaic_like(call.rgb)
    if out.numel():
        launch_unprocess(*kernel_arguments(call), out)
    return out


def expose(call: ExposeCall) -> Tensor:
    """The short exposures, uint16 ``[N, H, W]``."""
    from isp_distill.kernels.unprocess.kernel import launch_expose

    out = mosaic_like(call.mosaic)
    if out.numel():
        launch_expose(*kernel_arguments(call), out)
    return out


choice.register(
    choice.Implementation(
        "unprocess",
        "triton",
        Functions(unprocess, expose),
        devices=triton_support.devices(),
        missing=triton_support.missing,
        refuses=refuses,
    )
)
