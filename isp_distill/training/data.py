"""What a run sees: the dataset, what it is measured on, and the batches of both."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from tqdm import tqdm

from isp_distill.data.batch import RawBatch
from isp_distill.data.class_labels import has_labels
from isp_distill.data.device_input import on_device
from isp_distill.data.loader import ViewLoader
from isp_distill.data.source import Source, label_grid
from isp_distill.data.true_boxes import TrueBoxes
from isp_distill.detection.heads import heads_of
from isp_distill.models.student import takes_packed_mosaics
from isp_distill.models.teacher_output import check_logits, warn_of_features
from isp_distill.packs.stored_teachers import stored_teacher_of
from isp_distill.reports.detections import check_precision
from isp_distill.reports.evaluation import true_boxes
from isp_distill.sources import Data, open_source, packing_note
from isp_distill.training.job import Job
from isp_distill.training.models import TrainedModels


@dataclass(frozen=True)
class TrainData:
    """The data of a run.

    Attributes:
        source: what is trained on.
        validation: what is measured on, if anything.
        loader: makes the batches of the training.
        stored_teacher: the name of the logits that stand for the teacher, where it is not run.
        boxes: the true ones of the validation, where they are known.
    """

    source: Source
    validation: Source | None
    loader: ViewLoader
    stored_teacher: str | None
    boxes: TrueBoxes | None = None

    def batches(self, first: int, job: Job) -> Iterator[RawBatch]:
        """The batches of the steps from ``first`` on, on the device; the job closes them."""
        accumulate, processes = job.settings.accumulate, job.processes
        made = self.loader.training(
            first * accumulate,
            job.settings.steps * accumulate,
            processes.rank,
            processes.count,
        )
        job.enter(self.loader.closing(made))
        return on_device(self._noted(made, job), job.device)

    def _noted(self, batches: Generator[RawBatch, None, None], job: Job) -> Iterator[RawBatch]:
        """The batches; what packing would save is said once, when it is known."""
        wanted = job.speaks
        for batch in batches:
            if wanted and (note := packing_note(self.source, job.settings.workers)) is not None:
                tqdm.write(note)
                wanted = False
            yield batch


def opened_data(
    source: Source, validation: Data | None, models: TrainedModels, job: Job
) -> TrainData:
    """Check what :func:`isp_distill.train` was given against the models, and open the rest.

    Raises:
        ValueError: for labels that are needed and missing, an output of the teacher that is no
            logits, or stored logits of another teacher.
        FileNotFoundError: for a folder without files that can be read.
    """
    settings, where = job.settings, job.device
    if models.matching.needs_labels and not has_labels(source):
        raise ValueError(
            f"alpha={settings.alpha} mixes in the labels' cross entropy, and the data have no "
            "labels: give some (RawFolder(..., labels=... or label_maps=...); --labels, "
            "--label-maps), or leave alpha at 1"
        )
    measured = None if validation is None else open_source(validation)
    heads = heads_of(models.teacher.model)
    if heads is not None and measured is not None:
        check_precision()
    boxes = None
    if settings.boxes is not None:
        if measured is None:
            raise ValueError(
                f"boxes={settings.boxes!r} are of the validation data, and there are none: give "
                "validation (--validation), or leave boxes out"
            )
        boxes = true_boxes(settings.boxes, measured, models.teacher)
    taken = models.matching.teacher(models.teacher).features
    stored = stored_teacher_of(source, models.teacher, models.view, settings.augmentation, taken)

    def output_shape() -> tuple[int, ...]:
        return models.teacher.output_shape(where) if stored is None else stored.output_shape()

    for match in settings.matches():
        if match.of_classes and match.of_outputs and heads is None:
            check_logits(output_shape())
            assert match.objective is not None
            if stored is None:
                warn_of_features(models.teacher, match.objective, where)
    needed = models.matching.needs_labels
    loader = ViewLoader(
        source,
        models.view,
        settings.batch_size,
        seed=settings.seed,
        workers=settings.workers,
        prefetch_bytes=settings.prefetch_bytes,
        noise=settings.noise,
        stored=stored,
        grid=label_grid(source, output_shape, settings.dense_size) if needed else None,
        pin=where.type == "cuda",
        packed=takes_packed_mosaics(models.student),
    )
    return TrainData(source, measured, loader, None if stored is None else stored.name, boxes)
