"""``train``: a folder of RAW files and an RGB model in, a RAW student out."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from typing_extensions import Unpack

from isp_distill.models.teacher import Teacher
from isp_distill.reports.evaluation import evaluate
from isp_distill.reports.report import Report
from isp_distill.sources import Data, open_source
from isp_distill.training.callbacks import Callbacks, TrainCallback
from isp_distill.training.config import write_config
from isp_distill.training.data import TrainData, opened_data
from isp_distill.training.finish import Took, finished
from isp_distill.training.job import Job, started
from isp_distill.training.kept_student import keep_student
from isp_distill.training.keywords import TrainKeywords
from isp_distill.training.loop import Forward, has_unused_parameters, run_steps
from isp_distill.training.metrics import Metrics
from isp_distill.training.models import TrainedModels, made_models, made_pair, set_training
from isp_distill.training.result import TrainResult
from isp_distill.training.settings import TrainSettings
from isp_distill.training.stages import Stages
from isp_distill.training.state import Run, saved_on_stop


def train(
    student: nn.Module | str,
    teacher: Teacher | nn.Module | str,
    data: Data,
    *,
    out: str | Path = "runs/isp-distill",
    validation: Data | None = None,
    settings: TrainSettings | None = None,
    callbacks: Sequence[TrainCallback] = (),
    **changes: Unpack[TrainKeywords],
) -> TrainResult:
    """Distil an RGB teacher into a student that sees the mosaic. No labels are needed.

    Each step renders the batch's mosaics for the teacher on the device, lets the student see the
    mosaics themselves, and moves the student's predictions towards the teacher's.

    Under ``torchrun`` every process takes ``batch_size`` views of each step's ``N * batch_size``,
    gradients and metrics are averaged, and rank 0 writes: the result is that of one process with
    N times the batch, up to rounding (noise, dropout and augmentation are drawn per process). A
    process that dies ends the others; with ``--max-restarts`` torchrun starts them anew and the
    run goes on from its last checkpoint.

    Args:
        student: "rawify" (the teacher's own architecture and weights on a RawStem that knows each
            file's white balance and colours), a rawified model, or any module that takes a mosaic
            (1 channel) or its four planes.
        teacher: a :class:`Teacher`, a module (taken to be ImageNet's, 224 pixels), or a timm name.
        data: a folder of RAW files, a folder of ordinary pictures (mosaics are then made from them
            and the teacher sees the pictures), a folder of sensor dumps with a ``sensor.toml``, a
            packed folder, or a list of such folders, each of its own kind, which are one dataset; a
            list of files; a dataset of :class:`RawImage` or uint8 RGB arrays, with or without
            labels: a class for each, or for each of its pixels (``RawFolder(...,
            label_maps=FOLDER)``, or pairs with integers ``[h, w]``).
        out: folder for checkpoint, metrics, report and contact sheet. A run that finds its own
            checkpoint there goes on from it, to the same weights as if it had not been stopped.
            One of another teacher, student, data or settings is refused: see
            :mod:`isp_distill.training.belonging` for what is compared.
        validation: like ``data``; agreement before and after training is measured on it.
        settings: how to train; the defaults of :class:`TrainSettings` if None.
        callbacks: told of steps, checkpoints and the end; see :class:`TrainCallback`.
        changes: any field of :class:`TrainSettings` by its name, as ``steps=500``; they come
            before ``settings``. ``isp_distill.TrainSettings`` says what each one is.

    Returns:
        The student and how well it agrees with its teacher: a :class:`TrainResult`. ``out`` then
        holds ``student/`` (for :func:`isp_distill.load` and :func:`isp_distill.predict`),
        ``checkpoint.pt``, ``config.toml`` (the settings, for ``isp-distill train --config``),
        ``report.json``, ``metrics.jsonl``, TensorBoard's files and ``contact_sheet.png``.

    Raises:
        ValueError: for a setting out of range, a checkpoint that is damaged or of another run, a
            teacher whose output is no logits, ``alpha`` below 1 without labels, packed data whose
            stored logits are another teacher's or of other views, or a label map that does not fit
            its picture or has classes that the teacher has not.
        FileNotFoundError: for a folder without files that can be read.
        OSError: where ``out`` cannot be written to, or its disk is full.
        RuntimeError: if the loss is not finite, or no file can be used.
        TypeError: a callback is no :class:`TrainCallback`; whatever a callback raises ends the run.
        KeyboardInterrupt: at Ctrl-C, which first saves the last whole step (SIGTERM does so too,
            and is SystemExit); the text says what was saved. A second one does not wait for that.

    Example:
        >>> result = isp_distill.train(
        ...     "rawify", isp_distill.Teacher(model, size=32), "photos/raw",
        ...     validation="photos/held-out", out="runs/first", steps=2, batch_size=2,
        ...     progress=False,
        ... )
        >>> result.steps, result.after.samples
        (2, 1)
    """
    chosen = TrainSettings.of(settings, **changes)
    with started(chosen, Path(out), Callbacks(callbacks)) as job:
        source = open_source(data)
        pupil, rgb, job = made_pair(student, teacher, source, job)
        models = made_models(pupil, rgb, job)
        seen = opened_data(source, validation, models, job)
        job.take_folder()
        run = Run(models, seen, job)
        job.enter(saved_on_stop(job, run))
        if not (chosen.resume and run.load()):
            with torch.random.fork_rng([job.device] if job.device.type == "cuda" else []):
                run.before = _measured(models, seen, job)
        write_config(job, student, teacher, data, validation)
        job.callbacks.on_start(chosen, run.step)
        took = _take_steps(run, models, seen, job)
        after = _measured(models, seen, job)
        keep_student(student, teacher, run, models, seen, job, after)
        result = finished(run, models, seen, job, after, took)
        job.callbacks.on_end(result)
        return result


def _measured(models: TrainedModels, seen: TrainData, job: Job) -> Report | None:
    """The student's agreement with its teacher on the validation data, if there are some."""
    if seen.validation is None:
        return None
    settings = job.settings
    return evaluate(
        models.student,
        models.teacher,
        seen.validation,
        views=settings.validation_views,
        crop=models.view.crop,
        binning=settings.binning,
        batch_size=settings.batch_size,
        dense_size=settings.dense_size,
        exposure=settings.short_exposure,
        device=job.device,
        workers=settings.workers,
        seed=settings.seed,
        progress=job.speaks,
        processes=job.processes,
        match=models.matching,
        boxes=seen.boxes,
    )


def _take_steps(run: Run, models: TrainedModels, seen: TrainData, job: Job) -> Took:
    """Train from the run's step to the last one; the student is then in eval mode."""
    settings, processes, first, pupil = job.settings, job.processes, run.step, models.student
    stages = Stages(job.device, settings.profile)
    matched = models.matching.student(pupil)
    forward = Forward(
        matched,
        models.teacher,
        models.matching,
        short=settings.short_exposure,
        augmentation=settings.augmentation,
        autocast=job.device.type == "cuda" if settings.amp is None else settings.amp,
        stages=stages,
        total=processes.sum,
    )
    # Before anything is compiled or replicated: hooks that come later are not seen.
    with matched.listening(), forward.taps.listening():
        batches = seen.batches(first, job)
        if processes.count > 1 and first < settings.steps:
            one = next(batches)
            batches = itertools.chain([one], batches)
            unused = has_unused_parameters(matched, forward, one, processes)
            forward.student = processes.replicated(
                matched, buffers=not settings.freeze_batch_norm, unused=unused
            )
        if settings.compile:
            matched.compile()
        set_training(pupil, settings.dropout, settings.freeze_batch_norm)
        stages.seconds.clear()
        metrics = None
        if processes.first:
            opened = Metrics(job.folder, first, settings.tensorboard)
            metrics = job.enter(contextlib.closing(opened))
        began = time.perf_counter()
        run_steps(batches, forward, run, job, metrics)
        seconds = time.perf_counter() - began
    if models.average is not None:
        models.average.write(pupil)
    pupil.eval()
    return Took(settings.steps - first, seconds, stages)


def _signature() -> inspect.Signature:
    """The signature with each setting's name and default, as ``help(train)`` shows it."""
    signature = inspect.signature(train)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type
        )
        for f in dataclasses.fields(TrainSettings)
    ]
    return signature.replace(parameters=[*own, *fields])


# inspect and help look for it; functions are not typed as having it, hence the ignore.
train.__signature__ = _signature()  # type: ignore[attr-defined]
