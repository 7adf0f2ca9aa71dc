"""``Detector``: a detector of torchvision or transformers as a module from a batch to its heads.

What these models do around their networks is left out: torchvision's resizing, normalising and
batching of pictures of any size, and every threshold. So the picture, and of a student the mosaic,
goes into the first convolution as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isp_distill.arguments import shown
from isp_distill.detection.heads import SIDES, Heads, unit_boxes

#: Logits ``[N, places, K]`` and boxes ``[N, places, 4]`` of a batch of pictures.
Reader = Callable[[Any, Tensor], tuple[Tensor, Tensor]]


class Detector(nn.Module):
    """A detector from pictures ``[N, 3, H, W]``, normalised, to its heads ``[N, places, K + 4]``.

    :func:`isp_distill.detection.teacher` makes it. A student that is trained must be one as well:
    :func:`isp_distill.rawify` of it is.

    Args:
        model: of torchvision or transformers, held as it is; or any module that returns the heads'
            tensor, or a pair of logits ``[N, places, K]`` and boxes ``[N, places, 4]``, whose
            edges (left, top, right, bottom) are 0 to 1 over the picture.
        heads: how its output is read.
        kind: "anchors", "points" or "queries" for models of torchvision and
            transformers; None for any other.

    Raises:
        ValueError: for an unknown kind.

    Examples:
        >>> class Small(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = torch.nn.Conv2d(3, 6, 3, stride=8, padding=1)
        ...     def forward(self, picture):
        ...         places = self.conv(picture).flatten(2).transpose(1, 2)
        ...         return places[..., :2], places[..., 2:].sigmoid()
        >>> detector = isp_distill.detection.Detector(Small(), isp_distill.detection.Heads(2))
        >>> detector(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 64, 6])
        >>> isp_distill.rawify(detector).takeover.form
        'stem'
    """

    def __init__(self, model: nn.Module, heads: Heads, kind: str | None = None) -> None:
        super().__init__()
        if kind is not None and kind not in READERS:
            raise ValueError(f"unknown kind {kind!r}: expected {' or '.join(READERS)}")
        self.model, self.heads, self.kind = model, heads, kind

    def forward(self, picture: Tensor) -> Tensor:
        """The heads of a batch, float32.

        Raises:
            ValueError: the model returns something else than ``heads`` says.
        """
        if self.kind is None:
            return joined(self.model(picture), self.heads)
        logits, boxes = READERS[self.kind](self.model, picture)
        return joined((logits, boxes), self.heads)

    def extra_repr(self) -> str:
        """What ``print`` shows, and a fingerprint knows."""
        return f"{self.heads}, kind={self.kind!r}"


def joined(output: Any, heads: Heads) -> Tensor:
    """Heads as one tensor, from one or from logits and boxes; arrays of NumPy are taken too.

    Raises:
        ValueError: it is of another form.
    """
    if isinstance(output, np.ndarray):
        output = torch.from_numpy(output)
    if isinstance(output, (tuple, list)) and len(output) == 2:
        logits, boxes = (torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in output)
        told = [list(x.shape) if isinstance(x, Tensor) else shown(x) for x in (logits, boxes)]
        fits = all(isinstance(x, Tensor) and x.dim() == 3 for x in (logits, boxes))
        if not fits or logits.shape[:2] != boxes.shape[:2] or boxes.shape[2] != SIDES:
            raise ValueError(
                f"a detector must return logits [N, places, {heads.logits}] and boxes "
                f"[N, places, {SIDES}], and returned {told[0]} and {told[1]}"
            )
        output = torch.cat([logits.float(), boxes.float()], -1)
    return heads.check(output, "detector")


def _pyramid(model: Any, picture: Tensor) -> tuple[list[Tensor], Tensor]:
    """Features of all levels, and a picture's anchors on all of them, pixels ``[places, 4]``."""
    from torchvision.models.detection.image_list import ImageList

    found = model.backbone(picture)
    features = [found] if isinstance(found, Tensor) else list(found.values())
    # Only their shape is asked of the pictures, and all have the same anchors.
    listed = ImageList(picture, [(picture.shape[-2], picture.shape[-1])])
    (anchors,) = model.anchor_generator(listed, features)
    return features, anchors.float()


def _of_anchors(model: Any, picture: Tensor) -> tuple[Tensor, Tensor]:
    """RetinaNet, SSD and SSDlite."""
    features, anchors = _pyramid(model, picture)
    outputs = model.head(features)
    codes = outputs["bbox_regression"].float()
    every = anchors.expand(codes.shape[0], -1, -1).flatten(0, 1)
    corners = model.box_coder.decode_single(codes.flatten(0, 1), every).view_as(codes)
    return outputs["cls_logits"], unit_boxes(corners, *picture.shape[-2:])


def _of_points(model: Any, picture: Tensor) -> tuple[Tensor, Tensor]:
    """FCOS: one more logit says how well a box is centred."""
    features, anchors = _pyramid(model, picture)
    outputs = model.head(features)
    codes = outputs["bbox_regression"].float()
    corners = model.box_coder.decode(codes, anchors)
    logits = torch.cat([outputs["cls_logits"], outputs["bbox_ctrness"]], -1)
    return logits, unit_boxes(corners, *picture.shape[-2:])


def _of_queries(model: Any, picture: Tensor) -> tuple[Tensor, Tensor]:
    """DETR and its kin in transformers: boxes by their centres and sides."""
    outputs = model(pixel_values=picture)
    centres, sides = outputs.pred_boxes.float().split(2, -1)
    return outputs.logits, torch.cat([centres - sides / 2, centres + sides / 2], -1)


#: What each kind of detector does with a batch of pictures.
READERS: dict[str, Reader] = {
    "anchors": _of_anchors,
    "points": _of_points,
    "queries": _of_queries,
}
