"""``train``: a folder of RAW files and an RGB model in, a RAW student out."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from isp_distill.augmentation import ISPAugmentation
from isp_distill.checkpoint import Metrics, load_checkpoint, save_checkpoint, write_atomically
from isp_distill.contact_sheet import contact_sheet
from isp_distill.data import Source, View, ViewLoader, open_source
from isp_distill.evaluation import Report, evaluate, match_size
from isp_distill.exposure import ShortExposure
from isp_distill.isp import NoiseModel
from isp_distill.losses import DistillLoss
from isp_distill.stages import Stages
from isp_distill.stem import RawStem, rawify
from isp_distill.stored_teacher import StoredTeacher
from isp_distill.teacher import Teacher, as_student, as_teacher, logits_of

TRAINABLE = ("all", "stem")


@dataclass(frozen=True)
class TrainResult:
    """What :func:`train` leaves.

    Attributes:
        student: the trained student (its averaged weights where ``ema`` was on), in eval mode.
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
    data: str | Path | Source,
    *,
    out: str | Path = "runs/isp-distill",
    steps: int = 500,
    batch_size: int = 16,
    validation: str | Path | Source | None = None,
    validation_views: int = 1,
    crop: int | None = None,
    binning: int | None = None,
    objective: str = "forward_kl",
    temperature: float = 2.0,
    alpha: float = 1.0,
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
    checkpoint_every: int = 100,
    resume: bool = True,
    tensorboard: bool = True,
    progress: bool = True,
    profile: bool = False,
    seed: int = 0,
) -> TrainResult:
    """Distil an RGB teacher into a student that sees the mosaic. No labels are needed.

    Each step renders the batch's mosaics for the teacher on the device, lets the student see the
    mosaics themselves, and moves the student's predictions towards the teacher's.

    Args:
        student: "rawify" (the teacher's own architecture and weights on a RawStem that knows each
            file's white balance and colours), a rawified model, or any module that takes a mosaic
            (1 channel) or its four planes.
        teacher: a :class:`Teacher`, a module (taken to be ImageNet's, 224 pixels), or a timm name.
        data: a folder of RAW files, a folder of ordinary pictures (mosaics are then made from them
            and the teacher sees the pictures), or a dataset of :class:`RawImage` or uint8 RGB
            arrays, with or without labels.
        out: folder for checkpoint, metrics, report and contact sheet. A run that finds its own
            checkpoint there goes on from it, to the same weights as if it had not been stopped.
        steps: optimiser steps.
        batch_size: views a forward pass.
        validation: like ``data``; agreement before and after training is measured on it.
        validation_views: crops a file there, 1 to 5.
        crop: side of the mosaics, even; twice the teacher's size if None.
        binning: sites of one colour averaged per side; None: as many as leave the crop.
        objective: see :func:`isp_distill.distill_loss`; so ``temperature`` and ``alpha`` (below 1
            it mixes in the labels' cross entropy).
        temperature: see ``objective``.
        alpha: see ``objective``.
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
        channels_last: memory format of the student.
        compile: run the student through ``torch.compile``.
        device: "cuda" if there is one, else "cpu", if None.
        workers: threads that read.
        checkpoint_every: steps between checkpoints; there is always one at the end.
        resume: go on from the checkpoint in ``out``; False starts anew.
        tensorboard: write TensorBoard's files where it is installed.
        progress: show a progress bar.
        profile: print at the end how the time of a step divides over its stages, and put it into
            the report; on a GPU this makes the run slower.
        seed: of everything random.

    Raises:
        ValueError: for a setting out of range, or a checkpoint of a run with other settings.
        FileNotFoundError: for a folder without files that can be read.
        RuntimeError: if the loss is not finite, or no file can be used.
    """
    if steps < 1 or accumulate < 1 or checkpoint_every < 1:
        raise ValueError("steps, accumulate and checkpoint_every must be at least 1")
    if trainable not in TRAINABLE:
        raise ValueError(f"unknown trainable {trainable!r}: expected {' or '.join(TRAINABLE)}")
    if not 0 <= ema < 1:
        raise ValueError(f"ema must be in [0, 1), got {ema}")
    options = {
        k: v if isinstance(v, (int, float, str, type(None))) else repr(v)
        for k, v in locals().items()
        if k in _DECIDES_THE_WEIGHTS
    }
    torch.manual_seed(seed)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = as_teacher(teacher)
    pupil = _student_module(student, chosen).to(where)
    if channels_last:
        pupil = pupil.to(memory_format=torch.channels_last)
    chosen.model.to(where).eval().requires_grad_(False)
    groups = _parameter_groups(pupil, trainable, lr, stem_lr, weight_decay)
    optimizer = torch.optim.AdamW(groups)
    average = _Average(pupil, ema) if ema else None
    view = View(2 * chosen.size if crop is None else crop, binning)
    source = open_source(data)
    stored = StoredTeacher.matching(source, chosen, view, augmentation)
    options["stored_teacher"] = None if stored is None else stored.name
    loader = ViewLoader(
        source, view, batch_size, seed=seed, workers=workers, noise=noise, stored=stored
    )
    checked = None if validation is None else open_source(validation)
    short = ShortExposure.of(exposure)
    loss_of = DistillLoss(objective, temperature=temperature, alpha=alpha, return_agreement=True)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)

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
            exposure=short,
            device=where,
            workers=workers,
            seed=seed,
            progress=progress,
        )

    saved = folder / "checkpoint.pt"
    first, before = 0, None
    if resume and saved.exists():
        state = load_checkpoint(saved)
        _check_options(saved, state["options"], options)
        pupil.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load(state["average"])
        torch.set_rng_state(state["random"])
        if where.type == "cuda":
            torch.cuda.set_rng_state_all(state["random_cuda"])
        first = state["step"]
        before = None if state["before"] is None else Report(**state["before"])
    else:
        random = torch.get_rng_state()
        before = measure(pupil)
        torch.set_rng_state(random)

    def save(step: int) -> None:
        save_checkpoint(
            saved,
            {
                "step": step,
                "options": options,
                "student": pupil.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": None if average is None else average.weights,
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state_all() if where.type == "cuda" else [],
                "before": None if before is None else dataclasses.asdict(before),
            },
        )

    stages = Stages(where, profile)
    forward = torch.compile(pupil) if compile else pupil
    autocast = where.type == "cuda" if amp is None else amp
    pupil.train(dropout)
    for module in pupil.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(not freeze_batch_norm)
    metrics = Metrics(folder, first, tensorboard)
    batches = loader.training(first * accumulate, steps * accumulate)
    bar = tqdm(total=steps, initial=first, desc="train", disable=not progress)
    began = time.perf_counter()
    try:
        for step in range(first, steps):
            since = time.perf_counter()
            factor = _schedule(step, steps, warmup)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            total, agreed, seen, rows = torch.zeros((), device=where), 0, 0, 0
            for micro in range(accumulate):
                with stages("wait for input"):
                    batch = next(batches)
                    if where.type == "cuda":
                        batch = batch.pin_memory()
                    batch = batch.to(where)
                mosaic, isp = batch.mosaic, batch.isp
                drawn = (seed << 32) + step * accumulate + micro
                if short is not None:
                    with stages("short exposure"):
                        mosaic, isp = short.apply(mosaic, isp, seed=drawn)
                with torch.autocast(where.type, torch.bfloat16, enabled=autocast):
                    if batch.teacher is not None:
                        target = batch.teacher
                    else:
                        with torch.no_grad():
                            with stages("teacher's picture"):
                                picture = chosen.picture(batch, augmentation, drawn)
                            with stages("teacher"):
                                target = chosen.logits(picture)
                    with stages("student"):
                        predicted = match_size(logits_of(forward(mosaic, isp)), target)
                    with stages("loss"):
                        loss, agreement = loss_of(predicted, target, batch.labels)
                with stages("backward"):
                    (loss / accumulate).backward()
                total += loss.detach() / accumulate
                agreed += agreement
                seen, rows = seen + len(mosaic), rows + target.numel() // target.shape[1]
            if clip_norm:
                nn.utils.clip_grad_norm_(
                    [p for g in groups for p in g["params"]], clip_norm, error_if_nonfinite=False
                )
            value = float(total)
            if not math.isfinite(value):
                raise RuntimeError(
                    f"the loss is {value} at step {step}: lower lr or stem_lr, or raise the "
                    f"temperature; the last checkpoint in {folder} is sound"
                )
            with stages("optimiser"):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if average is not None:
                    average.update(pupil)
            speed = seen / (time.perf_counter() - since)
            share = float(agreed) / rows
            numbers = {"loss": value, "agreement": share, "images_per_second": speed}
            metrics.write(step + 1, {**numbers, "lr": lr * factor, "stem_lr": stem_lr * factor})
            bar.set_postfix(loss=f"{value:.3f}", agree=f"{share:.2f}", img_s=f"{speed:.1f}")
            bar.update()
            if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
                save(step + 1)
    finally:
        bar.close()
        metrics.close()
        batches.close()
    if profile and steps > first:
        tqdm.write(stages.table(steps - first))
    seconds = time.perf_counter() - began
    if average is not None:
        average.write(pupil)
    pupil.eval()
    after = measure(pupil)
    skipped = {**loader.skipped, **getattr(source, "skipped", {})}
    if progress and skipped:
        tqdm.write(loader.report())
    shown = ViewLoader(source if checked is None else checked, view, 1, seed=seed, workers=1)
    contact_sheet(folder / "contact_sheet.png", pupil, chosen, shown, where, exposure=short)
    result = TrainResult(pupil, before, after, steps, seconds, skipped, folder, stages.seconds)
    write_atomically(
        folder / "report.json", json.dumps(_report(result, options), indent=1).encode()
    )
    return result


# Settings that a resumed run must share with the one that it goes on from.
_DECIDES_THE_WEIGHTS = frozenset(
    {
        *("steps", "batch_size", "crop", "binning", "objective", "temperature", "alpha", "lr"),
        *("stem_lr", "weight_decay", "warmup", "clip_norm", "ema", "accumulate", "trainable"),
        *("freeze_batch_norm", "dropout", "exposure", "noise", "augmentation", "amp", "seed"),
    }
)


def _check_options(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [f"{k} was {saved.get(k)!r}, is {v!r}" for k, v in now.items() if saved.get(k) != v]
    if changed:
        raise ValueError(
            f"{path} belongs to a run with other settings ({'; '.join(changed)}): "
            "train into another folder, or with resume=False"
        )


def _student_module(student: nn.Module | str, teacher: Teacher) -> nn.Module:
    if isinstance(student, str):
        if student != "rawify":
            raise ValueError(f'student {student!r}: the only name is "rawify"; or pass a module')
        student = rawify(
            teacher.model,
            mean=teacher.mean,
            std=teacher.std,
            curve="gamma",
            white_balance=True,
            colour_matrix=True,
        )
    pupil = as_student(student)
    if not isinstance(pupil, nn.Module):
        raise TypeError(f"a student to train must be an nn.Module, not {type(student).__name__}")
    return pupil


def _parameter_groups(
    student: nn.Module, trainable: str, lr: float, stem_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    stems = [m for m in student.modules() if isinstance(m, RawStem)]
    if trainable == "stem":
        if not stems:
            raise ValueError('trainable="stem" needs a student with a RawStem')
        student.requires_grad_(False)
        for stem in stems:
            stem.weight.requires_grad_(True)
            if stem.bias is not None:
                stem.bias.requires_grad_(True)
            if stem.learn_camera:
                stem.gain.requires_grad_(True)
                stem.mix.requires_grad_(True)
                stem.gamma.requires_grad_(stem.curve == "gamma")
    camera = [p for stem in stems for p in stem.camera_parameters()]
    known = {id(p) for p in camera}
    rest = [p for p in student.parameters() if p.requires_grad and id(p) not in known]
    groups = [
        {"params": camera, "lr": stem_lr, "weight_decay": 0.0},
        {"params": [p for p in rest if p.dim() > 1], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in rest if p.dim() <= 1], "lr": lr, "weight_decay": 0.0},
    ]
    groups = [{**g, "peak_lr": g["lr"]} for g in groups if g["params"]]
    if not groups:
        raise ValueError("the student has no trainable parameter")
    return groups


def _schedule(step: int, steps: int, warmup: float) -> float:
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class _Average:
    """An exponential moving average of a module's floating-point state."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        for name, value in module.state_dict().items():
            kept = self.weights[name]
            if kept.dtype.is_floating_point:
                kept.lerp_(value, 1 - self.decay)
            else:
                kept.copy_(value)

    def load(self, weights: dict[str, Tensor]) -> None:
        for name, value in self.weights.items():
            value.copy_(weights[name])

    def write(self, module: nn.Module) -> None:
        module.load_state_dict(self.weights)


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
