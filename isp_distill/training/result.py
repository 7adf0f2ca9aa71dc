"""``TrainResult``: what :func:`isp_distill.train` returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from isp_distill.models.matching import Matching
from isp_distill.reports.report import Report


@dataclass(frozen=True)
class TrainResult:
    """What :func:`train` leaves.

    Attributes:
        student: the trained student (its averaged weights where ``ema`` was on), in eval mode. It
            takes what :func:`isp_distill.cut_view` cuts.
        before: its agreement before training, on the validation data (or None without any).
        after: and after.
        steps: optimiser steps done.
        seconds: of training, this process alone.
        skipped: files left out, with reasons.
        out: the folder with checkpoint, metrics, report.json and contact_sheet.png.
        stages: seconds of each stage of the steps, where ``profile`` was on.
        matching: what was matched, with the projectors that only the training needed:
            ``evaluate(..., match=result.matching)``.

    Example:
        >>> result = isp_distill.train(
        ...     "rawify", isp_distill.Teacher(model, size=32), "photos/raw", out="runs/first",
        ...     steps=2, batch_size=2, progress=False,
        ... )
        >>> result.steps, result.before, result.out.name
        (2, None, 'first')
    """

    student: nn.Module
    before: Report | None
    after: Report | None
    steps: int
    seconds: float
    skipped: dict[str, str]
    out: Path
    stages: dict[str, float] = dataclasses.field(default_factory=dict)
    matching: Matching | None = None
