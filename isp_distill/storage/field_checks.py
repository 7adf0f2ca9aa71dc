"""Checks of what a manifest says: the type and the range of a field, nested ones too."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

#: Raises FieldError for a value that is not allowed; the text names its field.
Check = Callable[[Any, str], None]

_TEXT = 1 << 16


class FieldError(ValueError):
    """A field is not what it must be.

    Args:
        field: its name, with dots between the names of nested ones.
        reason: what is wrong, to be said after the name.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field, self.reason = field, reason


def shown(value: object) -> str:
    """A value for an error: short, however long or deeply nested the value is."""
    return reprlib.repr(value)


def whole(low: int, high: int) -> Check:
    """An integer in a range; true and false are no integers."""

    def check(value: Any, field: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise FieldError(field, f"is {shown(value)}: expected an integer in {low}..{high}")

    return check


def number(low: float, high: float) -> Check:
    """A finite number in a range."""

    def check(value: Any, field: str) -> None:
        ours = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not ours or not low <= value <= high:  # NaN is in no range
            raise FieldError(field, f"is {shown(value)}: expected a number in {low:g}..{high:g}")

    return check


def flag(value: Any, field: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise FieldError(field, f"is {shown(value)}: expected true or false")


def text(value: Any, field: str) -> None:
    """A text of some length."""
    if not isinstance(value, str) or len(value) > _TEXT or "\0" in value:
        raise FieldError(field, f"is {shown(value)}: expected a text")


def hexadecimal(value: Any, field: str) -> None:
    """A digest."""
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{32}", value):
        raise FieldError(field, f"is {shown(value)}: expected 32 hexadecimal digits")


def one_of(*allowed: str) -> Check:
    """One of some texts."""

    def check(value: Any, field: str) -> None:
        if not isinstance(value, str) or value not in allowed:
            raise FieldError(field, f"is {shown(value)}: expected one of {', '.join(allowed)}")

    return check


def optional(of: Check) -> Check:
    """Null, or what another check allows."""

    def check(value: Any, field: str) -> None:
        if value is not None:
            of(value, field)

    return check


def listed(of: Check, low: int, high: int) -> Check:
    """A list of a length in a range, every item of which passes a check."""

    def check(value: Any, field: str) -> None:
        if not isinstance(value, (list, tuple)) or not low <= len(value) <= high:
            length = f"{low}" if low == high else f"{low} to {high}"
            raise FieldError(field, f"is {shown(value)}: expected a list of {length}")
        for item in value:
            of(item, field)

    return check


def table(fields: Mapping[str, Check], also: Mapping[str, Check] | None = None) -> Check:
    """An object with exactly these fields; those of ``also`` may be missing."""
    every = {**fields, **(also or {})}

    def check(value: Any, field: str) -> None:
        before = f"{field}." if field else ""
        if not isinstance(value, dict):
            raise FieldError(field, f"is {shown(value)}: expected an object")
        for name in fields:
            if name not in value:
                raise FieldError(before + name, "is missing")
        for name, item in value.items():
            if name not in every:
                raise FieldError(before + shown(name), "is none that pack writes")
            every[name](item, before + name)

    return check


def plain(depth: int) -> Check:
    """Any JSON that is nested no deeper."""

    def check(value: Any, field: str) -> None:
        if isinstance(value, (dict, list, tuple)):
            if depth == 0:
                raise FieldError(field, "is nested too deep")
            items = value.values() if isinstance(value, dict) else value
            for item in items:
                plain(depth - 1)(item, field)
        elif isinstance(value, float) and not math.isfinite(value):
            raise FieldError(field, f"is {value}: expected a finite number")

    return check


def any_object(value: Any, field: str) -> None:
    """An object of any fields."""
    if not isinstance(value, dict):
        raise FieldError(field, f"is {shown(value)}: expected an object")
