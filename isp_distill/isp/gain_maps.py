"""The gain maps of a batch, as tensors: they go to the device with the rest of the ISP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isp_distill.raw.gain_map import GainMap


@dataclass(frozen=True, eq=False)
class GainMaps:
    """A :class:`~isp_distill.raw.gain_map.GainMap` for each sample.

    Attributes:
        gains: float32 ``[N, 4, V, H]``. Shorter grids repeat their last row and column, whose gains
            hold beyond them anyway. Samples without a map have gains of 1.
        place: float32 ``[N, 4]``: top, left, step_y, step_x, in sites of the mosaic.
    """

    gains: Tensor
    place: Tensor

    @classmethod
    def of(cls, maps: GainMap | Sequence[GainMap | None]) -> GainMaps | None:
        """The maps of a batch; None where no sample has one.

        Raises:
            TypeError: for anything else.
        """
        each = [maps] if isinstance(maps, GainMap) else list(maps)
        for one in each:
            if one is not None and not isinstance(one, GainMap):
                raise TypeError(f"gain_map must be a GainMap or None, not {type(one).__name__}")
        found = [one for one in each if one is not None]
        if not found:
            return None
        shape = tuple(max(one.gains.shape[axis] for one in found) for axis in (1, 2))
        gains = np.ones((len(each), 4, *shape), np.float32)
        place = np.tile(np.array([0, 0, 1, 1], np.float32), (len(each), 1))
        for sample, one in enumerate(each):
            if one is not None:
                missing = [
                    (0, n - have) for n, have in zip(shape, one.gains.shape[1:], strict=True)
                ]
                gains[sample] = np.pad(one.gains, [(0, 0), *missing], mode="edge")
                place[sample] = one.top, one.left, one.step_y, one.step_x
        return cls(torch.from_numpy(gains), torch.from_numpy(place))

    @classmethod
    def cat(cls, batches: Sequence[tuple[GainMaps | None, int]]) -> GainMaps | None:
        """Several batches, each given with its size, as one; None where none has a map."""
        held = [maps for maps, _ in batches if maps is not None]
        if not held:
            return None
        rows, columns = (max(maps.gains.shape[axis] for maps in held) for axis in (2, 3))
        gains, places = [], []
        for maps, count in batches:
            one = maps if maps is not None else cls.none(count, held[0].gains.device)
            one = one.expand(count)
            missing = (0, columns - one.gains.shape[3], 0, rows - one.gains.shape[2])
            gains.append(F.pad(one.gains, missing, mode="replicate"))
            places.append(one.place)
        return cls(torch.cat(gains), torch.cat(places))

    @classmethod
    def none(cls, count: int, device: torch.device) -> GainMaps:
        """Maps that change nothing."""
        place = torch.stack([torch.full((count,), v, device=device) for v in (0.0, 0.0, 1.0, 1.0)])
        return cls(torch.ones(count, 4, 1, 1, device=device), place.T)

    def tensors(self) -> list[Tensor]:
        """Every tensor in it."""
        return [self.gains, self.place]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GainMaps:
        """The same maps on another device."""
        return GainMaps(*(t.to(device, non_blocking=non_blocking) for t in self.tensors()))

    def pin_memory(self) -> GainMaps:
        """The same maps in page-locked memory."""
        return GainMaps(*(t.pin_memory() for t in self.tensors()))

    def expand(self, batch: int) -> GainMaps:
        """One map for each of ``batch`` samples.

        Raises:
            ValueError: there are maps for another number of samples.
        """
        count = len(self.gains)
        if count not in (1, batch):
            raise ValueError(f"gain_map has {count} maps: expected 1 or {batch}")
        if count == batch:
            return self
        return GainMaps(self.gains.expand(batch, -1, -1, -1), self.place.expand(batch, -1))
