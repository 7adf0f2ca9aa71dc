"""From heads to detections: a threshold, and of boxes that overlap the best."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from isp_distill.detection.heads import Heads
from isp_distill.detection.libraries import torchvision_operations

# Of so many candidates the best are looked at.
_CANDIDATES = 5000


class Detections(NamedTuple):
    """What was detected in one picture, the best first.

    Attributes:
        boxes: left, top, right, bottom, float32 ``[M, 4]``, 0 to 1 over the picture.
        scores: float32 ``[M]``.
        classes: int64 ``[M]``: which of the heads' logits.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor

    def above(self, score: float) -> Detections:
        """Those with at least this score."""
        kept = self.scores >= score
        return Detections(self.boxes[kept], self.scores[kept], self.classes[kept])


@torch.no_grad()
def detections(output: Tensor, heads: Heads, whose: str = "detector") -> list[Detections]:
    """The detections of every picture, as torchvision and transformers make them.

    Args:
        output: of the heads, ``[N, places, K + 4]``.
        heads: how it is read.
        whose: for errors.

    Raises:
        ValueError: for an output of another form, or one that is not finite.
        ImportError: torchvision, which suppresses overlapping boxes, is missing.

    Examples:
        >>> heads = isp_distill.detection.Heads(logits=3)
        >>> output = torch.full((1, 10, 7), -9.0)
        >>> output[0, 4] = torch.tensor([5.0, -9.0, -9.0, 0.25, 0.25, 0.75, 0.75])
        >>> (found,) = isp_distill.detection.detections(output, heads)
        >>> found.boxes.tolist(), found.classes.tolist()
        ([[0.25, 0.25, 0.75, 0.75]], [0])
    """
    heads.check(output, whose)
    heads.check_finite(output, whose)
    corners = heads.boxes(output).clamp(0, 1)
    return [
        _of_one(scores, boxes, heads)
        for scores, boxes in zip(heads.scores(output), corners, strict=True)
    ]


def _of_one(scores: Tensor, boxes: Tensor, heads: Heads) -> Detections:
    """The detections of one picture: scores ``[places, C]``, boxes ``[places, 4]``."""
    if heads.nms is None and heads.softmax:
        # A query is one object: its best class counts alone.
        best = scores.argmax(1, keepdim=True)
        scores = torch.zeros_like(scores).scatter_(1, best, scores.gather(1, best))
    wanted = (scores > heads.threshold).nonzero()
    found = scores[wanted[:, 0], wanted[:, 1]]
    order = found.argsort(descending=True, stable=True)[:_CANDIDATES]
    places, classes = wanted[order].unbind(1)
    found, corners = found[order], boxes[places]
    if heads.nms is not None:
        kept = torchvision_operations().batched_nms(corners, found, classes, heads.nms)
    else:
        kept = torch.arange(len(found), device=found.device)
    kept = kept[: heads.most]
    return Detections(corners[kept], found[kept], classes[kept])
