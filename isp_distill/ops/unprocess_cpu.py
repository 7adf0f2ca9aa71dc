"""``unprocess`` and ``expose`` on the CPU: hands the tensors to the kernels (csrc/cpu)."""

from __future__ import annotations

import torch
from torch import Tensor

from isp_distill import backend, extension
from isp_distill.ops.output_memory import recycled
from isp_distill.ops.unprocess_operator import (
    ExposeCall,
    Functions,
    UnprocessCall,
    mosaic_like,
)


def refuses(*, dtype: torch.dtype, picture: bool, **_: object) -> str | None:
    """Why the compiled kernels cannot serve a call, or None."""
    if picture and dtype == torch.float64:
        return "it reads pictures of uint8, float16, bfloat16 or float32, and this one is float64"
    return None


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(torch.float32).contiguous()


def unprocess(call: UnprocessCall) -> Tensor:
    """The mosaics, uint16 ``[N, H, W]``."""
    out = recycled(mosaic_like(call.rgb))
    torch.ops.isp_distill_cpu.unprocess(
        call.rgb.detach(),
        _flat(call.rgb_to_camera),
        _flat(call.gains),
        call.pattern.contiguous(),
        _flat(call.black),
        _flat(call.white),
        _flat(call.shot),
        _flat(call.read),
        call.seed,
        out,
    )
    return out


def expose(call: ExposeCall) -> Tensor:
    """The short exposures, uint16 ``[N, H, W]``."""
    out = recycled(mosaic_like(call.mosaic))
    torch.ops.isp_distill_cpu.expose(
        call.mosaic,
        _flat(call.factor),
        _flat(call.shot),
        _flat(call.read),
        call.pattern.contiguous(),
        _flat(call.black),
        _flat(call.white),
        call.seed,
        out,
    )
    return out


backend.register(
    backend.Implementation(
        "unprocess",
        "cpu",
        Functions(unprocess, expose),
        devices=("cpu",),
        missing=extension.missing,
        refuses=refuses,
    )
)
