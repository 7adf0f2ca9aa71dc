"""Damaged checkpoints: refused, or the same content as before."""

from __future__ import annotations

import functools
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
import training_run

from isp_distill import train
from isp_distill.training.checkpoint import load_checkpoint

from .area import refusal
from .mutations import damaged_bytes


@functools.cache
def _original() -> tuple[bytes, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        train(
            "rawify",
            training_run.teacher(),
            [training_run.raw_image(i) for i in range(4)],
            out=name,
            steps=1,
            batch_size=2,
            crop=32,
            progress=False,
            tensorboard=False,
        )
        path = Path(name) / "checkpoint.pt"
        return path.read_bytes(), load_checkpoint(path)


def attempt(number: int, folder: Path) -> None:
    """One damaged checkpoint."""
    data, state = _original()
    draw = random.Random(number)
    path = folder / "checkpoint.pt"
    path.write_bytes(damaged_bytes(data, draw))
    try:
        loaded = load_checkpoint(path)
    except ValueError as error:
        raise refusal(error, path) from error
    assert _same(loaded, state), "damage was not noticed"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        same_keys = isinstance(other, dict) and one.keys() == other.keys()
        return same_keys and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
