"""``teacher``: a detector as a :class:`isp_distill.Teacher`, with the pictures that it expects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from isp_distill.detection.detector import Detector, joined
from isp_distill.detection.heads import Heads, heads_of
from isp_distill.models.teacher import IMAGENET_MEAN, IMAGENET_STD, Teacher


@dataclass(frozen=True)
class _Found:
    """What a model of a library says of itself."""

    kind: str
    heads: Heads
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    size: int | None = None
    classes: Sequence[str] | None = None


def teacher(
    model: nn.Module | Callable[[Tensor], Any],
    *,
    heads: Heads | None = None,
    size: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    confidence: float | None = None,
    **settings: Any,
) -> Teacher:
    """A detector as a teacher, whose output is its heads: every place's classes and box.

    ``train``, ``evaluate`` and ``predict`` then do what detection needs. torchvision's RetinaNet,
    FCOS, SSD and SSDlite are known, and of transformers DETR, Conditional DETR and RT-DETR. The
    model's own transform is passed by: its mean, its standard deviation and its size become the
    teacher's, whose pictures are square.

    Args:
        model: the detector; or, with ``heads``, any module or function of pictures that returns
            what :class:`Detector` says, such as one around a session of onnxruntime.
        heads: of a model that is none of these; of one that is, in place of what it says.
        size: side of its pictures, pixels; if None, the model's own (of a range the least), or 640
            where it has none, as those of transformers.
        mean: of its pictures; the model's own if None, or ImageNet's.
        std: likewise.
        classes: the name of each logit of a class, the background's among them; the model's own if
            None.
        confidence: the least score of those detections that a student must find; see
            :class:`Heads`.
        settings: the other arguments of :class:`isp_distill.Teacher`.

    Raises:
        TypeError: for a detector that is not known, without ``heads``; a detector of two stages,
            whose second looks at what the first proposes, is one.
        ValueError: for a setting out of range.

    Examples:
        >>> from torchvision.models.detection import ssdlite320_mobilenet_v3_large
        >>> model = ssdlite320_mobilenet_v3_large(
        ...     weights=None, weights_backbone=None, num_classes=4
        ... ).eval()
        >>> detector = isp_distill.detection.teacher(model, size=64)
        >>> detector.size, detector.model.heads.softmax
        (64, True)
        >>> detector.logits(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 144, 8])
    """
    found = None if heads is not None else _known(model)
    if found is None and heads is None:
        raise TypeError(
            f"{type(model).__name__} is no detector that is known here ({', '.join(_KNOWN)}): "
            "give one of one stage, or heads=isp_distill.detection.Heads(...) with a model that "
            "returns logits [N, places, K] and boxes [N, places, 4]"
        )
    if found is None:
        assert heads is not None
        found = _Found("", heads)
    read = found.heads
    if confidence is not None:
        read = dataclasses.replace(read, confidence=confidence)
    if not isinstance(model, nn.Module):
        made: Any = _HeadFunction(model, read)
    elif isinstance(model, Detector):
        made = Detector(model.model, read, model.kind)
    else:
        made = Detector(model, read, found.kind or None)
        made.train(model.training)
    chosen = {
        "mean": found.mean if mean is None else mean,
        "std": found.std if std is None else std,
        "size": (found.size or 640) if size is None else size,
        "classes": found.classes if classes is None else classes,
    }
    # The background, where it is the last, needs no name.
    counts = {read.classes, read.classes - (read.background is not None)}
    if classes is not None and len(classes) not in counts:
        raise ValueError(
            f"classes names {len(classes)}, and the detector has {read.classes}"
            f"{', its background among them' if read.softmax else ''}: name each, in their order"
        )
    for name in ("mean", "std"):
        value = chosen[name]
        chosen[name] = [value] * 3 if isinstance(value, (int, float)) else value
    return Teacher(made, **{**settings, **chosen})


class _HeadFunction:
    """A function of pictures with the heads that it returns."""

    def __init__(self, function: Callable[[Tensor], Any], heads: Heads) -> None:
        self.function, self.heads = function, heads
        self.fingerprint = getattr(function, "fingerprint", None)

    def __call__(self, picture: Tensor) -> Tensor:
        return joined(self.function(picture), self.heads)


def _known(model: Any) -> _Found | None:
    """What is known of a model, by the name of its class: no library need be there."""
    own = heads_of(model) if isinstance(model, Detector) else None
    if own is not None:
        return _Found("", own)
    for kind in type(model).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in ("torchvision", "transformers") and kind.__name__ in _KNOWN:
            return _KNOWN[kind.__name__](model)
    return None


def _of_torchvision(model: Any, kind: str, heads: Heads) -> _Found:
    """Thresholds and preprocessing of a model of torchvision."""
    transform = model.transform
    fixed = getattr(transform, "fixed_size", None)
    size = min(fixed) if fixed else min(transform.min_size)
    heads = dataclasses.replace(
        heads,
        nms=model.nms_thresh,
        threshold=model.score_thresh,
        most=model.detections_per_img,
    )
    return _Found(kind, heads, transform.image_mean, transform.image_std, int(size))


def _retinanet(model: Any) -> _Found:
    classes = model.head.classification_head.num_classes
    return _of_torchvision(model, "anchors", Heads(classes))


def _fcos(model: Any) -> _Found:
    classes = model.head.classification_head.num_classes
    return _of_torchvision(model, "points", Heads(classes + 1, quality=True))


def _ssd(model: Any) -> _Found:
    classes = model.head.classification_head.num_columns
    return _of_torchvision(model, "anchors", Heads(classes, softmax=True, background=0))


def _queries(model: Any, heads: Heads, **preprocessing: Any) -> _Found:
    """Class names of a model of transformers; its queries are not suppressed."""
    names = model.config.id2label
    classes = [names[i] for i in range(len(names))]
    if heads.softmax:
        classes = [*classes, "no object"]
    most = min(100, model.config.num_queries)
    heads = dataclasses.replace(heads, nms=None, most=most)
    return _Found("queries", heads, classes=classes, **preprocessing)


def _detr(model: Any) -> _Found:
    return _queries(model, Heads(model.config.num_labels + 1, softmax=True, background=-1))


def _conditional_detr(model: Any) -> _Found:
    return _queries(model, Heads(model.config.num_labels))


def _rt_detr(model: Any) -> _Found:
    # Its queries are the best places of each picture, in their order; its pictures are in [0, 1].
    heads = Heads(model.config.num_labels, ordered=False)
    return _queries(model, heads, mean=(0.0,) * 3, std=(1.0,) * 3)


_KNOWN: dict[str, Callable[[Any], _Found]] = {
    "RetinaNet": _retinanet,
    "FCOS": _fcos,
    "SSD": _ssd,
    "DetrForObjectDetection": _detr,
    "ConditionalDetrForObjectDetection": _conditional_detr,
    "RTDetrForObjectDetection": _rt_detr,
}
