"""The specification of the gain map: what ``render`` does to a mosaic before anything else.

Every backend of ``render`` takes the corrected mosaic, so there is no other implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isp_distill.isp.gain_maps import GainMaps
from isp_distill.ops.reference import pack, unpack


def apply_gain_map(
    mosaic: Tensor, maps: GainMaps, *, black: Tensor, white: Tensor, pattern: Tensor, double: bool
) -> Tensor:
    """``(x - black) * gain + black`` of every site, values below white stopping there.

    The gain of a site is bilinear between the points of its plane's grid and held beyond the outer
    ones. The DNG specification 1.4 (chapter 7, GainMap) clips linear values to 1 after the gain: a
    sky that saturates the sensor is one white from the middle to the corners. Values that were
    above white already stay where they are unless their gain is below 1.

    Args:
        mosaic: ``[N, H, W]``.
        maps: of N samples, on the same device.
        black: ``[N, 4]``, sensor units.
        white: ``[N]``, sensor units.
        pattern: ``[N]`` codes.
        double: compute in float64 rather than float32.

    Returns:
        ``[N, H, W]`` in that type.
    """
    dtype = torch.float64 if double else torch.float32
    height, width = mosaic.shape[1] // 2, mosaic.shape[2] // 2
    planes = pack(mosaic.to(dtype), pattern)
    site = (pattern[:, None] & 3) ^ torch.arange(4, device=mosaic.device)  # of planes R, Gr, Gb, B
    top, left, step_y, step_x = maps.place.to(dtype)[:, :, None, None].unbind(1)
    rows = 2 * torch.arange(height, device=mosaic.device) + (site // 2)[:, :, None]
    columns = 2 * torch.arange(width, device=mosaic.device) + (site % 2)[:, :, None]
    gain = _between(maps.gains.to(dtype), (rows - top) / step_y)
    gain = _between(gain.transpose(2, 3), (columns - left) / step_x).transpose(2, 3)
    offset = black.to(dtype)[:, :, None, None]
    limit = torch.maximum(planes, white.to(dtype)[:, None, None, None])
    return unpack(torch.minimum((planes - offset) * gain + offset, limit), pattern)


def _between(points: Tensor, places: Tensor) -> Tensor:
    """Linear between the points along axis 2, held outside: ``[N, 4, V, H]`` at ``[N, 4, n]``."""
    last = points.shape[2] - 1
    held = places.clamp(0, last)
    low = held.floor().long()
    share = (held - low)[..., None]
    across = (-1, -1, -1, points.shape[3])
    below = points.gather(2, low[..., None].expand(across))
    above = points.gather(2, (low + 1).clamp(max=last)[..., None].expand(across))
    return below + share * (above - below)
