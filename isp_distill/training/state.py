"""What a checkpoint holds, and when a run may go on from it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from isp_distill.reports.report import Report
from isp_distill.training.belonging import belongings, differences
from isp_distill.training.checkpoint import NotOursError, load_checkpoint, save_checkpoint
from isp_distill.training.data import TrainData
from isp_distill.training.job import Job
from isp_distill.training.models import TrainedModels

_ANEW = ", or start anew with resume=False (--restart), which replaces the checkpoint"


def changed_options(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In words, which settings of two runs differ, and both values."""
    return [f"{k} was {saved.get(k)!r}, is {v!r}" for k, v in now.items() if saved.get(k) != v]


class Run:
    """The state of a run that a checkpoint holds, and the checkpoint.

    Args:
        models: the student, its optimiser and the average of its weights.
        seen: the data.
        job: rank 0 reads and writes the file; the others get what it read.

    Attributes:
        step: optimiser steps that are done.
        before: agreement before training.
        saved: the step of the checkpoint on the disk; None where there is none of this run.
        path: of the checkpoint.
    """

    def __init__(self, models: TrainedModels, seen: TrainData, job: Job) -> None:
        self.pupil, self.optimizer, self.average = models.student, models.optimizer, models.average
        self.matching = models.matching
        self.processes, self.path = job.processes, job.folder / "checkpoint.pt"
        self.settings, self._callbacks = job.settings, job.callbacks
        self.stored_teacher = seen.stored_teacher
        self.step = 0
        self.saved: int | None = None
        self.before: Report | None = None
        #: What the run is made of; empty where rank is not 0.
        self.belongs_to: dict[str, dict[str, Any]] = {}
        if job.processes.first:
            self.belongs_to = belongings(
                models.teacher, models.student, seen.source, seen.validation
            )
        # Of the last whole step: a step that is cut short has drawn numbers and moved buffers.
        self._random = self._random_state()
        self._buffers: dict[str, Tensor] = {}
        self._statistics: dict[str, Tensor] = {}

    def load(self) -> bool:
        """Go on from the checkpoint; False where there is none.

        Raises:
            ValueError: if it is damaged, or of a run with other settings, teacher, student or data.
        """
        state = error = None
        if self.processes.first and self.path.exists():
            try:
                state = load_checkpoint(self.path)
                self._check_belongs(state)
            except (ValueError, OSError) as found:
                state, ours = None, not isinstance(found, (NotOursError, OSError))
                error = f"{found}: train into another folder (out){_ANEW if ours else ''}"
        # The others wait for it, so an error has to reach them too.
        message = self.processes.broadcast({"state": state, "error": error})
        state = message["state"]
        if message["error"] is not None:
            raise ValueError(message["error"])
        if state is None:
            return False
        try:
            self.pupil.load_state_dict(state["student"])
            self.matching.load_state_dict(state.get("matching", {}))
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load(state["average"])
            random, random_cuda = state["random"][self.processes.rank]
            torch.set_rng_state(random)
            if self.processes.device.type == "cuda" and random_cuda is not None:
                torch.cuda.set_rng_state(random_cuda, self.processes.device)
            self.before = None if state["before"] is None else Report(**state["before"])
        except (RuntimeError, KeyError, TypeError, IndexError, AttributeError, ValueError) as found:
            # Every part was written by us and is of this run: the file was changed on purpose.
            raise ValueError(
                f"{self.path}: its parts do not fit together ({found}): train into another folder "
                f"(out){_ANEW}"
            ) from found
        self.step = self.saved = state["step"]
        self._random = self._random_state()
        return True

    def _check_belongs(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run.

        Raises:
            ValueError: that names everything that differs, with both values.
        """
        decisive = self.settings.decisive()
        made_with = {"processes": self.processes.count, "stored_teacher": self.stored_teacher}
        saved = {**state["settings"], **{name: state[name] for name in made_with}}
        changed = changed_options(saved, {**decisive, **made_with})
        if changed:
            changed = [f"settings: {', '.join(changed)}"]
        changed += differences(state["belongs_to"], self.belongs_to)
        if changed:
            raise ValueError(f"{self.path} belongs to another run ({'; '.join(changed)})")

    def reached(self, step: int) -> None:
        """Note that ``step`` steps are done, and the state that the next one begins with."""
        self._random = self._random_state()
        if any(module.training for module in self.pupil.modules()):
            _copy_buffers(self.pupil, self._buffers)
        _copy_buffers(self.matching, self._statistics)
        self.step = step

    def save(self) -> None:
        """Write the checkpoint of the last whole step; every process calls it.

        Raises:
            OSError: it cannot be written; the one before stays.
        """
        random = self.processes.gather(self._random)
        if self.processes.first:
            # Of what is in training mode, the buffers move in the middle of a step.
            weights = self.pupil.state_dict()
            kept = {name: self._buffers.get(name, value) for name, value in weights.items()}
            beside = self.matching.state_dict()
            beside = {name: self._statistics.get(name, value) for name, value in beside.items()}
            state = {
                "step": self.step,
                "settings": self.settings.plain(),
                "processes": self.processes.count,
                "stored_teacher": self.stored_teacher,
                "belongs_to": self.belongs_to,
                "student": kept,
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.weights,
                "random": random,
                "before": None if self.before is None else dataclasses.asdict(self.before),
            }
            if beside:
                state["matching"] = beside
            save_checkpoint(self.path, state)
        self.saved = self.step
        self._callbacks.on_checkpoint(self.step, self.path)

    def _random_state(self) -> tuple[Tensor, Tensor | None]:
        cuda = self.processes.device.type == "cuda"
        own = torch.cuda.get_rng_state(self.processes.device) if cuda else None
        return torch.get_rng_state(), own


def _copy_buffers(module: nn.Module, kept: dict[str, Tensor]) -> None:
    """Keep what a module's buffers hold now."""
    buffers = dict(module.named_buffers())
    if kept.keys() != buffers.keys():
        kept.clear()
        kept.update({name: torch.empty_like(buffer) for name, buffer in buffers.items()})
    for name, buffer in buffers.items():
        kept[name].copy_(buffer)


@contextlib.contextmanager
def saved_on_stop(job: Job, run: Run) -> Iterator[None]:
    """A block that leaves a checkpoint of the last whole step where a signal ends it.

    Args:
        job: its ``stop`` takes what is to be said.
        run: the state of the run.
    """
    stop, steps = job.stop, job.settings.steps
    try:
        yield
    except KeyboardInterrupt:
        failed = ""
        # Before the first step there is nothing to keep but what a validation has found.
        new = run.step != run.saved and (run.step > 0 or run.before is not None)
        if stop.between_steps and new:
            try:
                with stop.deferred():
                    run.save()
            except OSError as error:
                failed = f"; {error}"
        if run.saved is None:
            stop.message = f"stopped after step {run.step} of {steps}: nothing was saved{failed}"
        else:
            stop.message = (
                f"stopped after step {run.step} of {steps}: step {run.saved} is saved in "
                f"{run.path}; the same call goes on from it (not with resume=False or "
                f"--restart){failed}"
            )
        raise
