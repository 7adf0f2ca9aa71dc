"""Dense logits at full resolution, without a tensor of that size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from isp_distill.isp.camera import ISP

# Elements of one band of one tensor: 64 MB in float32.
_BUDGET = 2**24


def full_size(size: int | Sequence[int] | None, logits: Tensor) -> tuple[int, int]:
    """(height, width) from one side for both, from both, or from the logits' own where None.

    Raises:
        ValueError: for anything else, or a side below 1.
    """
    if size is None:
        return logits.shape[2], logits.shape[3]
    pair = (size, size) if isinstance(size, int) else tuple(int(side) for side in size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"dense_size {size}: expected one side or (height, width), at least 1")
    return pair[0], pair[1]


def check_upright(isp: ISP, logits: Tensor) -> None:
    """Dense logits of teacher and student must be of the same places.

    The teacher sees the picture upright, the student the mosaic as it lies.

    Raises:
        ValueError: for dense logits of mosaics that do not lie upright.
    """
    if logits.dim() > 2 and isp.orientation != 1:
        raise ValueError(
            f"the mosaics' orientation is {isp.orientation}: a dense teacher sees the picture "
            "turned upright and the student the mosaic as it lies, so their pixels are of "
            "different places. Turn the mosaics upright (RawFolder and pack do so by themselves, "
            "isp_distill.upright one by one)"
        )


def upsampled_bands(
    logits: Sequence[Tensor], size: tuple[int, int], budget: int = _BUDGET
) -> Iterator[list[Tensor]]:
    """Bilinearly upsampled logits, a band of rows after the other.

    The bands of each tensor, put together, are ``F.interpolate(..., mode="bilinear",
    align_corners=False)`` up to rounding; a tensor that has the size already comes as it is.

    Args:
        logits: tensors ``[N, C, h, w]`` of one N and C; h and w may differ.
        size: the full height and width.
        budget: elements that a band may have.

    Yields:
        For each tensor its ``[N, C, rows, width]``, float32.
    """
    height, width = size
    batch, classes = logits[0].shape[:2]
    columns = [_columns(x.float(), width) for x in logits]
    weights = [_weights(x.shape[2], height, x.device) for x in logits]
    rows = max(1, budget // (batch * classes * width))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        yield [
            x[:, :, top:bottom] if w is None else w[:, top:bottom].T.contiguous() @ x
            for x, w in zip(columns, weights, strict=True)
        ]


def class_maps(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Each pixel's top class at full resolution, and its probability.

    Args:
        logits: ``[N, C, h, w]``.
        size: (height, width).

    Returns:
        int64 and float32 ``[N, height, width]``.
    """
    classes, confidence = [], []
    for (band,) in upsampled_bands([logits], size):
        best = band.max(1)
        classes.append(best.indices)
        confidence.append((best.values - band.logsumexp(1)).exp())
    return torch.cat(classes, 1), torch.cat(confidence, 1)


def _columns(x: Tensor, width: int) -> Tensor:
    weights = _weights(x.shape[3], width, x.device)
    return x if weights is None else x @ weights


def _weights(short: int, long: int, device: torch.device) -> Tensor | None:
    """``[short, long]``: what each of ``long`` samples takes of ``short`` ones; None for all."""
    if short == long:
        return None
    identity = torch.eye(short, device=device)[None]
    return F.interpolate(identity, long, mode="linear", align_corners=False)[0]
