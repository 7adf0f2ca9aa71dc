"""A companding sensor's curve: what its codes mean, as linear values.

Here alone it is decided what codes of such a sensor live through. They stay codes where they are
cut, turned or packed. Whatever averages pixels, as binning and resizing do, sees linear values,
since the mean of two codes is not the code of the mean: :func:`linear_values` makes them, float32.
This module does not import torch: decode workers load it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

#: Codes have up to 16 bits, values up to 24: float32 holds every whole one of them.
MOST_CODES = 1 << 16
MOST_VALUE = float(1 << 24)
#: A curve of more pieces is a table.
MOST_KNOTS = 256
# A table of two values could be taken for one knot.
_LEAST = 3

#: Knots (code, value), increasing, with straight pieces between them; or the values of the codes
#: from 0 on. Codes beyond either end have the end's value.
Curve = tuple[tuple[float, float], ...] | tuple[float, ...]


def curve_of(curve: Any, name: str = "linearise") -> Curve | None:
    """A curve in its one form; None stays None.

    Numbers become floats, and a table of straight pieces becomes their knots, which are fewer.

    Args:
        curve: knots ``[K, 2]``, 2 to 256 of them, or a table ``[L]`` of 2 to 65536 values.
        name: what it is called, for the error.

    Raises:
        TypeError: it is not made of numbers.
        ValueError: it has another shape, codes that do not increase or that 16 bits do not hold, or
            values that decrease or are not between -2^24 and 2^24.
    """
    if curve is None:
        return None
    try:
        return _checked(curve if _has_hash(curve) else _tuples(curve), name)
    except (TypeError, RecursionError) as error:  # also of what has no hash, or is nested too deep
        raise TypeError(
            f"{name} must be knots [[code, value], ...] or a table of values"
        ) from error


def _has_hash(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _tuples(value: Any) -> Any:
    """Lists and arrays as tuples, those in them too."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


@functools.lru_cache(maxsize=64)
def _checked(curve: Any, name: str) -> Curve:
    """Of many frames with one curve, it is looked at once."""
    try:
        array = np.asarray(curve)
    except (ValueError, OverflowError) as error:  # rows of several lengths; whole numbers too large
        raise TypeError from error
    if array.dtype.kind not in "iuf":
        raise TypeError
    array = array.astype(np.float64)
    knots = array.ndim == 2 and array.shape[1] == 2
    most = MOST_KNOTS if knots else MOST_CODES
    if not (knots or array.ndim == 1) or not 2 <= len(array) <= most:
        raise ValueError(
            f"{name} has shape {list(array.shape)}: expected knots [K, 2] of (code, value), up to "
            f"{MOST_KNOTS} of them, or a table [L] of up to {MOST_CODES} values, from code 0 on"
        )
    values = array[:, 1] if knots else array
    # Written so that NaN fails it too.
    if not (np.abs(values) <= MOST_VALUE).all():
        raise ValueError(f"the values of {name} must be between -2^24 and 2^24")
    _check_steps(values, f"the values of {name}", least=0.0)
    if not knots:
        found = _pieces(array)
        return tuple(array.tolist()) if found is None else _pairs(found)
    codes = array[:, 0]
    if not ((codes >= 0) & (codes < MOST_CODES)).all():
        raise ValueError(f"the codes of {name} must be from 0 to {MOST_CODES - 1}")
    _check_steps(codes, f"the codes of {name}", least=math.ulp(0.0))
    return _pairs(array)


def _check_steps(numbers: np.ndarray, what: str, least: float) -> None:
    steps = np.diff(numbers)
    if (steps < least).any():
        place = int(np.argmax(steps < least))
        rule = "not decrease" if least == 0 else "increase"
        raise ValueError(
            f"{what} must {rule}, and entry {place + 1} is {numbers[place + 1]:g} after "
            f"{numbers[place]:g}"
        )


def _pairs(knots: np.ndarray) -> tuple[tuple[float, float], ...]:
    return tuple((float(code), float(value)) for code, value in knots)


def _pieces(table: np.ndarray) -> np.ndarray | None:
    """The knots that say in float32 just what a table says; None where that takes too many."""
    wanted, end = table.astype(np.float32), len(table) - 1
    places = [0]
    while places[-1] < end:
        if len(places) == MOST_KNOTS:
            return None
        places.append(_straight_until(table, wanted, places[-1]))
    knots: np.ndarray = np.stack([np.array(places, dtype=np.float64), table[places]], 1)
    return knots


def _straight_until(table: np.ndarray, wanted: np.ndarray, first: int) -> int:
    """How far one straight piece from a code goes: by doubling it, then by halving what is left."""

    def is_straight(last: int) -> bool:
        codes = np.arange(first, last + 1)
        line = np.interp(codes, [first, last], [table[first], table[last]])
        return bool((line.astype(np.float32) == wanted[first : last + 1]).all())

    reached, length = first + 1, 2
    while first + length < len(table) and is_straight(first + length):
        reached, length = first + length, 2 * length
    beyond = min(first + length, len(table))
    while beyond - reached > 1:
        middle = (reached + beyond) // 2
        if is_straight(middle):
            reached = middle
        else:
            beyond = middle
    return reached


def is_knots(curve: Curve) -> bool:
    """Whether a curve is knots; else it is a table."""
    return isinstance(curve[0], tuple)


def value_at(curve: Curve, code: float) -> float:
    """The linear value of a code."""
    if is_knots(curve):
        codes, values = np.asarray(curve).T
        return float(np.interp(code, codes, values))
    return float(np.interp(code, np.arange(len(curve)), np.asarray(curve)))


@functools.lru_cache(maxsize=64)
def table_of(curve: Curve) -> np.ndarray:
    """The linear values of the codes from 0 on, up to where they no longer change.

    Returns:
        float32 ``[L]``, not to be written to; 3 values or more.
    """
    if is_knots(curve):
        codes, values = np.asarray(curve).T
        table = np.interp(np.arange(math.ceil(codes[-1]) + 1), codes, values).astype(np.float32)
    else:
        table = np.asarray(curve, dtype=np.float32)
    table = np.pad(table, (0, max(0, _LEAST - len(table))), mode="edge")
    table.setflags(write=False)
    return table


def linear_values(codes: np.ndarray[Any, Any], curve: Curve) -> np.ndarray[Any, Any]:
    """The linear values, float32, of codes of any integer type and shape."""
    table = table_of(curve)
    if codes.size and int(codes.max()) >= len(table):
        codes = np.minimum(codes, len(table) - 1)
    values: np.ndarray[Any, Any] = table[codes]
    return values


def tables_of(curves: list[Curve | None], codes: int) -> np.ndarray | None:
    """The tables of a batch; None where no sample has a curve.

    Args:
        curves: of each sample; one without has the codes themselves.
        codes: how many there are, at most 65536.

    Returns:
        float32 ``[1, L]`` where all samples have one curve, else ``[N, L]``.
    """
    if not any(curves):
        return None
    if len(set(curves)) == 1:
        assert curves[0] is not None
        one: np.ndarray = table_of(curves[0])[None].copy()
        return one
    plain = np.arange(codes, dtype=np.float32)
    tables = [plain if curve is None else table_of(curve) for curve in curves]
    length = max(map(len, tables))
    whole: np.ndarray = np.stack([np.pad(t, (0, length - len(t)), mode="edge") for t in tables])
    return whole
