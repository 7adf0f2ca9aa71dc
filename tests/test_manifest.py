"""A pack's manifest: what is edited or damaged is found, named, and packed anew."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import shutil
import tracemalloc
from contextlib import closing

import numpy as np
import pytest
from manifest_mutations import as_text, broken_texts, edited, resealed, wrong_values
from test_pack import assert_same, everything, mosaic, write
from training_run import teacher

from isp_distill import (
    CorruptRawError,
    DamagedPackError,
    PackedRaw,
    RawFolder,
    RawImage,
    pack,
    verify,
)
from isp_distill.binning import bin_mosaic
from isp_distill.cli import main
from isp_distill.decoded_cache import DecodedCache
from isp_distill.gain_map import GainMap
from isp_distill.manifest import MANIFEST, MAX_BYTES, inspect_manifest
from isp_distill.manifest_schema import LOGITS, MOSAICS
from isp_distill.mosaic_codec import DamagedBandError, compress, decompress
from isp_distill.pack import _record
from isp_distill.pack_writer import PackWriter
from isp_distill.record_fields import binned_image, fields_of_rows, image_fields, stored_fields
from isp_distill.stored_teacher import StoredTeacher
from isp_distill.views import View

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


@pytest.mark.parametrize("seal", [False, True])
def test_damaged_manifests_of_stored_logits(made, tmp_path, seal):
    out = tmp_path / "out"
    shutil.copytree(made / "zstd", out)
    (path,) = out.glob(f"teachers/*/{MANIFEST}")
    packed, folder = PackedRaw(out), path.parent
    good = [StoredTeacher(packed, folder).view(i, k) for i in range(4) for k in range(2)]
    manifest = json.loads(path.read_text())
    tracemalloc.start()
    for place, value, damaged in wrong_values(manifest, 0.12):
        path.write_bytes(as_text(resealed(damaged) if seal else damaged))
        try:
            found = StoredTeacher(packed, folder)
            got = [found.view(i, k % found.views) for i in range(4) for k in range(2)]
        except (DamagedPackError, CorruptRawError):
            continue
        except ValueError as error:
            assert "no stored logits for" in str(error)  # noqa: PT017
            continue
        for (draw, logits), (other, expected) in zip(got, good, strict=True):
            assert seal or draw == other, (place, value)
            assert seal or (logits == expected).all(), (place, value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


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
            assert "other settings" in str(error)  # noqa: PT017
            continue
        assert_same(good, everything(PackedRaw(out)))
        assert verify(out, progress=False).sound


def sealed_edit(out, change):
    path = out / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_bytes(as_text(resealed(manifest)))


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
    edit(out, lambda m: m.update(version=3))
    with pytest.raises(DamagedPackError, match="is 3: this isp-distill reads 2"):
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


def damaged_logits(out, change):
    """Write the arrays of a shard of logits anew, with sizes and checksums that fit."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    from isp_distill.shards import digest

    (path,) = out.glob(f"teachers/*/{MANIFEST}")
    shard = path.with_name("logits-000000.safetensors")
    with safe_open(str(shard), framework="np") as file:
        arrays = {key: file.get_tensor(key).copy() for key in file.keys()}  # noqa: SIM118
        about = file.metadata()
    change(arrays)
    shard.unlink()
    save_file(arrays, str(shard), metadata=about)

    def size(manifest):
        manifest["shards"][0]["bytes"] = shard.stat().st_size
        checksums = {key: digest(array) for key, array in arrays.items()}
        manifest["shards"][0]["checksums"] = checksums

    sealed_edit(path.parent, size)
    return path.parent


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["classes"].fill(2_000_000_000), "2000000000 classes, the manifest 7"),
        (lambda a: a["views"][..., 0].fill(math.nan), "none that a view can have"),
        (lambda a: a["views"][..., 5].fill(math.inf), "none that a view can have"),
        (lambda a: a["views"][..., 2].fill(2), "none that a view can have"),
        (lambda a: a["indices"].fill(7), "classes do not fit"),
        (lambda a: a["values"].fill(math.nan), "log-probability is NaN"),
        (lambda a: a.update(views=a["views"][:, :1].copy()), "array views"),
        (lambda a: a.update(values=a["values"].astype(np.float32)), "array values"),
        (lambda a: a.pop("rest"), "array rest"),
    ],
)
def test_damaged_logits_are_refused_before_memory_is_asked_for(made, tmp_path, change, message):
    out = tmp_path / "out"
    shutil.copytree(made / "zstd", out)
    folder = damaged_logits(out, change)
    tracemalloc.start()
    with pytest.raises(CorruptRawError, match=f"stored logits are damaged.*{message}"):
        StoredTeacher.matching(PackedRaw(out), teacher(), View(CROP)).view(0, 0)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert inspect_manifest(folder, LOGITS).faults == []


def test_edited_logits_are_named_and_stored_anew(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made / "zstd", out)
    settings = {"compression": "zstd", "teacher": teacher(), "views": 2, "crop": CROP, "top": 2}
    found = StoredTeacher.matching(PackedRaw(out), teacher(), View(CROP))
    good = [found.view(i, 0)[1] for i in range(4)]
    (path,) = out.glob(f"teachers/*/{MANIFEST}")
    text = path.read_text()
    for changed in (
        text.replace('"row": 1', '"row": 2'),
        text.replace('"top": 2', '"top": 3'),
        text[:40],
    ):
        assert changed != text
        path.write_text(changed)
        with pytest.raises(ValueError, match="manifest is damaged"):
            StoredTeacher.matching(PackedRaw(out), teacher(), View(CROP))
        assert not verify(out, progress=False).sound
        pack_again(made, out, **settings)
        assert verify(out, progress=False).sound
        found = StoredTeacher.matching(PackedRaw(out), teacher(), View(CROP))
        for index, logits in enumerate(good):
            np.testing.assert_array_equal(found.view(index, 0)[1], logits)


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
    writer.begin(["a.dng"], prune=False)
    writer.label([], None)
    writer.add(_record("a.dng", raw, {"size": 1, "mtime_ns": 2}, settings))
    writer.flush()
    writer.end()
    return PackedRaw(folder)


def test_every_field_of_an_image_comes_back(tmp_path):
    raw = full_image(tmp_path / "a.dng")
    for field in dataclasses.fields(RawImage):
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
    small = binned_image(raw, bin_mosaic(raw.mosaic, 2), 2)
    assert small.default_crop == (2, 3, 15, 22)
    assert (small.gain_map.top, small.gain_map.step_x) == (-1.0, 14.7 / 2)
    assert packed_image(tmp_path / "out", raw, binning=2)[0].default_crop == (2, 3, 15, 22)


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
