"""Saved weights into a student, with a sentence where they are another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn


def load_weights(
    path: Path, student: nn.Module, weights: dict[str, Any], *, own_types: bool = True
) -> None:
    """Put saved weights into a student.

    Args:
        path: that they were read from, for errors.
        student: to be filled.
        weights: its state dict, with the extra state of its modules.
        own_types: keep the student's dtypes; False takes over those that were saved.

    Raises:
        ValueError: they are another student's; the message names what differs.
    """
    own = student.state_dict()
    # Extra state is compared by the module that it belongs to, in load_state_dict().
    here = {k: list(v.shape) for k, v in own.items() if isinstance(v, Tensor)}
    there = {k: list(v.shape) for k, v in weights.items() if isinstance(v, Tensor)}
    names = sorted(k for k in {*here, *there} if here.get(k) != there.get(k))
    if names:
        first = names[0]
        words = f"{first} is {there.get(first, 'missing')} there, {here.get(first, 'none')} here"
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise ValueError(
            f"{path}: is of another student: {words}{more}; give the teacher that it was trained "
            "with"
        )
    try:
        student.load_state_dict(weights, assign=not own_types)
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit this student: {error}") from error
