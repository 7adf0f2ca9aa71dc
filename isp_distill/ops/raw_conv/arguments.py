"""What callers of ``raw_conv`` give, checked and brought into the one form of the operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isp_distill.arguments import (
    autocast_type,
    check_dense,
    check_floating,
    shown,
    whole_number,
    whole_numbers,
)
from isp_distill.ops.raw_conv.operator import ACTIVATIONS, CURVES, Settings
from isp_distill.raw.cfa import on_device
from isp_distill.raw.packings import PACKED, row_bytes

MOSAIC_DTYPES = (
    torch.uint8,
    torch.uint16,
    torch.int16,
    torch.int32,
    torch.float16,
    torch.float32,
    torch.float64,
)

#: No convolution has a larger one, and the kernels' sums of strides must not overflow.
LARGEST_STEP = 65535


def checked_mosaic(mosaic: Tensor) -> Tensor:
    """A batch of mosaics as ``[N, H, W]``.

    Raises:
        TypeError: if it is not a tensor of a supported type, or asks for a gradient.
        ValueError: if it is not ``[N, H, W]`` or ``[N, 1, H, W]`` with even, positive H and W.
    """
    _check_tensor(mosaic)
    if mosaic.dtype not in MOSAIC_DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in MOSAIC_DTYPES)
        raise TypeError(f"mosaic has dtype {mosaic.dtype}: expected one of {names}")
    if mosaic.requires_grad:
        raise TypeError("mosaic asks for a gradient, but sensor data gets none: detach() it")
    mosaic = _batched(mosaic, "W")
    check_periods(mosaic.shape[1], mosaic.shape[2])
    return mosaic


def checked_input(
    mosaic: Tensor, packing: str | None, width: int | None
) -> tuple[Tensor, int | None]:
    """A batch of mosaics, whole codes or packed, and the width of what is packed.

    Raises:
        TypeError: as :func:`checked_mosaic`; or it is packed and no tensor of bytes, or ``width``
            no whole number.
        ValueError: as :func:`checked_mosaic`; for an unknown packing, one of ``packing`` and
            ``width`` without the other, or rows too short for ``width``.
    """
    if packing is None and width is None:
        return checked_mosaic(mosaic), None
    if packing is None:
        raise ValueError(f"width={width} goes with packing, which says how the bytes are read")
    if packing not in PACKED:
        raise ValueError(f"unknown packing {packing!r}: expected one of {', '.join(PACKED)}")
    if width is None:
        raise ValueError(f"packing={packing!r} needs width, the pixels of a row")
    width = whole_number(width, "width")
    _check_tensor(mosaic)
    if mosaic.dtype != torch.uint8:
        raise TypeError(
            f"mosaic has dtype {mosaic.dtype}: one that is packed as {packing} is bytes, uint8"
        )
    mosaic = _batched(mosaic, "bytes")
    check_periods(mosaic.shape[1], width)
    if mosaic.shape[2] < row_bytes(width, packing):
        raise ValueError(
            f"mosaic has rows of {mosaic.shape[2]} bytes: {width} pixels in {packing} take "
            f"{row_bytes(width, packing)}"
        )
    return mosaic, width


def _check_tensor(mosaic: object) -> None:
    if not isinstance(mosaic, Tensor):
        raise TypeError(f"mosaic must be a tensor, not {type(mosaic).__name__}")
    check_dense(mosaic, "mosaic")


def _batched(mosaic: Tensor, row: str) -> Tensor:
    """``[N, H, row]`` of that or of ``[N, 1, H, row]``."""
    if mosaic.dim() == 4 and mosaic.shape[1] == 1:
        mosaic = mosaic[:, 0]
    if mosaic.dim() != 3:
        raise ValueError(
            f"mosaic has shape {list(mosaic.shape)}: expected [N, H, {row}] or [N, 1, H, {row}]"
        )
    return mosaic


def check_periods(height: int, width: int) -> None:
    """Refuse a mosaic that is not made of whole 2x2 periods, or of none.

    Raises:
        ValueError: naming its sides and the crop that it takes.
    """
    if height <= 0 or width <= 0 or height % 2 or width % 2:
        raise ValueError(
            f"mosaic is {height} x {width}: a Bayer mosaic has an even, positive height and width; "
            f"crop it, as in mosaic[..., :{height - height % 2}, :{width - width % 2}]"
        )


def quadruple_padding(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Padding as (left, right, top, bottom), from one number, (vertical, horizontal), or all four.

    Raises:
        TypeError: for anything but whole numbers.
        ValueError: for another count of them, or a number below 0 or above 65535.
    """
    one = isinstance(padding, int)
    values = whole_numbers((padding,) * 4 if one else padding, "padding")
    if len(values) == 2:
        values = (values[1], values[1], values[0], values[0])
    if len(values) != 4 or min(values) < 0:
        raise ValueError(
            f"padding {padding!r}: expected a number, (vertical, horizontal), or "
            "(left, right, top, bottom), none of them negative"
        )
    if max(values) > LARGEST_STEP:
        raise ValueError(f"padding must be at most {LARGEST_STEP}, got {shown(padding)}")
    return values[0], values[1], values[2], values[3]


def check_weight(weight: Tensor, device: torch.device) -> None:
    """Refuse what is no weight of a convolution over the four planes.

    Raises:
        TypeError: if it is no dense floating-point tensor.
        ValueError: if it is not ``[C, 4, K, K]``, or not on the mosaic's device.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a floating-point tensor, not {type(weight).__name__}")
    check_dense(weight, "weight")
    check_floating(weight.dtype, "weight")
    if weight.dim() != 4 or weight.shape[1] != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight has shape {list(weight.shape)}: expected [C, 4, K, K]")
    if weight.shape[0] == 0 or weight.shape[2] == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}: C and K must be positive")
    check_device(weight, "weight", device)


def check_device(value: object, name: str, device: torch.device) -> None:
    """Refuse a tensor on another device than the mosaic; a single number may lie anywhere.

    Raises:
        ValueError: naming the two devices.
    """
    if isinstance(value, Tensor) and value.dim() > 0 and value.device != device:
        raise ValueError(f"{name} is on {value.device}, the mosaic on {device}")


def checked_bias(bias: Sequence[float] | Tensor | None, weight: Tensor) -> Tensor | None:
    """The bias, ``[C]``; a tensor as it is, for its gradient's sake.

    Raises:
        TypeError: for anything but numbers.
        ValueError: for another shape, or another device than the weight's.
    """
    if bias is None:
        return None
    bias = _numbers(bias, weight, "bias")
    if tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias has shape {list(bias.shape)}: expected [{weight.shape[0]}]")
    check_device(bias, "bias", weight.device)
    return bias


def checked_mix(
    mix: Sequence[Sequence[float]] | Tensor | None, weight: Tensor, batch: int
) -> Tensor | None:
    """A matrix over the planes for each sample, ``[N, 4, 4]``, in the type that is computed in.

    Raises:
        TypeError: for anything but numbers.
        ValueError: for another shape, or another device than the weight's.
    """
    if mix is None:
        return None
    mix = _numbers(mix, weight, "mix")
    check_device(mix, "mix", weight.device)
    if tuple(mix.shape) not in ((4, 4), (batch, 4, 4), (1, 4, 4)):
        raise ValueError(f"mix has shape {list(mix.shape)}: expected [4, 4] or [{batch}, 4, 4]")
    return mix.to(computed_in(weight)).expand(batch, 4, 4)


def checked_gamma(gamma: float | Tensor | None, weight: Tensor) -> Tensor | None:
    """The exponent as a tensor of no axes.

    Raises:
        TypeError: for anything but a number.
        ValueError: for several of them.
    """
    if gamma is None:
        return None
    gamma = on_device(gamma, weight.device, computed_in(weight), "gamma")
    if gamma.numel() != 1:
        raise ValueError(f"gamma has shape {list(gamma.shape)}: expected one exponent")
    return gamma.reshape(())


def checked_padding_value(
    value: float | Sequence[float] | Tensor | None, weight: Tensor
) -> Tensor | None:
    """What each plane's padding holds, ``[4]``.

    Raises:
        TypeError: for anything but numbers.
        ValueError: for another count of them.
    """
    if value is None:
        return None
    value = on_device(value, weight.device, computed_in(weight), "padding_value")
    if tuple(value.shape) not in ((), (1,), (4,)):
        raise ValueError(f"padding_value has shape {list(value.shape)}: expected a number or [4]")
    return value.expand(4)


def computed_in(weight: Tensor) -> torch.dtype:
    """float64 for a weight of float64, else float32."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _numbers(value: Sequence[Any] | Tensor, weight: Tensor, name: str) -> Tensor:
    """A parameter: a tensor as it is, for its gradient's sake, or one made of numbers."""
    if not isinstance(value, Tensor):
        return on_device(value, weight.device, computed_in(weight), name)
    check_dense(value, name)
    return value


def check_names(settings: Settings) -> None:
    """Refuse names and types that there are none of, and a stride out of range.

    Raises:
        TypeError: if ``out_dtype`` is no floating-point type.
        ValueError: naming the argument.
    """
    if not 1 <= settings.stride <= LARGEST_STEP:
        raise ValueError(f"stride must be between 1 and {LARGEST_STEP}, got {settings.stride}")
    if settings.curve not in CURVES:
        raise ValueError(f"unknown curve {settings.curve!r}: expected one of {', '.join(CURVES)}")
    if settings.activation not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {settings.activation!r}: expected {', '.join(ACTIVATIONS)}"
        )
    check_floating(settings.out_dtype, "out_dtype")


def check_fit(settings: Settings, mosaic: Tensor, weight: Tensor) -> None:
    """Refuse a kernel that is larger than the padded planes.

    Raises:
        ValueError: naming the two sizes.
    """
    left, right, top, bottom = settings.padding
    kernel = weight.shape[2]
    height, width = mosaic.shape[1] // 2, settings.pixels(mosaic) // 2
    if height + top + bottom < kernel or width + left + right < kernel:
        raise ValueError(
            f"a {kernel} x {kernel} kernel does not fit the packed image of {height} x {width} "
            f"with padding {settings.padding}"
        )


def checked_stride(stride: int) -> int:
    """The stride as an ``int``.

    Raises:
        TypeError: for anything but a whole number.
    """
    return whole_number(stride, "stride")


def checked_clip(clip: bool) -> bool:
    """Whether values are clamped.

    Raises:
        TypeError: for anything but True and False, or 1 and 0.
    """
    if clip not in (True, False):
        raise TypeError(f"clip must be True or False, got {shown(clip)}")
    return bool(clip)


def is_channels_last(memory_format: torch.memory_format | None, weight: Tensor) -> bool:
    """Whether the output is to be laid out by pixels; as the weight is, if None.

    Raises:
        ValueError: for any other layout than ``contiguous_format`` and ``channels_last``.
    """
    if memory_format is None:
        return not weight.is_contiguous() and weight.is_contiguous(
            memory_format=torch.channels_last
        )
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format {memory_format}: expected contiguous or channels_last")
    return memory_format == torch.channels_last


def output_type(out_dtype: torch.dtype | None, weight: Tensor) -> torch.dtype:
    """The type of the output: the weight's, or autocast's, if None."""
    return out_dtype if out_dtype is not None else autocast_type(weight.device) or weight.dtype
