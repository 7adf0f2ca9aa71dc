"""Logits on the disk: every one as float16, or the largest and what the rest sum to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Of log-probabilities where float16 would make them infinite.
_LEAST = -60000.0


def encode(logits: Tensor, top: int) -> dict[str, np.ndarray]:
    """The logits of a file's K views as they are stored.

    Args:
        logits: float32 ``[K, C, ...]``.
        top: 0, or C and more, for all of them; otherwise how many of the largest.

    Raises:
        ValueError: a logit is NaN, or does not fit into float16.
    """
    if bool(logits.isnan().any()):
        raise ValueError("the teacher's logits are not numbers (NaN)")
    classes = logits.shape[1]
    if not 0 < top < classes:
        if bool((logits.abs() > 65504).logical_and(logits.isfinite()).any()):
            raise ValueError("a logit of the teacher does not fit into float16: store the top ones")
        return {"logits": logits.half().numpy()}
    logs = logits.double().log_softmax(1)
    values, indices = logs.topk(top, 1)
    rest = torch.log1p(-values.exp().sum(1, keepdim=True).clamp(max=1.0))
    return {
        "values": values.clamp(min=_LEAST).half().numpy(),
        "indices": indices.numpy().astype(np.uint16 if classes <= 65536 else np.uint32),
        "rest": rest.clamp(min=_LEAST).half().numpy(),
        "classes": np.array(classes, dtype=np.int32),
    }


def decode(stored: dict[str, np.ndarray], row: int, view: int) -> np.ndarray:
    """One view's logits, float32 ``[C, ...]``, from a shard's arrays."""
    if "logits" in stored:
        logits: np.ndarray = stored["logits"][row, view].astype(np.float32)
        return logits
    values, indices = stored["values"][row, view], stored["indices"][row, view]
    classes = int(stored["classes"][row])
    rest = stored["rest"][row, view].astype(np.float32) - np.log(np.float32(classes - len(values)))
    full: np.ndarray = np.repeat(rest, classes, axis=0)
    np.put_along_axis(full, indices.astype(np.int64), values.astype(np.float32), axis=0)
    return full
