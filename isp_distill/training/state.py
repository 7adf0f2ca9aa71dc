"""What a checkpoint holds, and when a run may go on from it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isp_distill.jobs.interruption import StopSignals
from isp_distill.jobs.processes import Processes
from isp_distill.reports.evaluation import Report
from isp_distill.training.belonging import differences
from isp_distill.training.checkpoint import NotOursError, load_checkpoint, save_checkpoint
from isp_distill.training.setup import Average

# Settings that a resumed run must share with the one that it goes on from.
DECIDES_THE_WEIGHTS = frozenset(
    {
        *(
            "steps",
            "batch_size",
            "crop",
            "binning",
            "crop_area",
            "crop_ratio",
            "vertical_flip",
            "objective",
            "temperature",
            "alpha",
            "lr",
        ),
        *("stem_lr", "weight_decay", "warmup", "clip_norm", "ema", "accumulate", "trainable"),
        *(
            "dense_size",
            "freeze_batch_norm",
            "dropout",
            "exposure",
            "noise",
            "augmentation",
            "amp",
            "seed",
        ),
    }
)


_ANEW = ", or start anew with resume=False (--restart), which replaces the checkpoint"


def recorded_options(given: dict[str, Any], processes: int) -> dict[str, Any]:
    """The settings as a checkpoint records them: plain values, or their text."""
    plain = (int, float, str, type(None))
    options = {k: v if isinstance(v, plain) else repr(v) for k, v in sorted(given.items())}
    return {**options, "processes": processes}


def changed_options(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In words, which settings of two runs differ, and both values."""
    return [f"{k} was {saved.get(k)!r}, is {v!r}" for k, v in now.items() if saved.get(k) != v]


class Run:
    """The state of a run that a checkpoint holds, and the checkpoint.

    Args:
        pupil: the student.
        optimizer: its optimiser.
        average: averaged weights, if any.
        options: settings that a resumed run must share.
        belongs_to: makes :func:`isp_distill.training.belonging.belongings`; asked in rank 0 alone.
        processes: rank 0 reads and writes the file; the others get what it read.
        path: of the file.

    Attributes:
        step: optimiser steps that are done.
        before: agreement before training.
        saved: the step of the checkpoint on the disk; None where there is none of this run.
    """

    def __init__(
        self,
        pupil: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        options: dict[str, Any],
        belongs_to: Callable[[], dict[str, dict[str, Any]]],
        processes: Processes,
        path: Path,
    ) -> None:
        self.pupil, self.optimizer, self.average = pupil, optimizer, average
        self.options, self.processes, self.path = options, processes, path
        self.step = 0
        self.saved: int | None = None
        self.before: Report | None = None
        self._belongs_to = belongs_to() if processes.first else {}
        # Of the last whole step: a step that is cut short has drawn numbers and moved buffers.
        self._random = self._random_state()
        self._buffers: dict[str, Tensor] = {}

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
        changed = changed_options(state["options"], self.options)
        if changed:
            changed = [f"settings: {', '.join(changed)}"]
        changed += differences(state["belongs_to"], self._belongs_to)
        if changed:
            raise ValueError(f"{self.path} belongs to another run ({'; '.join(changed)})")

    def reached(self, step: int) -> None:
        """Note that ``step`` steps are done, and the state that the next one begins with."""
        self._random = self._random_state()
        if any(module.training for module in self.pupil.modules()):
            buffers = dict(self.pupil.named_buffers())
            if self._buffers.keys() != buffers.keys():
                self._buffers = {name: torch.empty_like(b) for name, b in buffers.items()}
            for name, buffer in buffers.items():
                self._buffers[name].copy_(buffer)
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
            state = {
                "step": self.step,
                "options": self.options,
                "belongs_to": self._belongs_to,
                "student": kept,
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.weights,
                "random": random,
                "before": None if self.before is None else dataclasses.asdict(self.before),
            }
            save_checkpoint(self.path, state)
        self.saved = self.step

    def _random_state(self) -> tuple[Tensor, Tensor | None]:
        cuda = self.processes.device.type == "cuda"
        own = torch.cuda.get_rng_state(self.processes.device) if cuda else None
        return torch.get_rng_state(), own


@contextlib.contextmanager
def saved_on_stop(stop: StopSignals, run: Run, steps: int) -> Iterator[None]:
    """A block that leaves a checkpoint of the last whole step where a signal ends it.

    Args:
        stop: takes what is to be said.
        run: the state of the run.
        steps: that it would have taken.
    """
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
