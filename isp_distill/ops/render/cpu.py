"""``render`` on the CPU: hands the operator's tensors to the compiled kernels (csrc/cpu)."""

from __future__ import annotations

import torch
from torch import Tensor

from isp_distill.backends import choice, cpu_library
from isp_distill.backends.kernel_arguments import plain
from isp_distill.backends.output_memory import recycled
from isp_distill.isp.camera import TONES
from isp_distill.ops.render.colours import KERNEL_DEMOSAICS, for_kernels
from isp_distill.ops.render.operator import Settings, Tensors, output_like
from isp_distill.raw.packings import packing_number


def refuses(
    *,
    mosaic: torch.dtype,
    dtype: torch.dtype,
    needs_gradient: bool,
    only_reference: str | None = None,
    **_: object,
) -> str | None:
    """Why the compiled kernels cannot serve a call, or None."""
    if only_reference:
        return only_reference
    if torch.float64 in (mosaic, dtype):
        return "it computes in float32, and float64 was asked for"
    if needs_gradient:
        return "it has no gradient, and one is asked for"
    return None


def forward(tensors: Tensors, settings: Settings) -> Tensor:
    """The picture, ``[N, 3, *settings.size]``."""
    mosaic = tensors.mosaic if tensors.mosaic.stride(2) == 1 else tensors.mosaic.contiguous()
    out = recycled(output_like(mosaic, settings))
    demosaic, ccm = for_kernels(settings.demosaic, tensors.ccm)
    torch.ops.isp_distill_cpu.render(
        mosaic,
        plain(tensors.black),
        plain(tensors.white),
        tensors.pattern.contiguous(),
        plain(tensors.gain),
        plain(ccm),
        plain(tensors.mean),
        plain(tensors.std),
        plain(tensors.linearise),
        KERNEL_DEMOSAICS.index(demosaic),
        TONES.index(settings.tone),
        settings.orientation,
        *settings.crop,
        settings.resize_in == "linear",
        packing_number(settings.packing),
        settings.pixels(mosaic),
        out,
    )
    return out


choice.register(
    choice.Implementation(
        "render",
        "cpu",
        forward,
        devices=("cpu",),
        missing=cpu_library.missing,
        refuses=refuses,
    )
)
