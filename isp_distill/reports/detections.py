"""Mean average precision: of a student among its teacher's detections, of both among true boxes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isp_distill.data.true_boxes import COLUMNS
from isp_distill.detection.detected import Detections, detections
from isp_distill.detection.heads import Heads

# COCO's measure looks at so many detections of a picture.
_MOST = 100


def check_precision() -> None:
    """Refuse to begin what could not be measured in the end.

    Raises:
        ImportError: torchmetrics, or pycocotools, is missing.
    """
    for name in ("torchmetrics.detection", "pycocotools"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"mean average precision needs {name.partition('.')[0]}: "
                'pip install "isp-distill[detection]"'
            ) from error


class DetectionTally:
    """The detections of both models in every view, and the true boxes where they are known.

    Args:
        heads: of both models.
        side: of the teacher's pictures, pixels: boxes are compared in these.

    Raises:
        ImportError: torchmetrics, or pycocotools, is missing.
    """

    def __init__(self, heads: Heads, side: int) -> None:
        check_precision()
        self.heads, self.side = heads, side
        self.student: list[Detections] = []
        self.teacher: list[Detections] = []
        #: Of each view class, left, top, right, bottom, ignored; None where they are not known.
        self.truth: list[Tensor] | None = None

    def add(self, student: Tensor, teacher: Tensor, truth: Sequence[Tensor] | None) -> None:
        """Keep what was detected in some views.

        Args:
            student: of its heads, ``[N, places, K + 4]``.
            teacher: likewise.
            truth: of each view ``[M, 6]``.

        Raises:
            ValueError: heads are of another form, or not finite.
        """
        for kept, output, whose in (
            (self.student, student, "student"),
            (self.teacher, teacher, "teacher"),
        ):
            found = detections(output, self.heads, whose)
            kept.extend(Detections(*(part[:_MOST].cpu() for part in one)) for one in found)
        if truth is not None:
            self.truth = [*(self.truth or []), *truth]

    def merge(self, other: DetectionTally) -> None:
        """Count in another process's views."""
        self.student += other.student
        self.teacher += other.teacher
        if other.truth is not None:
            self.truth = [*(self.truth or []), *other.truth]

    def figures(self) -> dict[str, Any]:
        """The fields of a :class:`Report` that are of detections; none of no views."""
        if not self.teacher:
            return {}
        sure = [one.above(self.heads.confidence) for one in self.teacher]
        found: dict[str, Any] = {"teacher_detections": sum(len(one.scores) for one in sure)}
        found |= self._precision("mean", self.student, [_as_truth(one) for one in sure])
        if self.truth is not None:
            found |= self._precision("label", self.student, self.truth)
            found |= self._precision("teacher_label", self.teacher, self.truth)
        return found

    def _precision(
        self, name: str, found: Sequence[Detections], truth: Sequence[Tensor]
    ) -> dict[str, float | None]:
        """Average precision over IoU 0.50 to 0.95, and at 0.50; None where nothing is true."""
        metric = importlib.import_module("torchmetrics.detection").MeanAveragePrecision()
        metric.warn_on_many_detections = False
        metric.update(
            [
                {"boxes": self.side * one.boxes, "scores": one.scores, "labels": one.classes}
                for one in found
            ],
            [
                {
                    "boxes": self.side * one[:, 1:5],
                    "labels": one[:, 0].long(),
                    "iscrowd": one[:, 5].long(),
                }
                for one in truth
            ],
        )
        whole = metric.compute()
        figures = {f"{name}_ap": float(whole["map"]), f"{name}_ap50": float(whole["map_50"])}
        # torchmetrics says -1 where there was nothing to find.
        return {key: value if value >= 0 else None for key, value in figures.items()}


def _as_truth(found: Detections) -> Tensor:
    """Detections as true boxes."""
    rows = torch.zeros(len(found.scores), COLUMNS)
    rows[:, 0] = found.classes
    rows[:, 1:5] = found.boxes
    return rows
