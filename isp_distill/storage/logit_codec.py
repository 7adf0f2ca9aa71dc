"""Logits on the disk: every one as float16, or the largest and what the rest sum to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from isp_distill.storage.manifest_schema import COLUMNS, MAX_LOGITS

# The least log-probability: below it float16 would make them infinite.
_LEAST = -60000.0


def encode(logits: Tensor, top: int) -> dict[str, np.ndarray]:
    """The logits of a file's K views as they are stored.

    Args:
        logits: float32 ``[K, C, ...]``.
        top: 0, or C and more, for all of them; otherwise how many of the largest.

    Raises:
        ValueError: a logit is NaN, or does not fit into float16; or a view has more than 2^28.
    """
    if math.prod(logits.shape[1:]) > MAX_LOGITS:
        raise ValueError(f"logits of {list(logits.shape[1:])} a view are too many to store")
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


def output_of(stored: dict[str, np.ndarray]) -> list[int]:
    """The shape of one view's logits, ``[C, ...]``, from a shard's arrays."""
    if "logits" in stored:
        return list(stored["logits"].shape[2:])
    return [int(stored["classes"][0]), *stored["values"].shape[3:]]


def encode_features(features: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """The features of a file's K views as they are stored: float16, each under its number.

    Args:
        features: float32 ``[K, ...]`` each.

    Raises:
        ValueError: one is NaN, or does not fit into float16; or a view has more than 2^28.
    """
    found = {}
    for number, value in enumerate(features):
        if math.prod(value.shape[1:]) > MAX_LOGITS:
            raise ValueError(f"features of {list(value.shape[1:])} a view are too many to store")
        if not bool((value.abs() <= 65504).all()):
            raise ValueError(
                "a feature of the teacher does not fit into float16, or is not a number: match "
                "another layer, or let the teacher run in the training"
            )
        found[f"feature.{number}"] = value.half().numpy()
    return found


def decode_features(
    stored: dict[str, np.ndarray], row: int, view: int, numbers: Sequence[int]
) -> list[np.ndarray]:
    """One view's features, float16, from a shard's arrays.

    Raises:
        ValueError: they are none that :func:`encode_features` makes.
    """
    found = [stored[f"feature.{number}"][row, view] for number in numbers]
    if not all(np.isfinite(value).all() for value in found):
        raise ValueError("a feature is not a finite number")
    return found


def check(
    arrays: dict[str, np.ndarray],
    views: int,
    output: Sequence[int],
    top: int,
    features: Sequence[Sequence[int]] = (),
) -> None:
    """Hold a shard's arrays against what its manifest says, before any of them is used.

    Args:
        arrays: of the shard.
        views: of each file.
        output: the shape of one view's logits.
        top: as in :func:`encode`.
        features: the shapes of one view's features.

    Raises:
        ValueError: an array is missing, of another type or shape, or has numbers that cannot be.
    """
    if "views" not in arrays or arrays["views"].ndim != 3:
        raise ValueError("it has no numbers of views")
    numbers = arrays["views"]
    rows, (classes, *place) = len(numbers), output
    expected: dict[str, tuple[str, tuple[int, ...]]]
    expected = {"views": ("float64", (rows, views, len(COLUMNS)))}
    if 0 < top < classes:
        index = "uint16" if classes <= 65536 else "uint32"
        expected["values"] = "float16", (rows, views, top, *place)
        expected["indices"] = index, (rows, views, top, *place)
        expected["rest"] = "float16", (rows, views, 1, *place)
        expected["classes"] = "int32", (rows,)
    else:
        expected["logits"] = "float16", (rows, views, classes, *place)
    for number, shape in enumerate(features):
        expected[f"feature.{number}"] = "float16", (rows, views, *shape)
    found = {key: (array.dtype.name, array.shape) for key, array in arrays.items()}
    if found != expected:
        wrong = next(k for k in {**expected, **found} if found.get(k) != expected.get(k))
        raise ValueError(f"its array {wrong} is {found.get(wrong)}, not {expected.get(wrong)}")
    if "classes" in arrays and not (arrays["classes"] == classes).all():
        raise ValueError(f"it says {arrays['classes'].max()} classes, the manifest {classes}")
    down, right, mirror, flip, area, ratio, *factors = np.moveaxis(numbers, -1, 0)
    sound = (
        ((down >= 0) & (down <= 1) & (right >= 0) & (right <= 1)).all()
        and (np.isin(mirror, (0, 1)) & np.isin(flip, (0, 1))).all()
        and (np.isnan(area) | ((area > 0) & (area <= 1))).all()
        and all((np.isfinite(one) & (one > 0)).all() for one in (ratio, *factors))
    )
    if not sound:
        raise ValueError("the numbers of a view are none that a view can have")


def decode(stored: dict[str, np.ndarray], row: int, view: int) -> np.ndarray:
    """One view's logits, float32 ``[C, ...]``, from a shard's arrays.

    Raises:
        ValueError: they are none that :func:`encode` makes.
    """
    if "logits" in stored:
        logits: np.ndarray = stored["logits"][row, view].astype(np.float32)
        if np.isnan(logits).any():
            raise ValueError("a logit is NaN")
        return logits
    values, indices = stored["values"][row, view], stored["indices"][row, view]
    classes = int(stored["classes"][row])
    size = classes * math.prod(values.shape[1:])
    if not len(values) < classes or size > MAX_LOGITS or int(indices.max()) >= classes:
        raise ValueError(f"{classes} classes do not fit the stored ones")
    rest = stored["rest"][row, view].astype(np.float32) - np.log(np.float32(classes - len(values)))
    full: np.ndarray = np.repeat(rest, classes, axis=0)
    np.put_along_axis(full, indices.astype(np.int64), values.astype(np.float32), axis=0)
    if np.isnan(full).any():
        raise ValueError("a log-probability is NaN")
    return full
