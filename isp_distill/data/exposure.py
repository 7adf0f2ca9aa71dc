"""The short exposure that a student may be trained on while its teacher sees the clean shot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from isp_distill.arguments import real_number
from isp_distill.isp.camera import ISP
from isp_distill.ops.unprocess.call import expose
from isp_distill.ops.unprocess.noise import NoiseModel


@dataclass(frozen=True)
class ShortExposure:
    """A fraction of the light, and the noise of the sensor that took it.

    Attributes:
        factor: of the exposure, above 0, at most 1.
        noise: the sensor's.

    Raises:
        TypeError: for a factor that is no number.
        ValueError: for a factor outside (0, 1].

    Examples:
        >>> short = isp_distill.ShortExposure(0.25, isp_distill.NoiseModel.preset("low"))
        >>> mosaic = torch.full((1, 64, 64), 8512, dtype=torch.uint16)
        >>> dark, isp = short.apply(mosaic, isp_distill.ISP(black=512, white=16383), seed=0)
        >>> isp.exposure  # what brings the brightness back
        tensor([4.])
    """

    factor: float
    noise: NoiseModel = field(default_factory=NoiseModel)

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", real_number(self.factor, "exposure factor"))
        if not 0 < self.factor <= 1:
            raise ValueError(f"exposure factor must be in (0, 1], got {self.factor}")

    @classmethod
    def of(cls, value: ShortExposure | float | None) -> ShortExposure | None:
        """A ShortExposure from a factor (random noise as in Brooks et al. 2019), or None."""
        return cls(float(value)) if isinstance(value, (int, float)) else value

    def apply(self, mosaic: Tensor, isp: ISP, seed: int) -> tuple[Tensor, ISP]:
        """The dark, noisy mosaics, and the ISP that brings their brightness back."""
        camera = isp.batched(len(mosaic), mosaic.device)
        dark = expose(
            mosaic,
            self.factor,
            self.noise,
            black=camera.black,
            white=camera.white,
            pattern=camera.pattern,
            seed=seed,
        )
        return dark, camera.replace(exposure=cast(Tensor, camera.exposure) / self.factor)
