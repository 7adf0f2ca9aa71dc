"""Mosaics and small DNG files that the tests of the RAW reader make."""

from __future__ import annotations

import numpy as np
import pytest

from isp_distill.raw.image import RawImage

tifffile = pytest.importorskip("tifffile", reason="the tests' DNG files are written with it")

MATRIX = [[0.838, -0.263, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]]
CFA = [
    (33421, "H", 2, (2, 2), True),
    (33422, "B", 4, (0, 1, 1, 2), True),
    (50710, "B", 3, (0, 1, 2), True),
    (50711, "H", 1, 1, True),
]


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(1, 4096, shape, dtype=np.uint16)


def rationals(values):
    return tuple(int(v) for x in np.ravel(values) for v in (round(x * 1e6), 10**6))


def bare_dng(path, data, tags=(), photometric=32803, **arguments):
    """A DNG with only the tags that are given."""
    base = [(50706, "B", 4, (1, 4, 0, 0), True), (50708, "s", 0, "Test", True)]
    single = data.ndim == 2 and photometric == 34892
    tifffile.imwrite(
        path,
        data,
        photometric=1 if single else photometric,
        metadata=None,
        rowsperstrip=len(data),
        extratags=[*base, *tags],
        **arguments,
    )
    if single:  # tifffile insists on three samples for LinearRaw; patch the tag
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags[262].overwrite(34892)
    return path


def random_raw(pattern="RGGB", orientation=1, height=6, width=10):
    mosaic = np.arange(height * width, dtype=np.uint16).reshape(height, width)
    return RawImage(mosaic, pattern, (1, 2, 3, 4), 1000, orientation=orientation)


def plane_names(raw):
    """The name of every pixel's plane, from first principles: a green is Gr beside a red."""
    letters = np.tile(np.array(list(raw.pattern)).reshape(2, 2), (raw.height // 2, raw.width // 2))
    red_row = np.repeat((letters == "R").any(axis=1)[:, None], raw.width, axis=1)
    return np.where(letters == "G", np.where(red_row, "Gr", "Gb"), letters)
