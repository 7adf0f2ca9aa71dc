"""``TrainKeywords``: the settings of a training as keywords, with their types."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch

from isp_distill.data.exposure import ShortExposure
from isp_distill.isp.augmentation import ISPAugmentation
from isp_distill.models.match import Match
from isp_distill.models.output import Output
from isp_distill.ops.unprocess.noise import NoiseModel


class TrainKeywords(TypedDict, total=False):
    """The fields of :class:`isp_distill.TrainSettings`, for editors and checkers of types."""

    steps: int
    batch_size: int
    validation_views: int
    crop: int | None
    binning: int | None
    crop_area: tuple[float, float] | None
    crop_ratio: tuple[float, float]
    vertical_flip: bool
    match: Sequence[Match | Mapping[str, Any] | str] | None
    student_output: Output
    objective: str | None
    temperature: float
    alpha: float
    dense_size: int | Sequence[int] | None
    box_objective: str
    box_weight: float
    boxes: str | os.PathLike[str] | None
    lr: float
    stem_lr: float
    weight_decay: float
    warmup: float
    clip_norm: float
    ema: float
    accumulate: int
    trainable: str
    freeze_batch_norm: bool
    dropout: bool
    exposure: ShortExposure | float | tuple[float, float] | None
    noise: NoiseModel | None
    tone: str | None
    curve: str | None
    demosaic: str | None
    augmentation: ISPAugmentation | None
    amp: bool | None
    channels_last: bool
    compile: bool
    device: torch.device | str | None
    workers: int
    prefetch_bytes: int
    checkpoint_every: int
    metrics_every: int | None
    resume: bool
    tensorboard: bool
    progress: bool
    profile: bool
    seed: int
