"""A pack's manifest: what is edited or damaged is found, named, and packed anew."""

from __future__ import annotations

import json
import pickle
import shutil
import tracemalloc
from contextlib import closing

import numpy as np
import pytest
from manifest_mutations import (
    as_text,
    broken_texts,
    edited,
    resealed,
    sealed_edit,
    wrong_values,
)
from packed_folders import assert_same, everything, mosaic, write
from training_run import teacher

from isp_distill import CorruptRawError, DamagedPackError, PackedRaw, RawFolder, pack, verify
from isp_distill.cli import main
from isp_distill.raw.record_fields import stored_fields
from isp_distill.storage.manifest import MANIFEST, MAX_BYTES, inspect_manifest
from isp_distill.storage.manifest_schema import MOSAICS
from isp_distill.storage.mosaic_codec import DamagedBandError, compress, decompress

pytest.importorskip("tifffile", reason="the tests' DNG files are written with it")
pytest.importorskip("zstandard", reason="shards are compressed with it")

CROP = 32


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Four files packed with stored logits, one a shard: of equal sizes two by two."""
    folder = tmp_path_factory.mktemp("made")
    for i in range(4):
        write(folder / f"raw/{'cat' if i < 2 else 'dog'}/{i}.dng", 3 * (i % 2) + 6 * i, iso=100 + i)
    options = {"labels": "folder", "progress": False, "shard_bytes": 1}
    settings = {"teacher": teacher(), "views": 2, "crop": CROP, "top": 2}
    pack(folder / "raw", folder / "plain", **options)
    pack(folder / "raw", folder / "zstd", compression="zstd", **options, **settings)
    return folder


@pytest.fixture
def out(made, tmp_path):
    """A copy of the packed folder without compression, to be damaged."""
    shutil.copytree(made / "plain", tmp_path / "out")
    return tmp_path / "out"


def pack_again(made, out, **settings):
    return pack(made / "raw", out, labels="folder", progress=False, **settings)


def edit(out, change):
    path = out / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def record_of(manifest, name):
    return next(s["records"][name] for s in manifest["shards"] if name in s["records"])


EDITS = {
    "black": lambda r: r["fields"].update(black=[0, 0, 0, 0]),
    "white": lambda r: r["fields"].update(white=4000.0),
    "pattern": lambda r: r["fields"].update(pattern="GRBG"),
    "iso": lambda r: r["fields"].update(iso=1),
    "shape": lambda r: r.update(shape=r["shape"][::-1]),
    "large": lambda r: r.update(shape=[2**20, 2**20]),
    "label": lambda r: r.update(label=1),
    "checksum": lambda r: r.update(checksum="0" * 32),
    "key": lambda r: r.update(key="1"),
    "stamp": lambda r: r.update(mtime_ns=r["mtime_ns"] + 1),
    "digest": lambda r: r.update(digest="0" * 32),
}


@pytest.mark.parametrize(
    ("what", "drop"), [*((what, False) for what in EDITS), ("shape", True), ("digest", True)]
)
def test_an_edited_record_is_refused_named_and_packed_anew(made, out, what, drop):
    edit(out, lambda m: EDITS[what](record_of(m, "cat/1.dng")))
    with pytest.raises(DamagedPackError, match=r"damaged: .* of cat/1\.dng ") as caught:
        PackedRaw(out)
    assert (caught.value.folder, caught.value.record) == (str(out), "cat/1.dng")
    assert isinstance(caught.value, ValueError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    report = verify(out, drop=drop, progress=False)
    assert not report.sound
    assert [n for s, n in report.damaged.items() if s != MANIFEST and "cat/1.dng" in n]
    again = pack_again(made, out)
    assert again.packed == 1
    assert drop or list(again.damaged) == ["cat/1.dng"]
    assert verify(out, progress=False).sound
    assert_same(everything(PackedRaw(made / "plain")), everything(PackedRaw(out)))


def test_a_renamed_or_missing_record_is_found(made, out):
    good = everything(PackedRaw(out))

    def rename(manifest):
        records = next(s["records"] for s in manifest["shards"] if "cat/0.dng" in s["records"])
        records["cat/x.dng"] = records.pop("cat/0.dng")

    edit(out, rename)
    with pytest.raises(DamagedPackError, match=r"cat/x\.dng"):
        PackedRaw(out)
    assert "cat/x.dng" in str(verify(out, progress=False))
    pack_again(made, out)
    assert_same(good, everything(PackedRaw(out)))
    edit(out, lambda m: m["shards"].pop())
    with pytest.raises(DamagedPackError, match="digest"):
        PackedRaw(out)
    assert MANIFEST in verify(out, progress=False).damaged
    pack_again(made, out)
    assert_same(good, everything(PackedRaw(out)))


@pytest.mark.parametrize(
    ("change", "drop"),
    [
        ({"settings": {"upright": True, "binning": 2, "compression": "none"}}, False),
        ({"settings": {"upright": False, "binning": 1, "compression": "none"}}, True),
        ({"settings": 7}, True),
        ({"classes": ["cow", "dog"]}, False),
        ({"skipped": {"../x": {}}}, False),
        ({"source": None}, False),
        ({"next": 0}, True),
        ({"complete": 1}, False),
        ({"more": 1}, False),
    ],
)
def test_what_is_said_of_all_records_is_protected(made, out, change, drop):
    edit(out, lambda m: m.update(change))
    with pytest.raises(DamagedPackError) as caught:
        PackedRaw(out)
    assert caught.value.record is None
    report = verify(out, drop=drop, progress=False)
    assert list(report.damaged) == [MANIFEST]
    again = pack_again(made, out)
    assert again.packed == 0, "the records were sound"
    assert verify(out, progress=False).sound
    assert_same(everything(PackedRaw(made / "plain")), everything(PackedRaw(out)))


def test_shards_that_change_places_are_found(made, out):
    first, second = (out / f"shard-00000{i}.safetensors" for i in (0, 1))
    assert first.stat().st_size == second.stat().st_size
    first.rename(out / "x")
    second.rename(first)
    (out / "x").rename(second)
    packed = PackedRaw(out)
    for index in (0, 1):
        with pytest.raises(CorruptRawError, match="another shard"):
            packed[index]
    assert packed[2].iso == 102
    assert set(verify(out, progress=False).damaged) == {first.name, second.name}
    again = pack_again(made, out)
    assert (again.packed, len(again.damaged)) == (2, 2)
    assert "2 damaged records were dropped" in str(again)
    assert verify(out, progress=False).sound
    assert_same(everything(PackedRaw(made / "plain")), everything(PackedRaw(out)))


def test_a_shard_of_another_pack_is_found(made, out):
    pack(made / "raw", out.parent / "turned", upright=False, shard_bytes=1, progress=False)
    shutil.copy(out.parent / "turned/shard-000000.safetensors", out)
    with pytest.raises(CorruptRawError, match="another shard: its file says that its made_as"):
        PackedRaw(out)[0]


def outcome(use):
    """What a use of a damaged folder gives: its result, or one of our two errors."""
    try:
        return use()
    except (DamagedPackError, CorruptRawError) as error:
        return error
    except ValueError as error:
        if "nothing is packed" in str(error):
            return error
        raise


def read_all(out):
    """What a pack gives to those who read it."""
    packed = PackedRaw(out)
    return [(packed.names[i], packed[i], packed.label(i)) for i in range(len(packed))]


@pytest.mark.filterwarnings("ignore:.*interrupted")
@pytest.mark.parametrize("seal", [False, True])
def test_any_damage_to_a_manifest_is_one_error(made, tmp_path, seal):
    """Digests that do not fit find every change; with digests that fit, the schema holds alone."""
    out = tmp_path / "out"
    shutil.copytree(made / "zstd", out)
    good = read_all(out)
    text = (out / MANIFEST).read_bytes()
    manifest = json.loads(text)
    manifest = {**manifest, "shards": manifest["shards"][:2]}
    texts = [as_text(resealed(m) if seal else m) for _, _, m in wrong_values(manifest, 0.15)]
    texts = texts if seal else [*texts, *broken_texts(text)]
    assert len(texts) > 200
    refused = 0
    tracemalloc.start()
    for changed in texts:
        (out / MANIFEST).write_bytes(changed)
        got = outcome(lambda: read_all(out))
        refused += isinstance(got, Exception)
        if not isinstance(got, Exception) and not seal:
            assert len(got) == len(good), changed
            for (name, raw, label), (other, second, other_label) in zip(got, good, strict=True):
                assert (name, label) == (other, other_label)
                np.testing.assert_array_equal(raw.mosaic, second.mosaic)
                assert stored_fields(raw) == stored_fields(second)
        if isinstance(got, DamagedPackError):
            assert str(out) in str(got)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20, f"{peak} bytes for a manifest of {len(text)}"
    assert refused > 0.9 * len(texts)


@pytest.mark.filterwarnings("ignore:.*interrupted")
def test_verify_and_pack_survive_any_manifest(made, tmp_path):
    """They end in a report, or in an error that says to restore the manifest."""
    out = tmp_path / "out"
    text = (made / "zstd" / MANIFEST).read_bytes()
    manifest = json.loads(text)
    good = everything(PackedRaw(made / "zstd"))
    wrong = [m for _, _, m in wrong_values(manifest, 0.003, seed=1)]
    for damaged in [*wrong, *(resealed(m) for m in wrong[::2])]:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(made / "zstd", out)
        (out / MANIFEST).write_bytes(as_text(damaged))
        try:
            verify(out, drop=True, progress=False)
        except DamagedPackError as error:
            assert "empty folder" in str(error)  # noqa: PT017 - most end without one
            continue
        try:
            pack_again(made, out, compression="zstd")
        except ValueError as error:
            assert "other settings" in str(error)  # noqa: PT017 - most end without one
            continue
        assert_same(good, everything(PackedRaw(out)))
        assert verify(out, progress=False).sound


@pytest.mark.parametrize(
    ("change", "record", "field"),
    [
        (lambda m: m["shards"][0].update(file="../other/x.safetensors"), None, "shards.file"),
        (lambda m: m["shards"][0].update(file="/etc/x.safetensors"), None, "shards.file"),
        (lambda m: m["shards"][0].update(file=m["shards"][1]["file"]), None, "shards.file"),
        (lambda m: m["shards"][0].update(bytes=True), None, "shards.bytes"),
        (lambda m: record_of(m, "cat/0.dng").update(shape=[2**20, 2**20]), "cat/0.dng", "shape"),
        (lambda m: record_of(m, "cat/0.dng").update(shape=[True, 2]), "cat/0.dng", "shape"),
        (lambda m: record_of(m, "cat/0.dng").pop("fields"), "cat/0.dng", "fields"),
        (lambda m: record_of(m, "cat/0.dng").update(nbytes=-4), "cat/0.dng", "nbytes"),
        (
            lambda m: record_of(m, "cat/0.dng")["fields"].update(black=[1, 2, 3]),
            "cat/0.dng", "fields.black",
        ),
        (
            lambda m: record_of(m, "cat/0.dng")["fields"].update(white=0),
            "cat/0.dng", "fields.white",
        ),
        (lambda m: record_of(m, "cat/0.dng")["bands"].insert(1, 9**9), "cat/0.dng", "bands"),
        (
            lambda m: m["shards"][0]["records"].update(
                {"../../x.dng": dict(record_of(m, "cat/0.dng"))}
            ),
            "../../x.dng", "name",
        ),
        (
            lambda m: m["shards"][1]["records"].update(
                {"cat/0.dng": dict(record_of(m, "cat/0.dng"))}
            ),
            "cat/0.dng", "name",
        ),
    ],
)  # fmt: skip
def test_errors_name_folder_record_and_field(made, tmp_path, change, record, field):
    out = tmp_path / "out"
    shutil.copytree(made / "zstd", out)
    sealed_edit(out, change)
    with pytest.raises(DamagedPackError) as caught:
        PackedRaw(out)
    error = caught.value
    assert (error.folder, error.record, error.field) == (str(out), record, field)
    assert "Error" not in error.reason
    with pytest.raises(SystemExit, match="1"):
        main(["verify", str(out)])


def test_a_huge_manifest_is_not_read(out):
    with open(out / MANIFEST, "r+b") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(DamagedPackError, match=f"has {MAX_BYTES + 1} bytes"):
        PackedRaw(out)


def test_a_pack_of_version_1_says_what_to_do(made, out):
    edit(out, lambda m: m.update(version=1))
    for use in (PackedRaw, verify, lambda path: pack_again(made, path)):
        with pytest.raises(DamagedPackError, match=r"0\.1.*pack its files again, into an empty"):
            use(out)
    edit(out, lambda m: m.update(version=5))
    with pytest.raises(DamagedPackError, match="is 5: this isp-distill reads 2 to 4"):
        PackedRaw(out)


def test_bands_are_measured_before_memory_is_asked_for():
    stored, offsets = compress(mosaic(0, (128, 80)))
    tracemalloc.start()
    for shape in ((2**20, 2**20), (128, 2**28)):
        wide = [*offsets, *[offsets[-1]] * (shape[0] // 64 - 2)]
        with pytest.raises(DamagedBandError, match="not the size of a band"):
            decompress(stored, wide, shape, 0, 128)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_what_pack_reads_is_what_the_schema_allows(made):
    """No record of a folder of files is refused by what is checked of it."""
    for name in ("plain", "zstd"):
        found = inspect_manifest(made / name, MOSAICS)
        assert found.faults == []
    with closing(RawFolder(made / "raw", labels="folder")) as folder:
        assert_same(everything(folder), everything(PackedRaw(made / "plain")))


def test_the_edit_of_a_place_is_one(made):
    manifest = json.loads((made / "plain" / MANIFEST).read_text())
    assert resealed(manifest) == manifest
    assert edited(manifest, ("shards", 0, "file"), ...)["shards"][0].keys() == {"bytes", "records"}
