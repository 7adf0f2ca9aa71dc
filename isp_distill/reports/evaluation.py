"""How well a student predicts what its teacher predicts."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from isp_distill.data.exposure import ShortExposure
from isp_distill.data.loader import ViewLoader
from isp_distill.data.skipped import skipped_report
from isp_distill.data.source import label_grid
from isp_distill.jobs.processes import Processes
from isp_distill.jobs.progress import progress_bar
from isp_distill.models.student import Student, as_student
from isp_distill.models.teacher import Teacher, as_teacher, logits_of
from isp_distill.models.trained_view import any_size, fixed_view
from isp_distill.ops.dense_logits import check_upright, full_size, upsampled_bands
from isp_distill.ops.distill_loss.call import distill_loss
from isp_distill.sources import Data, open_source


@dataclass(frozen=True)
class Report:
    """Agreement of a student with its teacher.

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

    Examples:
        >>> report = isp_distill.Report(88, agreement_top1=0.795, agreement_top5=0.989, kl=0.084)
        >>> print(report)
        top-1 agreement 0.795, top-5 0.989, KL 0.084 over 88 views
    """

    samples: int
    agreement_top1: float
    agreement_top5: float
    kl: float
    accuracy: float | None = None
    teacher_accuracy: float | None = None
    mean_iou: float | None = None
    confident: float = 0.0
    agreement_confident: float | None = None
    label_iou: float | None = None
    teacher_label_iou: float | None = None
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        dense = self.mean_iou is not None
        parts = [
            f"{'pixel' if dense else 'top-1'} agreement {self.agreement_top1:.3f}",
            f"top-5 {self.agreement_top5:.3f}",
            f"KL {self.kl:.3f}",
        ]
        if self.mean_iou is not None:
            parts.append(f"mIoU {self.mean_iou:.3f}")
        if dense and self.agreement_confident is not None:
            where = f"{self.confident:.0%} where the teacher is confident"
            parts.append(f"{self.agreement_confident:.3f} of the {where}")
        if self.accuracy is not None:
            of = "pixel accuracy" if dense else "accuracy"
            parts.append(f"{of} {self.accuracy:.3f} (teacher {self.teacher_accuracy:.3f})")
        if self.label_iou is not None:
            with_labels = f"{self.label_iou:.3f} (teacher {self.teacher_label_iou:.3f})"
            parts.append(f"mIoU with the labels {with_labels}")
        return f"{', '.join(parts)} over {self.samples} views"


class _Tally:
    def __init__(self) -> None:
        self.views = self.rows = self.labelled = 0
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
        self.views += len(student)
        if not student.dim() == teacher.dim() == 4:
            self.add(student, teacher, labels)
            return
        maps, top = labels if of_pixels else None, 0
        for s, t in upsampled_bands([student, teacher], full_size(size, teacher)):
            bottom = top + s.shape[2]
            self.add(s, t, None if maps is None else maps[:, top:bottom])
            top = bottom

    def add(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> None:
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

    def merge(self, other: _Tally) -> None:
        """Count in what another process counted."""
        for name, count in vars(other).items():
            own = getattr(self, name)
            if count is not None:
                setattr(self, name, count if own is None else own + count)

    def report(self, skipped: dict[str, str]) -> Report:
        if self.views == 0:
            raise ValueError(f"there was nothing to evaluate; {len(skipped)} files were skipped")
        return Report(
            samples=self.views,
            agreement_top1=self.top1 / self.rows,
            agreement_top5=self.top5 / self.rows,
            kl=self.kl / self.rows,
            accuracy=self.right / self.labelled if self.labelled else None,
            teacher_accuracy=self.teacher_right / self.labelled if self.labelled else None,
            mean_iou=_mean_iou(self.overlap),
            label_iou=_mean_iou(self.label_overlap),
            teacher_label_iou=_mean_iou(self.teacher_label_overlap),
            confident=self.confident / self.rows,
            agreement_confident=self.agreed_confident / self.confident if self.confident else None,
            skipped=dict(skipped),
        )


@contextlib.contextmanager
def _evaluating(models: set[nn.Module], device: torch.device) -> Iterator[None]:
    """Models on a device and in the mode of evaluation; then in the modes that they were in."""
    modes = [(model, model.training) for model in models]
    for model in models:
        model.to(device).eval()
    try:
        yield
    finally:
        for model, training in modes:
            model.train(training)


def _device_of(module: nn.Module) -> torch.device:
    """Where its parameters are; the CPU if it has none."""
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _mean_iou(pairs: Tensor | None) -> float | None:
    """Intersection over union, mean over the classes that either has; None of no pixels."""
    if pairs is None or not bool(pairs.any()):
        return None
    table = pairs.reshape(math.isqrt(pairs.numel()), -1).double()
    union = table.sum(0) + table.sum(1) - table.diagonal()
    return float((table.diagonal()[union > 0] / union[union > 0]).mean())


@torch.no_grad()
def evaluate(
    student: Student | nn.Module,
    teacher: Teacher | nn.Module | str,
    data: Data,
    *,
    views: int = 1,
    crop: int | None = None,
    binning: int | None = None,
    batch_size: int = 16,
    dense_size: int | Sequence[int] | None = None,
    exposure: ShortExposure | float | None = None,
    device: torch.device | str | None = None,
    workers: int = 2,
    seed: int = 0,
    progress: bool = True,
    processes: Processes | None = None,
) -> Report:
    """Compare a student on the mosaics with its teacher on the rendered pictures.

    Args:
        student: a rawified model, any module (see :class:`isp_distill.models.student.PlanesModel`),
            or a function of ``(mosaic, isp)``.
        teacher: a :class:`Teacher`, a module, or a timm name.
        data: a folder of RAW files, one of pictures, several, a list of files, or a dataset, as in
            :func:`isp_distill.train`; with labels, or label maps, the report also holds how well
            both models predict these.
        views: crops of each file: the middle, then the corners; 1 to 5.
        crop: side of the mosaics, even; if None, and ``binning`` too, what the student was trained
            at, or twice the teacher's size where it was not trained.
        binning: see :class:`isp_distill.View`.
        batch_size: views a batch.
        dense_size: of dense logits, the resolution at which pixels are compared: one side or
            (height, width); the teacher's own if None. Bilinear, band by band.
        exposure: the student sees a short exposure: a factor, or :class:`ShortExposure`.
        device: where to compute; the student's if None.
        workers: threads that read.
        seed: of the noise, and of the made-up cameras where the data are pictures.
        progress: show a progress bar.
        processes: of a run of several: each takes a share of the data, all get the whole report.

    Returns:
        The :class:`Report`.

    Raises:
        ValueError: if nothing could be evaluated, for a setting out of range, or for a label map
            that does not fit its picture or has classes that the teacher has not.

    Examples:
        >>> student, teacher = isp_distill.rawify(model), isp_distill.Teacher(model, size=32)
        >>> report = isp_distill.evaluate(student, teacher, "photos/held-out", progress=False)
        >>> report.samples
        1
    """
    chosen = as_teacher(teacher)
    pupil = as_student(student)
    module = pupil if isinstance(pupil, nn.Module) else chosen.model
    where = _device_of(module) if device is None else torch.device(device)
    view = fixed_view(pupil, crop, binning, 2 * chosen.size)
    source = open_source(data)
    short = ShortExposure.of(exposure)
    tally = _Tally()
    group = processes or Processes(where)
    total = -(-len(source) * views // (batch_size * group.count))
    with _evaluating({module, chosen.model}, where):
        grid = label_grid(source, lambda: chosen.output_shape(where), dense_size)
        loader = ViewLoader(source, view, batch_size, seed=seed, workers=workers, grid=grid)
        batches = loader.fixed(views, rank=group.rank, count=group.count)
        bar = progress_bar("evaluate", total, shown=progress, leave=False)
        with bar as moved, loader.closing(batches):
            for step, batch in enumerate(batches):
                batch = batch.to(where)
                target = chosen.logits(chosen.picture(batch))
                check_upright(batch.isp, target)
                mosaic, isp = batch.mosaic, batch.isp
                if short is not None:
                    drawn = seed + step * group.count + group.rank
                    mosaic, isp = short.apply(mosaic, isp, seed=drawn)
                with any_size(pupil):  # another crop was asked for
                    predicted = logits_of(pupil(mosaic, isp))
                tally.add_batch(predicted, target, batch.labels, grid is not None, dense_size)
                moved.update()
    # The source's own as well: folders that it could not list.
    left_out = {**getattr(source, "skipped", {}), **loader.skipped}
    if left_out and progress:
        tqdm.write(skipped_report(left_out))
    whole, skipped = _Tally(), dict[str, str]()
    for one, found in group.gather((tally, left_out)):
        whole.merge(one)
        skipped.update(found)
    return whole.report(skipped)
