"""Small RAW files to pack, and how two packed folders are compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import isp_distill
from isp_distill import write_dng


def mosaic(seed=0, shape=(64, 80)):
    return np.random.default_rng(seed).integers(500, 900, shape, dtype=np.uint16)


def write(path, seed, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_dng(
        path, mosaic(seed, (64 + 2 * (seed % 3), 80)), bits=12, black=(510, 511, 512, 513.5),
        white_balance=(2, 1, 1.5), **settings,
    )  # fmt: skip


def everything(source):
    """Every image that can be read, by its path below the root, with its label."""
    found = {}
    for index, path in enumerate(source.paths):
        try:
            raw = source[index]
            raw = replace(raw, mosaic=raw.mosaic.copy())  # not a view of a file that may change
            found[path.relative_to(source.root).as_posix()] = raw, source.label(index)
        except isp_distill.RawError:
            continue
    return found


def assert_same(a, b):
    assert list(a) == list(b)
    for name in a:
        (raw, label), (other, other_label) = a[name], b[name]
        assert label == other_label
        np.testing.assert_array_equal(raw.mosaic, other.mosaic)
        fields = {k: v for k, v in vars(raw).items() if k != "mosaic"}
        assert fields == {k: v for k, v in vars(other).items() if k != "mosaic"}
