"""``render`` on the GPU: hands the operator's tensors to the Triton kernels (``kernels/``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isp_distill.backends import choice, triton_support
from isp_distill.backends.kernel_arguments import plain
from isp_distill.ops.mosaic_triton import read
from isp_distill.ops.render.colours import for_kernels
from isp_distill.ops.render.operator import Settings, Tensors, output_like


def refuses(
    *,
    mosaic: torch.dtype,
    dtype: torch.dtype,
    needs_gradient: bool,
    only_reference: str | None = None,
    **_: object,
) -> str | None:
    """Why the Triton kernels cannot serve a call, or None."""
    if only_reference:
        return only_reference
    if torch.float64 in (mosaic, dtype):
        return "it computes in float32, and float64 was asked for"
    if needs_gradient:
        return "it has no gradient, and one is asked for"
    return None


def _call(tensors: Tensors, settings: Settings) -> dict[str, Any]:
    """The kernels' arguments about the mosaic and the camera, by name."""
    black = plain(tensors.black)
    scale = plain(tensors.gain) / (plain(tensors.white)[:, None] - black)
    unit = 2 if settings.demosaic == "superpixel" else 1
    top, left, height, width = (int(side) // unit for side in settings.crop)
    method, matrix = for_kernels(settings.demosaic, tensors.ccm)
    ccm = planes = plain(matrix)
    if matrix.shape[2] == 4:
        method = "planes"
        ccm = torch.eye(3, device=ccm.device).expand(len(ccm), 3, 3).contiguous()
    return {
        **read(tensors.mosaic, settings.packing, tensors.linearise, black),
        "black": black,
        "scale": scale.contiguous(),
        "ccm": ccm,
        "planes": planes,
        "patterns": tensors.pattern.contiguous(),
        "mean": plain(tensors.mean),
        "std": plain(tensors.std),
        "sensor_height": tensors.mosaic.shape[1],
        "pairs": settings.pixels(tensors.mosaic) // 2,
        "top": top,
        "left": left,
        "height": height,
        "width": width,
        "METHOD": method,
        "TONE": settings.tone,
    }


def _place(out: Tensor, orientation: int) -> dict[str, int]:
    """Where the pixels go as the sensor counts them: turning upright is a matter of strides."""
    row, column = out.stride(2), out.stride(3)
    origin = 0
    if orientation in (3, 4, 7, 8):  # the upright rows run backwards
        origin += (out.shape[2] - 1) * row
        row = -row
    if orientation in (2, 3, 6, 7):
        origin += (out.shape[3] - 1) * column
        column = -column
    if orientation >= 5:
        row, column = column, row
    return {
        "origin": origin,
        "out_sample": out.stride(0),
        "out_row": row,
        "out_column": column,
        "out_channel": out.stride(1),
    }


def forward(tensors: Tensors, settings: Settings) -> Tensor:
    """The picture, ``[N, 3, *settings.size]``."""
    from isp_distill.kernels.render.columns import launch_columns
    from isp_distill.kernels.render.rows import launch_rows
    from isp_distill.kernels.render.unresized import launch_unresized

    out = output_like(tensors.mosaic, settings)
    if out.numel() == 0:
        return out
    call, place = _call(tensors, settings), _place(out, settings.orientation)
    batch, _, height, width = out.shape
    target = (width, height) if settings.orientation >= 5 else (height, width)
    if target == (call["height"], call["width"]):
        launch_unresized(call, place, out, batch)
        return out
    linear = settings.resize_in == "linear"
    reduced = (batch, 3, min(target[0], call["height"]), call["width"])
    rows = torch.empty(reduced, dtype=torch.float32, device=out.device)
    launch_rows(call, rows, develop=not linear)
    launch_columns(rows, call, place, out, target, develop=linear)
    return out


choice.register(
    choice.Implementation(
        "render",
        "triton",
        forward,
        devices=triton_support.devices(),
        missing=triton_support.missing,
        refuses=refuses,
    )
)
