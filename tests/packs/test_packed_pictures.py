"""Cameras' pictures in packed folders: what the teacher sees is what it sees of the files."""

import numpy as np
import pytest
import torch
from pair_cases import camera_jpeg, photograph, write_raw
from training_run import teacher

import isp_distill
from isp_distill import PackedRaw, RawFolder, View, pack, verify
from isp_distill.data.loader import ViewLoader
from isp_distill.packs.stored_teacher import StoredTeacher


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    for number, name in enumerate(("astronaut", "coffee")):
        path = write_raw(root / f"{name}.dng", photograph(name, 320), (1, 6)[number])
        (root / f"{name}.jpg").write_bytes(camera_jpeg(path, (8, 12, 10, 8), 1.003))
    write_raw(root / "lone.dng", photograph("chelsea", 320))
    return root


@pytest.fixture(scope="module")
def packed(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed")
    judge = teacher()
    judge.model.eval()
    report = pack(
        raw, out, picture="beside", teacher=judge, crop=32, views=2, progress=False, device="cpu"
    )
    assert report.files == 2
    assert "lone.jpg is missing" in report.skipped[str(raw / "lone.dng")]
    return out


def batch_of(source):
    (batch,) = ViewLoader(source, View(32, area=(0.2, 0.5)), 4, seed=3).training(0, 1)
    return batch


def test_views_are_those_of_the_folder(raw, packed):
    stored = batch_of(PackedRaw(packed))
    files = [raw / "astronaut.dng", raw / "coffee.dng"]
    direct = batch_of(RawFolder(raw, picture="beside", files=files))
    assert torch.equal(stored.mosaic, direct.mosaic)
    assert torch.equal(stored.picture, direct.picture)


def test_pictures_are_resized_once_and_binned_mosaics_keep_them_in_place(raw, packed, tmp_path):
    pack(raw, tmp_path / "small", picture="beside", picture_side=100, binning=2, progress=False)
    small, whole = PackedRaw(tmp_path / "small"), PackedRaw(packed)
    for index in range(2):
        one, other = small.aligned(index), whole.aligned(index)
        assert min(one.picture.shape) == 100
        height, width = small.shape(index)
        assert one.registration.mosaic == (height, width)
        corners = [
            np.array(a.registration.window((0, 0, *size))) / (a.picture.shape * 2)
            for a, size in ((one, (height, width)), (other, (2 * height, 2 * width)))
        ]
        np.testing.assert_allclose(*corners, atol=0.005)


def test_the_stored_teacher_saw_the_pictures(packed):
    source, judge = PackedRaw(packed), teacher()
    judge.model.eval()
    stored = StoredTeacher.matching(source, judge, View(32))
    loader = ViewLoader(source, View(32), 1)
    for index in range(2):
        drawn, logits = stored.view(index, 1)
        with torch.no_grad():
            expected = judge.logits(judge.picture(loader._collate([loader._view(index, drawn)], 0)))
        torch.testing.assert_close(torch.from_numpy(logits)[None], expected, atol=0.02, rtol=0.01)


def test_other_settings_are_refused_and_damage_is_found(raw, packed, tmp_path):
    with pytest.raises(ValueError, match="picture was 'beside', is None"):
        pack(raw, packed, progress=False)
    with pytest.raises(ValueError, match="picture_side is 5"):
        pack(raw, tmp_path / "five", picture="beside", picture_side=5, progress=False)
    with pytest.raises(ValueError, match="leave upright at True"):
        pack(raw, tmp_path / "side", picture="beside", upright=False, progress=False)
    out = tmp_path / "out"
    pack(raw, out, picture="beside", progress=False)
    assert verify(out, progress=False).sound
    (shard,) = out.glob("shard-*.safetensors")
    whole = bytearray(shard.read_bytes())
    jpeg = (raw / "coffee.jpg").read_bytes()
    whole[whole.index(jpeg) + len(jpeg) // 2] ^= 255
    shard.write_bytes(whole)
    (found,) = verify(out, progress=False).damaged.values()
    assert found == {"coffee.dng": "its picture is missing or has another checksum"}


def test_a_shard_that_is_written_anew_keeps_its_pictures(raw, tmp_path):
    source, out = tmp_path / "raw", tmp_path / "out"
    source.mkdir()
    for path in raw.iterdir():
        if path.stem != "lone":
            (source / path.name).write_bytes(path.read_bytes())
    pack(source, out, picture="beside", progress=False)
    before = PackedRaw(out).aligned(1)
    (source / "astronaut.dng").unlink()
    pack(source, out, picture="beside", prune=True, progress=False)
    after = PackedRaw(out).aligned(0)
    assert after.picture.jpeg() == before.picture.jpeg() == (source / "coffee.jpg").read_bytes()
    assert after.registration == before.registration
    assert isp_distill.verify(out, progress=False).sound
