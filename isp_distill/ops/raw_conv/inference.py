"""``raw_conv`` where nothing asks for a gradient and nobody looks on: what a frame's latency is.

What a caller repeats cannot change if it is a number or a name: it is checked once, and the result
is remembered. A tensor can change between two calls, so its type, shape, strides, storage and
values (levels, codes) are looked at in every call, most of them by the compiled library. Whatever
is unusual, or wrong, is left to the long way in call.py, which serves it or says what is wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from isp_distill.arguments import is_stored, nobody_looks, transformed
from isp_distill.backends import choice
from isp_distill.ops.raw_conv.arguments import (
    check_names,
    is_channels_last,
    output_type,
    quadruple_padding,
)
from isp_distill.ops.raw_conv.cpu import LARGEST_KERNEL
from isp_distill.ops.raw_conv.operator import Functions, Settings, Tensors
from isp_distill.raw.cfa import on_device, pattern_codes
from isp_distill.raw.filters import NAMES


class Given(NamedTuple):
    """A call as it was made, in the order of :func:`isp_distill.raw_conv`."""

    mosaic: Any
    weight: Any
    bias: Any
    black: Any
    white: Any
    pattern: Any
    gain: Any
    stride: Any
    padding: Any
    padding_value: Any
    clip: Any
    mix: Any
    curve: Any
    gamma: Any
    activation: Any
    out_dtype: Any
    memory_format: Any
    packing: Any
    width: Any


def inferred(given: Given) -> Tensor | None:
    """The features, where the compiled CPU kernels make them at once; else None."""
    mosaic, weight = given.mosaic, given.weight
    if type(mosaic) is not Tensor or type(weight) not in _TENSORS or not mosaic.is_cpu:
        return None
    forward = _forward()
    if forward is None or not nobody_looks() or transformed():
        return None
    try:
        if mosaic.dim() == 4 and mosaic.shape[1] == 1:
            mosaic = mosaic[:, 0]
        if mosaic.dim() != 3 or mosaic.shape[0] == 0 or weight.dim() != 4 or mosaic.requires_grad:
            return None
        numbers, settings, codes = _numbers(given), _settings_of(given), _codes(given.pattern)
        if numbers is None or settings is None or codes is None:
            return None
        weight, bias, black, white, gain, padding_value, mix, gamma = numbers
        tensors = Tensors(
            mosaic, weight, bias, black, white, codes, gain, padding_value, mix, gamma
        )
        return forward(tensors, settings)
    except (RuntimeError, TypeError, ValueError):
        return None  # the long way serves it, or says what is wrong


_TENSORS = frozenset((Tensor, Parameter))
# Not all that is equal to a number, such as 1+0j: that is refused, or converted.
_NUMBERS = frozenset((float, int))
_INTEGERS = frozenset((int,))
# An iterator would be used up.
_LISTS = frozenset((list, tuple))


def _forward() -> Callable[[Tensors, Settings], Tensor] | None:
    """The compiled kernels of the CPU, where they are what is asked first."""
    first = choice.preferred("raw_conv", "cpu")
    if first is None or first.missing() or not isinstance(first.functions, Functions):
        return None
    return first.functions.forward if first.backend == "cpu" else None


def _numbers(given: Given) -> list[Any] | None:
    """Weight, bias, black, white, gain, padding_value, mix, gamma; None if one is unusual.

    Of one sample's shape, where they were given so: the library spreads them over the batch.
    """
    learning = torch.is_grad_enabled()
    gain = 1.0 if given.gain is None else given.gain
    values: tuple[Any, ...] = (
        given.weight, given.bias, given.black, given.white, gain,
        given.padding_value, given.mix, given.gamma,
    )  # fmt: skip
    found: list[Any] = []
    for value in values:
        if type(value) is list:
            value = tuple(value)
        kind = type(value)
        if kind in _TENSORS:
            if value.dtype is not torch.float32 or (learning and value.requires_grad):
                return None
            found.append(value)
        elif value is None:
            found.append(None)
        elif kind in _NUMBERS or (kind is tuple and _NUMBERS.issuperset(map(type, value))):
            found.append(_constant(value))
        else:
            return None
    return found


@functools.lru_cache(maxsize=256)
def _constant(value: float | tuple[float, ...]) -> Tensor:
    """Numbers as kernels read them; nobody else gets hold of the tensor."""
    return on_device(value, torch.device("cpu"), torch.float32)


def _codes(pattern: Any) -> Tensor | None:
    """The pattern's codes, ``[1]`` or ``[N]``."""
    if type(pattern) is str or type(pattern) is int:
        return _code(pattern)
    if type(pattern) is not Tensor or pattern.dtype is not torch.int64 or not pattern.is_cpu:
        return None
    if not is_stored(pattern):
        return None
    pattern = pattern.reshape(-1)
    codes = pattern.tolist()
    return pattern if min(codes) >= 0 and max(codes) < len(NAMES) else None


@functools.lru_cache(maxsize=64)
def _code(pattern: str | int) -> Tensor:
    return pattern_codes(pattern, 1, torch.device("cpu"))


def _settings_of(given: Given) -> Settings | None:
    """The rest of a call in its checked form; None if something is unusual."""
    stride, padding, width = given.stride, given.padding, given.width
    # By their very types: True and 1.0 are equal to 1, and are refused.
    if (
        type(stride) is not int
        or not (type(padding) is int or type(padding) in _LISTS)
        or not (type(padding) is int or _INTEGERS.issuperset(map(type, padding)))
        or type(given.clip) is not bool
        or (given.packing is None) != (width is None)
        or not (width is None or type(width) is int)
        or (given.curve == "gamma") != (given.gamma is not None)
        or given.weight.shape[-1] > LARGEST_KERNEL
    ):
        return None
    return _settings(
        stride,
        padding if type(padding) is int else tuple(padding),
        given.clip,
        given.curve,
        given.activation,
        output_type(given.out_dtype, given.weight),
        is_channels_last(given.memory_format, given.weight),
        given.packing,
        width,
    )


@functools.lru_cache(maxsize=256)
def _settings(
    stride: int, padding: int | tuple[int, ...], clip: bool, curve: str, activation: str, *rest: Any
) -> Settings | None:
    settings = Settings(stride, quadruple_padding(padding), clip, curve, activation, *rest)
    check_names(settings)
    return None if settings.out_dtype == torch.float64 else settings
