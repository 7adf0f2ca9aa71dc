"""Stored logits: the teacher's own, of views that can be cut again, and of no other teacher."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from packed_folders import write
from training_run import teacher

import isp_distill
from isp_distill import ISPAugmentation, PackedRaw, Teacher, pack, train, verify
from isp_distill.data.loader import ViewLoader
from isp_distill.data.views import View
from isp_distill.models.fingerprint import fingerprint
from isp_distill.packs.stored_teacher import StoredTeacher
from isp_distill.storage.logit_codec import decode, encode

pytest.importorskip("tifffile", reason="the tests' DNG files are written with it")

CROP = 32
QUIET = {"progress": False, "tensorboard": False}


@pytest.fixture
def packed(tmp_path):
    """Five files with three stored views each."""
    for i in range(5):
        write(tmp_path / f"raw/{i}.dng", i)
    again(tmp_path)
    return tmp_path / "packed"


def again(tmp_path, chosen=None, **settings):
    chosen = chosen or teacher()
    options = {"views": 3, "crop": CROP, "batch_size": 4, "progress": False, **settings}
    return pack(tmp_path / "raw", tmp_path / "packed", teacher=chosen, **options)


def stored(path, chosen=None, augmentation=None):
    return StoredTeacher.matching(PackedRaw(path), chosen or teacher(), View(CROP), augmentation)


def live(path, views, chosen=None, view=View(CROP)):  # noqa: B008 - frozen
    """The teacher's logits of views given as (index, draw)."""
    chosen = chosen or teacher()
    chosen.model.eval()
    loader = ViewLoader(PackedRaw(path), view, 4)
    batch = loader._collate([loader._view(*what) for what in views], 0)
    with torch.no_grad():
        return chosen.logits(chosen.picture(batch))


def test_stored_logits_are_the_teachers(packed):
    found = stored(packed)
    views = [(i, *found.view(i, k)) for i in range(5) for k in range(3)]
    expected = live(packed, [(i, draw) for i, draw, _ in views])
    got = torch.from_numpy(np.stack([logits for *_, logits in views]))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert len({draw.place for _, draw, _ in views}) == 15
    assert 3 <= sum(draw.mirror for _, draw, _ in views) <= 12
    draw, logits = found.view(2, 7)
    assert draw == found.view(2, 1)[0]  # epoch 7 of 3 views
    np.testing.assert_array_equal(logits, found.view(2, 1)[1])


def test_random_resized_crops_are_stored(packed, tmp_path):
    again(tmp_path, crop_area=(0.2, 0.9), vertical_flip=True)
    view = View(CROP, area=(0.2, 0.9), flip=True)
    found = StoredTeacher.matching(PackedRaw(packed), teacher(), view)
    views = [(i, *found.view(i, k)) for i in range(5) for k in range(3)]
    expected = live(packed, [(i, draw) for i, draw, _ in views], view=view)
    got = torch.from_numpy(np.stack([logits for *_, logits in views]))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert len({draw.area for _, draw, _ in views}) == 15
    assert {draw.flip for _, draw, _ in views} == {False, True}
    result = train("rawify", teacher(), packed, out=tmp_path / "out", steps=2, batch_size=4,
                   crop=CROP, crop_area=(0.2, 0.9), vertical_flip=True, profile=True,
                   **QUIET)  # fmt: skip
    assert "teacher" not in result.stages
    with pytest.raises(ValueError, match=r"area was \[0\.2, 0\.9\], is \[0\.3, 0\.9\]"):
        train("rawify", teacher(), packed, out=tmp_path / "out", crop=CROP, crop_area=(0.3, 0.9),
              vertical_flip=True, **QUIET)  # fmt: skip


def test_views_depend_on_the_file_alone(packed, tmp_path):
    before = {name: stored(packed).view(i, 1)[0] for i, name in enumerate(PackedRaw(packed).names)}
    write(tmp_path / "raw/0-first.dng", 9)
    again(tmp_path)
    now = {name: stored(packed).view(i, 1)[0] for i, name in enumerate(PackedRaw(packed).names)}
    assert {name: now[name] for name in before} == before


def test_training_does_not_run_the_teacher(packed, tmp_path):
    result = train(
        "rawify", teacher(), packed, out=tmp_path / "stored", steps=8, batch_size=4, crop=CROP,
        profile=True, **QUIET,
    )  # fmt: skip
    assert "student" in result.stages
    assert not {"teacher", "teacher's picture"} & set(result.stages)
    report = json.loads((tmp_path / "stored/report.json").read_text())
    assert report["stored_teacher"] == stored(packed).name
    # The same steps with the logits that the teacher gives for the same views.
    given = stored(packed)
    original = StoredTeacher.view
    known = teacher()  # once: building one draws from torch's global generator

    def fresh(self, index, number):
        draw, _ = original(given, index, number)
        return draw, live(packed, [(index, draw)], known)[0].numpy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredTeacher, "view", fresh)
        train("rawify", teacher(), packed, out=tmp_path / "live", steps=8, batch_size=4, crop=CROP,
              **QUIET)  # fmt: skip
    losses = [
        [json.loads(x)["loss"] for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("stored", "live")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.03)
    # And without them the teacher runs.
    data = PackedRaw(packed, use_stored_teacher=False)
    result = train(
        "rawify", teacher(), data, out=tmp_path / "without", steps=2, batch_size=4, crop=16,
        profile=True, **QUIET,
    )  # fmt: skip
    assert "teacher" in result.stages


def changed(**settings):
    base = teacher()
    if settings.pop("weights", False):
        with torch.no_grad():
            base.model[-1].weight[0, 0] += 1e-3
    return Teacher(base.model, **{"size": 16, **settings})


@pytest.mark.parametrize(
    ("settings", "crop", "message"),
    [
        ({"weights": True}, CROP, r"weights was '[0-9a-f]+', is '[0-9a-f]+'\)"),
        ({"size": 12}, CROP, r"size was 16, is 12\)"),
        ({"tone": "gamma"}, CROP, r"tone was 'srgb', is 'gamma'\)"),
        ({"mean": (0.5, 0.5, 0.5)}, CROP, r"mean was \[0\.485"),
        ({}, 24, r"crop was 32, is 24\)"),
    ],
)
def test_another_teacher_is_refused_by_what_differs(packed, tmp_path, settings, crop, message):
    with pytest.raises(ValueError, match=message):
        train("rawify", changed(**settings), packed, out=tmp_path / "out", steps=2, crop=crop,
              **QUIET)  # fmt: skip


def test_the_fingerprint_sees_every_weight():
    names = [name for name, _ in teacher().model.state_dict().items()]
    seen = {fingerprint(teacher())["weights"]}
    for name in names:
        other = teacher()
        value = other.model.state_dict()[name]
        value.reshape(-1)[-1] += 1
        seen.add(fingerprint(other)["weights"])
    assert len(seen) == len(names) + 1


def test_new_files_need_their_logits(packed, tmp_path):
    write(tmp_path / "raw/new.dng", 9)
    write(tmp_path / "raw/1.dng", 10)  # changed
    pack(tmp_path / "raw", packed, progress=False)
    with pytest.raises(ValueError, match=r"for 2 of 6 packed files, for example 1\.dng: call pack"):
        stored(packed)
    seen = []
    chosen = teacher()
    chosen.model.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    again(tmp_path, chosen)
    assert sum(n for n in seen if n > 1) == 2 * 3  # beside a trial of one picture
    assert len(stored(packed).view(5, 2)[1]) == 7


def test_the_augmentation_is_in_the_logits(packed, tmp_path):
    varied = ISPAugmentation(exposure_stops=(-1, 1))
    again(tmp_path, augmentation=varied)
    plain, other = stored(packed), stored(packed, augmentation=varied)
    assert plain.name != other.name
    assert plain.view(0, 0)[0] == other.view(0, 0)[0]
    assert np.abs(plain.view(0, 0)[1] - other.view(0, 0)[1]).max() > 1e-2
    with pytest.raises(ValueError, match="augmentation was"):
        stored(packed, augmentation=ISPAugmentation(exposure_stops=(-2, 2)))


@pytest.mark.parametrize("shape", [(2, 40), (2, 40, 3, 5)])
def test_the_largest_logits_and_the_rest(shape):
    logits = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    arrays = encode(logits, 8)
    arrays = {key: np.stack([value]) for key, value in arrays.items()}
    got = torch.from_numpy(np.stack([decode(arrays, 0, k) for k in range(2)])).double()
    expected = logits.double().softmax(1)
    torch.testing.assert_close(got.exp().sum(1), torch.ones(expected[:, 0].shape).double(),
                               rtol=2e-3, atol=0)  # fmt: skip
    top = expected.topk(8, 1).indices
    torch.testing.assert_close(
        got.exp().gather(1, top), expected.gather(1, top), rtol=4e-3, atol=1e-6
    )
    below = got.scatter(1, top, float("nan"))
    kept = below[~below.isnan()].reshape(-1)
    assert len(kept) == logits.numel() // 40 * 32
    assert encode(logits, 0)["logits"].dtype == np.float16
    with pytest.raises(ValueError, match="float16"):
        encode(torch.full((1, 5), 1e5), 0)
    with pytest.raises(ValueError, match="NaN"):
        encode(torch.full((1, 5), float("nan")), 0)


def test_damaged_logits_are_found_and_made_again(packed, tmp_path):
    before = [stored(packed).view(i, 0)[1].copy() for i in range(5)]
    (shard,) = packed.glob("teachers/*/logits-*")
    data = bytearray(shard.read_bytes())
    data[-2] ^= 1
    shard.unlink()  # not in place: it may be mapped
    shard.write_bytes(data)
    report = verify(packed, progress=False)
    (name,) = report.damaged
    assert name.endswith("logits-000000.safetensors")
    assert len(report.damaged[name]) == 5
    verify(packed, drop=True, progress=False)
    orphans = [shard.with_name(n) for n in (".logits-000003.x.1.tmp", "logits-000003.safetensors")]
    for orphan in orphans:
        orphan.write_bytes(b"what a kill left")
    again(tmp_path)
    assert not any(orphan.exists() for orphan in orphans)
    assert verify(packed, progress=False).sound
    for index, logits in enumerate(before):
        np.testing.assert_array_equal(stored(packed).view(index, 0)[1], logits)


def test_dense_teachers(tmp_path):
    for i in range(2):
        write(tmp_path / f"raw/{i}.dng", i)
    dense = teacher(dense=True)
    again(tmp_path, dense, top=3)
    result = train("rawify", dense, tmp_path / "packed", out=tmp_path / "out", steps=2,
                   batch_size=2, crop=CROP, **QUIET)  # fmt: skip
    assert result.steps == 2
    assert stored(tmp_path / "packed", dense).view(0, 0)[1].shape == (7, 8, 8)


def test_a_crop_that_does_not_fit(tmp_path):
    write(tmp_path / "raw/a.dng", 0)
    with pytest.raises(isp_distill.RawError, match="too small for a crop of 128"):
        again(tmp_path, crop=128)
    shutil.rmtree(tmp_path / "packed/teachers")
    again(tmp_path)


def test_stored_embeddings_are_distilled_by_cosine(tmp_path):
    """The set says what it holds, so that the teacher need not be run to find out."""
    for i in range(3):
        write(tmp_path / f"raw/{i}.dng", i)
    encoder = Teacher(torch.nn.Sequential(*list(teacher().model)[:-2]), size=16)
    encoder.model.num_classes = 0
    again(tmp_path, encoder)
    (found,) = (tmp_path / "packed/teachers").glob("*/*.json")
    assert json.loads(found.read_text())["views"]["embedding"] is True
    result = train("rawify", encoder, tmp_path / "packed", out=tmp_path / "out", steps=2,
                   batch_size=2, crop=CROP, profile=True, **QUIET)  # fmt: skip
    assert "teacher" not in result.stages
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["settings"]["objective"] == "cosine"
