"""``NoiseModel``: the shot and read noise of a sensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isp_distill.arguments import real_number
from isp_distill.ops.unprocess.operator import random_camera

#: Shot noise of :meth:`NoiseModel.preset`: ends and geometric middle of the range of Brooks et al.
NOISE_PRESETS = {"low": 1e-4, "medium": 1.1e-3, "high": 0.012}


@dataclass(frozen=True)
class NoiseModel:
    """Shot and read noise of a sensor: variance = shot * signal + read, signal in [0, 1].

    Attributes:
        shot: the part that grows with the signal; None draws it per image as Brooks et al. 2019
            do: log-uniform between 1e-4 and 0.012.
        read: the constant part; None draws it as they do: ``log read = 2.18 log shot + 1.20 +
            N(0, 0.26)``, or takes that line without its spread where ``shot`` is given.

    Raises:
        TypeError: for anything but numbers.
        ValueError: for a negative or infinite number, or ``read`` without ``shot``.

    Examples:
        >>> isp_distill.NoiseModel.preset("medium").shot
        0.0011
        >>> isp_distill.NoiseModel(shot=0.001, read=0.0)
        NoiseModel(shot=0.001, read=0.0)
    """

    shot: float | None = None
    read: float | None = None

    def __post_init__(self) -> None:
        for name, given in (("shot", self.shot), ("read", self.read)):
            if given is None:
                continue
            value = real_number(given, f"{name} noise")
            object.__setattr__(self, name, value)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} noise must be finite and not negative, got {value}")
        if self.read is not None and self.shot is None:
            raise ValueError("read noise without shot noise: give both, or neither for random ones")

    @classmethod
    def preset(cls, name: str) -> NoiseModel:
        """The noise of a "low", "medium" or "high" sensitivity.

        Raises:
            ValueError: for an unknown name.
        """
        if name not in NOISE_PRESETS:
            raise ValueError(f"unknown preset {name!r}: expected {', '.join(NOISE_PRESETS)}")
        return cls(shot=NOISE_PRESETS[name])

    def draw(self, batch: int, seed: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """``shot`` and ``read`` for each sample: float32 ``[batch]`` tensors."""
        where = torch.device(device)
        if self.shot is None:
            camera = random_camera(batch, seed, where)
            return {"shot": camera["shot"], "read": camera["read"]}
        read = self.read
        if read is None:
            read = math.exp(2.18 * math.log(self.shot) + 1.20) if self.shot > 0 else 0.0
        return {
            "shot": torch.full((batch,), self.shot, device=where),
            "read": torch.full((batch,), read, device=where),
        }
