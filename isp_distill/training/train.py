"""``train``: a folder of RAW files and an RGB model in, a RAW student out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from isp_distill.data.batch import RawBatch
from isp_distill.data.class_labels import has_labels
from isp_distill.data.device_input import on_device
from isp_distill.data.exposure import ShortExposure
from isp_distill.data.loader import PREFETCH_BYTES, ViewLoader, skipped_report
from isp_distill.data.source import Source, label_grid
from isp_distill.data.views import View
from isp_distill.files.atomic import write_atomically
from isp_distill.files.disk import check_writable
from isp_distill.isp.augmentation import ISPAugmentation
from isp_distill.jobs.interruption import StopSignals
from isp_distill.jobs.processes import joined
from isp_distill.models.losses import DistillLoss
from isp_distill.models.student import student_module
from isp_distill.models.teacher import Teacher, as_teacher
from isp_distill.models.teacher_output import check_logits, warn_of_features
from isp_distill.models.trained_view import trained_at
from isp_distill.ops.unprocess.noise import NoiseModel
from isp_distill.packs.stored_teacher import StoredTeacher
from isp_distill.reports.contact_sheet import contact_sheet
from isp_distill.reports.evaluation import Report, evaluate
from isp_distill.sources import Data, open_source, packing_note
from isp_distill.training.belonging import belongings
from isp_distill.training.checkpoint import only_run
from isp_distill.training.loop import Forward, LoopSettings, has_unused_parameters, run_steps
from isp_distill.training.metrics import Metrics
from isp_distill.training.setup import Average, parameter_groups, set_training
from isp_distill.training.stages import Stages
from isp_distill.training.state import DECIDES_THE_WEIGHTS, Run, recorded_options, saved_on_stop

TRAINABLE = ("all", "stem")


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
    """

    student: nn.Module
    before: Report | None
    after: Report | None
    steps: int
    seconds: float
    skipped: dict[str, str]
    out: Path
    stages: dict[str, float] = dataclasses.field(default_factory=dict)


def train(
    student: nn.Module | str,
    teacher: Teacher | nn.Module | str,
    data: Data,
    *,
    out: str | Path = "runs/isp-distill",
    steps: int = 500,
    batch_size: int = 16,
    validation: Data | None = None,
    validation_views: int = 1,
    crop: int | None = None,
    binning: int | None = None,
    crop_area: tuple[float, float] | None = None,
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    vertical_flip: bool = False,
    objective: str = "forward_kl",
    temperature: float = 2.0,
    alpha: float = 1.0,
    dense_size: int | Sequence[int] | None = None,
    lr: float = 3e-5,
    stem_lr: float = 2e-2,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    clip_norm: float = 1.0,
    ema: float = 0.0,
    accumulate: int = 1,
    trainable: str = "all",
    freeze_batch_norm: bool = True,
    dropout: bool = False,
    exposure: ShortExposure | float | None = None,
    noise: NoiseModel | None = None,
    augmentation: ISPAugmentation | None = None,
    amp: bool | None = None,
    channels_last: bool = False,
    compile: bool = False,
    device: torch.device | str | None = None,
    workers: int = 2,
    prefetch_bytes: int = PREFETCH_BYTES,
    checkpoint_every: int = 100,
    metrics_every: int | None = None,
    resume: bool = True,
    tensorboard: bool = True,
    progress: bool = True,
    profile: bool = False,
    seed: int = 0,
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
            and the teacher sees the pictures), a list of such files, or a dataset of
            :class:`RawImage` or uint8 RGB arrays, with or without labels: a class for each, or for
            each of its pixels (``RawFolder(..., label_maps=FOLDER)``, or pairs with integers
            ``[h, w]``).
        out: folder for checkpoint, metrics, report and contact sheet. A run that finds its own
            checkpoint there goes on from it, to the same weights as if it had not been stopped.
            One of another teacher, student, data or settings is refused: see
            :mod:`isp_distill.training.belonging` for what is compared.
        steps: optimiser steps.
        batch_size: views a forward pass.
        validation: like ``data``; agreement before and after training is measured on it.
        validation_views: crops a file there, 1 to 5.
        crop: side of the mosaics, even; twice the teacher's size if None.
        binning: sites of one colour averaged per side; None: as many as leave the crop.
        crop_area: random resized crops, of whole CFA periods: least and largest share of the
            mosaic's area in a view, e.g. (0.25, 1), resized to ``crop``; None: views of one size.
        crop_ratio: with ``crop_area``: least and largest width over height.
        vertical_flip: turn half of the views upside down too; left and right always change places
            in half of them. The pattern follows, and teacher and student see the same view.
        objective: see :func:`isp_distill.distill_loss`; so ``temperature`` and ``alpha`` (below 1
            it mixes in the labels' cross entropy; label maps are read only then).
        temperature: see ``objective``.
        alpha: see ``objective``.
        dense_size: of dense logits, the resolution at which they are compared, in the loss and in
            the reports: one side or (height, width); the teacher's own if None. Both logits are
            upsampled in the loss's kernel, see :func:`isp_distill.upsampled_distill_loss`.
        lr: learning rate of the weights, cosine to zero after the warm-up.
        stem_lr: of the stem's few camera numbers (gain, mix, gamma).
        weight_decay: AdamW's, on weights of two or more axes.
        warmup: share of the steps over which the learning rates rise from zero.
        clip_norm: largest norm of the gradient; 0 for none.
        ema: decay of averaged weights, which then are the result; 0 for none.
        accumulate: forward passes an optimiser step.
        trainable: "all", or "stem" for the RawStem alone.
        freeze_batch_norm: keep batch-norm statistics as they are.
        dropout: leave dropout and stochastic depth on.
        exposure: what the student sees: None for the clean shot, a factor such as 0.1 or a
            :class:`ShortExposure` for a short and noisy one.
        noise: sensor noise in mosaics made from pictures.
        augmentation: ranges from which the exposure and white balance of the teacher's ISP are
            drawn for each view (:class:`ISPAugmentation`); None: each file's own.
        amp: bfloat16 autocast; None: where the device is a GPU.
        channels_last: memory format of the student and of the teacher.
        compile: run the student through ``torch.compile``.
        device: "cuda" if there is one, else "cpu", if None.
        workers: threads that read.
        prefetch_bytes: batches made ahead of the training, so many bytes of them.
        checkpoint_every: steps between checkpoints; there is always one at the end.
        metrics_every: steps between readings of loss and agreement, since a GPU's queue runs dry
            while they are read (every step is written all the same); None: 1 on the CPU, else 10.
        resume: go on from the checkpoint in ``out``; False starts anew.
        tensorboard: write TensorBoard's files where it is installed.
        progress: show a progress bar.
        profile: print at the end how the time of a step divides over its stages, and put it into
            the report; on a GPU this makes the run slower.
        seed: of everything random.

    Raises:
        ValueError: for a setting out of range, a checkpoint that is damaged or of another run, a
            teacher whose output is no logits, ``alpha`` below 1 without labels, packed data whose
            stored logits are another teacher's or of other views, or a label map that does not fit
            its picture or has classes that the teacher has not.
        FileNotFoundError: for a folder without files that can be read.
        OSError: where ``out`` cannot be written to, or its disk is full.
        RuntimeError: if the loss is not finite, or no file can be used.
        KeyboardInterrupt: at Ctrl-C, which first saves the last whole step (SIGTERM does so too,
            and is SystemExit); the text says what was saved. A second one does not wait for that.
    """
    if min(steps, accumulate, checkpoint_every) < 1:
        raise ValueError("steps, accumulate and checkpoint_every must be at least 1")
    if metrics_every is not None and metrics_every < 1:
        raise ValueError(f"metrics_every must be at least 1, got {metrics_every}")
    if trainable not in TRAINABLE:
        raise ValueError(f"unknown trainable {trainable!r}: expected {' or '.join(TRAINABLE)}")
    if not 0 <= ema < 1:
        raise ValueError(f"ema must be in [0, 1), got {ema}")
    given = {name: value for name, value in locals().items() if name in DECIDES_THE_WEIGHTS}
    folder = Path(out)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        processes = stack.enter_context(joined(device))
        stop.several = processes.count > 1
        processes.agreed(functools.partial(check_writable, folder))
        options = recorded_options(given, processes.count)
        loss = DistillLoss(
            objective,
            temperature=temperature,
            alpha=alpha,
            return_agreement=True,
            size=dense_size,
        )
        where = processes.device
        torch.manual_seed(seed)
        chosen = as_teacher(teacher)
        pupil = student_module(student, chosen).to(where)
        chosen.model.to(where).eval()
        if channels_last:
            for model in (pupil, chosen.model):
                model.to(memory_format=torch.channels_last)
        groups = parameter_groups(pupil, trainable, lr, stem_lr, weight_decay)
        optimizer = torch.optim.AdamW(groups)
        average = Average(pupil, ema) if ema else None
        view = View(
            2 * chosen.size if crop is None else crop,
            binning,
            area=crop_area,
            ratio=crop_ratio,
            flip=vertical_flip,
        )
        trained_at(pupil, view)
        source = open_source(data)
        if loss.needs_labels and not has_labels(source):
            raise ValueError(
                f"alpha={alpha} mixes in the labels' cross entropy, and the data have no labels: "
                "give some (RawFolder(..., labels=... or label_maps=...); --labels, --label-maps), "
                "or leave alpha at 1"
            )
        checked = None if validation is None else open_source(validation)
        stored = StoredTeacher.matching(source, chosen, view, augmentation)
        options["stored_teacher"] = None if stored is None else stored.name

        def output_shape() -> tuple[int, ...]:
            return chosen.output_shape(where) if stored is None else stored.output_shape()

        check_logits(output_shape())
        if stored is None:
            warn_of_features(chosen, objective, where)
        grid = label_grid(source, output_shape, dense_size) if loss.needs_labels else None
        loader = ViewLoader(
            source,
            view,
            batch_size,
            seed=seed,
            workers=workers,
            prefetch_bytes=prefetch_bytes,
            noise=noise,
            stored=stored,
            grid=grid,
            pin=where.type == "cuda",
        )
        short = ShortExposure.of(exposure)
        if processes.first:
            stack.enter_context(only_run(folder))
        if processes.rank:
            # Dropout differs between processes; what was built before is the same in all of them.
            torch.manual_seed((seed << 16) + processes.rank)

        def measure(model: nn.Module) -> Report | None:
            if checked is None:
                return None
            return evaluate(
                model,
                chosen,
                checked,
                views=validation_views,
                crop=view.crop,
                binning=binning,
                batch_size=batch_size,
                dense_size=dense_size,
                exposure=short,
                device=where,
                workers=workers,
                seed=seed,
                progress=progress and processes.first,
                processes=processes,
            )

        run = Run(
            pupil,
            optimizer,
            average,
            options,
            lambda: belongings(chosen, pupil, source, checked),
            processes,
            folder / "checkpoint.pt",
        )
        stack.enter_context(saved_on_stop(stop, run, steps))
        if not (resume and run.load()):
            with torch.random.fork_rng([where] if where.type == "cuda" else []):
                run.before = measure(pupil)
        first = run.step
        stages = Stages(where, profile)
        autocast = where.type == "cuda" if amp is None else amp
        made = loader.training(
            first * accumulate, steps * accumulate, processes.rank, processes.count
        )
        stack.enter_context(loader.closing(made))
        batches = on_device(_noted(made, source, workers, progress and processes.first), where)
        forward = Forward(
            pupil,
            chosen,
            loss,
            short=short,
            augmentation=augmentation,
            autocast=autocast,
            stages=stages,
        )
        replica = pupil
        if processes.count > 1 and first < steps:
            one = next(batches)
            batches = itertools.chain([one], batches)
            unused = has_unused_parameters(pupil, forward, one, processes)
            replica = processes.replicated(pupil, buffers=not freeze_batch_norm, unused=unused)
        if compile:
            pupil.compile()
        set_training(pupil, dropout, freeze_batch_norm)
        forward.student = replica
        stages.seconds.clear()
        metrics = None
        if processes.first:
            metrics = stack.enter_context(contextlib.closing(Metrics(folder, first, tensorboard)))
        began = time.perf_counter()
        run_steps(
            batches,
            forward,
            replica,
            run,
            LoopSettings(
                steps=steps,
                lr=lr,
                stem_lr=stem_lr,
                accumulate=accumulate,
                warmup=warmup,
                clip_norm=clip_norm,
                checkpoint_every=checkpoint_every,
                metrics_every=metrics_every or (10 if where.type == "cuda" else 1),
                seed=seed,
            ),
            processes,
            metrics=metrics,
            stop=stop,
            progress=progress and processes.first,
        )
        seconds = time.perf_counter() - began
        if average is not None:
            average.write(pupil)
        pupil.eval()
        after = measure(pupil)
        skipped: dict[str, str] = {}
        for found in processes.gather({**loader.skipped, **getattr(source, "skipped", {})}):
            skipped.update(found)
        result = TrainResult(
            pupil, run.before, after, steps, seconds, skipped, folder, stages.seconds
        )
        if processes.first:
            if profile and steps > first:
                tqdm.write(stages.table(steps - first))
            if progress and skipped:
                tqdm.write(skipped_report(skipped))
            # Label maps are drawn where they were read: in the loss, or in the validation.
            drawn = source if checked is None else checked
            if checked is not None:
                grid = label_grid(checked, lambda: chosen.output_shape(where), dense_size)
            shown = ViewLoader(drawn, view, 1, seed=seed, workers=1, grid=grid)
            contact_sheet(folder / "contact_sheet.png", pupil, chosen, shown, where, exposure=short)
            written = json.dumps(_report(result, options), indent=1).encode()
            write_atomically(folder / "report.json", written)
    return result


def _noted(
    batches: Iterator[RawBatch], source: Source, workers: int, wanted: bool
) -> Iterator[RawBatch]:
    """The batches; what packing would save is said once, when it is known."""
    for batch in batches:
        if wanted and (note := packing_note(source, workers)) is not None:
            tqdm.write(note)
            wanted = False
        yield batch


def _report(result: TrainResult, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "before": None if result.before is None else dataclasses.asdict(result.before),
        "after": None if result.after is None else dataclasses.asdict(result.after),
        "steps": result.steps,
        "seconds": result.seconds,
        "skipped": result.skipped,
        "stages": result.stages,
        "options": options,
    }
