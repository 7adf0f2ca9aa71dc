"""Opcode lists byte by byte, and scenes that are dark at the corners."""

from __future__ import annotations

import struct

import numpy as np
from dng_cases import CFA, bare_dng, rationals

BLACK, WHITE = 4096, 61440
GREY = 0.174
ORIGIN = (0.03, -0.02)


def gain_map(gains, area, pitch=(1, 1), origin=(0.0, 0.0), spacing=None, plane=(0, 1)):
    """The parameters of a GainMap opcode (DNG specification 1.4, chapter 7)."""
    gains = np.asarray(gains, ">f4")
    spacing = spacing or tuple(1 / max(1, side - 1) for side in gains.shape[:2])
    planes = gains.shape[2] if gains.ndim == 3 else 1
    head = struct.pack(">10I", *area, *plane, *pitch, *gains.shape[:2])
    return head + struct.pack(">4dI", *spacing, *origin, planes) + gains.tobytes()


def opcode_list(*opcodes):
    """A list from (number, parameters)."""
    found = struct.pack(">I", len(opcodes))
    for number, data in opcodes:
        found += struct.pack(">4I", number, 0x01030000, 0, len(data)) + data
    return found


def grid(seed, shape=(4, 5)):
    """Gains as of a lens: larger outside."""
    return np.random.default_rng(seed).uniform(1.0, 2.5, shape)


def gain_at(gains, height, width, origin=(0.0, 0.0)):
    """The gain of every site of a picture, by numpy's own interpolation, which holds outside."""
    rows = (np.arange(height) + 0.5) / height
    columns = (np.arange(width) + 0.5) / width
    points = [o + np.linspace(0, 1, n) for o, n in zip(origin, gains.shape, strict=True)]
    tall = np.stack([np.interp(rows, points[0], column) for column in gains.T], 1)
    return np.stack([np.interp(columns, points[1], row) for row in tall])


def write(path, mosaic, tags=(), area=None, **arguments):
    """A DNG of the levels above with opcode lists and other tags."""
    tags = [
        (50714, "H", 1, BLACK, True), (50717, "H", 1, WHITE, True),
        (50728, "2I", 3, rationals([1, 1, 1]), True), *CFA, *tags,
    ]  # fmt: skip
    if area:
        tags.append((50829, "I", 4, area, True))
    return bare_dng(path, mosaic, tags, **arguments)


def opcodes_tag(list_number, data):
    """The tag of one of the three lists."""
    return ({1: 51008, 2: 51009, 3: 51022}[list_number], 7, len(data), data, True)


def phone_dng(path, shape=(48, 64), area=None, *, extra=(), same=False, **arguments):
    """A grey scene seen through a lens with shading, and the four maps that even it out."""
    top, left, bottom, right = area or (0, 0, *shape)
    height, width = bottom - top, right - left
    mosaic = np.full(shape, BLACK, np.float64)
    opcodes = []
    for site in range(1 if same else 4):
        gains = grid(site)
        row, column = divmod(site, 2)
        step = 1 if same else 2
        light = BLACK + (WHITE - BLACK) * GREY / gain_at(gains, height, width, ORIGIN)
        place = slice(top + row, bottom, step), slice(left + column, right, step)
        mosaic[place] = light[row::step, column::step]
        area_of_map = (row, column, height, width)
        opcodes.append((9, gain_map(gains, area_of_map, (step, step), ORIGIN)))
    tags = [opcodes_tag(2, opcode_list(*opcodes)), *extra]
    return write(path, np.rint(mosaic).astype(np.uint16), tags, area, **arguments)
