"""The teacher: an off-the-shelf RGB model and the pictures it expects; and its students."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isp_distill.arguments import shown, whole_number
from isp_distill.data.batch import RawBatch
from isp_distill.isp.augmentation import ISPAugmentation
from isp_distill.models.named import is_function, made_by
from isp_distill.models.timm_weights import pretrained_model
from isp_distill.ops.render.call import render
from isp_distill.raw.cfa import on_device

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: a tensor, or torchvision's ``{"out": ...}``.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(output, dict) and isinstance(output.get("out"), Tensor):
        output = output["out"]
    if not isinstance(output, Tensor) or output.dim() < 2:
        raise TypeError(f"a model must return logits [N, C] or [N, C, H, W], got {type(output)}")
    return output


@dataclass(frozen=True)
class Teacher:
    """An RGB model and what its input must look like.

    Attributes:
        model: takes ``[N, 3, size, size]`` and returns logits ``[N, C]`` or ``[N, C, H, W]``.
        mean: subtracted from pictures in [0, 1].
        std: divides them.
        size: side of its square input, pixels.
        classes: class names, for pictures and reports.
        demosaic: of the pictures it sees; None leaves the ISP's.
        tone: of the pictures it sees; None leaves the ISP's.
        resize_in: see :func:`isp_distill.render`.

    Raises:
        TypeError: for a model that is no module, or a size or numbers that are none.
        ValueError: for a size below 1, or mean and std that are not three finite numbers, those of
            ``std`` above 0.

    Examples:
        >>> teacher = isp_distill.Teacher(model, size=32)
        >>> teacher.logits(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 4])
    """

    model: nn.Module
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    size: int = 224
    classes: Sequence[str] | None = field(default=None, repr=False)
    demosaic: str | None = None
    tone: str | None = None
    resize_in: str = "display"

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"a teacher's model is an nn.Module, not {type(self.model).__name__}")
        object.__setattr__(self, "size", whole_number(self.size, "size"))
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        for name, least in (("mean", -math.inf), ("std", 0.0)):
            given = getattr(self, name)
            values = on_device(given, torch.device("cpu"), torch.float64, name).reshape(-1)
            if len(values) not in (1, 3) or not bool(
                (torch.isfinite(values) & (values > least)).all()
            ):
                positive = ", above 0" if name == "std" else ""
                raise ValueError(
                    f"{name} must be three numbers (of R, G and B){positive}, got {shown(given)}"
                )

    @classmethod
    def from_timm(cls, name: str, **settings: Any) -> Teacher:
        """A pretrained model of timm, with the mean, std and size that it was trained with.

        Raises:
            ImportError: if timm is not installed.
            RuntimeError: if its weights are not on this machine and cannot be fetched.
        """
        model = pretrained_model(name)
        from timm.data.config import resolve_model_data_config

        # Untyped in timm, hence the ignore.
        config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
        found = {"mean": config["mean"], "std": config["std"], "size": config["input_size"][-1]}
        return cls(model, **{**found, **settings})

    def picture(
        self, batch: RawBatch, augmentation: ISPAugmentation | None = None, seed: int = 0
    ) -> Tensor:
        """What the teacher sees of a batch, in [0, 1]: ``[N, 3, size, size]``.

        ``augmentation`` varies the ISP, drawn from ``seed``; pictures that mosaics were made from
        stay as they are.
        """
        if batch.picture is not None:
            return F.interpolate(
                batch.picture, (self.size, self.size), mode="bilinear", antialias=True
            )
        changes = {"demosaic": self.demosaic, "tone": self.tone}
        isp = batch.isp.replace(**{k: v for k, v in changes.items() if v is not None})
        if augmentation is not None:
            isp = augmentation.draw(isp, len(batch.mosaic), seed, batch.mosaic.device)
        return render(batch.mosaic, isp, size=(self.size, self.size), resize_in=self.resize_in)

    def logits(self, picture: Tensor) -> Tensor:
        """The teacher's logits for pictures in [0, 1]."""
        mean, std = (
            on_device(value, picture.device, torch.float32).reshape(-1)
            for value in (self.mean, self.std)
        )
        return logits_of(self.model((picture - mean[:, None, None]) / std[:, None, None]))

    @torch.no_grad()
    def output_shape(self, device: torch.device) -> tuple[int, ...]:
        """The shape of one picture's logits, ``(C,)`` or ``(C, h, w)``: the model is run once.

        Args:
            device: where the model is, in eval mode.
        """
        picture = torch.zeros(1, 3, self.size, self.size, device=device)
        return tuple(self.logits(picture).shape[1:])


def as_teacher(teacher: Teacher | nn.Module | str) -> Teacher:
    """A Teacher from one, from a module (ImageNet's mean, std and 224 pixels), or by its name.

    A name is one of timm's, or MODULE:FUNCTION, a function of yours that returns a Teacher or a
    module.

    Raises:
        ImportError: there is no such module, or it cannot be imported; or timm is missing.
        ValueError: it has no such function.
    """
    if isinstance(teacher, Teacher):
        return teacher
    if not isinstance(teacher, str):
        return Teacher(teacher)
    if is_function(teacher):
        return as_teacher(made_by(teacher, "teacher"))
    return Teacher.from_timm(teacher)
