"""DNG files written byte by byte: any tag, type and count, whether it makes sense or not."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

#: struct's letter of each TIFF type; the rationals are pairs of integers.
_LETTERS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "I", 7: "s", 9: "i", 10: "i", 11: "f", 12: "d"}
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8, 11: 4, 12: 8}

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, SRATIONAL, FLOAT = 1, 2, 3, 4, 5, 7, 10, 11

#: A grey scene of linear value 0.174 above black 64 under white 1023.
GREY, BLACK, WHITE = 231, 64, 1023
MATRIX = [[0.838, -0.263, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]]


def parts(values: object, denominator: int = 10**6) -> list[int]:
    """The values of a rational tag: numerators and denominators in turn."""
    flat = np.ravel(np.asarray(values, dtype=np.float64))
    return [part for v in flat for part in (round(float(v) * denominator), denominator)]


class Tag:
    """One entry of a directory; ``count`` says something else than is there."""

    def __init__(self, kind: int, values: object, count: int | None = None) -> None:
        self.kind, self.count = kind, count
        self.values = values if isinstance(values, bytes) else list(np.ravel(values).tolist())

    def pack(self) -> bytes:
        if isinstance(self.values, bytes):
            return self.values
        return struct.pack(f"<{len(self.values)}{_LETTERS[self.kind]}", *self.values)


class Streams(Tag):
    """Strips or tiles: what is written for each, and then their offsets."""

    def __init__(self, *streams: bytes) -> None:
        super().__init__(LONG, [0] * len(streams))
        self.streams = streams


def sensor(pixels: np.ndarray, tags: dict[int, Tag] | None = None, **other: Tag) -> dict[int, Tag]:
    """The directory of a CFA image, RGGB, uncompressed in one strip; ``tags`` replace or add."""
    height, width = pixels.shape
    kind = pixels.dtype.kind
    base = {
        254: Tag(LONG, 0),
        256: Tag(LONG, width),
        257: Tag(LONG, height),
        258: Tag(SHORT, pixels.dtype.itemsize * 8),
        259: Tag(SHORT, 1),
        262: Tag(SHORT, 32803),
        273: Tag(LONG, pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()),
        274: Tag(SHORT, 1),
        277: Tag(SHORT, 1),
        278: Tag(LONG, height),
        279: Tag(LONG, pixels.nbytes),
        339: Tag(SHORT, 3 if kind == "f" else 1),
        33421: Tag(SHORT, [2, 2]),
        33422: Tag(BYTE, [0, 1, 1, 2]),
        50710: Tag(BYTE, [0, 1, 2]),
        50711: Tag(SHORT, 1),
    }
    return {**base, **(tags or {})}


CAMERA = {
    50706: Tag(BYTE, [1, 4, 0, 0]),
    50708: Tag(ASCII, b"Grey box\0"),
    50721: Tag(SRATIONAL, parts(MATRIX)),
    50778: Tag(SHORT, 21),
    50728: Tag(RATIONAL, parts([0.5, 1, 0.6])),
}


def grey(height: int = 32, width: int = 32) -> np.ndarray:
    """The scene, uint16: grey under every colour, a little of it above white."""
    pixels = np.full((height, width), GREY, np.uint16)
    pixels[0, 0] = WHITE
    return pixels


def write(path: Path, *directories: dict[int, Tag], camera: dict[int, Tag] | None = None) -> Path:
    """A file of one directory (IFD 0) or of IFD 0 and its SubIFDs.

    Pixels come from tag 273, one strip in bytes, or from ``Streams`` in any tag.

    ``camera`` holds what is added to IFD 0 (by default ``CAMERA``). A Tag of None leaves the tag
    out.
    """
    first, *rest = directories
    tables = [{**first, **(CAMERA if camera is None else camera)}, *rest]
    if rest:
        tables[0][330] = Tag(LONG, [0] * len(rest))
    tables = [{tag: value for tag, value in sorted(t.items()) if value} for t in tables]
    starts, place = [], 8
    for table in tables:
        starts.append(place)
        place += 2 + 12 * len(table) + 4
    if rest:
        tables[0][330] = Tag(LONG, starts[1:])
    heads, data = [], b""
    for table in tables:
        head = struct.pack("<H", len(table))
        for tag, value in table.items():
            payload = value.pack()
            count = len(payload) // _BYTES[value.kind] if value.count is None else value.count
            if isinstance(value, Streams):
                offsets = []
                for stream in value.streams:
                    offsets.append(place + len(data))
                    data += stream + b"\0" * (len(stream) % 2)
                payload = struct.pack(f"<{len(offsets)}I", *offsets)
            elif tag == 273:
                offset = place + len(data)
                data += payload + b"\0" * (len(payload) % 2)
                count, payload = 1, struct.pack("<I", offset)
            if len(payload) > 4:
                offset = place + len(data)
                data += payload + b"\0" * (len(payload) % 2)
                payload = struct.pack("<I", offset)
            head += struct.pack("<HHI", tag, value.kind, count) + payload.ljust(4, b"\0")
        heads.append(head + struct.pack("<I", 0))
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + b"".join(heads) + data)
    return path
