"""The loop of :func:`isp_distill.train`: step after step, and nothing that makes a GPU wait."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from isp_distill.data.batch import RawBatch
from isp_distill.data.exposure import ShortExposure
from isp_distill.isp.augmentation import ISPAugmentation
from isp_distill.jobs.interruption import StopSignals
from isp_distill.jobs.processes import Processes
from isp_distill.jobs.progress import progress_bar
from isp_distill.models.matching import Matching, Part
from isp_distill.models.modes import evaluating
from isp_distill.models.teacher import Teacher
from isp_distill.ops.dense_logits import check_upright
from isp_distill.training.job import Job
from isp_distill.training.log import StepLog
from isp_distill.training.metrics import Metrics
from isp_distill.training.models import schedule
from isp_distill.training.stages import Stages
from isp_distill.training.state import Run


class Forward:
    """A batch to its loss: the teacher's picture, both models, the distillation loss.

    Args:
        student: takes ``(mosaic, isp)`` and returns what is matched, see
            :class:`~isp_distill.models.matching.MatchedStudent`; compiled or replicated over
            processes as the run wants.
        teacher: frozen.
        matching: what is matched, and the losses.
        short: the short exposure that the student sees, if any.
        augmentation: of the teacher's ISP, if any.
        autocast: bfloat16 on the batch's device.
        stages: counts the time of each part.
        total: the sum of a tensor over all processes.
    """

    def __init__(
        self,
        student: Callable[..., list[Tensor]],
        teacher: Teacher,
        matching: Matching,
        *,
        short: ShortExposure | None = None,
        augmentation: ISPAugmentation | None = None,
        autocast: bool = False,
        stages: Stages | None = None,
        total: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> None:
        self.student, self.teacher, self.matching = student, teacher, matching
        self.taps, self.total = matching.teacher(teacher), total
        self.short, self.augmentation, self.autocast = short, augmentation, autocast
        self.stages = stages or Stages(torch.device("cpu"), enabled=False)

    def __call__(self, batch: RawBatch, seed: int) -> tuple[Tensor, list[Part]]:
        """The loss, and each match's own numbers.

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
            if batch.teacher is not None:
                targets = self.taps.stored(batch.teacher, batch.features)
            else:
                with torch.no_grad():
                    with stages("teacher's picture"):
                        picture = self.teacher.picture(batch, self.augmentation, seed)
                    with stages("teacher"):
                        targets = self.taps(picture)
            for target in targets:
                check_upright(isp, target)
            with stages("student"):
                predicted = self.student(mosaic, isp)
            with stages("loss"):
                result: tuple[Tensor, list[Part]]
                result = self.matching(predicted, targets, batch.labels, self.total)
        return result


def has_unused_parameters(
    module: nn.Module, forward: Forward, batch: RawBatch, processes: Processes
) -> bool:
    """Whether a loss leaves trainable parameters of the student out, in any process.

    Auxiliary heads are such. ``module`` is seen in eval mode and is not changed.
    """
    wanted = [p for p in module.parameters() if p.requires_grad]
    with evaluating(module):
        with forward.matching.unchanged():
            loss, _ = forward(batch, 0)
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return any(processes.gather(any(gradient is None for gradient in found)))


def run_steps(
    batches: Iterator[RawBatch], forward: Forward, run: Run, job: Job, metrics: Metrics | None
) -> None:
    """Take the optimiser steps that are left.

    Args:
        batches: ``accumulate`` of them for each step, on the device.
        forward: batch to loss; its student averages gradients over the processes.
        run: the student itself, its optimiser (whose groups hold ``peak_lr``) and the average of
            its weights; the steps that are done, and the checkpoint.
        job: settings, processes, and what stops them.
        metrics: where rank 0 writes.

    Raises:
        RuntimeError: if a loss is not finite; nothing is saved after it.
        KeyboardInterrupt: at a signal, also in the middle of a step, which then counts for nothing.
    """
    settings, processes, stop = job.settings, job.processes, job.stop
    stages, first = forward.stages, run.step
    with contextlib.ExitStack() as stack:
        if processes.count > 1:
            # All of them stop after the same step, or they would wait for one another.
            stack.enter_context(stop.deferred())
        bar = stack.enter_context(
            progress_bar("train", settings.steps, done=first, shown=job.speaks)
        )
        log = StepLog(job, first, metrics, bar, forward.matching.matches)
        stack.enter_context(_written_on_stop(log, run, stop))
        for step in range(first, settings.steps):
            factor = schedule(step, settings.steps, settings.warmup)
            for group in run.optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            log.begin(factor)
            _gradients(step, batches, forward, job, log)
            with stages("optimiser"):
                _update(step, run, job)
            bar.update()
            saves = (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps
            reads = saves or log.full
            with stop.deferred():
                if reads:
                    log.write(step + 1)
                if saves:
                    _check_finite(run, step + 1)
                    run.save()
            # Where only NCCL serves, asking one another makes the GPU wait, as reading does.
            if reads or processes.talks_on_cpu:
                stop.check(processes)


def _check_finite(run: Run, done: int) -> None:
    """Refuse to save weights that are no numbers: the loss tells of them a step later.

    Raises:
        RuntimeError: some are not finite.
    """
    trained = itertools.chain(run.pupil.parameters(), run.matching.parameters())
    finite = [p.detach().isfinite().all() for p in trained]
    if finite and not bool(torch.stack(finite).all()):
        raise RuntimeError(
            f"the student's weights are not finite after step {done}: lower lr or stem_lr; the "
            "last checkpoint is sound"
        )


def _gradients(
    step: int, batches: Iterator[RawBatch], forward: Forward, job: Job, log: StepLog
) -> None:
    """The gradients of a step's batches, added up and averaged over the processes."""
    stages, accumulate, processes = forward.stages, job.settings.accumulate, job.processes
    for micro in range(accumulate):
        with stages("wait for input"):
            batch = next(batches)
        place = (step * accumulate + micro) * processes.count + processes.rank
        # Gradients are averaged over the processes once a step, with the last batch.
        last = micro + 1 == accumulate
        with contextlib.nullcontext() if last else _no_sync(forward.student):
            loss, parts = forward(batch, (job.settings.seed << 32) + place)
            with stages("backward"):
                # Untyped in torch, hence the ignore.
                (loss / accumulate).backward()  # type: ignore[no-untyped-call]
        log.add(loss / accumulate, parts, 1 / accumulate, len(batch.mosaic))


def _update(step: int, run: Run, job: Job) -> None:
    """One step of the optimiser; a signal does not cut it in two."""
    if job.settings.clip_norm:
        parameters = [p for g in run.optimizer.param_groups for p in g["params"]]
        nn.utils.clip_grad_norm_(parameters, job.settings.clip_norm)
    with job.stop.deferred():
        run.optimizer.step()
        if run.average is not None:
            run.average.update(run.pupil)
        run.reached(step + 1)
    run.optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def _written_on_stop(log: StepLog, run: Run, stop: StopSignals) -> Iterator[None]:
    """Where the loop is stopped, the metrics of every whole step are written."""
    try:
        yield
    except KeyboardInterrupt:
        if stop.between_steps:
            with stop.deferred():
                log.write(run.step)
        raise


def _no_sync(replica: object) -> contextlib.AbstractContextManager[None]:
    no_sync: Callable[[], contextlib.AbstractContextManager[None]] | None
    no_sync = getattr(replica, "no_sync", None)
    return contextlib.nullcontext() if no_sync is None else no_sync()
