"""Loss and agreement of each step: kept on the device, read now and then, written once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from isp_distill.jobs.processes import Processes
from isp_distill.jobs.progress import Bar
from isp_distill.models.match import Match
from isp_distill.models.matching import Part
from isp_distill.training.job import Job
from isp_distill.training.metrics import Metrics


class StepNumbers(NamedTuple):
    """A step's numbers.

    Attributes:
        loss: the weighted sum.
        matches: of each match its own loss, and its share of agreement or its mean cosine.
    """

    loss: float
    matches: list[tuple[float, float]]


class Window:
    """The numbers of the steps since the metrics were last written, kept on the device.

    Reading a number from a GPU makes the processor wait for all that was asked of it; so they are
    read once for many steps, summed over all processes on the way.
    """

    def __init__(self, device: torch.device, length: int, matches: int = 1) -> None:
        # The loss; and of each match its own loss, its figure and what that is divided by.
        self._sums = torch.zeros(length, 1 + 3 * matches, dtype=torch.float64, device=device)
        self.length = 0

    def begin(self) -> None:
        """Start a step."""
        self._sums[self.length].zero_()
        self.length += 1

    def add(self, loss: Tensor, parts: Sequence[Part], share: float = 1.0) -> None:
        """Add a batch to the step that was begun last.

        Args:
            loss: of the batch, times its share of the step.
            parts: of each match, of the batch.
            share: of the batch in the step.
        """
        row = self._sums[self.length - 1]
        row[0] += loss.detach()
        for number, part in enumerate(parts):
            own = row[1 + 3 * number : 4 + 3 * number]
            own[0] += part.loss.detach() * share
            own[1] += part.figure
            own[2] += part.count

    def read(self, processes: Processes, length: int) -> list[StepNumbers]:
        """The numbers of the first steps, over all processes; empties the window.

        Args:
            processes: who takes part.
            length: so many steps; one that was begun and cut short is left out.
        """
        sums = processes.sum(self._sums[:length].clone()).tolist()
        self.length = 0
        found = []
        for loss, *rest in sums:
            each = [
                (rest[i] / processes.count, rest[i + 1] / rest[i + 2])
                for i in range(0, len(rest), 3)
            ]
            found.append(StepNumbers(loss / processes.count, each))
        return found


class StepLog:
    """What is said of each step, in the metrics and on the bar.

    Args:
        job: its settings say how often loss and agreement are read.
        first: steps that are done.
        metrics: where rank 0 writes.
        bar: what moves.
        matches: what is trained.
    """

    def __init__(
        self, job: Job, first: int, metrics: Metrics | None, bar: Bar, matches: Sequence[Match]
    ) -> None:
        settings = job.settings
        usual = 10 if job.device.type == "cuda" else 1
        length = settings.metrics_every or usual
        self.window = Window(job.device, length, len(matches))
        self._names = [(m.name, "agreement" if m.of_classes else "cosine") for m in matches]
        self._processes, self._metrics, self._bar = job.processes, metrics, bar
        self._callbacks = job.callbacks
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

    def add(self, loss: Tensor, parts: Sequence[Part], share: float, views: int) -> None:
        """Add a batch's numbers to the step that was begun last; see :meth:`Window.add`."""
        self.window.add(loss, parts, share)
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
        for (value, each), factor in zip(values, self._factors, strict=False):
            if not math.isfinite(value):
                raise RuntimeError(
                    f"the loss is {value} at step {self._written}: lower lr or stem_lr, or "
                    "raise the temperature; the last checkpoint is sound"
                )
            self._written += 1
            if self._metrics is not None:
                numbers = {"loss": value, **self._figures(each), "images_per_second": speed}
                now_lr = {name: peak * factor for name, peak in self._peaks.items()}
                self._metrics.write(self._written, {**numbers, **now_lr})
                self._callbacks.on_step(self._written, {**numbers, **now_lr})
        self._factors = []
        figure = {"agreement": "agree", "cosine": "cosine"}[self._names[0][1]]
        shown = {"loss": f"{value:.3f}", figure: f"{each[0][1]:.2f}", "img_s": f"{speed:.1f}"}
        self._bar.set_postfix(shown, refresh=False)

    def _figures(self, each: Sequence[tuple[float, float]]) -> dict[str, float]:
        """The first match's figure; of several matches, every one's loss and figure by its name."""
        found = {self._names[0][1]: each[0][1]}
        if len(each) > 1:
            for (name, figure), (loss, value) in zip(self._names, each, strict=True):
                found |= {f"{name}/loss": loss, f"{name}/{figure}": value}
        return found
