"""``unprocess`` and ``expose`` on the CPU: hands the tensors to the kernels (csrc/cpu)."""

from __future__ import annotations

import torch
from torch import Tensor

from isp_distill.backends import choice, cpu_library
from isp_distill.backends.output_memory import recycled
from isp_distill.ops.unprocess.operator import (
    ExposeCall,
    Functions,
    UnprocessCall,
    kernel_arguments,
    mosaic_like,
)


def refuses(
    *, dtype: torch.dtype, picture: bool, only_reference: str | None = None, **_: object
) -> str | None:
    """Why the compiled kernels cannot serve a call, or None."""
    if only_reference:
        return only_reference
    if picture and dtype == torch.float64:
        return "it reads pictures of uint8, float16, bfloat16 or float32, and this one is float64"
    return None


def unprocess(call: UnprocessCall) -> Tensor:
    """The mosaics, uint16 ``[N, H, W]``."""
    out = recycled(mosaic_like(call.rgb))
    torch.ops.isp_distill_cpu.unprocess(*kernel_arguments(call), out)
    return out


def expose(call: ExposeCall) -> Tensor:
    """The short exposures, uint16 ``[N, H, W]``."""
    out = recycled(mosaic_like(call.mosaic))
    torch.ops.isp_distill_cpu.expose(*kernel_arguments(call), out)
    return out


choice.register(
    choice.Implementation(
        "unprocess",
        "cpu",
        Functions(unprocess, expose),
        devices=("cpu",),
        missing=cpu_library.missing,
        refuses=refuses,
    )
)
