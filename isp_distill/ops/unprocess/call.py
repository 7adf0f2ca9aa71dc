"""``unprocess`` and ``expose``: mosaics from ordinary pictures, and short exposures from long ones.

For people who have RGB data and no RAW: the student gets the mosaic, the teacher the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from isp_distill.arguments import (
    NOT_TRANSFORMED,
    check_dense,
    is_plain_eager,
    readable,
    shown,
    transformed,
    whole_number,
)
from isp_distill.backends import choice
from isp_distill.isp.camera import ISP
from isp_distill.isp.matrices import numbers_of
from isp_distill.ops import reference_unprocess
from isp_distill.ops.raw_conv.arguments import checked_mosaic
from isp_distill.ops.unprocess import (
    cpu as unprocess_cpu,
)
from isp_distill.ops.unprocess import (
    operator as unprocess_operator,
)
from isp_distill.ops.unprocess import (
    triton as unprocess_triton,
)
from isp_distill.ops.unprocess.noise import NoiseModel
from isp_distill.raw.cfa import PATTERNS, check_levels, pattern_codes, per_sample

__all__ = ["expose", "unprocess", "unprocess_cpu", "unprocess_triton"]

choice.register(choice.Implementation("unprocess", "reference", None))


@choice.asked_once
def _choose(
    device: torch.device, dtype: torch.dtype, batch: int, picture: bool, only_reference: str | None
) -> str:
    call = {"dtype": dtype, "batch": batch, "picture": picture, "only_reference": only_reference}
    return choice.choose("unprocess", device, **call).backend


def _backend_for(image: Tensor, picture: bool) -> str:
    """The backend that serves a call.

    An exported program runs where this library is not: it is made of the reference's operators.
    """
    if torch.compiler.is_exporting():
        return "reference"
    only_reference = NOT_TRANSFORMED if transformed() else None
    name: str = _choose(image.device, image.dtype, image.shape[0], picture, only_reference)
    return name


# A float picture that was interpolated may exceed 1 a little.
_MOST_LIGHT = 2.0


def _check_rgb(rgb: Tensor) -> None:
    if not isinstance(rgb, Tensor) or not (rgb.dtype.is_floating_point or rgb.dtype == torch.uint8):
        raise TypeError("rgb must be a float tensor in [0, 1] or a uint8 tensor")
    check_dense(rgb, "rgb")
    if rgb.dim() != 4 or rgb.shape[1] != 3 or 0 in rgb.shape[2:]:
        raise ValueError(f"rgb has shape {list(rgb.shape)}: expected [N, 3, H, W]")
    height, width = rgb.shape[2:]
    if height % 2 or width % 2:
        raise ValueError(f"rgb is {height} x {width}: crop it to even sides")
    # A few values show a picture in 0 to 255, which would be white all over.
    if rgb.dtype.is_floating_point and readable(rgb) and rgb.numel():
        largest = float(rgb.detach()[:, :, :: max(1, height // 16), :: max(1, width // 16)].amax())
        if _MOST_LIGHT < largest < math.inf:
            raise ValueError(f"rgb holds {largest:g}: floats are in [0, 1], so divide by 255")


def _checked_seed(seed: int) -> int:
    seed = whole_number(seed, "seed", bits=math.inf)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    return seed


def _check_noise(noise: NoiseModel) -> None:
    if not isinstance(noise, NoiseModel):
        raise TypeError(f"noise must be an isp_distill.NoiseModel, not {shown(noise)}")


def _check_factor(factor: float | Sequence[float] | Tensor, factors: Tensor) -> None:
    """Tensors on an accelerator are not looked at, since that would make the device wait.

    Args:
        factor: as it was given.
        factors: the same as a tensor.
    """
    if isinstance(factor, (int, float)):
        positive = 0 < factor < math.inf
    elif readable(factors):
        positive = bool(((factors > 0) & torch.isfinite(factors)).all())
    else:
        return
    if not positive:
        raise ValueError(f"factor must be positive and finite, got {shown(factor)}")


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
        pattern: the CFA of the mosaics, one for all or one per sample; Bayer's.
        bits: of the sensor, 8 to 16; the white level is ``2**bits - 1``.
        black: black level in sensor units: a number, ``[4]`` (R, Gr, Gb, B) or ``[N, 4]``.
        noise: sensor noise to add; none if None.
        seed: the same seed gives the same cameras, the same noise and so the same mosaics, bit
            for bit, on every backend.

    Returns:
        The mosaics, uint16 ``[N, H, W]``, and their :class:`isp_distill.ISP` (malvar, smoothstep).

    Raises:
        TypeError: if ``rgb`` is no float or uint8 tensor; for a setting of a wrong type.
        ValueError: for a wrong shape, odd sides, or a setting out of range.

    Examples:
        >>> mosaic, isp = isp_distill.unprocess(torch.rand(2, 3, 64, 64), seed=1)
        >>> mosaic.shape, mosaic.dtype
        (torch.Size([2, 64, 64]), torch.uint16)
        >>> isp_distill.render(mosaic, isp).shape
        torch.Size([2, 3, 64, 64])
    """
    _check_rgb(rgb)
    batch, device = rgb.shape[0], rgb.device
    bits = whole_number(bits, "bits")
    if not 8 <= bits <= 16:
        raise ValueError(f"bits must be between 8 and 16, got {bits}")
    seed = _checked_seed(seed)
    if noise is not None:
        _check_noise(noise)
    white = torch.full((batch,), float(2**bits - 1), device=device)
    blacks = per_sample(black, batch, (4,), "black", device)
    check_levels(black, float(2**bits - 1))
    if any(number >= 4 for number in numbers_of(pattern) or ()):
        raise ValueError(
            f"pattern {pattern}: unprocess makes what a Bayer sensor sees, since its colour "
            f"matrices are of such cameras: give {', '.join(PATTERNS)}"
        )
    codes = pattern_codes(pattern, batch, device)
    camera = unprocess_operator.random_camera(batch, seed, device)
    drawn = {"shot": None, "read": None} if noise is None else noise.draw(batch, seed, device)
    gains = reference_unprocess.inverse_gains(
        camera["rgb_gain"], camera["red_gain"], camera["blue_gain"]
    )
    name = _backend_for(rgb, picture=True)
    if name == "reference":
        mosaic = reference_unprocess.unprocess(
            rgb.detach(),
            rgb_to_camera=camera["rgb_to_camera"],
            gains=gains,
            pattern=codes,
            black=blacks,
            white=white,
            **drawn,
            seed=seed,
        )
    else:
        call = unprocess_operator.UnprocessCall(
            rgb, camera["rgb_to_camera"], gains, codes, blacks, white, drawn["shot"], drawn["read"],
            unprocess_operator.signed(seed),
        )  # fmt: skip
        # Without layers of dispatch where nobody looks, nor any device is to be the current one.
        if device.type == "cpu" and is_plain_eager(*call[:-1]):
            mosaic = unprocess_operator.functions_of(name).unprocess(call)
        else:
            mosaic = unprocess_operator.unprocess(*call, name)
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
        seed: the same seed gives the same mosaics, bit for bit, on every backend.

    Returns:
        uint16 ``[N, H, W]``, same black and white level; ``ISP(exposure=1 / factor)`` brightens it.

    Raises:
        TypeError, ValueError: as :func:`isp_distill.raw_conv`; for a factor that is not positive.

    Examples:
        >>> mosaic = torch.full((1, 64, 64), 8512, dtype=torch.uint16)  # 8000 above black
        >>> noise = isp_distill.NoiseModel.preset("low")
        >>> dark = isp_distill.expose(mosaic, 0.1, noise, black=512, white=16383)
        >>> round(float(dark.float().mean()) - 512, -2)
        800.0
    """
    mosaic = checked_mosaic(mosaic)
    seed = _checked_seed(seed)
    _check_noise(noise)
    batch, device = mosaic.shape[0], mosaic.device
    factors = per_sample(factor, batch, (), "factor", device)
    _check_factor(factor, factors)
    blacks = per_sample(black, batch, (4,), "black", device)
    whites = per_sample(white, batch, (), "white", device)
    check_levels(black, white)
    codes = pattern_codes(pattern, batch, device)
    drawn = noise.draw(batch, seed, device)
    name = _backend_for(mosaic, picture=False)
    if name == "reference":
        return reference_unprocess.expose(
            mosaic, factors, **drawn, black=blacks, white=whites, pattern=codes, seed=seed
        )
    call = unprocess_operator.ExposeCall(
        mosaic, factors, drawn["shot"], drawn["read"], codes, blacks, whites,
        unprocess_operator.signed(seed),
    )  # fmt: skip
    if device.type == "cpu" and is_plain_eager(*call[:-1]):
        return unprocess_operator.functions_of(name).expose(call)
    short: Tensor = unprocess_operator.expose(*call, name)
    return short
