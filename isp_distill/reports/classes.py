"""How well a student predicts the classes that its teacher predicts, and those of labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isp_distill.ops.dense_logits import full_size, upsampled_bands
from isp_distill.ops.distill_loss.call import distill_loss


class ClassTally:
    """Counts over the predictions that were compared."""

    def __init__(self) -> None:
        self.rows = self.labelled = 0
        self.top1 = self.top5 = self.kl = self.right = self.teacher_right = 0.0
        self.confident = self.agreed_confident = 0.0
        # Counts of pairs of classes: the teacher's and the student's, then the label's and each's.
        self.overlap: Tensor | None = None
        self.label_overlap: Tensor | None = None
        self.teacher_label_overlap: Tensor | None = None

    def add_batch(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        of_pixels: bool,
        size: int | Sequence[int] | None,
    ) -> None:
        """Compare the logits of some views, dense ones at a size, band by band.

        ``of_pixels``: whether the labels are maps, and not a class of each view.
        """
        if student.shape[1] != teacher.shape[1]:
            raise ValueError(
                f"the student predicts {student.shape[1]} classes, the teacher {teacher.shape[1]}"
            )
        if not student.dim() == teacher.dim() == 4:
            self.add(student, teacher, labels)
            return
        maps, top = labels if of_pixels else None, 0
        for s, t in upsampled_bands([student, teacher], full_size(size, teacher)):
            bottom = top + s.shape[2]
            self.add(s, t, None if maps is None else maps[:, top:bottom])
            top = bottom

    def add(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> None:
        """Compare logits of one shape, with their labels of the same positions, if any."""
        classes = student.shape[1]
        wide = teacher.float()
        best_s, (highest, best_t) = student.max(1).indices, wide.max(1)
        agreed = best_s == best_t
        self.rows += agreed.numel()
        self.top1 += float(agreed.sum())
        confident = wide.logsumexp(1) - highest < math.log(2)
        self.confident += float(confident.sum())
        self.agreed_confident += float((agreed & confident).sum())
        # Among the five best is what fewer than five surpass: no class need be sorted.
        surpass = (student > student.gather(1, best_t[:, None])).sum(1, dtype=torch.int32)
        self.top5 += float((surpass < 5).sum())
        # One tensor, since no agreement is asked for.
        self.kl += float(distill_loss(student, teacher, reduction="sum"))  # type: ignore[arg-type]
        dense = student.dim() > 2
        if labels is not None and labels.shape == best_s.shape:
            known = labels >= 0
            labels, of_s, of_t = labels[known], best_s[known], best_t[known]
            self.labelled += len(labels)
            self.right += float((of_s == labels).sum())
            self.teacher_right += float((of_t == labels).sum())
            if dense:
                self._count("label_overlap", labels, of_s, classes)
                self._count("teacher_label_overlap", labels, of_t, classes)
        if dense:
            self._count("overlap", best_t, best_s, classes)

    def _count(self, name: str, rows: Tensor, columns: Tensor, classes: int) -> None:
        """Add pairs of classes to a table ``[classes, classes]``."""
        pairs = (rows * classes + columns).reshape(-1)
        pairs = torch.bincount(pairs, minlength=classes * classes).cpu()
        counted = getattr(self, name)
        setattr(self, name, pairs if counted is None else counted + pairs)

    def merge(self, other: ClassTally) -> None:
        """Count in what another process counted."""
        for name, count in vars(other).items():
            own = getattr(self, name)
            if count is not None:
                setattr(self, name, count if own is None else own + count)

    def figures(self) -> dict[str, Any]:
        """The fields of a :class:`Report` that are of classes; none where nothing was counted."""
        if not self.rows:
            return {}
        return {
            "agreement_top1": self.top1 / self.rows,
            "agreement_top5": self.top5 / self.rows,
            "kl": self.kl / self.rows,
            "accuracy": self.right / self.labelled if self.labelled else None,
            "teacher_accuracy": self.teacher_right / self.labelled if self.labelled else None,
            "mean_iou": _mean_iou(self.overlap),
            "label_iou": _mean_iou(self.label_overlap),
            "teacher_label_iou": _mean_iou(self.teacher_label_overlap),
            "confident": self.confident / self.rows,
            "agreement_confident": (
                self.agreed_confident / self.confident if self.confident else None
            ),
        }


def _mean_iou(pairs: Tensor | None) -> float | None:
    """Intersection over union, mean over the classes that either has; None of no pixels."""
    if pairs is None or not bool(pairs.any()):
        return None
    table = pairs.reshape(math.isqrt(pairs.numel()), -1).double()
    union = table.sum(0) + table.sum(1) - table.diagonal()
    return float((table.diagonal()[union > 0] / union[union > 0]).mean())
