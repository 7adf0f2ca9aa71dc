"""One student or teacher measured on held-out files: what it says of every one of them, kept.

The figures of a row come from these: agreement with the teacher, KL, accuracy on real labels, mean
IoU or cosine. They are kept file by file, so that two rows can be compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isp_distill import NoiseModel, Report, ShortExposure, Teacher, evaluate
from isp_distill.models.student import as_student

NOISE = NoiseModel.preset("medium")


class Remembered(nn.Module):
    """A model that looks at the same pictures for every row, and thinks about each batch once.

    Args:
        model: the teacher's, frozen.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.said: dict[tuple[Any, ...], Tensor] = {}
        #: What was said since somebody emptied this list, a batch an entry.
        self.heard: list[Tensor] = []

    def forward(self, picture: Tensor) -> Any:
        """What the model says of the pictures."""
        key = (
            *picture.shape,
            picture.double().sum().item(),
            picture.double().square().sum().item(),
        )
        if key not in self.said:
            self.said[key] = self.model(picture)
        self.heard.append(self.said[key])
        return self.said[key]


def remembering(teacher: Teacher) -> Teacher:
    """The teacher, with a memory."""
    return Teacher(
        Remembered(teacher.model), mean=teacher.mean, std=teacher.std, size=teacher.size,
        classes=teacher.classes,
    )  # fmt: skip


def measured(
    student: Any,
    teacher: Teacher,
    held_out: Path,
    factor: float,
    *,
    dense_size: int | None = None,
    batch_size: int = 16,
) -> tuple[Report, Tensor, Tensor]:
    """How far a student is from its teacher's word on the clean shot, at one exposure.

    Args:
        student: a module, or a function of ``(mosaic, isp)``.
        teacher: of :func:`remembering`; looks at the clean shot's picture.
        held_out: folder of RAW files.
        factor: of the exposure that the student sees; the same noise for every student.
        dense_size: of dense logits.
        batch_size: views a forward pass.

    Returns:
        The report; and the top class of every file, in the files' order, by the student and by the
        teacher on the clean shot. Of dense logits and of embeddings there are none.
    """
    pupil: Callable[..., Any] = as_student(student)
    top: list[Tensor] = []

    def listened(mosaic: Tensor, isp: Any) -> Any:
        said = pupil(mosaic, isp)
        if isinstance(said, Tensor) and said.ndim == 2:
            top.append(said.argmax(1))
        return said

    assert isinstance(teacher.model, Remembered)
    teacher.model.heard.clear()
    module = student if isinstance(student, nn.Module) else None
    if module is not None:
        module.eval()
    report = evaluate(
        listened, teacher, held_out, exposure=ShortExposure(factor, NOISE), dense_size=dense_size,
        batch_size=batch_size, device="cpu", progress=False, crop=2 * teacher.size,
    )  # fmt: skip
    if not top:
        return report, torch.empty(0), torch.empty(0)
    said = torch.cat(top)
    # Before the files the teacher was shown one picture, to see what it returns.
    return report, said, torch.cat([one.argmax(1) for one in teacher.model.heard])[-len(said) :]
