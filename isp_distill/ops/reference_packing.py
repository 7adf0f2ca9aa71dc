"""The specification of packed mosaics: their codes in plain PyTorch, to be checked by eye.

What the packings are, and where each bit lies: :mod:`isp_distill.raw.packings`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isp_distill.raw.packings import PACKINGS, row_bytes


def unpacked(mosaic: Tensor, packing: str | None, width: int | None) -> Tensor:
    """The codes of a packed mosaic: uint8 ``[..., bytes]`` to int32 ``[..., width]``.

    One without a packing comes back as it is.
    """
    if packing is None or width is None:
        return mosaic
    group = PACKINGS[packing]
    used = mosaic[..., : row_bytes(width, packing)].to(torch.int32)
    count = used.shape[-1] // group.bytes
    groups = used.reshape(*used.shape[:-1], count, group.bytes)
    codes = [_code(groups, pixel, packing) for pixel in range(group.pixels)]
    return torch.stack(codes, -1).flatten(-2)[..., :width]


# Products, quotients and remainders rather than shifts and masks: every runtime of an exported
# program has them, for int32 too.
def _code(groups: Tensor, pixel: int, packing: str) -> Tensor:
    """One pixel's code of each group, int32."""
    if packing == "mipi10":
        return 4 * groups[..., pixel] + _bits(groups[..., 4], 2 * pixel, 2)
    if packing == "mipi12":
        return 16 * groups[..., pixel] + _bits(groups[..., 2], 4 * pixel, 4)
    if packing == "gige12packed":
        return 16 * groups[..., 2 * pixel] + _bits(groups[..., 1], 4 * pixel, 4)
    if packing == "mipi14":
        low = groups[..., 4] + 256 * groups[..., 5] + 65536 * groups[..., 6]
        return 64 * groups[..., pixel] + _bits(low, 6 * pixel, 6)
    bits = PACKINGS[packing].bits
    first, offset = divmod(bits * pixel, 8)
    return _bits(groups[..., first] + 256 * groups[..., first + 1], offset, bits)


def _bits(value: Tensor, first: int, count: int) -> Tensor:
    """So many bits of a number that is not negative, from bit ``first`` on."""
    return torch.div(value, 2**first, rounding_mode="floor").remainder(2**count)
