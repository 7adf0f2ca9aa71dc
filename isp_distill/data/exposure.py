"""The short exposure that a student may be trained on while its teacher sees the clean shot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from isp_distill.arguments import real_number
from isp_distill.data.unpacking import unpacked_mosaic
from isp_distill.isp.camera import ISP
from isp_distill.ops.unprocess.call import expose
from isp_distill.ops.unprocess.noise import NoiseModel

_MOST_WHITE = 65535


@dataclass(frozen=True)
class ShortExposure:
    """A fraction of the light, and the noise of the sensor that took it.

    Attributes:
        factor: of the exposure, above 0, at most 1; or (least, largest): each view draws its own,
            evenly in stops, and one student learns day and night.
        noise: the sensor's.

    Raises:
        TypeError: for a factor that is no number and no two of them.
        ValueError: for a factor outside (0, 1], or a least one above the largest.

    Examples:
        >>> short = isp_distill.ShortExposure(0.25, isp_distill.NoiseModel.preset("low"))
        >>> mosaic = torch.full((1, 64, 64), 8512, dtype=torch.uint16)
        >>> dark, isp = short.apply(mosaic, isp_distill.ISP(black=512, white=16383), seed=0)
        >>> isp.exposure  # what brings the brightness back
        tensor([4.])
        >>> isp_distill.ShortExposure((1 / 30, 1)).draw(views=4, seed=0).shape
        torch.Size([4])
    """

    factor: float | tuple[float, float]
    noise: NoiseModel = field(default_factory=NoiseModel)

    def __post_init__(self) -> None:
        given = self.factor
        if isinstance(given, Sequence) and not isinstance(given, str):
            if len(given) != 2:
                raise TypeError(f"exposure factor must be one, or (least, largest), got {given}")
            least, largest = (real_number(one, "exposure factor") for one in given)
            object.__setattr__(self, "factor", (least, largest))
            if least > largest:
                raise ValueError(
                    f"exposure factor ({least}, {largest}): the least is above the largest; turn "
                    "them round"
                )
        else:
            least = largest = real_number(given, "exposure factor")
            object.__setattr__(self, "factor", least)
        for one in (least, largest):
            if not 0 < one <= 1:
                raise ValueError(f"exposure factor must be in (0, 1], got {one}")

    def draw(self, views: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
        """The factor of each view, float32 ``[views]``; the same for the same seed.

        Args:
            views: how many.
            seed: of the draw; the same factors on every device.
            device: where the factors are wanted.
        """
        if not isinstance(self.factor, tuple):
            return torch.full((views,), self.factor, device=device)
        least, largest = (math.log(one) for one in self.factor)
        # Not the numbers that the noise draws from the same seed.
        generator = torch.Generator().manual_seed((seed ^ 0x5EED_E4B0) % 2**63)
        drawn = torch.rand(views, generator=generator, dtype=torch.float64)
        # The logarithm and back may end a little above 1.
        factors = torch.exp(least + (largest - least) * drawn).float().clamp(max=1.0)
        return factors.to(device, non_blocking=True)  # a step never waits for the device

    @classmethod
    def of(cls, value: ShortExposure | float | tuple[float, float] | None) -> ShortExposure | None:
        """A ShortExposure from a factor or two (random noise as in Brooks et al. 2019), or None."""
        if isinstance(value, (int, float, tuple, list)):
            return cls(value)
        return value

    def apply(self, mosaic: Tensor, isp: ISP, seed: int) -> tuple[Tensor, ISP]:
        """The dark, noisy mosaics, never packed, and the ISP that brings their brightness back.

        Raises:
            ValueError: of a sensor of more than 16 bits. Its shadows would not live through the 16
                bits that a short exposure is rounded to.
        """
        wide = mosaic.dtype in (torch.float32, torch.float64, torch.int32)
        if isp.linearise is not None or (
            wide and float(torch.as_tensor(isp.white).max()) > _MOST_WHITE
        ):
            raise ValueError(
                "a short exposure is made of linear mosaics of up to 16 bits, and these are a "
                "companding sensor's, or have a white level above 65535: leave exposure out, and "
                "take frames that the sensor itself exposed short"
            )
        mosaic, isp = unpacked_mosaic(mosaic, isp)
        camera = isp.batched(len(mosaic), mosaic.device)
        factors = self.draw(len(mosaic), seed, mosaic.device)
        dark = expose(
            mosaic,
            factors,
            self.noise,
            black=camera.black,
            white=camera.white,
            pattern=camera.pattern,
            seed=seed,
        )
        return dark, camera.replace(exposure=cast(Tensor, camera.exposure) / factors)
