"""``DetectionLoss``: a student's heads made like its teacher's, place by place."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor

from isp_distill.arguments import real_number
from isp_distill.detection.assignment import paired
from isp_distill.detection.heads import Heads, confidence
from isp_distill.detection.libraries import torchvision_operations
from isp_distill.models.losses import DistillLoss
from isp_distill.ops.distill_loss.call import Result, distill_loss
from isp_distill.ops.distill_loss.options import parse_objective

#: How boxes are compared.
BOX_OBJECTIVES = ("giou", "smooth_l1")
#: What classes are compared by, unless somebody says otherwise. An element's weight is the
#: teacher's own probability, and a twentieth where it sees nothing.
SIGMOID_OBJECTIVE, SOFTMAX_OBJECTIVE = "binary_kl(1, 0.05)", "forward_kl"
_FLOOR = 0.05
# Where smooth L1 turns from a parabola into a line, in sides of the teacher's box; and the least
# side that a difference is divided by.
_BETA, _LEAST_SIDE = 0.1, 1e-3


def usual_objective(heads: Heads) -> str:
    """What the classes of a detector are compared by: as its logits are of a sigmoid or softmax."""
    return SOFTMAX_OBJECTIVE if heads.softmax else SIGMOID_OBJECTIVE


class DetectionLoss(DistillLoss):
    """Dense distillation of a detector: the classes of every place, and its boxes.

    Both models' heads are compared before any threshold. The teacher's confidence at a place, its
    best score there, says how much the place counts: the two parts are ``sum(class loss) / sum of
    confidences`` and ``sum(confidence * box loss) / sum of confidences``; where the sum is below 1
    it counts as 1, so that pictures of nothing give no large numbers.

    Args:
        heads: of both models.
        objective: of classes, see :func:`isp_distill.distill_loss`; None: binary_kl for logits of
            sigmoids, weighted by the teacher's own probability, and forward_kl, whose places are
            weighted by its confidence, for those of a softmax.
        temperature: see there.
        box_objective: "giou" (1 - GIoU, torchvision's) or "smooth_l1", of the four edges in sides
            of the teacher's box.
        box_weight: of the boxes in the sum.

    Raises:
        ValueError: for an unknown objective, or a number out of range.

    Examples:
        >>> loss = isp_distill.detection.DetectionLoss(isp_distill.detection.Heads(logits=3))
        >>> teacher = torch.rand(2, 50, 7)
        >>> student = teacher.clone().requires_grad_()
        >>> value, agreed = loss(student, teacher)
        >>> float(agreed)
        100.0
    """

    def __init__(
        self,
        heads: Heads,
        objective: str | None = None,
        *,
        temperature: float = 1.0,
        box_objective: str = "giou",
        box_weight: float = 2.0,
    ) -> None:
        chosen = usual_objective(heads) if objective is None else objective
        super().__init__(chosen, temperature=temperature, reduction="sum", return_agreement=True)
        name, parameters = parse_objective(chosen)
        if name in ("cwd", "dkd"):
            raise ValueError(
                f"objective {chosen!r} is of maps or of labels, and a detector's places are "
                f"neither: choose {SIGMOID_OBJECTIVE} or {SOFTMAX_OBJECTIVE}"
            )
        if box_objective not in BOX_OBJECTIVES:
            raise ValueError(
                f"unknown box_objective {box_objective!r}: expected {' or '.join(BOX_OBJECTIVES)}"
            )
        self.heads, self.box_objective = heads, box_objective
        self.box_weight = real_number(box_weight, "box_weight")
        # Weighted already, element by element.
        self._weighs_elements = name == "binary_kl" and parameters[0] > 0

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Result:
        """The loss, and at how many places both models' likeliest class is the same.

        Args:
            student: of its heads, ``[N, places, K + 4]``.
            teacher: likewise.
            labels: are not looked at.
            mask: bool ``[N, places]``, where places count.
            weight: ``[N]``, of each picture.

        Raises:
            ValueError: for heads of another form, or of another number of places.
        """
        heads = self.heads
        for output, whose in ((student, "student"), (teacher, "teacher")):
            heads.check(output, whose)
        student, teacher = paired(student, teacher, heads)
        sure = confidence(heads, teacher)
        counts = None if self._weighs_elements else sure.clamp(min=_FLOOR)
        for factor in (mask, None if weight is None else weight[:, None]):
            if factor is not None:
                sure = sure * factor
                counts = (1.0 if counts is None else counts) * factor.float().expand_as(sure)
        whole = sure.sum().clamp(min=1)
        ours, theirs = (x[..., : heads.logits].flatten(0, 1) for x in (student, teacher))
        if heads.logits == 1:
            # Beside a second logit of 0 in both, which costs nothing: they agree where both are
            # above one half, or neither is.
            ours, theirs = F.pad(ours, (0, 1)), F.pad(theirs, (0, 1))
        classes, agreed = cast(
            "tuple[Tensor, Tensor]",
            distill_loss(
                ours,
                theirs,
                objective=self.objective,
                temperature=self.temperature,
                weight=None if counts is None else counts.flatten(),
                reduction="sum",
                return_agreement=True,
            ),
        )
        loss = classes / whole
        if self.box_weight:
            apart = self._apart(heads.boxes(student), heads.boxes(teacher))
            loss = loss + self.box_weight * (sure * apart).sum() / whole
        return loss, agreed

    def _apart(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """How far apart boxes are: ``[N, places]``."""
        if self.box_objective == "giou":
            apart = torchvision_operations().generalized_box_iou_loss
            found: Tensor = apart(ours.flatten(0, 1), theirs.flatten(0, 1), reduction="none")
            return found.view(ours.shape[:2])
        sides = (theirs[..., 2:] - theirs[..., :2]).clamp(min=_LEAST_SIDE).repeat(1, 1, 2)
        return F.smooth_l1_loss(ours / sides, theirs / sides, reduction="none", beta=_BETA).sum(-1)

    def positions(self, teacher: Tensor) -> int:
        """How many places the loss compares."""
        return teacher.shape[0] * teacher.shape[1]

    def extra_repr(self) -> str:
        """The options that matter to a reader of a printed model."""
        boxes = f"box_objective={self.box_objective!r}, box_weight={self.box_weight}"
        return f"objective={self.objective!r}, temperature={self.temperature}, {boxes}"
