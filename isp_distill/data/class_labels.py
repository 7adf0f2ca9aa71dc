"""The class of a whole picture, as datasets give it: one whole number, never a rounded one."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from isp_distill.data.source import item_and_label
from isp_distill.errors import RawError

_SHOWN = 60


def as_class(label: Any, name: str) -> int:
    """A class as an int.

    Args:
        label: an integer of any kind, also a tensor or an array of one, or a float without
            fraction.
        name: of the file or item, for errors.

    Raises:
        ValueError: it is anything else: a fraction, a text, or several numbers (soft labels).
    """
    if type(label) is int:
        return label
    value = label.detach().cpu().numpy() if isinstance(label, Tensor) else label
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.size != 1):
        count = value.size if isinstance(value, np.ndarray) else len(value)
        raise ValueError(
            f"{name}: its label has {count} values ({_short(label)}); a class is one whole number "
            "(soft labels are not taken: a teacher gives them)"
        )
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0]
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return int(value)
    what = "a fraction" if isinstance(value, (float, np.floating)) else type(value).__name__
    raise ValueError(f"{name}: its label is {_short(label)} ({what}); a class is one whole number")


def has_labels(source: Any) -> bool:
    """Whether a dataset knows a class, or a label map, of any of its items.

    Folders know without reading a file. Items of other datasets are read until one has a label, or
    comes alone, without a place for one.
    """
    if getattr(source, "label_maps", None) is not None:
        return True
    if hasattr(source, "label"):
        return any(source.label(index) is not None for index in range(len(source)))
    if hasattr(source, "paths"):
        return False
    for index in range(len(source)):
        try:
            item = source[index]
        except RawError:
            continue
        pair = item_and_label(item, index)
        if pair is None:
            return False
        if pair[1] is not None:
            return True
    return False


def _short(label: Any) -> str:
    plain = label.item() if isinstance(label, np.generic) else label
    text = " ".join(repr(plain).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
