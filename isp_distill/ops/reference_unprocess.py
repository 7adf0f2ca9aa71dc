"""The specification of ``unprocess`` and ``expose``: the ISP backwards, and the sensor's noise.

As in reference.py: plain PyTorch, to be checked by eye. Where a result must be the same bits on
every backend, only operations are used whose rounding IEEE 754 fixes (see elementary.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isp_distill.ops import elementary, philox
from isp_distill.ops.reference import normalise, pack, unpack

# Brooks, Mildenhall, Xue, Chen, Sharlet, Barron: "Unprocessing images for learned raw denoising",
# CVPR 2019, and its released code: four cameras' XYZ to camera matrices, and sRGB to XYZ.
_XYZ_TO_CAMERA = [
    [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
    [[0.4913, -0.0541, -0.0202], [-0.613, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
    [[0.838, -0.263, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
    [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.097, 0.1581, 0.5181]],
]
RGB_TO_XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
]


def random_camera(batch: int, seed: int, device: torch.device) -> dict[str, Tensor]:
    """A random camera and light for each sample, after Brooks et al. 2019.

    Drawn on the CPU in float64 and then rounded: fourteen numbers a sample, the same bits wherever
    they are used.

    Returns:
        ``rgb_to_camera`` ``[N, 3, 3]`` (rows sum to 1), ``rgb_gain``, ``red_gain``, ``blue_gain``,
        ``shot`` and ``read`` ``[N]`` (noise variance = shot * signal + read), float32.
    """
    double = torch.float64
    words = philox.camera_words(batch, seed, torch.device("cpu"))
    u = philox.uniform(words, double)
    exposure, _ = philox.normal_pair(words[:, 4], words[:, 5], double)
    spread, _ = philox.normal_pair(words[:, 9], words[:, 10], double)
    share = u[:, :4] + 1e-8
    share = share / share.sum(1, keepdim=True)
    cameras, rgb_to_xyz = (torch.tensor(m, dtype=double) for m in (_XYZ_TO_CAMERA, RGB_TO_XYZ))
    matrix = torch.einsum("nk,kij->nij", share, cameras) @ rgb_to_xyz
    log_shot = math.log(1e-4) + u[:, 8] * (math.log(0.012) - math.log(1e-4))
    camera = {
        "rgb_to_camera": matrix / matrix.sum(-1, keepdim=True),
        "rgb_gain": 1.0 / (0.8 + 0.1 * exposure),
        "red_gain": 1.9 + 0.5 * u[:, 6],
        "blue_gain": 1.5 + 0.4 * u[:, 7],
        "shot": log_shot.exp(),
        "read": (2.18 * log_shot + 1.20 + 0.26 * spread).exp(),
    }
    return {name: value.float().to(device) for name, value in camera.items()}


# From here on every operation of float32 is written out, in the order in which every backend does
# it, and is one whose result IEEE 754 fixes: the same seed gives the same mosaic, bit for bit.


def add_sensor_noise(x: Tensor, shot: Tensor, read: Tensor, seed: int) -> Tensor:
    """Shot and read noise on a normalised mosaic ``[N, H, W]``: variance ``shot * x + read``."""
    noise = philox.sensor_noise(x.shape[0], x.shape[1], x.shape[2], seed, x.device).to(x.dtype)
    variance = shot[:, None, None] * x.clamp(min=0) + read[:, None, None]
    return x + noise * elementary.square_root(variance.to(x.dtype))


def quantise(x: Tensor, black: Tensor, white: Tensor, pattern: Tensor) -> Tensor:
    """A normalised mosaic ``[N, H, W]`` to uint16, with black ``[N, 4]`` and white ``[N]``.

    Rounds to nearest, halves to even. NaN becomes 0, and nothing exceeds 65535.
    """
    planes = pack(x, pattern)
    scale = (white[:, None] - black)[:, :, None, None]
    values = planes * scale + black[:, :, None, None]
    values = torch.where(values > 0, values, 0).clamp(max=65535)
    values = torch.minimum(torch.round(values), white[:, None, None, None])
    return unpack(values.to(torch.int32), pattern).to(torch.uint16)


def inverse_gains(rgb_gain: Tensor, red_gain: Tensor, blue_gain: Tensor) -> Tensor:
    """What white balance and exposure have to be undone by, for R, G and B: ``[N, 3]``."""
    gains = torch.stack([1 / red_gain, torch.ones_like(red_gain), 1 / blue_gain], 1)
    return gains / rgb_gain[:, None]


def unprocess(
    rgb: Tensor,
    *,
    rgb_to_camera: Tensor,
    gains: Tensor,
    pattern: Tensor,
    black: Tensor,
    white: Tensor,
    shot: Tensor | None,
    read: Tensor | None,
    seed: int,
) -> Tensor:
    """sRGB ``[N, 3, H, W]`` in [0, 1] (or uint8) to a uint16 mosaic ``[N, H, W]``.

    Brooks et al. 2019: inverse smoothstep, inverse gamma 2.2, colour matrix ``[N, 3, 3]``, inverse
    gains ``[N, 3]`` that keep the highlights, mosaic, noise (where shot and read ``[N]`` are
    given), quantisation. Computes in float32 whatever it is given; NaN counts as black.
    """
    x = rgb.float()
    if rgb.dtype == torch.uint8:
        x = x / torch.full_like(x, 255)  # by a number, some devices multiply with its reciprocal
    x = torch.where(x > 0, x, 0).clamp(max=1)
    x = elementary.inverse_smoothstep(x).clamp(min=1e-8)
    x = elementary.exp2(2.2 * elementary.log2(x))
    m, (r, g, b) = rgb_to_camera[:, :, :, None, None], x.unbind(1)
    seen = [m[:, i, 0] * r + m[:, i, 1] * g + m[:, i, 2] * b for i in range(3)]
    mean = (seen[0] + seen[1] + seen[2]) * (1 / 3)
    bright = ((mean - 0.9).clamp(min=0) * 10).square()[:, None]
    gains = gains[:, :, None, None]
    x = torch.stack(seen, 1) * torch.maximum(bright + (1 - bright) * gains, gains)
    x = x.clamp(0, 1)
    # Every pixel keeps the colour of its site: R, G, G or B.
    coloured = x[:, [0, 1, 1, 2]]
    own = torch.stack([pack(coloured[:, k], pattern)[:, k] for k in range(4)], 1)
    mosaic = unpack(own, pattern)
    if shot is not None and read is not None:
        mosaic = add_sensor_noise(mosaic, shot, read, seed)
    return quantise(mosaic, black, white, pattern)


def expose(
    mosaic: Tensor,
    factor: Tensor,
    shot: Tensor,
    read: Tensor,
    *,
    black: Tensor,
    white: Tensor,
    pattern: Tensor,
    seed: int,
) -> Tensor:
    """The same scene at ``factor`` (``[N]``) of the exposure: scaled, with noise, requantised."""
    unit = torch.ones_like(black)
    x = normalise(pack(mosaic.float(), pattern), black, white, unit, clip=False)
    x = unpack(x * factor[:, None, None, None], pattern)
    return quantise(add_sensor_noise(x, shot, read, seed), black, white, pattern)
