"""``unprocess`` and ``expose``: mosaics from ordinary pictures, and short exposures from long ones.

For people who have RGB data and no RAW: the student gets the mosaic, the teacher the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from isp_distill import backend
from isp_distill.cfa import check_levels, pattern_codes, per_sample
from isp_distill.isp import ISP, NoiseModel
from isp_distill.ops import reference
from isp_distill.ops.raw_conv import checked_mosaic

backend.register(
    backend.Implementation(
        "unprocess",
        "reference",
        SimpleNamespace(unprocess=reference.unprocess, expose=reference.expose),
    )
)


def _checked_seed(seed: int) -> int:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    return seed


def unprocess(
    rgb: Tensor,
    *,
    pattern: str | int | Sequence[str] | Tensor = "RGGB",
    bits: int = 14,
    black: float | Sequence[float] | Tensor = 512.0,
    noise: NoiseModel | None = None,
    seed: int = 0,
) -> tuple[Tensor, ISP]:
    """Make the mosaics that a random camera would have seen, and the ISP that inverts them.

    Brooks et al., "Unprocessing images for learned raw denoising", CVPR 2019: a random camera,
    white balance and exposure for each image. ``render(mosaic, isp)`` gives ``rgb`` back where
    nothing clipped, up to demosaicing and quantisation.

    Args:
        rgb: ``[N, 3, H, W]``, H and W even: sRGB as floats in [0, 1], or uint8.
        pattern: the CFA of the mosaics, one for all or one per sample.
        bits: of the sensor, 8 to 16; the white level is ``2**bits - 1``.
        black: black level in sensor units: a number, ``[4]`` (R, Gr, Gb, B) or ``[N, 4]``.
        noise: sensor noise to add; none if None.
        seed: the same seed gives the same cameras and the same noise, on every backend.

    Returns:
        The mosaics, uint16 ``[N, H, W]``, and their :class:`isp_distill.ISP` (malvar, smoothstep).

    Raises:
        TypeError: if ``rgb`` is no float or uint8 tensor.
        ValueError: for a wrong shape, odd sides, or a setting out of range.
    """
    if not isinstance(rgb, Tensor) or not (rgb.dtype.is_floating_point or rgb.dtype == torch.uint8):
        raise TypeError("rgb must be a float tensor in [0, 1] or a uint8 tensor")
    if rgb.dim() != 4 or rgb.shape[1] != 3 or 0 in rgb.shape[2:]:
        raise ValueError(f"rgb has shape {list(rgb.shape)}: expected [N, 3, H, W]")
    batch, _, height, width = rgb.shape
    if height % 2 or width % 2:
        raise ValueError(f"rgb is {height} x {width}: crop it to even sides")
    if not 8 <= bits <= 16:
        raise ValueError(f"bits must be between 8 and 16, got {bits}")
    _checked_seed(seed)
    device = rgb.device
    white = torch.full((batch,), float(2**bits - 1), device=device)
    blacks = per_sample(black, batch, (4,), "black", device)
    check_levels(black, float(2**bits - 1))
    codes = pattern_codes(pattern, batch, device)
    camera = reference.random_camera(batch, seed, device)
    drawn = {"shot": None, "read": None} if noise is None else noise.draw(batch, seed, device)
    implementation = backend.choose("unprocess", device, dtype=rgb.dtype)
    mosaic: Tensor = implementation.functions.unprocess(
        rgb.float() / 255 if rgb.dtype == torch.uint8 else rgb,
        **{k: camera[k] for k in ("rgb_to_camera", "rgb_gain", "red_gain", "blue_gain")},
        pattern=codes,
        black=blacks,
        white=white,
        **drawn,
        seed=seed,
    )
    one = torch.ones_like(camera["red_gain"])
    isp = ISP(
        black=blacks,
        white=white,
        pattern=codes,
        white_balance=torch.stack([camera["red_gain"], one, camera["blue_gain"]], 1),
        ccm=torch.linalg.inv(camera["rgb_to_camera"]),
        tone="smoothstep",
        exposure=camera["rgb_gain"],
    )
    return mosaic, isp


def expose(
    mosaic: Tensor,
    factor: float | Sequence[float] | Tensor,
    noise: NoiseModel,
    *,
    black: float | Sequence[float] | Tensor,
    white: float | Sequence[float] | Tensor,
    pattern: str | int | Sequence[str] | Tensor = "RGGB",
    seed: int = 0,
) -> Tensor:
    """The same scene at a fraction of the exposure, with the noise that comes with it.

    Args:
        mosaic: clean mosaics ``[N, H, W]``, sensor units.
        factor: of the exposure, e.g. 0.1: a number or ``[N]``, above 0.
        noise: the sensor's noise.
        black: black level: a number, ``[4]`` (R, Gr, Gb, B) or ``[N, 4]``.
        white: white level: a number or ``[N]``.
        pattern: the CFA, one for all or one per sample; it matters where black differs by plane.
        seed: the same seed gives the same noise, on every backend.

    Returns:
        uint16 ``[N, H, W]``, same black and white level; ``ISP(exposure=1 / factor)`` brightens it.

    Raises:
        TypeError, ValueError: as :func:`isp_distill.raw_conv`; for a factor that is not positive.
    """
    mosaic = checked_mosaic(mosaic)
    batch, device = mosaic.shape[0], mosaic.device
    factors = per_sample(factor, batch, (), "factor", device)
    if device.type == "cpu" and not bool((factors > 0).all()):
        raise ValueError(f"factor must be positive, got {factors.tolist()}")
    blacks = per_sample(black, batch, (4,), "black", device)
    whites = per_sample(white, batch, (), "white", device)
    check_levels(black, white)
    implementation = backend.choose("unprocess", device, dtype=mosaic.dtype)
    result: Tensor = implementation.functions.expose(
        mosaic,
        factors,
        **noise.draw(batch, _checked_seed(seed), device),
        black=blacks,
        white=whites,
        pattern=pattern_codes(pattern, batch, device),
        seed=seed,
    )
    return result
