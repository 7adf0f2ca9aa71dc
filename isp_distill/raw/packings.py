"""Packings: how a sensor's bus lays codes of 8 to 16 bits into bytes, and the codes out of them.

A row is a number of bytes; some at its end may be padding. ``p0`` is the leftmost pixel of a group.

===============  ==================  ==============================================================
packing          group               bytes
===============  ==================  ==============================================================
mipi10           4 pixels, 5 bytes   the high 8 bits of p0..p3; then the low 2 bits of p0 in bits
                                     1:0, of p1 in 3:2, of p2 in 5:4, of p3 in 7:6
mipi12           2 pixels, 3 bytes   the high 8 bits of p0, of p1; then the low 4 bits of p0 in bits
                                     3:0, of p1 in 7:4
mipi14           4 pixels, 7 bytes   the high 8 bits of p0..p3; then their low 6 bits, p0's first,
                                     least significant bit first
pfnc10p          4 pixels, 5 bytes   one stream of bits, least significant first
pfnc12p          2 pixels, 3 bytes   likewise
gige12packed     2 pixels, 3 bytes   p0's high 8 bits; p0's low 4 in bits 3:0 and p1's low 4 in 7:4;
                                     p1's high 8 bits
uint8, uint16    1 pixel             the code itself
===============  ==================  ==============================================================

Sources: MIPI CSI-2 (RAW10, RAW12, RAW14) as the Linux kernel documents its V4L2 formats
``...10P``, ``...12P`` and ``...14P``; the GenICam Pixel Format Naming Convention 2.4 for ``p``, and
GigE Vision's ``Packed``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """How many pixels make a group, how many bytes it takes, and how many bits a code has.

    Attributes:
        pixels: of a group.
        bytes: of a group.
        bits: of a code; of the two that are not packed, the most that a code may have.
    """

    pixels: int
    bytes: int
    bits: int


PACKINGS = {
    "mipi10": Packing(4, 5, 10),
    "mipi12": Packing(2, 3, 12),
    "mipi14": Packing(4, 7, 14),
    "pfnc10p": Packing(4, 5, 10),
    "pfnc12p": Packing(2, 3, 12),
    "gige12packed": Packing(2, 3, 12),
    "uint8": Packing(1, 1, 8),
    "uint16": Packing(1, 2, 16),
}

#: Those whose codes share bytes; the kernels read them, in the order of csrc/cpu/element.h.
PACKED = tuple(name for name, group in PACKINGS.items() if group.pixels > 1)


def row_bytes(width: int, packing: str) -> int:
    """The bytes of a row of so many pixels, without padding; a group at its end is whole.

    Raises:
        ValueError: for an unknown packing.
    """
    group = packing_of(packing)
    return -(-width // group.pixels) * group.bytes


def packing_of(name: str) -> Packing:
    """The packing of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in PACKINGS:
        raise ValueError(f"unknown packing {name!r}: expected one of {', '.join(PACKINGS)}")
    return PACKINGS[name]


def packing_number(name: str | None) -> int:
    """What the compiled kernels call one of :data:`PACKED`: from 1 on, 0 for None."""
    return 0 if name is None else 1 + PACKED.index(name)


def unpack_rows(
    rows: np.ndarray, width: int, packing: str, *, shift: int = 0, big_endian: bool = False
) -> np.ndarray:
    """The codes of packed rows.

    Args:
        rows: uint8 ``[..., bytes]``, at least :func:`row_bytes` of them; more are padding.
        width: pixels in a row.
        packing: one of :data:`PACKINGS`.
        shift: of uint16 and uint8, bits below the code, where it lies in the high ones.
        big_endian: of uint16, the high byte comes first.

    Returns:
        uint16 ``[..., width]``, C-contiguous.

    Raises:
        ValueError: for an unknown packing, or rows that are too short.
    """
    group = packing_of(packing)
    needed = row_bytes(width, packing)
    if rows.dtype != np.uint8 or rows.ndim < 1 or rows.shape[-1] < needed:
        raise ValueError(
            f"rows of {width} pixels in {packing} are uint8 with at least {needed} bytes each, not "
            f"{rows.dtype} {list(rows.shape)}"
        )
    rows = rows[..., :needed]
    if group.pixels == 1:
        if packing == "uint16":
            order = ">u2" if big_endian else "<u2"
            rows = np.ascontiguousarray(rows).view(order)
        return np.right_shift(rows.astype(np.uint16), shift)
    groups = rows.reshape(*rows.shape[:-1], -1, group.bytes)
    codes = np.empty((*groups.shape[:-1], group.pixels), np.uint16)
    for pixel in range(group.pixels):
        codes[..., pixel] = _code(groups, pixel, packing)
    return np.ascontiguousarray(codes.reshape(*rows.shape[:-1], -1)[..., :width])


def pack_rows(codes: np.ndarray, packing: str) -> np.ndarray:
    """The way back of :func:`unpack_rows`, without padding, low bits and little-endian.

    Args:
        codes: of an integer type, ``[..., width]``, 0 to below two to the packing's bits.
        packing: one of :data:`PACKINGS`.

    Returns:
        uint8 ``[..., bytes]``.

    Raises:
        ValueError: for an unknown packing, or a code that does not fit.
    """
    group = packing_of(packing)
    if codes.size and not (int(codes.min()) >= 0 and int(codes.max()) < 1 << group.bits):
        raise ValueError(
            f"codes from {codes.min()} to {codes.max()} do not fit the {group.bits} bits of "
            f"{packing}"
        )
    wide = codes.astype(np.uint16)
    if packing == "uint8":
        return wide.astype(np.uint8)
    if packing == "uint16":
        return np.ascontiguousarray(wide.astype("<u2")).view(np.uint8)
    missing = -wide.shape[-1] % group.pixels
    wide = np.pad(wide, [(0, 0)] * (wide.ndim - 1) + [(0, missing)])
    pixels = wide.reshape(*wide.shape[:-1], -1, group.pixels).astype(np.uint64)
    packed = np.zeros((*pixels.shape[:-1], group.bytes), np.uint8)
    for byte in range(group.bytes):
        packed[..., byte] = _byte(pixels, byte, packing)
    return packed.reshape(*wide.shape[:-1], -1)


def _code(groups: np.ndarray, pixel: int, packing: str) -> np.ndarray:
    """One pixel's code of each group, uint16."""

    def byte(index: int) -> np.ndarray:
        return groups[..., index].astype(np.uint16)

    if packing == "mipi10":
        return byte(pixel) << 2 | byte(4) >> 2 * pixel & 3
    if packing == "mipi12":
        return byte(pixel) << 4 | byte(2) >> 4 * pixel & 15
    if packing == "gige12packed":
        return byte(2 * pixel) << 4 | byte(1) >> 4 * pixel & 15
    if packing == "mipi14":
        high: np.ndarray = byte(pixel) << 6
        high |= _stream(groups[..., 4:], 6, pixel)
        return high
    return _stream(groups, PACKINGS[packing].bits, pixel)


def _stream(groups: np.ndarray, bits: int, pixel: int) -> np.ndarray:
    """The bits of one pixel in a stream that begins with the least significant ones."""
    first, offset = divmod(bits * pixel, 8)
    code = np.zeros(groups.shape[:-1], np.uint32)
    for index in range(first, min(first + 3, groups.shape[-1])):
        code |= groups[..., index].astype(np.uint32) << 8 * (index - first)
    return (code >> offset & (1 << bits) - 1).astype(np.uint16)


def _byte(pixels: np.ndarray, byte: int, packing: str) -> np.ndarray:
    """One byte of each group, from its pixels' codes (uint64)."""
    if packing == "mipi10":
        if byte < 4:
            return pixels[..., byte] >> 2
        return _joined(pixels & 3, 2)
    if packing == "mipi12":
        if byte < 2:
            return pixels[..., byte] >> 4
        return pixels[..., 0] & 15 | (pixels[..., 1] & 15) << 4
    if packing == "gige12packed":
        if byte != 1:
            return pixels[..., byte // 2] >> 4
        return pixels[..., 0] & 15 | (pixels[..., 1] & 15) << 4
    if packing == "mipi14" and byte < 4:
        return pixels[..., byte] >> 6
    bits, first = (6, 4) if packing == "mipi14" else (PACKINGS[packing].bits, 0)
    return _joined(pixels & (1 << bits) - 1, bits) >> 8 * (byte - first) & 255


def _joined(codes: np.ndarray, bits: int) -> np.ndarray:
    """The codes of each group in one number, the first one lowest."""
    places = np.arange(codes.shape[-1], dtype=np.uint64) * np.uint64(bits)
    joined: np.ndarray = np.bitwise_or.reduce(codes << places, axis=-1)
    return joined
