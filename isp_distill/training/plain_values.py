"""Values of settings as files hold them, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from isp_distill.ops.unprocess.noise import NoiseModel


def plain_value(value: Any) -> Any:
    """A setting's value in numbers, strings, lists and dictionaries of them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain_value(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [plain_value(part) for part in value] if isinstance(value, (list, tuple)) else value


def made_value(kind: type, values: Mapping[str, Any], name: str) -> Any:
    """A value of a setting from its plain form.

    Raises:
        TypeError: for a field that it has not.
    """
    known = [f.name for f in dataclasses.fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise TypeError(f"{name} has no {unknown[0]!r}: there are {', '.join(known)}")
    made = dict(values)
    if isinstance(made.get("noise"), Mapping):
        made["noise"] = made_value(NoiseModel, made["noise"], f"{name}.noise")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in made.items()})
