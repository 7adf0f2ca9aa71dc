"""What a checkpoint holds, and when a run may go on from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isp_distill.checkpoint import load_checkpoint, save_checkpoint
from isp_distill.evaluation import Report
from isp_distill.processes import Processes
from isp_distill.training_setup import Average

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


def recorded_options(given: dict[str, Any], processes: int) -> dict[str, Any]:
    """The settings as a checkpoint records them: plain values, or their text."""
    plain = (int, float, str, type(None))
    options = {k: v if isinstance(v, plain) else repr(v) for k, v in sorted(given.items())}
    return {**options, "processes": processes}


def check_options(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint of a run with other settings.

    Raises:
        ValueError: that names each setting and both values.
    """
    changed = [f"{k} was {saved.get(k)!r}, is {v!r}" for k, v in now.items() if saved.get(k) != v]
    if changed:
        raise ValueError(
            f"{path} belongs to a run with other settings ({'; '.join(changed)}): "
            "train into another folder, or with resume=False"
        )


class Run:
    """The state of a run that a checkpoint holds, and the checkpoint.

    Args:
        pupil: the student.
        optimizer: its optimiser.
        average: averaged weights, if any.
        options: settings that a resumed run must share.
        processes: rank 0 reads and writes the file; the others get what it read.
        path: of the file.

    Attributes:
        step: optimiser steps that are done.
        before: agreement before training.
    """

    def __init__(
        self,
        pupil: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        options: dict[str, Any],
        processes: Processes,
        path: Path,
    ) -> None:
        self.pupil, self.optimizer, self.average = pupil, optimizer, average
        self.options, self.processes, self.path = options, processes, path
        self.step = 0
        self.before: Report | None = None

    def load(self) -> bool:
        """Go on from the checkpoint; False where there is none.

        Raises:
            ValueError: if it is damaged, or of a run with other settings.
        """
        state = error = None
        if self.processes.first and self.path.exists():
            try:
                state = load_checkpoint(self.path)
                check_options(self.path, state["options"], self.options)
            except ValueError as found:
                state, error = None, str(found)
        # The others wait for it, so an error has to reach them too.
        message = self.processes.broadcast({"state": state, "error": error})
        state = message["state"]
        if message["error"] is not None:
            raise ValueError(message["error"])
        if state is None:
            return False
        self.pupil.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load(state["average"])
        random, random_cuda = state["random"][self.processes.rank]
        torch.set_rng_state(random)
        if self.processes.device.type == "cuda":
            torch.cuda.set_rng_state(random_cuda, self.processes.device)
        self.step = state["step"]
        self.before = None if state["before"] is None else Report(**state["before"])
        return True

    def save(self, step: int) -> None:
        """Write the checkpoint after ``step`` steps; every process calls it."""
        cuda = self.processes.device.type == "cuda"
        own = torch.cuda.get_rng_state(self.processes.device) if cuda else None
        random = self.processes.gather((torch.get_rng_state(), own))
        self.step = step
        if self.processes.first:
            state = {
                "step": step,
                "options": self.options,
                "student": self.pupil.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.weights,
                "random": random,
                "before": None if self.before is None else dataclasses.asdict(self.before),
            }
            save_checkpoint(self.path, state)
