"""Random ISPs for the teacher: pictures of one shot as differently set cameras would make them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isp_distill.isp.camera import ISP
from isp_distill.raw.cfa import per_sample

Range = tuple[float, float]


@dataclass(frozen=True)
class ISPAugmentation:
    """Ranges from which each sample's exposure and white balance are drawn.

    The kernels take both per sample, so drawing them costs nothing. In ``train()`` the
    teacher's pictures vary, the student's mosaics do not: it learns what is seen whatever the ISP.

    Attributes:
        exposure_stops: uniform, in stops (powers of two) on top of the ISP's own exposure.
        red: factor on the red gain (of another filter, the first colour's), log-uniform. Mono has
            no colours: it keeps its one gain.
        blue: factor on the blue gain (the last colour's), log-uniform.

    Raises:
        ValueError: for a range that is no range, or a factor that is not positive.

    Examples:
        >>> augmentation = isp_distill.ISPAugmentation(exposure_stops=(-1.0, 1.0))
        >>> drawn = augmentation.draw(isp_distill.ISP(), batch=4, seed=0)
        >>> drawn.exposure.shape, drawn.white_balance.shape
        (torch.Size([4]), torch.Size([4, 3]))
    """

    exposure_stops: Range = (-0.5, 0.5)
    red: Range = (0.9, 1.1)
    blue: Range = (0.9, 1.1)

    def __post_init__(self) -> None:
        for name in ("exposure_stops", "red", "blue"):
            low, high = getattr(self, name)
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"{name} must be (low, high), finite and in order: {low}, {high}")
            if name != "exposure_stops" and low <= 0:
                raise ValueError(f"{name} is a factor and must be positive, got {low}")

    def draw(
        self, isp: ISP, batch: int, seed: int, device: torch.device | str | None = None
    ) -> ISP:
        """The same ISP with exposure and white balance of its own for each sample.

        Args:
            isp: for all samples or per sample, on any device.
            batch: how many samples, N.
            seed: of the draw; the same on every device.
            device: of the result; where the ISP's tensors are, if None.

        Returns:
            ``exposure`` as ``[N]`` and ``white_balance`` as ``[N, 3]`` tensors; all else unchanged.
        """
        generator = torch.Generator().manual_seed(seed % 2**63)
        share = torch.rand(batch, 3, generator=generator, dtype=torch.float64)
        lows, highs = zip(
            self.exposure_stops, *(tuple(map(math.log2, r)) for r in (self.red, self.blue)),
            strict=True,
        )  # fmt: skip
        low, high = torch.tensor(lows), torch.tensor(highs)
        exposure, red, blue = torch.exp2(low + share * (high - low)).float().unbind(1)
        held = [v for v in (isp.exposure, isp.white_balance) if isinstance(v, Tensor)]
        where = held[0].device if device is None and held else torch.device(device or "cpu")
        balance = per_sample(isp.white_balance, batch, (3,), "white_balance", where)
        # One small copy of memory that may be paged: the processor does not wait for it.
        drawn = torch.stack([exposure, red, torch.ones_like(red), blue], 1)
        drawn = drawn.to(where, non_blocking=True)
        own = per_sample(isp.exposure, batch, (), "exposure", where)
        return isp.replace(exposure=own * drawn[:, 0], white_balance=balance * drawn[:, 1:])
