"""What a stored prediction depends on, so that no run trains on another teacher's."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor, nn

from isp_distill.isp.camera import ISP
from isp_distill.models.output import described_output
from isp_distill.models.teacher import Teacher

# Where a function or an object lies in memory differs from process to process.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

#: Raised when the pictures that ``render`` makes change beyond rounding.
_RENDER = 1


def fingerprint(teacher: Teacher) -> dict[str, Any]:
    """Everything that decides a teacher's logits for a mosaic, by name; comparable, JSON.

    ``weights`` is a SHA-256 of the state dict (names, types, shapes, bytes), ``architecture`` one
    of the module's own description; of another function, of its ``fingerprint`` and its name. The
    rest is the preprocessing and the ISP as they are.
    """
    module = teacher.module
    weights, described = _of_module(module) if module is not None else _of_function(teacher.model)
    usual = ISP()
    found = {
        "weights": weights,
        "architecture": hashlib.sha256(described.encode()).hexdigest()[:32],
        "mean": [float(v) for v in teacher.mean],
        "std": [float(v) for v in teacher.std],
        "size": int(teacher.size),
        "demosaic": teacher.demosaic or usual.demosaic,
        "tone": teacher.tone or usual.tone,
        "resize_in": teacher.resize_in,
        "render": _RENDER,
    }
    if teacher.output is not None:  # as it was before there was a choice
        found["output"] = described_output(teacher.output)
    return found


def _of_module(module: nn.Module) -> tuple[str, str]:
    """A module's weights as a SHA-256, and its description."""
    weights = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):  # the extra state of a module
            weights.update(f"{name} {_ADDRESS.sub('', repr(value))}\n".encode())
            continue
        tensor = value.detach().cpu().contiguous()
        weights.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        weights.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    described = _ADDRESS.sub("", f"{type(module).__qualname__} {module}")
    return weights.hexdigest()[:32], described


def _of_function(function: Any) -> tuple[str, str]:
    """A function's own fingerprint, if it has one, and its name: nothing else is known of it."""
    own = getattr(function, "fingerprint", None)
    weights = hashlib.sha256(str(own() if callable(own) else own).encode())
    return weights.hexdigest()[:32], f"{described_output(function)}"


def differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """In words, which of the parts differ."""
    return [
        f"{key} was {stored.get(key)!r}, is {given.get(key)!r}"
        for key in sorted({*stored, *given})
        if stored.get(key) != given.get(key)
    ]
