"""A training run's surroundings: its settings and folder, its processes, and who stops it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from isp_distill.files.disk import check_writable
from isp_distill.jobs.interruption import StopSignals
from isp_distill.jobs.processes import Processes, joined
from isp_distill.training.callbacks import Callbacks
from isp_distill.training.checkpoint import only_run
from isp_distill.training.settings import TrainSettings

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What every part of a run needs to know, and where it leaves what must be closed.

    Attributes:
        settings: of the run.
        folder: where its files go.
        processes: who takes part.
        stop: what Ctrl-C and SIGTERM do.
        callbacks: who else is told; nobody where rank is not 0.
    """

    settings: TrainSettings
    folder: Path
    processes: Processes
    stop: StopSignals
    callbacks: Callbacks
    _closing: ExitStack

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.processes.device

    @property
    def speaks(self) -> bool:
        """Whether this process shows progress."""
        return self.settings.progress and self.processes.first

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Enter a context until the job ends; the last one entered is left first."""
        return self._closing.enter_context(context)

    def take_folder(self) -> None:
        """Hold the folder's lock to the end of the job, and draw what this process draws.

        Raises:
            RuntimeError: another run is writing there.
        """
        if self.processes.first:
            self.enter(only_run(self.folder))
        if self.processes.rank:
            # Dropout differs between processes; what was built before is the same in all of them.
            torch.manual_seed((self.settings.seed << 16) + self.processes.rank)


@contextlib.contextmanager
def started(settings: TrainSettings, folder: Path, callbacks: Callbacks) -> Iterator[Job]:
    """A job among its processes, with seeded random numbers.

    Raises:
        OSError: the folder cannot be written to; in every process.
    """
    with ExitStack() as closing:
        stop = closing.enter_context(StopSignals())
        processes = closing.enter_context(joined(settings.device))
        stop.several = processes.count > 1
        processes.agreed(functools.partial(check_writable, folder))
        torch.manual_seed(settings.seed)
        told = callbacks if processes.first else Callbacks()
        yield Job(settings, folder, processes, stop, told, closing)
