"""Packed mosaics as codes, and companded ones as linear values, for what takes no others."""

from __future__ import annotations

import torch
from torch import Tensor

from isp_distill.isp.camera import ISP
from isp_distill.ops.reference_companding import linearised
from isp_distill.ops.reference_packing import unpacked


def unpacked_mosaic(mosaic: Tensor, isp: ISP) -> tuple[Tensor, ISP]:
    """A batch of mosaics as codes, and its ISP, which no longer says how they are packed.

    Args:
        mosaic: ``[N, H, W]``, or packed bytes, uint8 ``[N, H, bytes]``, where ``isp`` says so.
        isp: its cameras.

    Returns:
        uint16 ``[N, H, W]`` where the mosaics were packed; both as they are where they were not.
    """
    if isp.packing is None:
        return mosaic, isp
    # No packing has more than 14 bits, and not every device converts to uint16.
    codes = unpacked(mosaic, isp.packing, isp.width).to(torch.int16).view(torch.uint16)
    return codes, isp.replace(packing=None, width=None)


def linear_mosaic(mosaic: Tensor, isp: ISP) -> tuple[Tensor, ISP]:
    """A batch of mosaics as values that black is subtracted from, and its ISP without a curve.

    Args:
        mosaic: ``[N, H, W]``, or packed bytes, uint8 ``[N, H, bytes]``, where ``isp`` says so.
        isp: its cameras.

    Returns:
        float32 ``[N, H, W]`` where ``isp`` has ``linearise``; else as :func:`unpacked_mosaic`.
    """
    mosaic, isp = unpacked_mosaic(mosaic, isp)
    if isp.curves is None:
        return mosaic, isp
    table = isp.curves.to(mosaic.device)
    return linearised(mosaic, table, torch.float32), isp.replace(linearise=None)
