"""Queries of two detectors paired, where their order says nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from isp_distill.detection.heads import Heads
from isp_distill.detection.libraries import linear_sum_assignment

# Weights of the box's and the class's part in the cost, those of DETR (Carion et al. 2020).
_BOX, _CLASS = 5.0, 1.0


@torch.no_grad()
def assigned(student: Tensor, teacher: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Which place of the student is paired with which of the teacher: two of int64 ``[N, P]``.

    The pairing with the least sum of costs: the absolute differences of the boxes' sides, and those
    of the scores of all classes. P is the smaller number of places.

    Args:
        student: of its heads, ``[N, places, K + 4]``.
        teacher: likewise, of any number of places.
        heads: of both.

    Raises:
        ImportError: scipy is missing.
        ValueError: a cost is not finite.
    """
    solve = linear_sum_assignment()
    of_boxes = torch.cdist(heads.boxes(student), heads.boxes(teacher), p=1)
    of_classes = torch.cdist(heads.scores(student), heads.scores(teacher), p=1)
    costs = (_BOX * of_boxes + _CLASS * of_classes).cpu()
    for output, whose in ((student, "student"), (teacher, "teacher")):
        heads.check_finite(output, whose)
    pairs = [solve(cost.numpy()) for cost in costs]
    ours, theirs = (
        torch.stack([torch.from_numpy(pair[side]) for pair in pairs]).to(student.device)
        for side in (0, 1)
    )
    return ours, theirs


def paired(student: Tensor, teacher: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Both outputs with the places that mean the same at the same place.

    Raises:
        ValueError: heads of a fixed order that have another number of places.
    """
    if heads.ordered:
        if student.shape[1] != teacher.shape[1]:
            raise ValueError(
                f"the student looks at {student.shape[1]} places, the teacher at "
                f"{teacher.shape[1]}: they are compared place by place, so give a student of the "
                "teacher's own architecture (rawify), seen at twice the teacher's size"
            )
        return student, teacher
    ours, theirs = assigned(student, teacher, heads)
    width = student.shape[2]
    return (
        student.gather(1, ours[..., None].expand(-1, -1, width)),
        teacher.gather(1, theirs[..., None].expand(-1, -1, width)),
    )
