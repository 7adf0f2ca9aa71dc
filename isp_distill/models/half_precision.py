"""Models in half precision: what cannot be done with them, said with what to do instead."""

from __future__ import annotations

import torch
from torch import nn

_HALF = (torch.float16, torch.bfloat16)


def _half(model: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in model.parameters() if p.dtype in _HALF), None)


def explain_half_precision(model: nn.Module, error: RuntimeError) -> None:
    """Say what to do where torch refused to mix a half-precision module's types.

    The CPU's batch norm takes half-precision weights with activations of the same type only, and
    autocast may have made these another one.

    Raises:
        ValueError: in place of torch's "mixed dtype (CPU)"; any other error is left to the caller.
    """
    dtype = _half(model)
    if dtype is None or "mixed dtype" not in str(error):
        return
    raise ValueError(
        f"the model holds {str(dtype).removeprefix('torch.')} weights, and layers of it were given "
        f"another type ({error}): make all of it float32, model.float(), and leave half precision "
        "to torch.autocast; or call it without autocast"
    ) from error


def check_trainable_types(student: nn.Module) -> None:
    """Refuse to train half-precision weights: updates are smaller than their steps, or overflow.

    Raises:
        ValueError: that says what to do.
    """
    dtype = _half(student)
    if dtype is not None:
        raise ValueError(
            f"the student's weights are {str(dtype).removeprefix('torch.')}, in which small "
            "updates are lost: make it float32, student.float(); amp=True computes in bfloat16"
        )
