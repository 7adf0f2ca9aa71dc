"""What a pack and the decoded cache keep of an image: every field, as it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from packed_folders import mosaic

from isp_distill import PackedRaw, RawImage
from isp_distill.data.decoded_cache import DecodedCache
from isp_distill.packs.originals import RawFiles
from isp_distill.packs.records import _record
from isp_distill.packs.writer import PackWriter
from isp_distill.raw.changes import binned
from isp_distill.raw.gain_map import GainMap
from isp_distill.raw.record_fields import fields_of_rows, image_fields, stored_fields

pytest.importorskip("zstandard", reason="shards are compressed with it")


def full_image(path=""):
    """A RawImage with every field set, and to no default."""
    gains = np.random.default_rng(0).uniform(1, 3, (4, 3, 5)).astype(np.float32)
    return RawImage(
        mosaic=mosaic(3, (40, 60)), pattern="GBRG", black=(1.5, 2.25, 3.0, 4.1), white=1023.5,
        white_balance=(2.1, 1.0, 1.3), ccm=((1.5, -0.25, -0.25), (0.1, 0.8, 0.1), (0.0, 0.3, 0.7)),
        orientation=3, camera="Maker \u00e9 9", exposure_time=1 / 3, iso=125.0, path=str(path),
        default_crop=(4, 6, 30, 44), baseline_exposure=-0.35,
        gain_map=GainMap(gains, -1.5, 2.25, 13.1, 14.7),
    )  # fmt: skip


def assert_equal(a, b):
    for field in dataclasses.fields(RawImage):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if field.name == "gain_map":
            for part in dataclasses.fields(GainMap):
                np.testing.assert_array_equal(getattr(one, part.name), getattr(other, part.name))
                assert type(getattr(one, part.name)) is type(getattr(other, part.name))
        elif field.name == "mosaic":
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other, field.name
            assert type(one) is type(other), field.name


def packed_image(folder, raw, **settings):
    settings = {"upright": False, "binning": 1, "compression": "none", **settings}
    writer = PackWriter(folder, folder, settings, 1 << 20)
    folder.mkdir()
    (folder / "a.dng").write_bytes(b"any")
    writer.begin(RawFiles(folder, [".dng"], None), prune=False)
    writer.label([], None)
    writer.add(_record("a.dng", raw, {"size": 1, "mtime_ns": 2}, settings))
    writer.flush()
    writer.end()
    return PackedRaw(folder)


def test_every_field_of_an_image_comes_back(tmp_path):
    knots = ((0.0, 0.0), (1000.0, 1000.0), (4095.0, 16777215.0))
    raw = dataclasses.replace(full_image(tmp_path / "a.dng"), linearise=knots)
    for field in dataclasses.fields(RawImage):
        if field.name in ("packing", "packed_width"):
            continue  # of the mosaic: see test_packed_bytes.py
        default = field.default
        assert default is dataclasses.MISSING or getattr(raw, field.name) != default, (
            f"{field.name} has its default: give it another value in full_image()"
        )
    for compression in ("none", "zstd"):
        source = tmp_path / compression
        packed = packed_image(source, raw, compression=compression)
        assert_equal(packed[0], dataclasses.replace(raw, path=str(source.resolve() / "a.dng")))
    (tmp_path / "a.dng").write_bytes(b"any")
    cache = DecodedCache(tmp_path / "kept", upright=False)
    cache.put(tmp_path / "a.dng", raw)
    assert_equal(cache.get(tmp_path / "a.dng"), raw)


def test_an_edited_file_of_the_decoded_cache_is_decoded_anew(tmp_path):
    (tmp_path / "a.dng").write_bytes(b"any")
    cache = DecodedCache(tmp_path / "kept", upright=False)
    cache.put(tmp_path / "a.dng", full_image(tmp_path / "a.dng"))
    (kept,) = (tmp_path / "kept").iterdir()
    data = kept.read_bytes()
    for old, new in ((b"1023.5", b"1023.4"), (b"GBRG", b"GRBG"), (b"[40,60]", b"[60,40]")):
        assert data.count(old) == 1
        kept.unlink()  # not in place: it may be mapped
        kept.write_bytes(data.replace(old, new))
        assert cache.get(tmp_path / "a.dng") is None


def test_places_follow_the_rows_and_the_binning(tmp_path):
    raw = full_image()
    fields = fields_of_rows(image_fields(stored_fields(raw)), 10, 20)
    assert fields["default_crop"] == (0, 6, 10, 44)
    assert fields["gain_map"].top == -11.5
    assert fields_of_rows(image_fields(stored_fields(raw)), 36, 40)["default_crop"] is None
    small = binned(raw, 2)
    assert small.default_crop == (2, 3, 15, 22)
    assert (small.gain_map.top, small.gain_map.step_x) == (-1.0, 14.7 / 2)
    assert packed_image(tmp_path / "out", raw, binning=2)[0].default_crop == (2, 3, 15, 22)
