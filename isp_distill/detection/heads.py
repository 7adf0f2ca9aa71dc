"""``Heads``: what a detector says of every place that it looks at, in one tensor.

A place is an anchor, a point of a feature map, or a query. Whatever the detector, its heads become
``[N, places, K + 4]``: K logits, then the box's left, top, right and bottom edge, 0 to 1 over the
picture. So teacher and student are compared place by place, before any threshold and any
suppression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isp_distill.arguments import real_number, shown, whole_number

#: Of a box, in this order: left, top, right, bottom.
SIDES = 4
_SHARES = ("nms", "threshold", "confidence")


@dataclass(frozen=True)
class Heads:
    """How a detector's heads are read.

    Attributes:
        logits: of each place, K: one for each class, with ``softmax`` the background's among them,
            with ``quality`` one more.
        softmax: the logits are of one softmax; else each is a sigmoid's.
        background: which of a softmax's logits stands for no object; -1 is the last.
        quality: the last logit is no class: it says how well the box fits (FCOS's centre-ness), and
            a score is the square root of both probabilities' product.
        ordered: place by place teacher and student mean the same; else, as queries that are chosen
            anew for every picture, they are paired by the Hungarian method.
        nms: boxes of one class that overlap by more than this IoU are one; None: all are kept.
        threshold: the least score of a detection.
        confidence: the least score of those detections of a teacher that a student must find.
        most: detections of a picture.

    Raises:
        TypeError: for a value of another type.
        ValueError: for one out of range; the message names it.

    Examples:
        >>> heads = isp_distill.detection.Heads(logits=3)
        >>> heads.scores(torch.zeros(1, 100, 7)).shape
        torch.Size([1, 100, 3])
    """

    logits: int
    softmax: bool = False
    background: int | None = None
    quality: bool = False
    ordered: bool = True
    nms: float | None = 0.5
    threshold: float = 0.05
    confidence: float = 0.3
    most: int = 100

    def __post_init__(self) -> None:
        for name in ("logits", "most"):
            object.__setattr__(self, name, whole_number(getattr(self, name), name, least=1))
        for name in _SHARES:
            value = getattr(self, name)
            if value is None and name == "nms":
                continue
            share = real_number(value, name)
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {share:g}")
            object.__setattr__(self, name, share)
        if self.softmax and self.logits < 2:
            raise ValueError("a softmax has two logits at least: leave out softmax for one class")
        if self.softmax and self.quality:
            raise ValueError("quality goes with sigmoids: leave out softmax or quality")
        if self.background is not None:
            place = whole_number(self.background, "background")
            if not self.softmax or not -self.logits <= place < self.logits:
                raise ValueError(
                    f"background must be one of a softmax's {self.logits} logits, got {place}"
                )
            object.__setattr__(self, "background", place % self.logits)
        if self.quality and self.logits < 2:
            raise ValueError("with quality there is one logit more than classes: logits >= 2")

    @property
    def width(self) -> int:
        """Numbers of a place: its logits and its box."""
        return self.logits + SIDES

    @property
    def classes(self) -> int:
        """Logits that are of classes, the background's among them."""
        return self.logits - self.quality

    def check(self, output: Any, whose: str) -> Tensor:
        """The heads' output, refused where it is of another form.

        Raises:
            ValueError: that names the shape.
        """
        form = f"[N, places, {self.logits} logits + {SIDES}]"
        if not isinstance(output, Tensor) or output.dim() != 3 or output.shape[2] != self.width:
            given = list(output.shape) if isinstance(output, Tensor) else shown(output)
            raise ValueError(
                f"the {whose}'s heads must be {form}, got {given}: make it with "
                "isp_distill.detection.teacher(model), whose student has the same heads"
            )
        return output

    def scores(self, output: Tensor) -> Tensor:
        """Scores of every place and class, float32 ``[N, places, C]``; the background's are 0."""
        logits = output[..., : self.logits].float()
        if self.softmax:
            scores = logits.softmax(-1)
            if self.background is None:
                return scores
            place = torch.tensor([self.background], device=scores.device)
            return scores.index_fill(-1, place, 0.0)
        if self.quality:
            product = logits[..., :-1].sigmoid() * logits[..., -1:].sigmoid()
            return product.sqrt()
        return logits.sigmoid()

    def boxes(self, output: Tensor) -> Tensor:
        """The boxes of every place, float32 ``[N, places, 4]``."""
        return output[..., self.logits :].float()

    def check_finite(self, output: Tensor, whose: str) -> None:
        """Refuse heads that are not numbers: they would be sorted, and compared, anyhow.

        Raises:
            ValueError: that says how many.
        """
        wrong = int((~output.isfinite()).any(-1).sum())
        if wrong:
            count = math.prod(output.shape[:2])
            raise ValueError(
                f"the {whose}'s heads are not finite at {wrong} of {count} places: its weights or "
                "its pictures are wrong; of a student, lower lr or stem_lr"
            )


def heads_of(model: Any) -> Heads | None:
    """The heads of a detector: of a module that holds one, of a function; None of all others.

    Args:
        model: a teacher's model, or a student.
    """
    own = getattr(model, "heads", None)
    if isinstance(own, Heads):
        return own
    if not isinstance(model, nn.Module):
        return None
    found = (getattr(module, "heads", None) for module in model.modules())
    return next((one for one in found if isinstance(one, Heads)), None)


def confidence(heads: Heads, output: Tensor) -> Tensor:
    """How sure a detector is that there is anything at a place, ``[N, places]``: its best score."""
    best: Tensor = heads.scores(output).amax(-1)
    return best.detach()


def unit_boxes(corners: Tensor, height: int, width: int) -> Tensor:
    """Boxes in pixels of a picture as shares of its sides."""
    return corners / torch.tensor([width, height, width, height], device=corners.device)
