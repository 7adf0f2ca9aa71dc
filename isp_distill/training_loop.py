"""The loop of :func:`isp_distill.train`: step after step, and nothing that makes a GPU wait."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from isp_distill.augmentation import ISPAugmentation
from isp_distill.data import RawBatch
from isp_distill.dense import check_upright
from isp_distill.exposure import ShortExposure
from isp_distill.losses import DistillLoss
from isp_distill.metrics import Metrics
from isp_distill.processes import Processes
from isp_distill.stages import Stages
from isp_distill.teacher import Teacher, logits_of
from isp_distill.training_setup import Average, schedule


@dataclass(frozen=True)
class LoopSettings:
    """Numbers of the loop; see :func:`isp_distill.train` for each."""

    steps: int
    lr: float
    stem_lr: float
    accumulate: int
    warmup: float
    clip_norm: float
    checkpoint_every: int
    metrics_every: int
    seed: int


class Forward:
    """A batch to its loss: the teacher's picture, both models, the distillation loss.

    Args:
        student: takes ``(mosaic, isp)``; compiled or replicated over processes as the run wants.
        teacher: frozen.
        loss: with ``return_agreement``.
        short: the short exposure that the student sees, if any.
        augmentation: of the teacher's ISP, if any.
        autocast: bfloat16 on the batch's device.
        stages: counts the time of each part.
    """

    def __init__(
        self,
        student: Callable[..., object],
        teacher: Teacher,
        loss: DistillLoss,
        *,
        short: ShortExposure | None = None,
        augmentation: ISPAugmentation | None = None,
        autocast: bool = False,
        stages: Stages | None = None,
    ) -> None:
        self.student, self.teacher, self.loss = student, teacher, loss
        self.short, self.augmentation, self.autocast = short, augmentation, autocast
        self.stages = stages or Stages(torch.device("cpu"), enabled=False)

    def __call__(self, batch: RawBatch, seed: int) -> tuple[Tensor, Tensor, int]:
        """Mean loss, count of predictions that agree with the teacher's, and count of predictions.

        Args:
            batch: on the device.
            seed: of the short exposure's noise and of the augmentation.
        """
        stages = self.stages
        mosaic, isp = batch.mosaic, batch.isp
        if self.short is not None:
            with stages("short exposure"):
                mosaic, isp = self.short.apply(mosaic, isp, seed=seed)
        with torch.autocast(mosaic.device.type, torch.bfloat16, enabled=self.autocast):
            target = batch.teacher
            if target is None:
                with torch.no_grad():
                    with stages("teacher's picture"):
                        picture = self.teacher.picture(batch, self.augmentation, seed)
                    with stages("teacher"):
                        target = self.teacher.logits(picture)
            check_upright(isp, target)
            with stages("student"):
                predicted = logits_of(self.student(mosaic, isp))
            with stages("loss"):
                loss, agreement = self.loss(predicted, target, batch.labels)
        return loss, agreement, self.loss.positions(target)


def has_unused_parameters(
    module: nn.Module, forward: Forward, batch: RawBatch, processes: Processes
) -> bool:
    """Whether a loss leaves trainable parameters of the student out, in any process.

    Auxiliary heads are such. ``module`` is seen in eval mode and is not changed.
    """
    wanted = [p for p in module.parameters() if p.requires_grad]
    modes = {m: m.training for m in module.modules()}
    module.eval()
    loss, _, _ = forward(batch, 0)
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    for part, training in modes.items():
        part.training = training
    return any(processes.gather(any(gradient is None for gradient in found)))


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

    def read(self, processes: Processes) -> list[tuple[float, float]]:
        """Loss and share of agreement of each step, over all processes; empties the window."""
        sums = processes.sum(self._sums[: self.length].clone()).tolist()
        self.length = 0
        return [(loss / processes.count, agreed / rows) for loss, agreed, rows in sums]


def run_steps(
    batches: Iterator[RawBatch],
    forward: Forward,
    replica: nn.Module,
    pupil: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    settings: LoopSettings,
    processes: Processes,
    *,
    first: int,
    metrics: Metrics | None,
    save: Callable[[int], None],
    progress: bool,
) -> None:
    """Take the optimiser steps ``first .. settings.steps - 1``.

    Args:
        batches: ``accumulate`` of them for each step, on the device.
        forward: batch to loss.
        replica: the student as its gradients are averaged over processes.
        pupil: the student itself.
        optimizer: its groups hold ``peak_lr``.
        average: averaged weights, if any.
        settings: the loop's numbers.
        processes: who takes part.
        first: steps that are done.
        metrics: where rank 0 writes.
        save: writes a checkpoint after so many steps; called in every process.
        progress: show a bar.

    Raises:
        RuntimeError: if a loss is not finite; nothing is saved after it.
    """
    stages, accumulate = forward.stages, settings.accumulate
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    window = Window(processes.device, settings.metrics_every)
    bar = tqdm(total=settings.steps, initial=first, desc="train", disable=not progress)
    since, seen, rates = time.perf_counter(), 0, []
    try:
        for step in range(first, settings.steps):
            factor = schedule(step, settings.steps, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            rates.append(factor)
            window.begin()
            for micro in range(accumulate):
                with stages("wait for input"):
                    batch = next(batches)
                place = (step * accumulate + micro) * processes.count + processes.rank
                # Gradients are averaged over the processes once a step, with the last batch.
                last = micro + 1 == accumulate
                with contextlib.nullcontext() if last else _no_sync(replica):
                    loss, agreed, rows = forward(batch, (settings.seed << 32) + place)
                    with stages("backward"):
                        # Untyped in torch, hence the ignore.
                        (loss / accumulate).backward()  # type: ignore[no-untyped-call]
                window.add(loss / accumulate, agreed, rows)
                seen += len(batch.mosaic)
            with stages("optimiser"):
                if settings.clip_norm:
                    nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if average is not None:
                    average.update(pupil)
            bar.update()
            saves = (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps
            if saves or window.length == settings.metrics_every:
                values = window.read(processes)
                now = time.perf_counter()
                speed = seen * processes.count / (now - since)
                since, seen = now, 0
                done = step + 1 - len(values)
                for number, ((value, share), rate) in enumerate(zip(values, rates, strict=True)):
                    if not math.isfinite(value):
                        raise RuntimeError(
                            f"the loss is {value} at step {done + number}: lower lr or stem_lr, or "
                            "raise the temperature; the last checkpoint is sound"
                        )
                    if metrics is not None:
                        numbers = {"loss": value, "agreement": share, "images_per_second": speed}
                        now_lr = {"lr": settings.lr * rate, "stem_lr": settings.stem_lr * rate}
                        metrics.write(done + number + 1, {**numbers, **now_lr})
                rates = []
                bar.set_postfix(loss=f"{value:.3f}", agree=f"{share:.2f}", img_s=f"{speed:.1f}")
            if saves:
                save(step + 1)
    finally:
        bar.close()


def _no_sync(replica: nn.Module) -> contextlib.AbstractContextManager[None]:
    no_sync: Callable[[], contextlib.AbstractContextManager[None]] | None
    no_sync = getattr(replica, "no_sync", None)
    return contextlib.nullcontext() if no_sync is None else no_sync()
