"""``render``: the ISP in one call, from a camera's mosaic to the tensor a teacher takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from isp_distill.arguments import (
    NOT_TRANSFORMED,
    check_floating,
    is_plain_eager,
    readable,
    transformed,
    whole_number,
    whole_numbers,
)
from isp_distill.backends import choice
from isp_distill.isp.camera import ISP
from isp_distill.ops import reference
from isp_distill.ops.companding import BETWEEN_CODES, checked_linearise
from isp_distill.ops.raw_conv.arguments import checked_input
from isp_distill.ops.reference_companding import linearised
from isp_distill.ops.reference_gain_map import apply_gain_map
from isp_distill.ops.reference_packing import unpacked
from isp_distill.ops.render import cpu as render_cpu
from isp_distill.ops.render import triton as render_triton
from isp_distill.ops.render.operator import Settings, Tensors, functions_of
from isp_distill.ops.render.operator import render as operator
from isp_distill.raw.cfa import check_levels, on_device

__all__ = ["output_size", "render", "render_cpu", "render_triton"]

choice.register(choice.Implementation("render", "reference", reference.render))


def output_size(size: int | Sequence[int] | None, height: int, width: int) -> tuple[int, int]:
    """The size of a picture: None keeps it, a number is its shorter side, a pair is exact.

    Raises:
        TypeError: for anything but whole numbers.
        ValueError: for another count of them, or a side below 1.
    """
    if size is None:
        return height, width
    if not isinstance(size, Iterable):
        size = whole_number(size, "size")
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        shorter = min(height, width)
        return max(1, round(height * size / shorter)), max(1, round(width * size / shorter))
    pair = whole_numbers(size, "size")
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"size {pair}: expected a number or (height, width), at least 1")
    return pair[0], pair[1]


def _checked_crop(
    crop: Sequence[int] | None, sensor_height: int, sensor_width: int, isp: ISP
) -> tuple[int, int, int, int]:
    """The rectangle of the mosaic that is shown: (top, left, height, width)."""
    box = (0, 0, sensor_height, sensor_width) if crop is None else whole_numbers(crop, "crop")
    if len(box) != 4:
        raise ValueError(f"crop {box}: expected (top, left, height, width)")
    top, left, height, width = box
    if min(top, left) < 0 or min(height, width) < 1:
        raise ValueError(f"crop {box} is empty or starts outside the mosaic")
    if top + height > sensor_height or left + width > sensor_width:
        raise ValueError(
            f"crop {box} reaches beyond the mosaic of {sensor_height} x {sensor_width}"
        )
    if isp.demosaic == "superpixel" and any(c % 2 for c in box):
        raise ValueError(f"crop {box}: superpixel demosaicing takes whole periods, so even numbers")
    return top, left, height, width


def checked_colours(isp: ISP, ccm: Tensor) -> Tensor:
    """The colour matrix, if the demosaicing makes the colours that it takes.

    Raises:
        ValueError: four colours, none of them doubled, with another demosaicing than superpixel.
    """
    if ccm.shape[2] == 4 and isp.demosaic != "superpixel":
        raise ValueError(
            f"demosaic={isp.demosaic!r} interpolates a doubled colour, and RGB with infrared has "
            'none: use demosaic="superpixel" (of the ISP, of the Teacher in train and evaluate)'
        )
    return ccm


def _own_size(box: tuple[int, int, int, int], isp: ISP) -> tuple[int, int]:
    """Height and width of the upright picture before it is resized."""
    height, width = box[2:]
    if isp.demosaic == "superpixel":
        height, width = height // 2, width // 2
    return (width, height) if isp.orientation >= 5 else (height, width)


def render(
    mosaic: Tensor,
    isp: ISP,
    *,
    size: int | Sequence[int] | None = None,
    crop: Sequence[int] | None = None,
    resize_in: str = "display",
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    packing: str | None = None,
    width: int | None = None,
    linearise: Sequence[Any] | Tensor | None = None,
) -> Tensor:
    """Turn mosaics into pictures: ``[N, 3, h, w]``, upright, in [0, 1] before ``mean`` and ``std``.

    Gain map (lens shading, values stopping at white), black and white level, white balance and
    exposure with highlights clipped at the sensor, demosaicing (edges mirrored by whole periods),
    crop, EXIF orientation, colour matrix, clip, tone curve, antialiased bilinear resize,
    ``(x - mean) / std``.

    Args:
        mosaic: ``[N, H, W]`` or ``[N, 1, H, W]``, H and W even, sensor units (dtypes as in
            :func:`isp_distill.raw_conv`); with ``packing`` the sensor's bytes, as there.
        isp: the camera's settings, one for all or one per sample.
        size: of the picture: None for the crop's own (half of it with ``superpixel``), a number for
            the shorter side with the aspect kept, or (height, width).
        crop: (top, left, height, width) in sensor pixels, before turning upright; even numbers with
            ``superpixel``. Pixels outside still serve the demosaicing of its edges.
        resize_in: "display" resizes after the tone curve, as a teacher fed with JPEGs saw it in
            training; "linear" before it, physically right and far cheaper.
        mean: subtracted at the end, a number or ``[3]``; 0 if None.
        std: divides at the end, a number or ``[3]``; 1 if None.
        dtype: of the result: float32, bfloat16, float16, or float64 (computes in float64).
        memory_format: ``torch.contiguous_format`` or ``torch.channels_last``.
        packing: how the codes lie in a packed mosaic's bytes, see :func:`isp_distill.raw_conv`;
            None for what ``isp`` says.
        width: of a packed mosaic, the pixels of a row, even; likewise.
        linearise: what a companding sensor's codes mean, see :func:`isp_distill.raw_conv`; before
            everything else, the ISP's black and white are then linear values. None for what
            ``isp`` says.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for a wrong shape, name or range; where the filter is not Bayer's and ``isp``
            has no colour matrix; for RGB with infrared by another demosaicing than superpixel.
        BackendError: if the backend that was asked for cannot serve the call.

    Examples:
        >>> raw = isp_distill.read_raw("photos/new.dng")
        >>> mosaic = torch.from_numpy(raw.mosaic)[None]
        >>> isp_distill.render(mosaic, isp_distill.ISP.from_raw(raw), size=(32, 32)).shape
        torch.Size([1, 3, 32, 32])
    """
    if not isinstance(isp, ISP):
        raise TypeError(f"isp must be an isp_distill.ISP, not {type(isp).__name__}")
    if packing is None and width is None:
        packing, width = isp.packing, isp.width
    linearise = isp.linearise if linearise is None else linearise
    mosaic, width = checked_input(mosaic, packing, width)
    batch, device = mosaic.shape[0], mosaic.device
    if resize_in not in ("display", "linear"):
        raise ValueError(f"unknown resize_in {resize_in!r}: expected display or linear")
    check_floating(dtype, "dtype")
    sides = mosaic.shape[1], mosaic.shape[2] if width is None else width
    box = _checked_crop(crop, *sides, isp)
    target = output_size(size, *_own_size(box, isp))
    settings = isp.batched(batch, device)
    check_levels(isp.black, isp.white)
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format {memory_format}: expected contiguous or channels_last")
    gain = settings.gain(batch, device)
    means, stds = _channels(mean, 0.0, "mean", device), _channels(std, 1.0, "std", device)
    black, white, pattern = (
        cast(Tensor, value)  # batched() makes tensors of all of them
        for value in (settings.black, settings.white, settings.pattern)
    )
    ccm = checked_colours(isp, settings.matrix(batch, device))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    table = checked_linearise(linearise, mosaic, packing, compute)
    if (maps := settings.gain_maps) is not None:
        levels = {"black": black, "white": white, "pattern": pattern}
        mosaic = linearised(unpacked(mosaic, packing, width), table, compute)
        packing = width = table = None
        mosaic = apply_gain_map(mosaic, maps, double=dtype == torch.float64, **levels)
    tensors = (mosaic, black, white, pattern, gain, ccm, means, stds)
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    only_reference = NOT_TRANSFORMED if transformed() else None
    if table is not None and mosaic.is_floating_point():
        only_reference = BETWEEN_CODES
    request = (mosaic.dtype, dtype, needs_gradient, only_reference, packing, table is not None)
    # An exported program runs where this library is not: it is made of the reference's operators.
    name = "reference" if torch.compiler.is_exporting() else _choose(device, *request)
    if name != "reference":
        given, rest = Tensors(*tensors, table), Settings(
            isp.demosaic, isp.tone, isp.orientation, box, target, resize_in, dtype,
            memory_format == torch.channels_last, packing, width,
        )  # fmt: skip
        # Without layers of dispatch where nobody looks, nor any device is to be the current one.
        if device.type == "cpu" and is_plain_eager(*given):
            return functions_of(name)(given, rest)
        picture: Tensor = operator(*given, *rest, name)
        return picture
    picture = reference.render(
        linearised(unpacked(mosaic, packing, width), table, compute),
        black=black,
        white=white,
        pattern=pattern,
        gain=gain,
        ccm=ccm,
        demosaic_method=isp.demosaic,
        tone=isp.tone,
        orientation=isp.orientation,
        crop=box,
        size=target,
        resize_in=resize_in,
        mean=means,
        std=stds,
        dtype=dtype,
    )
    return picture.contiguous(memory_format=memory_format)


@choice.asked_once
def _choose(
    device: torch.device,
    mosaic: torch.dtype,
    dtype: torch.dtype,
    needs_gradient: bool,
    only_reference: str | None,
    packing: str | None,
    linearise: bool,
) -> str:
    call = {
        "mosaic": mosaic,
        "dtype": dtype,
        "needs_gradient": needs_gradient,
        "only_reference": only_reference,
        "packing": packing,
        "linearise": linearise,
    }
    return choice.choose("render", device, **call).backend


def _channels(
    value: float | Sequence[float] | Tensor | None, default: float, name: str, device: torch.device
) -> Tensor:
    given = default if value is None else value
    tensor = on_device(given, device, torch.float32, name)
    if tensor.numel() not in (1, 3):
        raise ValueError(f"{name} has shape {list(tensor.shape)}: expected a number or [3]")
    if name == "std" and not _positive(given):
        raise ValueError(f"std must be positive, got {given}")
    return tensor.reshape(-1).expand(3)


def _positive(value: float | Sequence[float] | Tensor) -> bool:
    """Whether all of it is; True where a look would make a GPU wait, or break a compiled graph."""
    if not isinstance(value, Tensor):
        return all(x > 0 for x in ([value] if isinstance(value, (int, float)) else value))
    return not readable(value) or bool((value > 0).all())
