"""Loss and agreement of each step: kept on the device, read now and then, written once."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from isp_distill.jobs.processes import Processes
from isp_distill.jobs.progress import Bar
from isp_distill.training.job import Job
from isp_distill.training.metrics import Metrics


class Window:
    """The numbers of the steps since the metrics were last written, kept on the device.

    Reading a number from a GPU makes the processor wait for all that was asked of it; so they are
    read once for many steps, summed over all processes on the way.
    """

    def __init__(self, device: torch.device, length: int) -> None:
        self._sums = torch.zeros(length, 3, dtype=torch.float64, device=device)
        self.length = 0

    def begin(self) -> None:
        """Start a step."""
        self._sums[self.length].zero_()
        self.length += 1

    def add(self, loss: Tensor, agreed: Tensor, rows: int) -> None:
        """Add to the step that was begun last."""
        row = self._sums[self.length - 1]
        row[0] += loss.detach()
        row[1] += agreed
        row[2] += rows

    def read(self, processes: Processes, length: int) -> list[tuple[float, float]]:
        """Loss and share of agreement of the first steps, over all processes; empties the window.

        Args:
            processes: who takes part.
            length: so many steps; one that was begun and cut short is left out.
        """
        sums = processes.sum(self._sums[:length].clone()).tolist()
        self.length = 0
        return [(loss / processes.count, agreed / rows) for loss, agreed, rows in sums]


class StepLog:
    """What is said of each step, in the metrics and on the bar.

    Args:
        job: its settings say how often loss and agreement are read.
        first: steps that are done.
        metrics: where rank 0 writes.
        bar: what moves.
    """

    def __init__(self, job: Job, first: int, metrics: Metrics | None, bar: Bar) -> None:
        settings = job.settings
        usual = 10 if job.device.type == "cuda" else 1
        length = settings.metrics_every or usual
        self.window = Window(job.device, length)
        self._processes, self._metrics, self._bar = job.processes, metrics, bar
        self._full = length
        self._peaks = {"lr": settings.lr, "stem_lr": settings.stem_lr}
        self._written, self._factors = first, list[float]()
        self._since, self._seen = time.perf_counter(), 0

    @property
    def full(self) -> bool:
        """Whether it has to be written now."""
        return self.window.length == self._full

    def begin(self, factor: float) -> None:
        """Start a step whose learning rates are their peak's times ``factor``."""
        self._factors.append(factor)
        self.window.begin()

    def add(self, loss: Tensor, agreed: Tensor, rows: int, views: int) -> None:
        """Add a batch's numbers to the step that was begun last."""
        self.window.add(loss, agreed, rows)
        self._seen += views

    def write(self, done: int) -> None:
        """Write every step up to ``done`` that is not written yet.

        Raises:
            RuntimeError: if a loss is not finite.
        """
        count = done - self._written
        if not count:
            return
        values = self.window.read(self._processes, count)
        now = time.perf_counter()
        speed = self._seen * self._processes.count / (now - self._since)
        self._since, self._seen = now, 0
        for (value, share), factor in zip(values, self._factors, strict=False):
            if not math.isfinite(value):
                raise RuntimeError(
                    f"the loss is {value} at step {self._written}: lower lr or stem_lr, or "
                    "raise the temperature; the last checkpoint is sound"
                )
            self._written += 1
            if self._metrics is not None:
                numbers = {"loss": value, "agreement": share, "images_per_second": speed}
                now_lr = {name: peak * factor for name, peak in self._peaks.items()}
                self._metrics.write(self._written, {**numbers, **now_lr})
        self._factors = []
        self._bar.set_postfix(
            loss=f"{value:.3f}", agree=f"{share:.2f}", img_s=f"{speed:.1f}", refresh=False
        )
