"""``TrainSettings``: everything that a training run may be told beside its models and its data.

One frozen value, checked once. ``train()`` takes its fields as keywords, the shell makes its flags
and their help from it, a run writes it into its report, its checkpoint and its ``config.toml``.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from isp_distill.arguments import nearest, real_number, shown, whole_number, whole_numbers
from isp_distill.data.draw import FIXED_PLACES
from isp_distill.data.exposure import ShortExposure
from isp_distill.data.loader import PREFETCH_BYTES
from isp_distill.data.views import View
from isp_distill.detection.loss import BOX_OBJECTIVES
from isp_distill.isp.augmentation import ISPAugmentation
from isp_distill.isp.camera import DEMOSAICS, TONES
from isp_distill.models.losses import DistillLoss
from isp_distill.models.match import Match, matches_of
from isp_distill.models.output import Output, checked_output, described_output
from isp_distill.ops.raw_conv.operator import CURVES
from isp_distill.ops.unprocess.noise import NoiseModel
from isp_distill.training.plain_values import made_value, plain_value

TRAINABLE = ("all", "stem")


#: What a run that goes on may change, since its weights do not depend on it.
FREE = frozenset(
    {
        *("validation_views", "channels_last", "compile", "device", "workers", "prefetch_bytes"),
        *(
            "boxes",
            "checkpoint_every",
            "metrics_every",
            "resume",
            "tensorboard",
            "progress",
            "profile",
        ),
    }
)


@dataclass(frozen=True)
class TrainSettings:
    """How to train; every field is a keyword of :func:`isp_distill.train`, and a flag of the shell.

    Attributes:
        steps: optimiser steps.
        batch_size: views a forward pass, in each process.
        validation_views: crops a file of the validation data, 1 to 5.
        crop: side of the mosaics in sensor pixels, even; None: twice the teacher's size.
        binning: sites of one colour averaged per side; None: as many as leave the crop.
        crop_area: random resized crops, of whole CFA periods: least and largest share of the
            mosaic's area in a view, e.g. (0.25, 1), resized to the crop; None: views of one size.
        crop_ratio: of random resized crops, least and largest width over height.
        vertical_flip: turn half of the views upside down too; left and right always change places
            in half of them. The pattern follows, and teacher and student see the same view.
        match: what is made alike, as a list of :class:`isp_distill.Match` (or their fields, or
            names): outputs, or features by a module's name, each with its own objective and weight;
            None: the outputs alone.
        student_output: which part of what the student returns is compared, see
            :class:`isp_distill.Teacher`.
        objective: of the outputs: forward_kl, reverse_kl, jsd, tvd, dkd, mse, cwd or binary_kl, see
            :func:`isp_distill.distill_loss`; or, of embeddings, cosine, smooth_l1 or
            cosine_smooth_l1, see :func:`isp_distill.feature_loss`. None: cosine where the teacher
            has no classifier, binary_kl where it is a detector of sigmoids, else forward_kl.
        temperature: of the softmax of both models in the objective, above 0.
        alpha: share of the objective, 0 to 1; the rest is the cross entropy of the labels, which
            are looked at only below 1.
        dense_size: of dense logits, the resolution at which they are compared, in the loss and in
            the reports: one side or (height, width); None: the teacher's own. Both logits are
            upsampled in the loss's kernel, see :func:`isp_distill.upsampled_distill_loss`.
        box_objective: of a detector's boxes: giou or smooth_l1, see
            :class:`isp_distill.detection.DetectionLoss`.
        box_weight: of the boxes beside the classes, 0 or more.
        boxes: of detectors: the true boxes of the validation data, a COCO JSON; agreement with them
            is measured as well, and nothing is trained on them.
        lr: learning rate of the weights, cosine to zero after the warm-up.
        stem_lr: learning rate of the stem's few camera numbers (gain, mix, gamma).
        weight_decay: AdamW's, on weights of two or more axes.
        warmup: share of the steps over which the learning rates rise from zero, 0 to 1.
        clip_norm: largest norm of the gradient; 0 for none.
        ema: decay of averaged weights, which then are the result, 0 to below 1; 0 for none.
        accumulate: forward passes an optimiser step.
        trainable: all, or stem for the RawStem alone.
        freeze_batch_norm: keep batch-norm statistics as they are.
        dropout: leave dropout and stochastic depth on.
        exposure: what the student sees: None for the clean shot, a factor such as 0.1, (least,
            largest) of which each view draws one, or a :class:`ShortExposure`, for a short and
            noisy one.
        noise: sensor noise in mosaics that are made from pictures: a :class:`NoiseModel`.
        tone: tone curve of the pictures that the teacher sees: linear, srgb, gamma, smoothstep or
            log, the one for sensors of 20 or 24 bits; None: the teacher's own.
        curve: of the student that "rawify" makes of the teacher: linear, sqrt, gamma or log, see
            :func:`isp_distill.raw_conv`; None: gamma.
        demosaic: of the picture that such a student begins with: superpixel, bilinear or malvar,
            see :func:`isp_distill.rawify`; None: the teacher's, else malvar.
        augmentation: ranges from which the exposure and white balance of the teacher's ISP are
            drawn for each view: an :class:`ISPAugmentation`; None: each file's own.
        amp: bfloat16 autocast; None: where the device is a GPU.
        channels_last: keep the models' images and weights in channels-last memory.
        compile: run the student through torch.compile.
        device: where to compute; None: cuda if there is one, else cpu.
        workers: threads that read.
        prefetch_bytes: batches made ahead of the training, so many bytes of them.
        checkpoint_every: steps between checkpoints; there is always one at the end.
        metrics_every: steps between readings of loss and agreement, since a GPU's queue runs dry
            while they are read (every step is written all the same); None: 1 on the CPU, else 10.
        resume: go on from the checkpoint that lies in the run's folder, if there is one.
        tensorboard: write TensorBoard's files where it is installed.
        progress: show a progress bar.
        profile: print at the end how the time of a step divides over its stages, and put it into
            the report; on a GPU this makes the run slower.
        seed: of everything random.

    Raises:
        TypeError: for a value of another type; the message names setting and value.
        ValueError: for one out of range.

    Example:
        >>> settings = isp_distill.TrainSettings(steps=100, exposure=0.1)
        >>> settings.steps, settings.exposure.factor
        (100, 0.1)
        >>> isp_distill.TrainSettings(steps=0)
        Traceback (most recent call last):
        ValueError: steps must be at least 1, got 0
    """

    steps: int = 500
    batch_size: int = 16
    validation_views: int = 1
    crop: int | None = None
    binning: int | None = None
    crop_area: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    vertical_flip: bool = False
    match: Sequence[Match | Mapping[str, Any] | str] | None = None
    student_output: Output = None
    objective: str | None = None
    temperature: float = 2.0
    alpha: float = 1.0
    dense_size: int | Sequence[int] | None = None
    box_objective: str = "giou"
    box_weight: float = 2.0
    boxes: str | os.PathLike[str] | None = None
    lr: float = 3e-5
    stem_lr: float = 2e-2
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip_norm: float = 1.0
    ema: float = 0.0
    accumulate: int = 1
    trainable: str = "all"
    freeze_batch_norm: bool = True
    dropout: bool = False
    exposure: ShortExposure | float | tuple[float, float] | None = None
    noise: NoiseModel | None = None
    tone: str | None = None
    curve: str | None = None
    demosaic: str | None = None
    augmentation: ISPAugmentation | None = None
    amp: bool | None = None
    channels_last: bool = False
    compile: bool = False
    device: torch.device | str | None = None
    workers: int = 2
    prefetch_bytes: int = PREFETCH_BYTES
    checkpoint_every: int = 100
    metrics_every: int | None = None
    resume: bool = True
    tensorboard: bool = True
    progress: bool = True
    profile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in WHOLE.items():
            if getattr(self, name) is not None or name not in _MAY_BE_NONE:
                self._set(name, whole_number(getattr(self, name), name, least=least))
        for name, (least_real, most) in _REAL.items():
            value = real_number(getattr(self, name), name)
            if not (least_real <= value <= most and math.isfinite(value)):
                limits = f"in [{least_real:g}, {most:g}]" if most < math.inf else "0 or more"
                raise ValueError(f"{name} must be {limits}, got {value:g}")
            self._set(name, value)
        for name in ("temperature", "alpha"):  # their ranges are the loss's
            self._set(name, real_number(getattr(self, name), name))
        if self.ema == 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        for name in FLAGS:
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "amp" and value is None):
                raise TypeError(f"{name} must be True or False, got {shown(value)}")
        if self.validation_views > len(FIXED_PLACES):
            raise ValueError(
                f"validation_views must be at most {len(FIXED_PLACES)}, got {self.validation_views}"
            )
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known and not (value is None and name in _MAY_BE_NONE):
                expected = " or ".join(known)
                raise ValueError(f"unknown {name} {value!r}: expected {expected}")
        for name in ("crop_area", "crop_ratio"):
            self._set(name, _pair(getattr(self, name), name))
        if self.dense_size is not None:
            self._set("dense_size", _sides(self.dense_size))
        if self.device is not None:
            try:
                self._set("device", str(torch.device(self.device)))
            except (RuntimeError, TypeError):
                raise ValueError(
                    f"device {shown(self.device)}: torch knows no such device; give cpu, cuda, "
                    "cuda:1 or another of its names"
                ) from None
        self._set("exposure", ShortExposure.of(self.exposure))
        for name, kind in VALUES.items():
            value = getattr(self, name)
            if not (value is None or isinstance(value, kind)):
                raise TypeError(f"{name} must be {kind.__name__} or None, got {shown(value)}")
        self._set("boxes", _path(self.boxes))
        self._set("match", matches_of(self.match))
        checked_output(self.student_output, "student_output")
        # What a view and a loss may be made of, they know themselves.
        self.view(2)
        self.class_loss(Match("logits", objective="forward_kl"))
        matches = self.matches()
        for one in matches:
            if one.of_classes:
                self.class_loss(one)
        if self.alpha != 1 and not any(one.of_classes and one.of_outputs for one in matches):
            raise ValueError(
                f"alpha={self.alpha:g} mixes the labels' cross entropy into the logits' objective, "
                'and no logits are matched: leave alpha at 1, or add "logits" to match'
            )

    @classmethod
    def of(cls, settings: TrainSettings | None, **changes: Any) -> TrainSettings:
        """The settings with some changed; the defaults where there are none.

        Raises:
            TypeError: for a name that is none, with the nearest one.
        """
        check_names(changes)
        return cls(**changes) if settings is None else dataclasses.replace(settings, **changes)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> TrainSettings:
        """The settings from what :meth:`plain` made of some, or a part of it.

        Raises:
            TypeError: for an unknown name, or a value of another type.
            ValueError: for a value out of range.
        """
        made = dict(values)
        for name, kind in VALUES.items():
            if isinstance(made.get(name), Mapping):
                made[name] = made_value(kind, made[name], name)
        return cls.of(None, **made)

    def plain(self) -> dict[str, Any]:
        """Every setting, in numbers, strings, lists and dictionaries of them: what JSON can say."""
        values = {f.name: plain_value(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {**values, "student_output": described_output(self.student_output)}

    def decisive(self) -> dict[str, Any]:
        """Of :meth:`plain`, what the weights depend on: a run that goes on must have the same."""
        return {name: value for name, value in self.plain().items() if name not in FREE}

    def view(self, teacher_size: int) -> View:
        """How samples are cut for a teacher of this size.

        Raises:
            ValueError: for settings of it that are out of range or do not go together.
        """
        return View(
            2 * teacher_size if self.crop is None else self.crop,
            self.binning,
            area=self.crop_area,
            ratio=self.crop_ratio,
            flip=self.vertical_flip,
        )

    def matches(self) -> tuple[Match, ...]:
        """What is matched, each with its objective and, of classes, its temperature."""
        chosen = matches_of(self.match) or (Match("logits"),)
        objective = "forward_kl" if self.objective is None else self.objective
        return tuple(one.completed(objective, self.temperature) for one in chosen)

    def class_loss(self, match: Match) -> DistillLoss:
        """The loss of a match of classes, with the count of predictions that agree.

        The labels are those of the models' outputs: other logits are compared without them.
        """
        return DistillLoss(
            match.objective or "forward_kl",
            temperature=self.temperature if match.temperature is None else match.temperature,
            alpha=self.alpha if match.of_outputs else 1.0,
            return_agreement=True,
            size=self.dense_size,
        )

    @property
    def short_exposure(self) -> ShortExposure | None:
        """The short exposure that the student sees, if any."""
        return ShortExposure.of(self.exposure)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


#: Settings that are whole numbers, and the least that each may be.
WHOLE: dict[str, int | None] = {
    **dict.fromkeys(("steps", "batch_size", "validation_views", "accumulate", "workers"), 1),
    **dict.fromkeys(("prefetch_bytes", "checkpoint_every", "metrics_every"), 1),
    **{"crop": 2, "binning": 1, "seed": 0},
}
_MAY_BE_NONE = ("crop", "binning", "metrics_every", "tone", "curve", "demosaic")
#: Settings that are one of some names.
CHOICES: dict[str, tuple[str, ...]] = {
    "trainable": TRAINABLE,
    "tone": TONES,
    "curve": CURVES,
    "demosaic": DEMOSAICS,
    "box_objective": BOX_OBJECTIVES,
}
# The least and the most that each real number may be.
_REAL = {
    **dict.fromkeys(("lr", "stem_lr", "weight_decay", "clip_norm", "box_weight"), (0.0, math.inf)),
    **dict.fromkeys(("warmup", "ema"), (0.0, 1.0)),
}
#: Settings that are on or off.
FLAGS = (
    *("vertical_flip", "freeze_batch_norm", "dropout", "amp", "channels_last", "compile"),
    *("resume", "tensorboard", "progress", "profile"),
)
#: Settings that are values of their own, and their types.
VALUES: dict[str, type] = {
    "exposure": ShortExposure,
    "noise": NoiseModel,
    "augmentation": ISPAugmentation,
}


def check_names(names: Iterable[str]) -> None:
    """Refuse what is no setting.

    Raises:
        TypeError: that names it, and the nearest setting.
    """
    known = [f.name for f in dataclasses.fields(TrainSettings)]
    for name in names:
        if name not in known:
            hint = nearest(name, known) or f"there are {', '.join(known)}"
            raise TypeError(f"train has no setting {name!r}: {hint}")


def _pair(value: Any, name: str) -> tuple[float, float] | None:
    if value is None and name != "crop_ratio":
        return None
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"{name} must be (least, largest), got {shown(value)}")
    return real_number(value[0], name), real_number(value[1], name)


def _path(value: Any) -> str | None:
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"boxes must be the path of a COCO JSON, got {shown(value)}")
    return None if value is None else os.fspath(value)


def _sides(value: Any) -> int | tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        sides: tuple[int, ...] = (whole_number(value, "dense_size"),)
    else:
        sides = whole_numbers(value, "dense_size")
    if len(sides) > 2 or not sides or min(sides) < 1:
        raise ValueError(
            f"dense_size {shown(value)}: expected one side or (height, width), at least 1"
        )
    return sides if isinstance(value, Sequence) else sides[0]
