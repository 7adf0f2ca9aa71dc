"""``RawBatch``: what a model is trained on at once, the mosaics and what is known of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from isp_distill.isp.camera import ISP


@dataclass(frozen=True)
class RawBatch:
    """A batch as the trainer takes it.

    Attributes:
        mosaic: ``[N, H, W]`` uint16.
        isp: every sample's camera.
        labels: int64 ``[N]``, or ``[N, h, w]`` where they are maps, at the resolution where dense
            logits are compared; -100 where there is none. Or None.
        picture: what the teacher sees where the data are pictures: float32 ``[N, 3, H, W]``.
        teacher: the teacher's logits where they were stored: float32 ``[N, C, ...]``.
    """

    mosaic: Tensor
    isp: ISP
    labels: Tensor | None = None
    picture: Tensor | None = None
    teacher: Tensor | None = None

    def to(self, device: torch.device | str) -> RawBatch:
        """The batch on a device; copies overlap with compute where its memory is pinned."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name in ("mosaic", "labels", "picture", "teacher")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, isp=self.isp.to(device, non_blocking=True), **moved)

    @property
    def nbytes(self) -> int:
        """The size of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Every tensor in it."""
        own = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return [value for value in (*own, *self.isp.tensors()) if isinstance(value, Tensor)]

    def pin_memory(self) -> RawBatch:
        """The batch in page-locked memory."""
        pinned = {
            name: value.pin_memory()
            for name in ("mosaic", "labels", "picture", "teacher")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, isp=self.isp.pin_memory(), **pinned)
