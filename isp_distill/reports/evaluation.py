"""How well a student predicts what its teacher predicts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from isp_distill.data.device_input import moved
from isp_distill.data.exposure import ShortExposure
from isp_distill.data.loader import ViewLoader
from isp_distill.data.skipped import skipped_report
from isp_distill.data.source import Source, label_grid
from isp_distill.data.true_boxes import TrueBoxes
from isp_distill.detection.heads import heads_of
from isp_distill.jobs.processes import Processes
from isp_distill.jobs.progress import progress_bar
from isp_distill.models.match import Match
from isp_distill.models.matching import Matching
from isp_distill.models.modes import evaluating
from isp_distill.models.output import Output, checked_output
from isp_distill.models.student import Student, as_student, takes_packed_mosaics
from isp_distill.models.teacher import Teacher, as_teacher
from isp_distill.models.trained_view import any_size, fixed_view
from isp_distill.ops.dense_logits import check_upright
from isp_distill.reports.comparison import Comparison
from isp_distill.reports.report import Report
from isp_distill.sources import Data, open_source


def _device_of(module: nn.Module) -> torch.device:
    """Where its parameters are; the CPU if it has none."""
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def true_boxes(
    boxes: str | os.PathLike[str] | TrueBoxes | None, source: Source, teacher: Teacher
) -> TrueBoxes | None:
    """The true boxes of a dataset's files, read unless they are; None if there are none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the teacher is no detector, or the file is no COCO JSON of these files.
    """
    if boxes is None or isinstance(boxes, TrueBoxes):
        return boxes
    heads = heads_of(teacher.model)
    if heads is None:
        raise ValueError(
            f"boxes={os.fspath(boxes)!r} are for a detector, and the teacher "
            f"({type(teacher.model).__name__}) is none: make it with "
            "isp_distill.detection.teacher(model), or leave boxes out"
        )
    return TrueBoxes.read(boxes, source, heads.classes, teacher.classes)


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
    exposure: ShortExposure | float | tuple[float, float] | None = None,
    device: torch.device | str | None = None,
    workers: int = 2,
    seed: int = 0,
    progress: bool = True,
    processes: Processes | None = None,
    match: Matching | Sequence[Match | Mapping[str, Any] | str] | None = None,
    student_output: Output = None,
    boxes: str | os.PathLike[str] | TrueBoxes | None = None,
) -> Report:
    """Compare a student on the mosaics with its teacher on the rendered pictures.

    A teacher without a classifier is compared by its embeddings, a detector
    (:func:`isp_distill.detection.teacher`) by mean average precision: see :class:`Report`.

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
        exposure: the student sees a short exposure: a factor, (least, largest) of which each
            view draws one, or a :class:`ShortExposure`.
        device: where to compute; the student's if None.
        workers: threads that read.
        seed: of the noise, and of the made-up cameras where the data are pictures.
        progress: show a progress bar.
        processes: of a run of several: each takes a share of the data, all get the whole report.
        match: what else is compared, as in :func:`isp_distill.train`. Features are compared as they
            are; the ``matching`` of a :class:`TrainResult` brings the projectors that were trained.
        student_output: which part of what the student returns is compared, see :class:`Teacher`.
        boxes: of detectors: the true boxes of the data's files, a COCO JSON, see
            :mod:`isp_distill.data.true_boxes`; both models are then measured against them as well.

    Returns:
        The :class:`Report`.

    Raises:
        TypeError: an output is not understood, or there is none of a name in ``match``.
        ValueError: if nothing could be evaluated, for a setting out of range, for a label map that
            does not fit its picture or has classes that the teacher has not, or for boxes likewise.
        ImportError: of a detector, torchmetrics or pycocotools is missing.

    Examples:
        >>> student, teacher = isp_distill.rawify(model), isp_distill.Teacher(model, size=32)
        >>> report = isp_distill.evaluate(student, teacher, "photos/held-out", progress=False)
        >>> report.samples
        1
    """
    chosen = as_teacher(teacher)
    checked_output(student_output, "student_output")
    pupil = as_student(student)
    known = [m for m in (pupil, chosen.module) if isinstance(m, nn.Module)]
    where = (_device_of(known[0]) if known else None) if device is None else torch.device(device)
    where = where or torch.device("cpu")
    view = fixed_view(pupil, crop, binning, 2 * chosen.size)
    source = open_source(data)
    truth = true_boxes(boxes, source, chosen)
    short = ShortExposure.of(exposure)
    group = processes or Processes(where)
    total = -(-len(source) * views // (batch_size * group.count))
    for module in known:
        module.to(where)
    with evaluating(*known), contextlib.ExitStack() as hooks:
        comparison = Comparison(pupil, chosen, match, student_output, dense_size, where)
        hooks.enter_context(comparison.listening())
        grid = label_grid(source, lambda: chosen.output_shape(where), dense_size)
        packed = takes_packed_mosaics(pupil)
        loader = ViewLoader(
            source, view, batch_size, seed=seed, workers=workers, grid=grid, boxes=truth,
            packed=packed,
        )  # fmt: skip
        batches = loader.fixed(views, rank=group.rank, count=group.count)
        bar = progress_bar("evaluate", total, shown=progress, leave=False)
        with bar as shown, loader.closing(batches):
            for step, batch in enumerate(batches):
                batch = moved(batch, where)
                targets = comparison.targets(chosen.picture(batch))
                for target in targets:
                    check_upright(batch.isp, target)
                mosaic, isp = batch.mosaic, batch.isp
                if short is not None:
                    drawn = seed + step * group.count + group.rank
                    mosaic, isp = short.apply(mosaic, isp, seed=drawn)
                with any_size(pupil):  # another crop was asked for
                    predicted = comparison.student(mosaic, isp)
                comparison.add(predicted, targets, batch.labels, grid is not None, batch.boxes)
                shown.update()
    # The source's own as well: folders that it could not list.
    left_out = {**getattr(source, "skipped", {}), **loader.skipped}
    if left_out and progress:
        tqdm.write(skipped_report(left_out))
    (whole, skipped), *others = group.gather((comparison.tallies, left_out))
    for one, found in others:
        whole.merge(one)
        skipped.update(found)
    report: Report = whole.report(skipped, comparison.matched)
    return report
