"""What a run trains: the student, its teacher, the loss between them, optimiser and average."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isp_distill.data.source import Source
from isp_distill.data.views import View
from isp_distill.detection.heads import heads_of
from isp_distill.detection.libraries import check_libraries
from isp_distill.detection.loss import DetectionLoss
from isp_distill.detection.loss import usual_objective as usual_of_heads
from isp_distill.models.losses import DistillLoss
from isp_distill.models.match import Match
from isp_distill.models.matching import Matching, made_matching
from isp_distill.models.stem import RawStem
from isp_distill.models.student import demosaic_of, student_module
from isp_distill.models.teacher import Teacher, as_teacher
from isp_distill.models.teacher_output import usual_objective
from isp_distill.models.trained_view import trained_at
from isp_distill.packs.stored_teachers import stored_teacher_of
from isp_distill.training.job import Job
from isp_distill.training.settings import TrainSettings


@dataclass(frozen=True)
class TrainedModels:
    """The models of a run, on its device.

    Attributes:
        student: takes ``(mosaic, isp)``.
        teacher: frozen, in eval mode.
        matching: what of them is made alike, the losses, and the projectors that only they need.
        view: what they see of a sample.
        optimizer: of the student's weights and the projectors'; its groups hold ``peak_lr``.
        average: of the student's weights, where it is wanted.
    """

    student: nn.Module
    teacher: Teacher
    matching: Matching
    view: View
    optimizer: torch.optim.Optimizer
    average: Average | None


def made_models(student: nn.Module, teacher: Teacher, job: Job) -> TrainedModels:
    """The models of a run, from the two that :func:`made_pair` made.

    Raises:
        ValueError: for a student without trainable parameters, or features that cannot be compared.
        TypeError: for an output that is not there.
    """
    settings = job.settings
    pupil = student.to(job.device)
    if settings.channels_last:
        pupil.to(memory_format=torch.channels_last)
    groups = parameter_groups(
        pupil, settings.trainable, settings.lr, settings.stem_lr, settings.weight_decay
    )
    view = settings.view(teacher.size)
    trained_at(pupil, view)
    matching = made_matching(
        settings.matches(),
        pupil,
        teacher,
        view.crop,
        _output_loss(settings, teacher),
        settings.student_output,
    )
    if projectors := list(matching.projectors.parameters()):
        lr = settings.stem_lr
        groups.append({"params": projectors, "lr": lr, "weight_decay": 0.0, "peak_lr": lr})
    average = Average(pupil, settings.ema) if settings.ema else None
    return TrainedModels(pupil, teacher, matching, view, torch.optim.AdamW(groups), average)


def _output_loss(settings: TrainSettings, teacher: Teacher) -> Callable[[Match], DistillLoss]:
    """Makes the loss of a match of classes; of a detector's outputs it is of boxes too.

    Raises:
        ValueError: for settings that a detector has not.
        ImportError: a library that its loss or its detections need is missing.
    """
    heads = heads_of(teacher.model)
    if heads is None:
        return settings.class_loss
    if settings.alpha != 1:
        raise ValueError(
            f"alpha={settings.alpha:g} mixes in the labels' cross entropy, and a detector is "
            "trained on no labels: leave alpha at 1"
        )
    for match in settings.matches():
        if match.of_outputs and not match.of_classes:
            raise ValueError(
                f"objective={match.objective!r} compares features, and the teacher is a detector: "
                f"leave it out, which gives {usual_of_heads(heads)}, or match features by the "
                "names of modules"
            )

    check_libraries(heads, settings.box_objective)

    def loss(match: Match) -> DistillLoss:
        if match.of_outputs:
            temperature = match.temperature
            return DetectionLoss(
                heads,
                match.objective,
                temperature=settings.temperature if temperature is None else temperature,
                box_objective=settings.box_objective,
                box_weight=settings.box_weight,
            )
        return settings.class_loss(match)

    return loss


def made_pair(
    student: nn.Module | str, teacher: Teacher | nn.Module | str, source: Source, job: Job
) -> tuple[nn.Module, Teacher, Job]:
    """Student and teacher, and the job with the objective that the teacher's output asks for.

    The student comes first: a teacher that is asked for its kind may keep what it has seen, and
    could then not be copied.

    Where its logits are stored, they say what kind they are, and it is not run.

    Raises:
        TypeError: its output is not understood.
        ValueError: stored logits are another teacher's.
    """
    chosen, settings = as_teacher(teacher), job.settings
    if settings.tone is not None:
        chosen = dataclasses.replace(chosen, tone=settings.tone)
    chosen.prepare(job.device)
    if settings.channels_last and chosen.module is not None:
        chosen.module.to(memory_format=torch.channels_last)
    if isinstance(student, str) and student == "rawify":
        # Written down as it is: a teacher that is named later may demosaic otherwise.
        settings = dataclasses.replace(settings, demosaic=settings.demosaic or demosaic_of(chosen))
        job = dataclasses.replace(job, settings=settings)
    pupil = student_module(student, chosen, settings.curve, settings.demosaic)
    if settings.objective is not None:
        return pupil, chosen, job
    view = settings.view(chosen.size)
    stored = stored_teacher_of(source, chosen, view, settings.augmentation)
    if (heads := heads_of(chosen.model)) is not None:
        objective = usual_of_heads(heads)
    elif stored is None:
        objective = usual_objective(chosen, job.device)
    else:
        objective = "cosine" if stored.embedding else "forward_kl"
    settings = dataclasses.replace(job.settings, objective=objective)
    return pupil, chosen, dataclasses.replace(job, settings=settings)


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
