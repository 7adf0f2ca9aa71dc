"""``RawBatch``: what a model is trained on at once, the mosaics and what is known of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isp_distill.data.unpacking import linear_mosaic, unpacked_mosaic
from isp_distill.isp.camera import ISP


@dataclass(frozen=True)
class RawBatch:
    """A batch as the trainer takes it.

    Attributes:
        mosaic: ``[N, H, W]`` uint16; or packed bytes, uint8 ``[N, H, bytes]``, where ``isp``
            says how; or linear values, float32, of a companding sensor's binned views.
        isp: every sample's camera.
        labels: int64 ``[N]``, or ``[N, h, w]`` where they are maps, at the resolution where dense
            logits are compared; -100 where there is none. Or None.
        picture: what the teacher sees where the data are pictures: float32 ``[N, 3, H, W]``.
        teacher: the teacher's logits where they were stored: float32 ``[N, C, ...]``.
        items: which items of the dataset they are views of; None where nobody knows.
        features: its stored features, by name: float16 ``[N, ...]``.
        windows: of each view its top, left, height and width in its file, pixels of the upright
            mosaic (of a picture, its own). None where nobody knows.
        boxes: the true boxes that each view shows, float32 ``[M, 6]`` on the CPU, see
            :mod:`isp_distill.data.true_boxes`; or None.
    """

    mosaic: Tensor
    isp: ISP
    labels: Tensor | None = None
    picture: Tensor | None = None
    teacher: Tensor | None = None
    items: tuple[int, ...] | None = None
    features: dict[str, Tensor] | None = None
    windows: tuple[tuple[float, ...], ...] | None = None
    boxes: tuple[Tensor, ...] | None = None

    def to(self, device: torch.device | str) -> RawBatch:
        """The batch on a device; copies overlap with compute where its memory is pinned."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name in ("mosaic", "labels", "picture", "teacher")
            if (value := getattr(self, name)) is not None
        }
        if self.features is not None:
            each = self.features.items()
            moved["features"] = {n: v.to(device, non_blocking=True) for n, v in each}
        return dataclasses.replace(self, isp=self.isp.to(device, non_blocking=True), **moved)

    def unpacked(self) -> RawBatch:
        """The batch with mosaics of codes, uint16 ``[N, H, W]``; itself where it has such."""
        mosaic, isp = unpacked_mosaic(self.mosaic, self.isp)
        return self if isp is self.isp else dataclasses.replace(self, mosaic=mosaic, isp=isp)

    def linear(self) -> RawBatch:
        """The batch with linear values, float32 ``[N, H, W]``, where codes are companded.

        Where they are not, as :meth:`unpacked`.
        """
        mosaic, isp = linear_mosaic(self.mosaic, self.isp)
        return self if isp is self.isp else dataclasses.replace(self, mosaic=mosaic, isp=isp)

    @property
    def nbytes(self) -> int:
        """The size of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Every tensor in it."""
        own = [getattr(self, field.name) for field in dataclasses.fields(self)]
        own += (self.features or {}).values()
        return [value for value in (*own, *self.isp.tensors()) if isinstance(value, Tensor)]

    def pin_memory(self) -> RawBatch:
        """The batch in page-locked memory."""
        pinned: dict[str, Any] = {
            name: value.pin_memory()
            for name in ("mosaic", "labels", "picture", "teacher")
            if (value := getattr(self, name)) is not None
        }
        if self.features is not None:
            pinned["features"] = {n: v.pin_memory() for n, v in self.features.items()}
        return dataclasses.replace(self, isp=self.isp.pin_memory(), **pinned)
