"""Calls of unprocess and expose for any backend: the result is the reference's, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from isp_distill import NoiseModel, expose, unprocess, use_backend
from isp_distill.ops.raw_conv.arguments import MOSAIC_DTYPES
from isp_distill.raw.cfa import PATTERNS

PICTURE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
LAYOUTS = ("contiguous", "channels_last", "crop", "every other column")
NOISES = (None, NoiseModel(), NoiseModel(0.01, 1e-3), NoiseModel(0.0, 0.0), NoiseModel(1.0, 4.0))


def laid_out(image: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values at other places of memory."""
    if layout == "channels_last" and image.dim() == 4:
        return image.to(memory_format=torch.channels_last)
    if layout == "crop":
        height, width = image.shape[-2:]
        whole = torch.zeros(*image.shape[:-2], height + 3, width + 5, dtype=image.dtype)
        whole[..., 1 : 1 + height, 3 : 3 + width] = image
        return whole[..., 1 : 1 + height, 3 : 3 + width]
    if layout == "every other column":
        return torch.stack([image, torch.zeros_like(image)], -1).flatten(-2)[..., ::2]
    return image


@dataclass(frozen=True)
class Case:
    """One call; ``black`` are fractions of the white level."""

    batch: int = 2
    height: int = 6
    width: int = 10
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    patterns: tuple[str, ...] = ("RGGB", "GBRG")
    bits: int = 14
    black: tuple[float, ...] = (0.03, 0.04, 0.02, 0.05)
    noise: NoiseModel | None = None
    seed: int = 0
    factor: float = 0.3

    @property
    def levels(self) -> dict[str, object]:
        white = 2.0**self.bits - 1
        black = [fraction * white for fraction in self.black]
        return {"black": black, "pattern": list(self.patterns), "seed": self.seed}

    def picture(self) -> torch.Tensor:
        """Values in and a little beyond [0, 1], both ends among them."""
        generator = torch.Generator().manual_seed(self.seed % 2**32)
        shape = (self.batch, 3, self.height, self.width)
        x = torch.rand(shape, generator=generator) * 1.2 - 0.1
        x = x.where(torch.rand(shape, generator=generator) > 0.1, x.round())
        if self.dtype == torch.uint8:
            x = (x.clamp(0, 1) * 255).round()
        return laid_out(x.to(self.dtype), self.layout)

    def mosaic(self, dtype: torch.dtype) -> torch.Tensor:
        """Sensor values, some below black and some above white."""
        generator = torch.Generator().manual_seed(self.seed % 2**32)
        top = {torch.uint8: 255, torch.int16: 32767, torch.uint16: 65535}.get(dtype, 60000)
        top = min(top, int(1.2 * 2**self.bits))
        values = torch.randint(
            0, top + 1, (self.batch, self.height, self.width), generator=generator
        )
        return laid_out(values.to(dtype), self.layout)


@st.composite
def cases(draw, widest: int, highest: int) -> Case:
    """Any call up to a size."""
    batch = draw(st.integers(1, 3))
    fraction = st.floats(0.0, 0.5, width=32)
    return Case(
        batch=batch,
        height=2 * draw(st.integers(1, highest // 2)),
        width=2 * draw(st.integers(1, widest // 2)),
        dtype=draw(st.sampled_from(PICTURE_DTYPES)),
        layout=draw(st.sampled_from(LAYOUTS)),
        patterns=tuple(draw(st.sampled_from(PATTERNS)) for _ in range(batch)),
        bits=draw(st.sampled_from((8, 10, 12, 14, 16))),
        black=tuple(draw(fraction) for _ in range(4)),
        noise=draw(st.sampled_from(NOISES)),
        seed=draw(st.integers(0, 2**64 - 1)),
        factor=draw(st.floats(0.01, 1.5)),
    )


def check_unprocess(case: Case, backend: str, device: torch.device) -> None:
    """The backend's mosaic and camera are the reference's."""
    picture = case.picture()
    settings = {"bits": case.bits, "noise": case.noise, **case.levels}
    with use_backend("reference"):
        expected, camera = unprocess(picture, **settings)
    with use_backend(backend):
        found, isp = unprocess(picture.to(device), **settings)
    assert found.dtype == torch.uint16
    assert torch.equal(found.cpu(), expected)
    assert torch.equal(torch.as_tensor(isp.white_balance).cpu(), camera.white_balance)


def check_expose(case: Case, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    """The backend's short exposure is the reference's."""
    mosaic = case.mosaic(dtype)
    factors = torch.linspace(case.factor, 2 * case.factor, case.batch)
    settings = {"white": 2.0**case.bits - 1, **case.levels}
    noise = case.noise or NoiseModel(0.0, 0.0)
    with use_backend("reference"):
        expected = expose(mosaic, factors, noise, **settings)
    with use_backend(backend):
        found = expose(mosaic.to(device), factors.to(device), noise, **settings)
    assert torch.equal(found.cpu(), expected)


def check_unusual_values(backend: str, device: torch.device) -> None:
    """NaN and infinities are black or white where they stand, and nowhere else."""
    picture = torch.full((1, 3, 4, 40), 0.5)
    usual = picture.clone()
    picture[0, :, 0, 0] = torch.nan
    picture[0, :, 1, 9] = torch.inf
    picture[0, :, 2, 30] = -torch.inf
    picture[0, 1, 3, 39] = torch.nan
    settings = {"bits": 12, "black": 64.0, "seed": 3}
    with use_backend(backend):
        found, _ = unprocess(picture.to(device), **settings)
        expected, _ = unprocess(usual.to(device), **settings)
    with use_backend("reference"):
        assert torch.equal(found.cpu(), unprocess(picture, **settings)[0])
    found, expected = found.cpu().int(), expected.cpu().int()
    assert found[0, 0, 0] == found[0, 2, 30] == 64
    assert found[0, 1, 9] == 4095
    changed = (found != expected).nonzero().tolist()
    assert changed[:3] == [[0, 0, 0], [0, 1, 9], [0, 2, 30]]
    assert all(place == [0, 3, 39] for place in changed[3:])

    mosaic = torch.full((1, 2, 34), 300.0)
    mosaic[0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    with use_backend(backend):
        short = expose(mosaic.to(device), 0.5, NoiseModel(0.0, 0.0), black=100, white=500)
    short = short.cpu().int()
    assert short[0, 0, :3].tolist() == [0, 0, 0]  # inf + 0 * inf is NaN
    assert bool((short.flatten()[3:] == 200).all())


MOSAICS = tuple(MOSAIC_DTYPES)
