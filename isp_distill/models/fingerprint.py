"""What a stored prediction depends on, so that no run trains on another teacher's."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor

from isp_distill.isp.camera import ISP
from isp_distill.models.teacher import Teacher

# Where a function or an object lies in memory differs from process to process.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

#: Raised when the pictures that ``render`` makes change beyond rounding.
_RENDER = 1


def fingerprint(teacher: Teacher) -> dict[str, Any]:
    """Everything that decides a teacher's logits for a mosaic, by name; comparable, JSON.

    ``weights`` is a SHA-256 of the state dict (names, types, shapes, bytes), ``architecture`` one
    of the module's own description; the rest is the preprocessing and the ISP as they are.
    """
    weights = hashlib.sha256()
    for name, value in sorted(teacher.model.state_dict().items()):
        if not isinstance(value, Tensor):  # the extra state of a module
            weights.update(f"{name} {_ADDRESS.sub('', repr(value))}\n".encode())
            continue
        tensor = value.detach().cpu().contiguous()
        weights.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        weights.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    described = _ADDRESS.sub("", f"{type(teacher.model).__qualname__} {teacher.model}")
    usual = ISP()
    return {
        "weights": weights.hexdigest()[:32],
        "architecture": hashlib.sha256(described.encode()).hexdigest()[:32],
        "mean": [float(v) for v in teacher.mean],
        "std": [float(v) for v in teacher.std],
        "size": int(teacher.size),
        "demosaic": teacher.demosaic or usual.demosaic,
        "tone": teacher.tone or usual.tone,
        "resize_in": teacher.resize_in,
        "render": _RENDER,
    }


def differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """In words, which of the parts differ."""
    return [
        f"{key} was {stored.get(key)!r}, is {given.get(key)!r}"
        for key in sorted({*stored, *given})
        if stored.get(key) != given.get(key)
    ]
