"""``raw_conv``: the student's first convolution, straight off the sensor.

The public call has its arguments checked and brought into one form (arguments.py), and hands them
to the backend that serves the call (see :mod:`isp_distill.backends.choice`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isp_distill.arguments import NOT_TRANSFORMED, autocast_type, is_plain_eager, transformed
from isp_distill.backends import choice
from isp_distill.ops import reference
from isp_distill.ops.companding import BETWEEN_CODES, checked_linearise
from isp_distill.ops.raw_conv import (
    cpu as raw_conv_cpu,
)
from isp_distill.ops.raw_conv import (
    cuda as raw_conv_cuda,
)
from isp_distill.ops.raw_conv import (
    triton as raw_conv_triton,
)
from isp_distill.ops.raw_conv.arguments import (
    check_device,
    check_fit,
    check_names,
    check_weight,
    checked_bias,
    checked_clip,
    checked_gamma,
    checked_input,
    checked_mix,
    checked_padding_value,
    checked_stride,
    computed_in,
    is_channels_last,
    output_type,
    quadruple_padding,
)
from isp_distill.ops.raw_conv.inference import Given, inferred
from isp_distill.ops.raw_conv.operator import (
    Settings,
    Tensors,
    backward,
    functions_of,
    setup_context,
)
from isp_distill.ops.raw_conv.operator import raw_conv as operator
from isp_distill.ops.reference_companding import linearised
from isp_distill.ops.reference_packing import unpacked
from isp_distill.raw.cfa import check_levels, pattern_codes, per_sample

__all__ = ["raw_conv", "raw_conv_cpu", "raw_conv_cuda", "raw_conv_triton"]


choice.register(choice.Implementation("raw_conv", "reference", reference.raw_conv))


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
    packing: str | None = None,
    width: int | None = None,
    linearise: Sequence[Any] | Tensor | None = None,
) -> Tensor:
    """Convolve a camera's mosaic without ever making the packed float image.

    ``activation(conv2d(curve(mix(normalise(pack(mosaic)))), weight, bias, stride))``, where
    ``pack`` gathers the four colours R, Gr, Gb, B of each 2x2 period into channels, and
    ``normalise`` is ``(x - black) * gain / (white - black)``.

    Args:
        mosaic: ``[N, H, W]`` or ``[N, 1, H, W]``, H and W even; uint8, uint16, int16, int32,
            float16, float32 or float64; sensor units. With ``packing``, the sensor's bytes
            ``[N, H, bytes]``, uint8; what a row holds beyond its pixels is padding.
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
        packing: how the codes lie in a packed mosaic's bytes: "mipi10", "mipi12", "mipi14",
            "pfnc10p", "pfnc12p" or "gige12packed" (see :mod:`isp_distill.raw.packings`).
        width: of a packed mosaic, the pixels of a row, even.
        linearise: what a companding sensor's codes mean, applied before black is subtracted; black
            and white are then linear values. Knots ``[K, 2]`` (code, value), straight between them,
            or a table ``[L]`` of the values of codes from 0 on; ``[N, K, 2]`` and ``[N, L]`` are
            one per sample. Codes beyond either end have the end's value, as in DNG's
            LinearizationTable. Values up to 2**24 are exact in float32. No gradient.

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

    Examples:
        >>> mosaic = torch.full((2, 64, 96), 8000, dtype=torch.uint16)
        >>> weight = torch.randn(32, 4, 3, 3, requires_grad=True)
        >>> features = isp_distill.raw_conv(
        ...     mosaic, weight, black=512, white=16383, pattern="BGGR", stride=2, padding=1
        ... )
        >>> features.shape
        torch.Size([2, 32, 16, 24])
        >>> features.sum().backward()
    """
    if linearise is None and not torch.compiler.is_compiling():
        at_once = inferred(
            Given(
                mosaic, weight, bias, black, white, pattern, gain, stride, padding, padding_value,
                clip, mix, curve, gamma, activation, out_dtype, memory_format, packing, width,
            )
        )  # fmt: skip
        if at_once is not None:
            return at_once
    mosaic, width = checked_input(mosaic, packing, width)
    batch, device = mosaic.shape[0], mosaic.device
    check_weight(weight, device)
    check_device(gain, "gain", device)
    settings = Settings(
        stride=checked_stride(stride),
        padding=quadruple_padding(padding),
        clip=checked_clip(clip),
        curve=curve,
        activation=activation,
        out_dtype=output_type(out_dtype, weight),
        channels_last=is_channels_last(memory_format, weight),
        packing=packing,
        width=width,
    )
    check_names(settings)
    check_fit(settings, mosaic, weight)
    if (curve == "gamma") != (gamma is not None):
        raise ValueError('gamma goes with curve="gamma", and only with it')
    compute = computed_in(weight)
    tensors = Tensors(
        mosaic=mosaic,
        weight=weight,
        bias=checked_bias(bias, weight),
        black=per_sample(black, batch, (4,), "black", device, compute),
        white=per_sample(white, batch, (), "white", device, compute),
        pattern=pattern_codes(pattern, batch, device),
        gain=per_sample(1.0 if gain is None else gain, batch, (4,), "gain", device, compute),
        padding_value=checked_padding_value(padding_value, weight),
        mix=checked_mix(mix, weight, batch),
        gamma=checked_gamma(gamma, weight),
        linearise=checked_linearise(linearise, mosaic, packing, compute),
    )
    check_levels(black, white)
    # An exported program runs where this library is not: it is made of the reference's operators.
    if torch.compiler.is_exporting():
        return _by_reference(tensors, settings)
    request = _request(tensors, settings)
    name = _choose(device, *request)
    if name == "reference":
        return _by_reference(tensors, settings)
    # Without layers of dispatch where nobody looks, nor any device is to be the current one.
    if device.type == "cpu" and is_plain_eager(*tensors):
        if not (request.learnt or request.colour):
            return functions_of(name).forward(tensors, settings)
        learnt: Tensor = Direct.apply(*tensors, settings, name)
        return learnt
    features: Tensor = operator(*tensors, *settings, name)
    return features


class Direct(torch.autograd.Function):
    """The kernels, and their gradient: the operator without its layers of dispatch."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """The features, by the backend that the last argument names."""
        *tensors, settings, backend = inputs
        out = functions_of(backend).forward(Tensors(*tensors), settings)
        setup_context(ctx, (*tensors, *settings, backend), out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """As the operator's."""
        return *backward(ctx, grads[0])[: len(Tensors._fields)], None, None


class Request(NamedTuple):
    """What the backends are told of a call, to say whether they serve it.

    Attributes:
        kernel: side of the weight.
        batch: samples.
        out_dtype: the output's type.
        weight: the weight's type.
        mosaic: the mosaic's type.
        stride: on the packed grid.
        activation: the epilogue's name.
        learnt: whether the gradient of weight or bias will be asked for.
        colour: whether that of gain, mix or gamma will be.
        only_reference: why no kernel serves the call, or None.
        packing: the mosaic's, or None.
        linearise: whether codes are looked up in a table.
    """

    kernel: int
    batch: int
    out_dtype: torch.dtype
    weight: torch.dtype
    mosaic: torch.dtype
    stride: int
    activation: str
    learnt: bool
    colour: bool
    only_reference: str | None
    packing: str | None
    linearise: bool


def _request(tensors: Tensors, settings: Settings) -> Request:
    only_reference = NOT_TRANSFORMED if transformed() else None
    if _learns(tensors.black, tensors.white, tensors.padding_value):
        only_reference = "it has no gradient of black, white and padding_value"
    if tensors.linearise is not None and tensors.mosaic.is_floating_point():
        only_reference = BETWEEN_CODES
    return Request(
        kernel=tensors.weight.shape[2],
        batch=tensors.mosaic.shape[0],
        out_dtype=settings.out_dtype,
        weight=tensors.weight.dtype,
        mosaic=tensors.mosaic.dtype,
        stride=settings.stride,
        activation=settings.activation,
        learnt=_learns(tensors.weight, tensors.bias),
        colour=_learns(tensors.gain, tensors.mix, tensors.gamma),
        only_reference=only_reference,
        packing=settings.packing,
        linearise=tensors.linearise is not None,
    )


def _learns(*tensors: Tensor | None) -> bool:
    """Whether the gradient of one of them will be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


@choice.asked_once
def _choose(device: torch.device, *request: Any) -> str:
    # Field by field: what torch.compile hands over of a named tuple is empty.
    return choice.choose("raw_conv", device, **Request(*request)._asdict()).backend


def _by_reference(tensors: Tensors, settings: Settings) -> Tensor:
    """The specification, in the precision that it asks for: autocast is off in it."""
    device = tensors.mosaic.device
    autocast = autocast_type(device) is not None
    left, right, top, bottom = settings.padding
    codes = unpacked(tensors.mosaic, settings.packing, settings.width)
    mosaic = linearised(codes, tensors.linearise, computed_in(tensors.weight))
    with torch.autocast(device.type, enabled=False) if autocast else contextlib.nullcontext():
        result = reference.raw_conv(
            mosaic,
            tensors.weight,
            tensors.bias,
            black=tensors.black,
            white=tensors.white,
            pattern=tensors.pattern,
            gain=tensors.gain,
            stride=settings.stride,
            padding=(left, right, top, bottom),
            padding_value=tensors.padding_value,
            clip=settings.clip,
            mix=tensors.mix,
            curve=settings.curve,
            gamma=tensors.gamma,
            activation=settings.activation,
            out_dtype=settings.out_dtype,
        )
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        return result.contiguous(memory_format=layout)
