"""An encoder of lossless JPEG, written from ITU-T T.81 (annexes B, C and H), and DNGs of it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import dng_bytes
import numpy as np
from dng_bytes import LONG, SHORT, Streams, Tag

#: Lengths of the 17 codes, shortest first: all alike, and as unlike as they can be.
EVEN = (5,) * 17
STEEP = (1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 16, 16)
#: Which number of bits gets which code: the steps of a photograph are small, and seldom none.
USUAL = (4, 3, 5, 2, 6, 1, 7, 0, 8, 9, 10, 11, 12, 13, 14, 15, 16)


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _codes(lengths: Sequence[int], symbols: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Length and code of each symbol (annex C)."""
    length, code = np.zeros(17, np.int64), np.zeros(17, np.int64)
    value = 0
    for rank, symbol in enumerate(symbols):
        value <<= lengths[rank] - (lengths[rank - 1] if rank else 0)
        length[symbol], code[symbol] = lengths[rank], value
        value += 1
    return length, code


def encode(
    samples: np.ndarray,
    bits: int,
    *,
    components: int = 1,
    predictor: int = 1,
    lengths: Sequence[int] = STEEP,
    symbols: Sequence[int] = USUAL,
    tables: int = 1,
    extra: bytes = b"",
) -> bytes:
    """Samples [H, W], their columns dealt to the components in turn, as one stream.

    Args:
        samples: below ``2**bits``.
        bits: 2..16.
        components: divides W.
        predictor: 1..7.
        lengths: of the codes, shortest first.
        symbols: the numbers of bits 0..16 in the order of their codes.
        tables: 2 gives the second component a table of its own, the same.
        extra: segments before the scan.
    """
    height, width = samples.shape
    x = samples.reshape(height, width // components, components).astype(np.int64)
    left, above, corner = x[1:, :-1], x[:-1, 1:], x[:-1, :-1]
    predicted = np.empty_like(x)
    predicted[0, 0] = 1 << (bits - 1)
    predicted[0, 1:], predicted[1:, 0] = x[0, :-1], x[:-1, 0]
    predicted[1:, 1:] = {
        1: left,
        2: above,
        3: corner,
        4: left + above - corner,
        5: left + ((above - corner) >> 1),
        6: above + ((left - corner) >> 1),
        7: (left + above) >> 1,
    }[predictor]
    step = ((x - predicted + 32767) % 65536 - 32767).reshape(-1)  # -32767 to 32768
    size = sum((np.abs(step) >> bit > 0).astype(np.int64) for bit in range(16))
    length, code = _codes(lengths, symbols)
    more = np.where(size == 16, 0, size)  # 32768 is the only step of 16 bits
    rest = np.where(more == 0, 0, np.where(step < 0, step + (1 << more) - 1, step))
    word, count = code[size] << more | rest, length[size] + more
    ends = np.cumsum(count)
    stream = np.ones(-(-int(ends[-1]) // 8) * 8, np.uint8)
    for bit in range(int(count.max())):
        there = count > bit
        stream[(ends - 1 - bit)[there]] = word[there] >> bit & 1
    data = np.packbits(stream).tobytes().replace(b"\xff", b"\xff\0")
    numbers = range(components)
    frame = struct.pack(">BHHB", bits, height, width // components, components)
    frame += b"".join(bytes((n, 0x11, 0)) for n in numbers)
    tally = bytes(list(lengths).count(n) for n in range(1, 17)) + bytes(symbols)
    scan = bytes([components])
    scan += b"".join(bytes((n, 16 if n and tables == 2 else 0)) for n in numbers)
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xC3, frame),
            *(_segment(0xC4, bytes([n]) + tally) for n in range(tables)),
            extra,
            _segment(0xDA, scan + bytes((predictor, 0, 0))),
            data,
            b"\xff\xd9",
        )
    )


def tiles_of(mosaic: np.ndarray, rows: int, columns: int) -> list[np.ndarray]:
    """Tiles of one size, left to right and down; the last ones are filled up with edge samples."""
    height, width = mosaic.shape
    padded = np.pad(mosaic, ((0, -height % rows), (0, -width % columns)), "edge")
    return [
        padded[y : y + rows, x : x + columns]
        for y in range(0, height, rows)
        for x in range(0, width, columns)
    ]


def directory(
    mosaic: np.ndarray,
    bits: int,
    streams: Sequence[bytes],
    tile: tuple[int, int] | None = None,
    tags: dict[int, Tag | None] | None = None,
) -> dict[int, Tag]:
    """The tags of a CFA image whose tiles (or strip, where ``tile`` is None) are the streams."""
    pixels = Streams(*streams)
    counts = Tag(LONG, [len(stream) for stream in streams])
    base: dict[int, Tag | None] = {
        258: Tag(SHORT, bits),
        259: Tag(SHORT, 7),
        273: pixels,
        279: counts,
    }
    if tile is not None:
        base |= {322: Tag(LONG, tile[1]), 323: Tag(LONG, tile[0]), 324: pixels, 325: counts}
        base |= {273: None, 278: None, 279: None}
    return dng_bytes.sensor(mosaic, {**base, **(tags or {})})


def write(
    path: Path,
    mosaic: np.ndarray,
    bits: int,
    *,
    tile: tuple[int, int] | None = None,
    tags: dict[int, Tag | None] | None = None,
    **encoding: object,
) -> Path:
    """A DNG of the mosaic [H, W], RGGB, in lossless JPEG; ``encoding`` goes to :func:`encode`."""
    parts = [mosaic] if tile is None else tiles_of(mosaic, *tile)
    streams = [encode(part, bits, **encoding) for part in parts]
    return dng_bytes.write(path, directory(mosaic, bits, streams, tile, tags))
