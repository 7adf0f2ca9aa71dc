"""What a run trains: the student, its teacher, the loss between them, optimiser and average."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isp_distill.data.views import View
from isp_distill.models.losses import DistillLoss
from isp_distill.models.stem import RawStem
from isp_distill.models.student import student_module
from isp_distill.models.teacher import Teacher, as_teacher
from isp_distill.models.trained_view import trained_at
from isp_distill.training.job import Job


@dataclass(frozen=True)
class TrainedModels:
    """The models of a run, on its device.

    Attributes:
        student: takes ``(mosaic, isp)``.
        teacher: frozen, in eval mode.
        loss: between their logits.
        view: what they see of a sample.
        optimizer: of the student's weights; its groups hold ``peak_lr``.
        average: of the student's weights, where it is wanted.
    """

    student: nn.Module
    teacher: Teacher
    loss: DistillLoss
    view: View
    optimizer: torch.optim.Optimizer
    average: Average | None


def made_models(
    student: nn.Module | str, teacher: Teacher | nn.Module | str, job: Job
) -> TrainedModels:
    """The models of :func:`isp_distill.train`, from what it was given.

    Raises:
        ValueError: for an unknown student's name, one without trainable parameters, or weights
            that cannot be trained.
        TypeError: for a student that is no module.
    """
    settings = job.settings
    loss = settings.loss()
    chosen = as_teacher(teacher)
    pupil = student_module(student, chosen).to(job.device)
    chosen.model.to(job.device).eval()
    if settings.channels_last:
        for model in (pupil, chosen.model):
            model.to(memory_format=torch.channels_last)
    groups = parameter_groups(
        pupil, settings.trainable, settings.lr, settings.stem_lr, settings.weight_decay
    )
    view = settings.view(chosen.size)
    trained_at(pupil, view)
    average = Average(pupil, settings.ema) if settings.ema else None
    return TrainedModels(pupil, chosen, loss, view, torch.optim.AdamW(groups), average)


def parameter_groups(
    student: nn.Module, trainable: str, lr: float, stem_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW's groups: the stem's camera numbers, weights, and what has no weight decay.

    Raises:
        ValueError: if nothing is trainable.
    """
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
    # Several stems of one model share them.
    camera = list(dict.fromkeys(p for stem in stems for p in stem.camera_parameters()))
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


def set_training(student: nn.Module, dropout: bool, freeze_batch_norm: bool) -> None:
    """The mode of each part: dropout and stochastic depth on or off, batch norm frozen or not."""
    student.train(dropout)
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(not freeze_batch_norm)


def schedule(step: int, steps: int, warmup: float) -> float:
    """The learning rate's factor at a step: linear warm-up, then a cosine to zero."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class Average:
    """An exponential moving average of a module's floating-point state."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        # What a module keeps beside its tensors (its extra state) has no average.
        self.weights: dict[str, Any] = {
            k: v.detach().clone() if isinstance(v, Tensor) else v
            for k, v in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's present weights."""
        for name, value in module.state_dict().items():
            kept = self.weights[name]
            if not isinstance(kept, Tensor):
                self.weights[name] = value
            elif kept.dtype.is_floating_point:
                kept.lerp_(value, 1 - self.decay)
            else:
                kept.copy_(value)

    def load(self, weights: dict[str, Any]) -> None:
        """Take over saved weights."""
        for name, value in self.weights.items():
            if isinstance(value, Tensor):
                value.copy_(weights[name])

    def write(self, module: nn.Module) -> None:
        """Put the averaged weights into a module."""
        module.load_state_dict(self.weights)
