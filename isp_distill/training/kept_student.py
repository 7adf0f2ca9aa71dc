"""What a run leaves for tomorrow: ``out/student``, which :func:`isp_distill.load` opens."""

from __future__ import annotations

import dataclasses
import warnings

from torch import nn

from isp_distill.data.sensor_folder import SensorFolder
from isp_distill.models.named import is_function
from isp_distill.models.teacher import Teacher
from isp_distill.reports.report import Report
from isp_distill.students.saved import STUDENT, save
from isp_distill.training.data import TrainData
from isp_distill.training.job import Job
from isp_distill.training.models import TrainedModels
from isp_distill.training.state import Run


def keep_student(
    student: nn.Module | str,
    teacher: Teacher | nn.Module | str,
    run: Run,
    models: TrainedModels,
    seen: TrainData,
    job: Job,
    after: Report | None,
) -> None:
    """Write the trained student; rank 0 does. One that safetensors cannot hold is a warning.

    Args:
        student: as it was given to :func:`isp_distill.train`; of a name a file can say how it is
            made.
        teacher: likewise.
        run: knows its teacher's fingerprint.
        models: of the run.
        seen: the data.
        job: the run.
        after: the student's agreement.

    Raises:
        OSError: it cannot be written.
    """
    if not job.processes.first:
        return
    settings = job.settings
    made_of = teacher if student == "rawify" else student
    function = made_of if isinstance(made_of, str) and is_function(made_of) else None
    exposure = settings.plain()["exposure"]
    try:
        save(
            models.student,
            job.folder / STUDENT,
            function=function,
            output=settings.student_output,
            embedding=models.matching.embeds,
            classes=models.teacher.classes,
            sensor=seen.source.format if isinstance(seen.source, SensorFolder) else None,
            exposure=exposure,
            training={
                "steps": settings.steps,
                "objective": settings.objective,
                "temperature": settings.temperature,
                "tone": settings.tone,
                "teacher": run.belongs_to["teacher"],
                "agreement": None if after is None else dataclasses.asdict(after),
            },
        )
    except ValueError as error:
        warnings.warn(
            f"the run leaves no folder {STUDENT}: {error}; its checkpoint is whole", stacklevel=2
        )
