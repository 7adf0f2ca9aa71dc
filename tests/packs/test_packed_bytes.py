"""Packs that hold a sensor's packed bytes as they are; and those that older versions wrote."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from packed_dumps import SETTINGS, assert_same, dump_folder
from training_run import teacher

import isp_distill
from isp_distill import DamagedPackError, PackedRaw, SensorFolder, pack, verify
from isp_distill.raw.packings import PACKED, pack_rows, row_bytes
from isp_distill.storage.manifest import MANIFEST

OLD = Path(__file__).parent / "version_2"


def packed_into(out, root, **settings):
    return pack(root, out, progress=False, workers=2, **settings)


def manifest_of(out):
    return json.loads((out / MANIFEST).read_text())


def records_of(out):
    return {n: e for shard in manifest_of(out)["shards"] for n, e in shard["records"].items()}


@pytest.mark.parametrize("packing", PACKED)
def test_frames_are_stored_as_they_are(tmp_path, packing):
    root, out = dump_folder(tmp_path / "dumps", packing, width=72), tmp_path / "out"
    report = packed_into(out, root)
    size = 64 * row_bytes(72, packing)
    assert report.stored_bytes < 6 * (size + 200) < report.mosaic_bytes
    assert "times less than 16 bits a pixel" in str(report)
    assert manifest_of(out)["version"] == 3
    for entry in records_of(out).values():
        assert (entry["packing"], entry["nbytes"], entry["shape"]) == (packing, size, [64, 72])
    assert verify(out, progress=False).sound
    folder, plain, packed = SensorFolder(root), PackedRaw(out), PackedRaw(out, packed=True)
    for index, raw in enumerate(folder):
        assert plain[index].packing is None
        assert_same(raw, plain[index])
        assert packed[index].mosaic.tobytes() == (root / f"{index}.raw").read_bytes()
        assert_same(raw, packed[index])
        assert packed.rows(index, 4, 10).packing == packing
        assert np.array_equal(plain.rows(index, 4, 10).mosaic, raw.mosaic[4:10])
        assert np.array_equal(plain.crop(index, 3, 5, 8, 12).mosaic, raw.mosaic[3:11, 5:17])
        assert packed.crop(index, 3, 8, 8, 12).packing == packing
        assert plain.reads_rows(index)
    assert packed_into(out, root).packed == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"binning": 2}, {}), ({"compression": "zstd"}, {}), ({"packed": False}, {}),
     ({}, {"orientation": 3}), ({}, {"block": 2})],
)  # fmt: skip
def test_what_needs_the_codes_is_stored_as_codes(tmp_path, settings, said):
    root, out = dump_folder(tmp_path / "dumps", **said), tmp_path / "out"
    packed_into(out, root, **settings)
    assert not any("packing" in entry for entry in records_of(out).values())
    assert manifest_of(out)["version"] == (3 if settings.get("packed") is False else 2)
    assert verify(out, progress=False).sound
    for raw, other in zip(SensorFolder(root), PackedRaw(out), strict=True):
        assert other.packing is None
        if settings.get("binning") is None:
            assert_same(raw, other)


def test_upside_down_frames_stay_packed(tmp_path):
    root, out = dump_folder(tmp_path / "dumps", orientation=4), tmp_path / "out"
    packed_into(out, root)
    assert all(entry["packing"] == "mipi12" for entry in records_of(out).values())
    for raw, other in zip(SensorFolder(root), PackedRaw(out), strict=True):
        assert_same(raw, other)


def test_training_on_a_pack_of_bytes_is_training_on_the_dumps(tmp_path):
    root = dump_folder(tmp_path / "dumps")
    packed_into(tmp_path / "bytes", root)
    packed_into(tmp_path / "codes", root, packed=False)
    found = {}
    for name, data in (("dumps", root), *((n, tmp_path / n) for n in ("bytes", "codes"))):
        result = isp_distill.train(
            "rawify", teacher(), data, validation=data, out=tmp_path / f"run-{name}", crop=56,
            binning=1, **SETTINGS,
        )  # fmt: skip
        found[name] = result.after.kl, result.after.agreement_top1, result.after.samples
    assert found["dumps"] == found["bytes"] == found["codes"]


def test_a_stored_teacher_of_packed_frames(tmp_path):
    root = dump_folder(tmp_path / "dumps")
    for name, packed in (("bytes", True), ("codes", False)):
        packed_into(tmp_path / name, root, packed=packed, teacher=teacher(), views=2, crop=56)
    runs = [
        isp_distill.train(
            "rawify", teacher(), tmp_path / name, validation=root, out=tmp_path / f"run-{name}",
            crop=56, **SETTINGS,
        )
        for name in ("bytes", "codes")
    ]  # fmt: skip
    assert runs[0].after.kl == runs[1].after.kl
    assert json.loads((tmp_path / "run-bytes/report.json").read_text())["stored_teacher"]


def test_damaged_bytes_are_found_and_packed_again(tmp_path):
    root, out = dump_folder(tmp_path / "dumps"), tmp_path / "out"
    packed_into(out, root)
    shard = next(out.glob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert len(verify(out, drop=True, progress=False).damaged) == 1
    assert packed_into(out, root).packed == 1
    assert verify(out, progress=False).sound


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packing": "uint16"}, "packing of 0.raw is 'uint16': expected one of mipi10"),
        ({"packing": "mipi10"}, "but 6144 bytes are stored"),
        ({"packing": ...}, "but 6144 bytes are stored"),
        ({"shape": [64, 66]}, "but 6144 bytes are stored"),
        ({"bands": [0, 6144]}, "packing of 0.raw is mipi12, of a record that is compressed"),
    ],
)
def test_a_manifest_that_lies_of_packed_bytes_is_refused(tmp_path, change, message):
    root, out = dump_folder(tmp_path / "dumps", count=1), tmp_path / "out"
    packed_into(out, root)
    manifest = manifest_of(out)
    entry = manifest["shards"][0]["records"]["0.raw"]
    entry |= change
    for name in [n for n, value in change.items() if value is ...]:
        del entry[name]
    (out / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedPackError) as refused:
        PackedRaw(out)
    assert message in str(refused.value)


def test_a_pack_of_version_2_is_read_and_goes_on(tmp_path):
    """Of frames in mipi10, which that version stored as codes; new ones are stored as bytes."""
    out, root = tmp_path / "out", tmp_path / "dumps"
    shutil.copytree(OLD, out)
    assert manifest_of(out)["version"] == 2
    codes = (np.arange(2 * 12 * 16).reshape(2, 12, 16) * 37 % 1024).astype(np.uint16)
    assert [np.array_equal(raw.mosaic, codes[i]) for i, raw in enumerate(PackedRaw(out))] == [1, 1]
    assert verify(out, progress=False).sound
    root.mkdir()
    (root / "sensor.toml").write_text('format = "SRGGB10P"\nwidth = 16\nheight = 12\nblack = 64\n')
    for index in range(2):
        path = root / f"{index}.raw"
        path.write_bytes(pack_rows(codes[index], "mipi10").tobytes())
        os.utime(path, ns=(10**18 + index, 10**18 + index))
    assert packed_into(out, root).packed == 0
    assert manifest_of(out)["version"] == 2
    (root / "2.raw").write_bytes(pack_rows(codes[0], "mipi10").tobytes())
    assert packed_into(out, root).packed == 1
    assert manifest_of(out)["version"] == 3
    assert ["packing" in entry for entry in records_of(out).values()] == [False, False, True]
    assert verify(out, progress=False).sound
    assert np.array_equal(PackedRaw(out)[2].mosaic, PackedRaw(out)[0].mosaic)
    (root / "2.raw").unlink()
    packed_into(out, root, prune=True)
    assert manifest_of(out)["version"] == 2
