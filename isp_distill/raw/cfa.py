"""The colour filter array: its patterns and where each colour sits in a 2x2 period.

A Bayer pattern is one integer, the site of its red: ``2 * row + column`` of R within the period.
Other filters only name the colours otherwise, and count on from 4 (see ``filters.py``): the site of
the first colour is in the two lowest bits, which are all that decides where a plane lies. The four
colour planes are always ordered **R, Gr, Gb, B** (Gr is the green in a red row), and with that
order the site of plane ``k`` in pattern ``p`` is simply ``p ^ k``: Gr is R's neighbour in the row
(flip the column bit), Gb in the column (flip the row bit), B across (flip both). Everything in this
library that turns a mosaic into colours, in Python, C++ or Triton, is that one exclusive or.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from isp_distill.arguments import check_dense, check_stored, readable, shown, whole_number
from isp_distill.raw.filters import KNOWN, NAMES, number_of

#: Pattern names in the order of their codes: red at site 0, 1, 2, 3.
PATTERNS: tuple[str, str, str, str] = ("RGGB", "GRBG", "GBRG", "BGGR")
#: Plane names in the order in which every packed tensor holds them.
PLANES: tuple[str, str, str, str] = ("R", "Gr", "Gb", "B")


def pattern_code(pattern: str) -> int:
    """The code of a pattern name: 0..3 of Bayer's, more of other filters'.

    Args:
        pattern: "RGGB", "GRBG", "GBRG" or "BGGR", or one of another filter, in any case.

    Raises:
        ValueError: for any other name.
    """
    return number_of(pattern)


def pattern_codes(
    pattern: str | int | Sequence[str] | Tensor, batch: int, device: torch.device
) -> Tensor:
    """The pattern of each sample as an int64 tensor of shape ``[batch]``.

    Args:
        pattern: one name for all samples, a list of names, one code, or a ``[batch]`` integer
            tensor of codes (see :data:`PATTERNS`). A tensor on the CPU is checked for its range;
            one on an accelerator is not, since that would make the device wait: there the kernels
            use its two lowest bits.
        batch: number of samples.
        device: where the result lives.

    Raises:
        ValueError: for an unknown name, a code that there is not, or a wrong number of samples.
        TypeError: for anything else, a tensor that is not of an integer type included.
    """
    if isinstance(pattern, str):
        return torch.full((batch,), pattern_code(pattern), dtype=torch.int64, device=device)
    if not isinstance(pattern, (Tensor, Iterable)):
        pattern = whole_number(pattern, "a pattern code")
        if not 0 <= pattern < len(NAMES):
            raise ValueError(
                f"pattern code {pattern} is outside 0..{len(NAMES) - 1} ({', '.join(KNOWN)})"
            )
        return torch.full((batch,), pattern, dtype=torch.int64, device=device)
    if isinstance(pattern, Tensor):
        check_dense(pattern, "pattern")
        if pattern.dtype.is_floating_point:
            raise TypeError(f"pattern codes must be integers, not {pattern.dtype}")
        codes = pattern.to(device=device, dtype=torch.int64).reshape(-1)
        if readable(pattern):
            check_stored(pattern, "pattern")
        if readable(pattern) and not all(0 <= c < len(NAMES) for c in codes.tolist()):
            raise ValueError(f"pattern codes must be in 0..{len(NAMES) - 1}, got {codes.tolist()}")
    else:
        codes = on_device([pattern_code(p) for p in pattern], device, torch.int64)
    if codes.numel() == 1 and batch != 1:
        codes = codes.expand(batch)
    if codes.numel() != batch:
        raise ValueError(f"{codes.numel()} CFA patterns for a batch of {batch} mosaics")
    return codes


def per_sample(
    value: float | Sequence[float] | Tensor,
    batch: int,
    shape: tuple[int, ...],
    name: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Broadcast a setting to one value (of shape ``shape``) per sample: ``[batch, *shape]``.

    Args:
        value: a number, something of shape ``shape``, or of shape ``[batch, *shape]``. Where
            ``shape`` is ``()``, a ``[batch]`` sequence.
        batch: number of samples.
        shape: the shape of one sample's value.
        name: the setting's name, for the error.
        device: where the result lives.
        dtype: its type.

    Raises:
        TypeError: for anything but numbers.
        ValueError: if the shape fits neither.
    """
    if isinstance(value, (int, float)):
        return _filled((batch, *shape), value, device, dtype, name)
    tensor = on_device(value, device, dtype, name)
    if tensor.shape == (batch, *shape):
        return tensor
    if tensor.dim() == 0 or tuple(tensor.shape) in (shape, (1, *shape), (batch, *shape)):
        return tensor.expand(batch, *shape)
    wanted = f"{list(shape)} or {[batch, *shape]}" if shape else f"[{batch}]"
    raise ValueError(f"{name} has shape {list(tensor.shape)}: expected a number, {wanted}")


def on_device(
    value: float | Sequence[Any] | Tensor,
    device: torch.device,
    dtype: torch.dtype,
    name: str = "the setting",
) -> Tensor:
    """A setting as a tensor on a device, without a copy that the processor would wait for.

    Numbers are written by the device itself, so a captured graph holds them, too.

    Args:
        value: a number, (nested) sequences of numbers, an array, or a tensor.
        device: where the result lives.
        dtype: its type.
        name: the setting's name, for the error.

    Raises:
        TypeError: for anything but real numbers.
    """
    if isinstance(value, Tensor):
        check_dense(value, name)
        if value.dtype == dtype and value.device == device:
            return value
        check_stored(value, name)
        return value.to(device=device, dtype=dtype, non_blocking=True)
    if isinstance(value, (int, float)):
        return _filled((), value, device, dtype, name)
    # Of tensors in a list, torch.as_tensor would drop the history.
    if isinstance(value, (list, tuple)) and (
        device.type != "cpu" or any(isinstance(v, Tensor) for v in value)
    ):
        return torch.stack([on_device(v, device, dtype, name) for v in value])
    try:
        # torch would round Python's numbers to its default dtype, and put them on its default
        # device; an array has a dtype of its own.
        own = hasattr(value, "__array__")
        tensor = torch.as_tensor(value, dtype=None if own else dtype, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} is {shown(value)}: expected numbers") from None
    check_dense(tensor, name)
    return tensor.to(device=device, dtype=dtype, non_blocking=True)


def _filled(
    shape: tuple[int, ...], value: float, device: torch.device, dtype: torch.dtype, name: str
) -> Tensor:
    try:
        return torch.full(shape, value, device=device, dtype=dtype)
    except OverflowError:
        raise TypeError(f"{name} is {shown(value)}, which is too large") from None


def _are_apart(low: Tensor, high: Tensor) -> bool:
    """Whether a quick look shows all of one below all of the other, and both finite."""
    if not (low.is_floating_point() and high.is_floating_point() and low.numel() * high.numel()):
        return False
    lowest, below = (float(x) for x in low.detach().aminmax())
    above, highest = (float(x) for x in high.detach().aminmax())
    # NaN anywhere makes both of its numbers NaN, and fails this.
    return -math.inf < lowest and below < above and highest < math.inf


#: Numbers that are smaller, and 1 apart, are finite and apart in float32 too.
_APART_IN_FLOAT32 = 2.0**22


def check_levels(
    black: float | Sequence[float] | Tensor, white: float | Sequence[float] | Tensor
) -> None:
    """Refuse levels that no sensor has: black must be below white, both finite.

    Tensors on an accelerator are not looked at, since that would make the device wait.

    Args:
        black: a number, ``[4]`` or ``[N, 4]``, sensor units.
        white: a number or ``[N]``, sensor units.

    Raises:
        ValueError: if a black level is not below its white, or one is not finite.
    """
    if torch.compiler.is_compiling():
        return
    # To make tensors of two numbers takes longer than a small call should.
    if (
        isinstance(black, (int, float))
        and isinstance(white, (int, float))
        and -_APART_IN_FLOAT32 < black <= white - 1 < _APART_IN_FLOAT32
    ):
        return
    low, high = _level(black), _level(white)[..., None]
    if not (readable(low) and readable(high)) or _are_apart(low, high):
        return
    # Written so that NaN fails it too; a level that is below another can be infinite on one side.
    if not bool(((-math.inf < low) & (low < high) & (high < math.inf)).all()):
        raise ValueError(
            f"black {low.tolist()} must be below white {high[..., 0].tolist()}, and both finite"
        )


def _level(value: float | Sequence[float] | Tensor) -> Tensor:
    """A level as given; numbers whatever torch's default dtype and device are."""
    if isinstance(value, Tensor):
        return value
    own = hasattr(value, "__array__")
    return torch.as_tensor(value, dtype=None if own else torch.float32, device="cpu")
