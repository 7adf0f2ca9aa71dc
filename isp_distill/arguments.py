"""What callers give, checked before anything is computed: each refusal is one sentence."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

#: What the operations compute in and write.
FLOATING_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def shown(value: object) -> str:
    """A value for an error: short, and on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole_number(value: Any, name: str, bits: float = 63, least: int | None = None) -> int:
    """An integer of any kind but a tensor as an ``int``; it may have so many bits beside its sign.

    Raises:
        TypeError: for anything else, 2.0 and True included.
        ValueError: if it does not fit, or is below ``least``.
    """
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]  # stands for an int while torch compiles
    if isinstance(value, (bool, Tensor)):
        raise TypeError(f"{name} must be a whole number, got {shown(value)}")
    if not isinstance(value, int):
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be a whole number, got {shown(value)}") from None
    if not torch.compiler.is_compiling() and abs(value).bit_length() > bits:
        raise ValueError(f"{name} is {shown(value)}, which is too large")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def whole_numbers(values: Any, name: str) -> tuple[int, ...]:
    """Several of :func:`whole_number`.

    Raises:
        TypeError: if they are none.
    """
    if isinstance(values, (str, Tensor)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be whole numbers, got {shown(values)}")
    return tuple(whole_number(value, name) for value in values)


def nearest(name: str, known: Iterable[str]) -> str:
    """The name that somebody may have meant, as a question; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]!r}?" if near else ""


def real_number(value: Any, name: str) -> float:
    """A real number as a ``float``.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    return float(value)


def check_dense(tensor: Tensor, name: str) -> None:
    """Refuse tensors whose elements do not lie at strides.

    Raises:
        TypeError: for a sparse, nested or otherwise laid out tensor, or one of complex numbers.
    """
    if tensor.is_nested:
        raise TypeError(f"{name} is a nested tensor: give one of one shape")
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"{name} has layout {layout}: give {name}.to_dense()")
    if tensor.dtype.is_complex:
        raise TypeError(f"{name} has dtype {tensor.dtype}: expected real numbers")


def is_stored(tensor: Tensor) -> bool:
    """Whether a tensor's storage holds all of its elements: it may have been resized since.

    torch itself does not look, and reads beyond its end.
    """
    if tensor.numel() == 0 or tensor.is_meta or torch.compiler.is_compiling():
        return True
    last = tensor.storage_offset()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        last += (size - 1) * stride
    return bool((last + 1) * tensor.element_size() <= tensor.untyped_storage().nbytes())


def check_stored(tensor: Tensor, name: str) -> None:
    """Refuse a tensor whose storage was made smaller behind its back.

    Raises:
        ValueError: that names it.
    """
    if not is_stored(tensor):
        raise ValueError(
            f"{name} has shape {list(tensor.shape)} and a storage of "
            f"{tensor.untyped_storage().nbytes()} bytes, which is too small for it: it was resized"
        )


def check_floating(dtype: Any, name: str) -> None:
    """Refuse what is not one of :data:`FLOATING_TYPES`.

    Raises:
        TypeError: if it is not.
    """
    if dtype not in FLOATING_TYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in FLOATING_TYPES)
        raise TypeError(f"{name} must be a floating-point type, one of {names}, not {shown(dtype)}")


def transformed() -> bool:
    """Whether torch.func's transforms or forward-mode derivatives see what is computed now."""
    if torch.compiler.is_compiling():
        return False
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


#: Why no kernel serves a call where :func:`transformed` is true.
NOT_TRANSFORMED = "only plain PyTorch has torch.func's transforms and forward-mode derivatives"


def is_plain_eager(*tensors: Tensor | None) -> bool:
    """Whether nothing but autograd looks at these tensors' operations.

    Not a compiler, tracer, function transform, mode or subclass, nor values that are not there:
    then the operator's layers of dispatch in Python, a tenth of a millisecond, serve nobody.
    """
    return (
        all(
            type(x) in (Tensor, torch.nn.Parameter) and not x.is_meta
            for x in tensors
            if x is not None
        )
        and nobody_looks()
    )


def nobody_looks() -> bool:
    """Whether no compiler, tracer, function transform or mode looks at operations."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )


def readable(tensor: Tensor) -> bool:
    """Whether values can be looked at: there are some, and no device waits for it."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not is_fake(tensor)
        and not transformed()
    )


def autocast_type(device: torch.device) -> torch.dtype | None:
    """What autocast computes in on a device; None where it is off, or there is none."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
