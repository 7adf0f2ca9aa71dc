"""``Report``: what an evaluation found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """Agreement of a student with its teacher.

    Of teachers that give embeddings, ``cosine`` and ``retrieval_top1`` say how well the student
    does, and what is said of classes is None, or of those that ``Teacher(class_embeddings=...)``
    makes of both models' embeddings.

    Of detectors ``mean_ap`` says it, and ``label_ap`` where true boxes were given.

    Attributes:
        samples: views that were compared.
        agreement_top1: share of predictions (of pixels, where dense) whose top class is the
            teacher's.
        agreement_top5: share whose five best classes hold the teacher's top class.
        kl: mean KL(teacher || student), nats.
        confident: share of predictions for whose top class the teacher's probability is above 1/2.
        agreement_confident: share of agreement among these; None where there are none. Elsewhere
            the teacher's top class may be one of many that it holds nearly as likely.
        accuracy: the student's top-1 accuracy (of pixels, where dense), where there are labels.
        teacher_accuracy: the teacher's, likewise.
        mean_iou: dense: intersection over union with the teacher's map, mean over the classes that
            either of them predicts.
        label_iou: dense, where there are label maps: the student's intersection over union with
            them, mean over the classes that either of the two has. Pixels of no class are left out.
        teacher_label_iou: the teacher's, likewise.
        skipped: files left out, with reasons.
        cosine: of embeddings: the mean cosine of the student's and the teacher's.
        retrieval_top1: of embeddings: share of views whose embedding by the student is nearest to
            the teacher's of the same view, among the teacher's of all views.
        retrieval_top5: share of views where that one is among the five nearest.
        matches: what ``match`` named, and its figures: ``agreement`` and ``kl`` of classes; of
            features ``cosine`` and ``relative_error`` (the length of the difference over that of
            the teacher's, after the match's normalisation) and ``cka`` (linear CKA).
        mean_ap: of detectors: the student's mean average precision (COCO's, over IoU 0.50 to 0.95
            and all classes), the teacher's detections taken for true. None where there are none.
        mean_ap50: the same at IoU 0.50.
        label_ap: the student's against the true boxes, where they were given.
        label_ap50: the same at IoU 0.50.
        teacher_label_ap: the teacher's against the true boxes.
        teacher_label_ap50: the same at IoU 0.50.
        teacher_detections: how many there were to find: those of at least the teacher's
            ``confidence``.

    Examples:
        >>> report = isp_distill.Report(88, agreement_top1=0.795, agreement_top5=0.989, kl=0.084)
        >>> print(report)
        top-1 agreement 0.795, top-5 0.989, KL 0.084 over 88 views
    """

    samples: int
    agreement_top1: float | None = None
    agreement_top5: float | None = None
    kl: float | None = None
    accuracy: float | None = None
    teacher_accuracy: float | None = None
    mean_iou: float | None = None
    confident: float = 0.0
    agreement_confident: float | None = None
    label_iou: float | None = None
    teacher_label_iou: float | None = None
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    cosine: float | None = None
    retrieval_top1: float | None = None
    retrieval_top5: float | None = None
    matches: dict[str, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    mean_ap: float | None = None
    mean_ap50: float | None = None
    label_ap: float | None = None
    label_ap50: float | None = None
    teacher_label_ap: float | None = None
    teacher_label_ap50: float | None = None
    teacher_detections: int | None = None

    def __str__(self) -> str:
        dense = self.mean_iou is not None
        parts = []
        if self.cosine is not None:
            parts.append(f"cosine {self.cosine:.3f}")
        if self.retrieval_top1 is not None:
            found = f"{self.retrieval_top1:.3f}, top-5 {self.retrieval_top5:.3f}"
            parts.append(f"retrieval top-1 {found}")
        if self.agreement_top1 is not None:
            parts += [
                f"{'pixel' if dense else 'top-1'} agreement {self.agreement_top1:.3f}",
                f"top-5 {self.agreement_top5:.3f}",
                f"KL {self.kl:.3f}",
            ]
        if self.mean_iou is not None:
            parts.append(f"mIoU {self.mean_iou:.3f}")
        if dense and self.agreement_confident is not None:
            where = f"{self.confident:.0%} where the teacher is confident"
            parts.append(f"{self.agreement_confident:.3f} of the {where}")
        parts += self._of_boxes()
        if self.accuracy is not None:
            of = "pixel accuracy" if dense else "accuracy"
            parts.append(f"{of} {self.accuracy:.3f} (teacher {self.teacher_accuracy:.3f})")
        if self.label_iou is not None:
            with_labels = f"{self.label_iou:.3f} (teacher {self.teacher_label_iou:.3f})"
            parts.append(f"mIoU with the labels {with_labels}")
        text = f"{', '.join(parts)} over {self.samples} views".lstrip()
        for name, figures in self.matches.items():
            said = [f"{k.replace('_', ' ')} {v:.3f}" for k, v in figures.items() if v is not None]
            text += f"\n  {name}: {', '.join(said)}"
        return text

    def _of_boxes(self) -> list[str]:
        """What is said of a detector."""
        if self.teacher_detections is None:
            return []
        parts = [f"the teacher detects {self.teacher_detections or 'nothing'}"]
        if self.mean_ap is not None:
            found = f"mAP {self.mean_ap:.3f}, at IoU 0.5 {self.mean_ap50:.3f}"
            parts = [f"{found}, of {self.teacher_detections} detections of the teacher"]
        if self.label_ap is not None:
            with_boxes = f"{self.label_ap:.3f} (teacher {self.teacher_label_ap:.3f})"
            parts.append(f"mAP with the true boxes {with_boxes}")
        return parts
