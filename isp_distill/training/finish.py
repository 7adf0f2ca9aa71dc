"""What a finished run leaves in its folder, and its result."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from isp_distill.data.loader import ViewLoader
from isp_distill.data.skipped import skipped_report
from isp_distill.data.source import label_grid
from isp_distill.files.atomic import write_atomically
from isp_distill.reports.contact_sheet import contact_sheet
from isp_distill.reports.report import Report
from isp_distill.training.data import TrainData
from isp_distill.training.job import Job
from isp_distill.training.models import TrainedModels
from isp_distill.training.result import TrainResult
from isp_distill.training.stages import Stages
from isp_distill.training.state import Run


def finished(
    run: Run, models: TrainedModels, seen: TrainData, job: Job, after: Report | None, took: Took
) -> TrainResult:
    """The result; rank 0 writes the report and draws the contact sheet.

    Raises:
        OSError: a file cannot be written.
    """
    settings = job.settings
    skipped: dict[str, str] = {}
    own = {**seen.loader.skipped, **getattr(seen.source, "skipped", {})}
    for found in job.processes.gather(own):
        skipped.update(found)
    result = TrainResult(
        models.student,
        run.before,
        after,
        settings.steps,
        took.seconds,
        skipped,
        job.folder,
        took.stages.seconds,
        models.matching,
    )
    if not job.processes.first:
        return result
    if settings.profile and took.steps:
        tqdm.write(took.stages.table(took.steps))
    if settings.progress and skipped:
        tqdm.write(skipped_report(skipped))
    # Label maps are drawn where they were read: in the loss, or in the validation.
    drawn, grid = seen.source, seen.loader.grid
    if seen.validation is not None:
        drawn = seen.validation
        grid = label_grid(
            drawn, lambda: models.teacher.output_shape(job.device), settings.dense_size
        )
    shown = ViewLoader(drawn, models.view, 1, seed=settings.seed, workers=1, grid=grid)
    contact_sheet(
        job.folder / "contact_sheet.png",
        models.student,
        models.teacher,
        shown,
        job.device,
        exposure=settings.short_exposure,
        matching=models.matching,
    )
    report = json.dumps(_report(result, run, job), indent=1)
    write_atomically(job.folder / "report.json", report.encode())
    return result


@dataclass(frozen=True)
class Took:
    """What the steps of this process took.

    Attributes:
        steps: that were taken; a run that goes on takes what is left.
        seconds: in all.
        stages: where they went, where ``profile`` is on.
    """

    steps: int
    seconds: float
    stages: Stages


def _report(result: TrainResult, run: Run, job: Job) -> dict[str, Any]:
    return {
        "before": None if result.before is None else dataclasses.asdict(result.before),
        "after": None if result.after is None else dataclasses.asdict(result.after),
        "steps": result.steps,
        "seconds": result.seconds,
        "skipped": result.skipped,
        "stages": result.stages,
        "settings": job.settings.plain(),
        "processes": job.processes.count,
        "stored_teacher": run.stored_teacher,
    }
