"""``raw_conv``: the student's first convolution, straight off the sensor.

The public call checks its arguments, brings them into one form, and hands them to the backend that
serves the call (see :mod:`isp_distill.backends.choice`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isp_distill.arguments import (
    NOT_TRANSFORMED,
    autocast_type,
    check_dense,
    check_floating,
    shown,
    transformed,
    whole_number,
    whole_numbers,
)
from isp_distill.backends import choice
from isp_distill.ops import reference
from isp_distill.ops.raw_conv import (
    cpu as raw_conv_cpu,
)
from isp_distill.ops.raw_conv import (
    cuda as raw_conv_cuda,
)
from isp_distill.ops.raw_conv import (
    triton as raw_conv_triton,
)
from isp_distill.ops.raw_conv.operator import ACTIVATIONS, CURVES
from isp_distill.ops.raw_conv.operator import raw_conv as operator
from isp_distill.raw.cfa import check_levels, on_device, pattern_codes, per_sample

__all__ = [
    "ACTIVATIONS",
    "CURVES",
    "MOSAIC_DTYPES",
    "checked_mosaic",
    "raw_conv",
    "raw_conv_cpu",
    "raw_conv_cuda",
    "raw_conv_triton",
]

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

choice.register(choice.Implementation("raw_conv", "reference", reference.raw_conv))


def checked_mosaic(mosaic: Tensor) -> Tensor:
    """A batch of mosaics as ``[N, H, W]``.

    Raises:
        TypeError: if it is not a tensor of a supported type, or asks for a gradient.
        ValueError: if it is not ``[N, H, W]`` or ``[N, 1, H, W]`` with even, positive H and W.
    """
    if not isinstance(mosaic, Tensor):
        raise TypeError(f"mosaic must be a tensor, not {type(mosaic).__name__}")
    check_dense(mosaic, "mosaic")
    if mosaic.dtype not in MOSAIC_DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in MOSAIC_DTYPES)
        raise TypeError(f"mosaic has dtype {mosaic.dtype}: expected one of {names}")
    if mosaic.requires_grad:
        raise TypeError("mosaic asks for a gradient, but sensor data gets none: detach() it")
    if mosaic.dim() == 4 and mosaic.shape[1] == 1:
        mosaic = mosaic[:, 0]
    if mosaic.dim() != 3:
        raise ValueError(
            f"mosaic has shape {list(mosaic.shape)}: expected [N, H, W] or [N, 1, H, W]"
        )
    height, width = mosaic.shape[1:]
    if height == 0 or width == 0 or height % 2 or width % 2:
        raise ValueError(
            f"mosaic is {height} x {width}: a Bayer mosaic has an even, positive height and width; "
            f"crop it, as in mosaic[..., :{height - height % 2}, :{width - width % 2}]"
        )
    return mosaic


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


def raw_conv(
    mosaic: Tensor,
    weight: Tensor,
    bias: Sequence[float] | Tensor | None = None,
    *,
    black: float | Sequence[float] | Tensor,
    white: float | Sequence[float] | Tensor,
    pattern: str | int | Sequence[str] | Tensor = "RGGB",
    gain: float | Sequence[float] | Tensor | None = None,
    stride: int = 1,
    padding: int | Sequence[int] = 0,
    padding_value: float | Sequence[float] | Tensor | None = None,
    clip: bool = True,
    mix: Sequence[Sequence[float]] | Tensor | None = None,
    curve: str = "linear",
    gamma: float | Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Convolve a camera's mosaic without ever making the packed float image.

    ``activation(conv2d(curve(mix(normalise(pack(mosaic)))), weight, bias, stride))``, where
    ``pack`` gathers the four colours R, Gr, Gb, B of each 2x2 period into channels, and
    ``normalise`` is ``(x - black) * gain / (white - black)``.

    Args:
        mosaic: ``[N, H, W]`` or ``[N, 1, H, W]``, H and W even; uint8, uint16, int16, int32,
            float16, float32 or float64; sensor units.
        weight: ``[C, 4, K, K]``, input planes in the order R, Gr, Gb, B, on the packed grid
            (one step is one 2x2 period). float64 computes in float64, anything else in float32.
        bias: ``[C]``.
        black: black level, sensor units: a number, ``[4]`` (R, Gr, Gb, B) or ``[N, 4]``.
        white: white level, sensor units: a number or ``[N]``.
        pattern: "RGGB", "GRBG", "GBRG" or "BGGR", or one per sample (names or codes).
        gain: multiplies each plane, e.g. white balance: a number, ``[4]`` or ``[N, 4]``.
        stride: of the convolution, on the packed grid, 1 to 65535.
        padding: on the packed grid: a number, (vertical, horizontal), or
            (left, right, top, bottom), each at most 65535.
        padding_value: what the padding holds, after the curve: a number or ``[4]``; zero if None.
            A model whose input was ``(x - mean) / std`` was padded with the mean's colour.
        clip: clamp to [0, 1] after normalising, and again after ``mix``.
        mix: ``[4, 4]`` or ``[N, 4, 4]``: new planes (rows) from R, Gr, Gb, B, e.g. a colour matrix.
        curve: "linear", "sqrt", "log" (mu-law, mu = 255), or "gamma" (``x ** gamma``); all of them
            take negative values as black.
        gamma: the exponent, a number or a tensor of one element; with ``curve="gamma"`` only.
        activation: "none", "relu", "relu6", "silu" or "gelu" (exact).
        out_dtype: float32, bfloat16, float16 or float64; the weight's, or autocast's if None.
        memory_format: torch.contiguous_format or torch.channels_last; if None, the weight's own,
            as with ``torch.nn.Conv2d``.

    Returns:
        ``[N, C, h, w]`` with ``h = (H / 2 + top + bottom - K) // stride + 1``, ``w`` alike.
        Differentiable in weight, bias, gain, mix, gamma; never in the mosaic. torch.func's
        transforms, forward-mode derivatives, and gradients of black, white and padding_value are
        the reference's, which is plain PyTorch and slower.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for a wrong shape, device, name or range, and for levels that no sensor has:
            black must be below white, both finite. Those on an accelerator are not looked at.
        BackendError: if the backend that was asked for cannot serve the call.
    """
    mosaic = checked_mosaic(mosaic)
    batch, device = mosaic.shape[0], mosaic.device
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a floating-point tensor, not {type(weight).__name__}")
    check_dense(weight, "weight")
    check_floating(weight.dtype, "weight")
    compute = torch.float64 if weight.dtype == torch.float64 else torch.float32
    if bias is not None:
        bias = _numbers(bias, device, compute, "bias")
    if mix is not None:
        mix = _numbers(mix, device, compute, "mix")
    if weight.dim() != 4 or weight.shape[1] != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight has shape {list(weight.shape)}: expected [C, 4, K, K]")
    if weight.shape[0] == 0 or weight.shape[2] == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}: C and K must be positive")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias has shape {list(bias.shape)}: expected [{weight.shape[0]}]")
    for name, value in (("weight", weight), ("bias", bias), ("mix", mix), ("gain", gain)):
        if isinstance(value, Tensor) and value.dim() > 0 and value.device != device:
            raise ValueError(f"{name} is on {value.device}, the mosaic on {device}")
    stride = whole_number(stride, "stride")
    if not 1 <= stride <= LARGEST_STEP:
        raise ValueError(f"stride must be between 1 and {LARGEST_STEP}, got {stride}")
    if clip not in (True, False):
        raise TypeError(f"clip must be True or False, got {shown(clip)}")
    clip = bool(clip)
    edges = quadruple_padding(padding)
    kernel = weight.shape[2]
    height, width = mosaic.shape[1] // 2, mosaic.shape[2] // 2
    if height + edges[2] + edges[3] < kernel or width + edges[0] + edges[1] < kernel:
        raise ValueError(
            f"a {kernel} x {kernel} kernel does not fit the packed image of {height} x {width} "
            f"with padding {edges}"
        )
    if curve not in CURVES:
        raise ValueError(f"unknown curve {curve!r}: expected one of {', '.join(CURVES)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: expected {', '.join(ACTIVATIONS)}")
    if (curve == "gamma") != (gamma is not None):
        raise ValueError('gamma goes with curve="gamma", and only with it')
    if gamma is not None:
        gamma = on_device(gamma, device, compute, "gamma")
        if gamma.numel() != 1:
            raise ValueError(f"gamma has shape {list(gamma.shape)}: expected one exponent")
        gamma = gamma.reshape(())
    if mix is not None:
        if tuple(mix.shape) not in ((4, 4), (batch, 4, 4), (1, 4, 4)):
            raise ValueError(f"mix has shape {list(mix.shape)}: expected [4, 4] or [{batch}, 4, 4]")
        mix = mix.to(compute).expand(batch, 4, 4)
    if padding_value is not None:
        padding_value = on_device(padding_value, device, compute, "padding_value")
        if tuple(padding_value.shape) not in ((), (1,), (4,)):
            raise ValueError(
                f"padding_value has shape {list(padding_value.shape)}: expected a number or [4]"
            )
        padding_value = padding_value.expand(4)
    if out_dtype is None:
        out_dtype = autocast_type(device) or weight.dtype
    check_floating(out_dtype, "out_dtype")
    if memory_format is None:
        like_weight = not weight.is_contiguous() and weight.is_contiguous(
            memory_format=torch.channels_last
        )
        memory_format = torch.channels_last if like_weight else torch.contiguous_format
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format {memory_format}: expected contiguous or channels_last")
    blacks = per_sample(black, batch, (4,), "black", device, compute)
    whites = per_sample(white, batch, (), "white", device, compute)
    check_levels(black, white)
    gains = per_sample(1.0 if gain is None else gain, batch, (4,), "gain", device, compute)
    patterns = pattern_codes(pattern, batch, device)
    colour = (
        any(isinstance(t, Tensor) and t.requires_grad for t in (gain, mix, gamma))
        and torch.is_grad_enabled()
    )
    learnt = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (weight, bias)
    )
    only_reference = NOT_TRANSFORMED if transformed() else None
    levels = (blacks, whites, padding_value)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in levels):
        only_reference = "it has no gradient of black, white and padding_value"
    name = _backend_for(
        device, kernel, batch, out_dtype, weight.dtype, mosaic.dtype, stride, activation,
        learnt, colour, only_reference,
    )  # fmt: skip
    if name != "reference":
        features: Tensor = operator(
            mosaic, weight, bias, blacks, whites, patterns, gains, padding_value, mix, gamma,
            stride, edges, clip, curve, activation, out_dtype,
            memory_format == torch.channels_last, name,
        )  # fmt: skip
        return features
    autocast = autocast_type(device) is not None
    with torch.autocast(device.type, enabled=False) if autocast else contextlib.nullcontext():
        result = reference.raw_conv(
            mosaic,
            weight,
            bias,
            black=blacks,
            white=whites,
            pattern=patterns,
            gain=gains,
            stride=stride,
            padding=edges,
            padding_value=padding_value,
            clip=clip,
            mix=mix,
            curve=curve,
            gamma=gamma,
            activation=activation,
            out_dtype=out_dtype,
        )
        result = result.contiguous(memory_format=memory_format)
    return result


def _numbers(
    value: Sequence[Any] | Tensor, device: torch.device, dtype: torch.dtype, name: str
) -> Tensor:
    """A parameter: a tensor as it is, for its gradient's sake, or one made of numbers."""
    if not isinstance(value, Tensor):
        return on_device(value, device, dtype, name)
    check_dense(value, name)
    return value


def _backend_for(
    device: torch.device,
    kernel: int,
    batch: int,
    out_dtype: torch.dtype,
    weight: torch.dtype,
    mosaic: torch.dtype,
    stride: int,
    activation: str,
    learnt: bool,
    colour: bool,
    only_reference: str | None,
) -> str:
    """The backend that serves a call.

    ``learnt``: the gradient of weight or bias will be asked for; ``colour``: of gain, mix or gamma.
    ``only_reference``: why no kernel serves the call, or None.

    An exported program runs where this library is not: it is made of the reference's operators.
    """
    if torch.compiler.is_exporting():
        return "reference"
    name: str = _choose(
        device, kernel, batch, out_dtype, weight, mosaic, stride, activation, learnt, colour,
        only_reference,
    )  # fmt: skip
    return name


def _choose_now(
    device: torch.device,
    kernel: int,
    batch: int,
    out_dtype: torch.dtype,
    weight: torch.dtype,
    mosaic: torch.dtype,
    stride: int,
    activation: str,
    learnt: bool,
    colour: bool,
    only_reference: str | None,
) -> str:
    call = {
        "kernel": kernel,
        "batch": batch,
        "out_dtype": out_dtype,
        "weight": weight,
        "mosaic": mosaic,
        "stride": stride,
        "activation": activation,
        "learnt": learnt,
        "colour": colour,
        "only_reference": only_reference,
    }
    return choice.choose("raw_conv", device, **call).backend


#: torch.compile asks once, when it compiles.
# Untyped in torch, hence the ignore.
_choose = torch.compiler.assume_constant_result(_choose_now)  # type: ignore[no-untyped-call]
