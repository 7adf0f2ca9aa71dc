"""Stored logits that were damaged or edited: refused before they are used, and stored anew."""

from __future__ import annotations

import json
import math
import shutil
import tracemalloc

import numpy as np
import pytest
from manifest_mutations import as_text, resealed, sealed_edit, wrong_values
from packed_folders import write
from training_run import teacher

from isp_distill import CorruptRawError, DamagedPackError, PackedRaw, pack, verify
from isp_distill.data.views import View
from isp_distill.packs.stored_teacher import StoredTeacher
from isp_distill.storage.manifest import MANIFEST, inspect_manifest
from isp_distill.storage.manifest_schema import LOGITS

pytest.importorskip("tifffile", reason="the tests' DNG files are written with it")

CROP = 32


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Four packed files with two stored views each, of which the two largest logits are kept."""
    folder = tmp_path_factory.mktemp("made")
    for i in range(4):
        write(folder / f"raw/{i}.dng", i)
    pack_again(folder, folder / "packed")
    return folder


@pytest.fixture
def out(made, tmp_path):
    """A copy of the packed folder, to be damaged."""
    shutil.copytree(made / "packed", tmp_path / "out")
    return tmp_path / "out"


def pack_again(made, out):
    return pack(made / "raw", out, teacher=teacher(), views=2, crop=CROP, top=2, progress=False)


@pytest.mark.parametrize("seal", [False, True])
def test_damaged_manifests_of_stored_logits(out, seal):
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
            assert "no stored logits for" in str(error)  # noqa: PT017 - one of two endings
            continue
        for (draw, logits), (other, expected) in zip(got, good, strict=True):
            assert seal or draw == other, (place, value)
            assert seal or (logits == expected).all(), (place, value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def damaged_logits(out, change):
    """Write the arrays of a shard of logits anew, with sizes and checksums that fit."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    from isp_distill.storage.shards import digest

    (path,) = out.glob(f"teachers/*/{MANIFEST}")
    shard = path.with_name("logits-000000.safetensors")
    with safe_open(str(shard), framework="np") as file:
        arrays = {key: file.get_tensor(key).copy() for key in file.keys()}  # noqa: SIM118 - no mapping
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
def test_damaged_logits_are_refused_before_memory_is_asked_for(out, change, message):
    folder = damaged_logits(out, change)
    tracemalloc.start()
    with pytest.raises(CorruptRawError, match=f"stored logits are damaged.*{message}"):
        StoredTeacher.matching(PackedRaw(out), teacher(), View(CROP)).view(0, 0)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert inspect_manifest(folder, LOGITS).faults == []


def test_edited_logits_are_named_and_stored_anew(made, out):
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
        pack_again(made, out)
        assert verify(out, progress=False).sound
        found = StoredTeacher.matching(PackedRaw(out), teacher(), View(CROP))
        for index, logits in enumerate(good):
            np.testing.assert_array_equal(found.view(index, 0)[1], logits)
