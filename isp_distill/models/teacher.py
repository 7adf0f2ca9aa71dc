"""The teacher: an off-the-shelf RGB model and the pictures it expects; and its students."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isp_distill.arguments import shown, whole_number
from isp_distill.data.batch import RawBatch
from isp_distill.isp.augmentation import ISPAugmentation
from isp_distill.models.named import is_function, made_by
from isp_distill.models.output import TEACHER_OPTION, Output, checked_output, read_output
from isp_distill.models.timm_weights import class_names, pretrained_model
from isp_distill.ops.render.call import render
from isp_distill.raw.cfa import on_device

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The scale of CLIP's logits.
_ZERO_SHOT = 100.0


@dataclass(frozen=True)
class Teacher:
    """An RGB model and what its input must look like.

    Attributes:
        model: takes ``[N, 3, size, size]`` and returns logits ``[N, C]`` or ``[N, C, H, W]``, or
            an embedding ``[N, D]``: a module, or any function of the picture (around a session of
            onnxruntime, for example; arrays of NumPy are taken too). A function may have a
            ``fingerprint``, a string that tells its weights from others.
        mean: subtracted from pictures in [0, 1].
        std: divides them.
        size: side of its square input, pixels.
        classes: class names, for pictures and reports.
        demosaic: of the pictures it sees; None leaves the ISP's.
        tone: of the pictures it sees; None leaves the ISP's.
        resize_in: see :func:`isp_distill.render`.
        output: which part of what the model returns is compared: a key, with dots for what lies
            deeper (``"last_hidden_state"``, ``"hidden_states.3"``), a function of it, or its
            MODULE:FUNCTION. None understands a tensor; ``logits`` or ``out`` of a dict or a
            dataclass; where there is neither, the embedding that transformers calls
            ``image_embeds`` or ``pooler_output``; and of a tuple its first.
        class_embeddings: of a teacher that gives embeddings: ``[C, D]``, one for each class, such
            as those of a CLIP's texts. Reports then compare the classes that they make of both
            models' embeddings as well; ``classes`` names them.

    Raises:
        TypeError: for a model that cannot be called, or a size or numbers that are none.
        ValueError: for a size below 1, mean and std that are not three finite numbers, those of
            ``std`` above 0, or class embeddings that are no table.

    Examples:
        >>> teacher = isp_distill.Teacher(model, size=32)
        >>> teacher.logits(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 4])
        >>> teacher = isp_distill.Teacher(lambda x: {"scores": x.mean((2, 3))}, output="scores")
        >>> teacher.logits(torch.rand(2, 3, 224, 224)).shape
        torch.Size([2, 3])
    """

    model: nn.Module | Callable[[Tensor], Any]
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    size: int = 224
    classes: Sequence[str] | None = field(default=None, repr=False)
    demosaic: str | None = None
    tone: str | None = None
    resize_in: str = "display"
    output: Output = None
    class_embeddings: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not callable(self.model):
            raise TypeError(
                "a teacher's model is an nn.Module or a function of pictures, not "
                f"{type(self.model).__name__}"
            )
        checked_output(self.output, "output")
        table = self.class_embeddings
        if table is not None and not (isinstance(table, Tensor) and table.dim() == 2):
            raise ValueError(f"class_embeddings must be a tensor [C, D], got {shown(table)}")
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
        """A pretrained model of timm, with the mean, std, size and classes of its training.

        Raises:
            ImportError: if timm is not installed.
            RuntimeError: if its weights are not on this machine and cannot be fetched.
        """
        model = pretrained_model(name)
        from timm.data.config import resolve_model_data_config

        # Untyped in timm, hence the ignore.
        config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
        found = {
            "mean": config["mean"],
            "std": config["std"],
            "size": config["input_size"][-1],
            "classes": class_names(model, name),
        }
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

    @property
    def module(self) -> nn.Module | None:
        """The model, where it is a module and no other function."""
        return self.model if isinstance(self.model, nn.Module) else None

    def prepare(self, device: torch.device) -> None:
        """Move the model to a device and into the mode of evaluation, where it is a module."""
        if self.module is not None:
            self.module.to(device).eval()

    def run(self, picture: Tensor) -> Any:
        """What the model returns for pictures in [0, 1], as it is."""
        mean, std = (
            on_device(value, picture.device, torch.float32).reshape(-1)
            for value in (self.mean, self.std)
        )
        return self.model((picture - mean[:, None, None]) / std[:, None, None])

    def read(self, output: Any, device: torch.device) -> Tensor:
        """The part of what the model returned that is compared, on a device.

        Raises:
            TypeError: the output is not understood; the message lists its keys.
        """
        return read_output(output, self.output, TEACHER_OPTION).to(device)

    def logits(self, picture: Tensor) -> Tensor:
        """The teacher's logits, or its embedding, for pictures in [0, 1].

        Raises:
            TypeError: the model's output is not understood; the message lists its keys.
        """
        return self.read(self.run(picture), picture.device)

    def zero_shot(self, embedding: Tensor) -> Tensor:
        """Logits ``[N, C]`` of the classes whose embeddings are known: 100 times the cosine.

        The factor is the one that CLIP's training ends at.

        Args:
            embedding: ``[N, D]``.

        Raises:
            ValueError: there are no class embeddings, or they are of another width.
        """
        table = self.class_embeddings
        if table is None:
            raise ValueError("the teacher has no class_embeddings")
        if embedding.dim() != 2 or embedding.shape[1] != table.shape[1]:
            raise ValueError(
                f"class_embeddings are {list(table.shape)}, and the embeddings of pictures are "
                f"{list(embedding.shape)}: give one row for each class, of the same width"
            )
        rows = F.normalize(table.to(embedding.device, torch.float32), dim=1)
        return _ZERO_SHOT * F.normalize(embedding.float(), dim=1) @ rows.T

    @torch.no_grad()
    def output_shape(self, device: torch.device) -> tuple[int, ...]:
        """The shape of one picture's logits, ``(C,)`` or ``(C, h, w)``: the model is run once.

        Args:
            device: where the model is, in eval mode.
        """
        return tuple(self.logits(self.black(device)).shape[1:])

    def black(self, device: torch.device) -> Tensor:
        """A black picture, to try the model on: ``[1, 3, size, size]``."""
        return torch.zeros(1, 3, self.size, self.size, device=device)


def as_teacher(teacher: Teacher | nn.Module | Callable[[Tensor], Any] | str) -> Teacher:
    """A Teacher from one, from a module (ImageNet's mean, std and 224 pixels), or by its name.

    Any other function of pictures is taken as a module is.

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
