"""The input path: resized crops, batches ahead of time, decoded files that are kept."""

import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from raw_folders import write_folder
from training_run import raw_image, run

import isp_distill
from isp_distill import use_backend
from isp_distill.data.device_input import on_device
from isp_distill.data.loader import ViewLoader
from isp_distill.data.views import View
from isp_distill.raw.cfa import PATTERNS
from isp_distill.raw.image import RawImage
from isp_distill.raw.resize import resize_mosaic
from isp_distill.sources import packing_note


def with_mosaic(mosaic, pattern="RGGB"):
    return RawImage(**{**raw_image(0).__dict__, "mosaic": mosaic, "pattern": pattern})


@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 12), st.integers(1, 12), st.data())
def test_a_resized_ramp_stays_a_ramp(rows, columns, height, width, data):
    """Every site has the value of the scene where it lies: the colours stay in register."""
    slopes = data.draw(st.tuples(st.integers(-40, 40), st.integers(-40, 40)))
    y, x = np.mgrid[: 2 * rows, : 2 * columns]
    scene = 20000.0 + slopes[0] * y + slopes[1] * x
    found = resize_mosaic(scene.astype(np.uint16), 2 * height, 2 * width)
    assert found.shape == (2 * height, 2 * width)
    assert found.dtype == np.uint16
    scale = rows / height, columns / width
    j, i = np.mgrid[: 2 * height, : 2 * width]
    centre = (j + 0.5) * scale[0] - 0.5, (i + 0.5) * scale[1] - 0.5
    expected = 20000.0 + slopes[0] * centre[0] + slopes[1] * centre[1]
    # Filters are cut at the edges, where a ramp becomes flat; none reaches further than this.
    far = [np.minimum(c, 2 * n - 1 - c) > 4 * max(1, s) for c, n, s in
           zip(centre, (rows, columns), scale, strict=True)]  # fmt: skip
    inside = far[0] & far[1]
    assert np.abs(found - expected)[inside].max(initial=0) <= 1.01
    assert found.min() >= scene.min() - 1
    assert found.max() <= scene.max() + 1


def test_the_same_size_is_the_same_mosaic():
    mosaic = np.random.default_rng(0).integers(0, 2**16, (20, 30)).astype(np.uint16)
    assert (resize_mosaic(mosaic, 20, 30) == mosaic).all()


@given(
    st.sampled_from(PATTERNS), st.integers(6, 60), st.integers(6, 60), st.integers(1, 12),
    st.integers(0, 2**32), st.booleans(),
)  # fmt: skip
def test_random_resized_crops_keep_the_colours(pattern, rows, columns, half, seed, flip):
    codes = {"R": 1000, "G": 2000, "B": 3000}
    period = np.array([codes[c] for c in pattern], dtype=np.uint16).reshape(2, 2)
    raw = with_mosaic(np.tile(period, (rows, columns)), pattern)
    view = View(2 * half, area=(0.1, 1.0), ratio=(0.5, 2.0), flip=flip)
    drawn = view.draw(np.random.default_rng(seed))
    top, left, height, width = view.window(raw.height, raw.width, drawn, "")
    assert top % 2 == left % 2 == height % 2 == width % 2 == 0
    assert 0 <= top <= raw.height - height
    assert 0 <= left <= raw.width - width
    mosaic, camera = view.cut_raw(raw, drawn)
    expected = np.array([codes[c] for c in camera.pattern], dtype=np.uint16).reshape(2, 2)
    assert (mosaic == np.tile(expected, (half, half))).all()


def test_resized_crops_show_what_they_say():
    view = View(32, area=(0.2, 0.5), ratio=(0.5, 2.0), flip=True)
    random = np.random.default_rng(3)
    drawn = [view.draw(random) for _ in range(300)]
    windows = np.array([view.window(400, 600, d, "") for d in drawn])
    shares = windows[:, 2] * windows[:, 3] / (400 * 600)
    assert 0.18 < shares.min() < 0.25
    assert 0.42 < shares.max() < 0.52
    assert 0.3 < np.mean([d.flip for d in drawn]) < 0.7
    assert (windows[:, :2].max(0) > 100).all()
    pictures = [view.cut_picture(np.zeros((400, 600, 3), np.uint8), d) for d in drawn[:5]]
    assert {p.shape for p in pictures} == {(32, 32, 3)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"area": (0.0, 1.0)}, "area must be"),
        ({"area": (0.5, 0.2)}, "area must be"),
        ({"area": (0.5, 1.0), "ratio": (2.0, 1.0)}, "ratio must be"),
        ({"area": (0.5, 1.0), "binning": 2}, "give one"),
    ],
)
def test_views_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        View(32, **settings)


def test_training_on_resized_crops(tmp_path):
    first = run(tmp_path / "a", steps=4, crop_area=(0.3, 1.0), vertical_flip=True)
    again = run(tmp_path / "b", steps=4, crop_area=(0.3, 1.0), vertical_flip=True)
    for a, b in zip(first.student.parameters(), again.student.parameters(), strict=True):
        assert torch.equal(a, b)


class Counted(list):
    """Counts the items that were taken, and may fail at one."""

    def __init__(self, items, bad=None):
        super().__init__(items)
        self.taken, self.bad, self.lock = 0, bad, threading.Lock()

    def __getitem__(self, index):
        with self.lock:
            self.taken += 1
        if index == self.bad:
            raise KeyError("a bug in the dataset")
        return super().__getitem__(index)


def test_batches_ahead_are_bounded_in_bytes():
    batch = 4 * 16 * 16 * 2  # and some hundred bytes about the cameras
    for ahead in (1, 5):
        data = Counted(raw_image(i) for i in range(10))
        loader = ViewLoader(data, View(16), 4, prefetch_bytes=ahead * (batch + 600))
        batches = loader.training(0, 40)
        for number in range(1, 4):
            assert next(batches).nbytes < batch + 600
            deadline = time.monotonic() + 60
            while data.taken < 4 * (number + ahead) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.2)  # more than that would be taken by now
            assert data.taken == 4 * (number + ahead)
        batches.close()
    with pytest.raises(ValueError, match="prefetch_bytes"):
        ViewLoader(data, View(16), 4, prefetch_bytes=0)


def test_an_error_in_the_dataset_reaches_the_trainer_and_ends_the_threads():
    loader = ViewLoader(Counted((raw_image(i) for i in range(10)), bad=3), View(16), 4)
    with pytest.raises(KeyError, match="a bug in the dataset"):
        list(loader.training(0, 40))
    unfinished = loader.training(40, 80)
    unfinished.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("isp-distill")]


def test_the_backend_in_force_makes_the_mosaics_of_pictures(monkeypatch):
    pictures = [np.full((32, 32, 3), 40 * i, np.uint8) for i in range(4)]
    asked = []
    monkeypatch.setattr(
        "isp_distill.ops.unprocess.call._choose",
        lambda *_: asked.append(isp_distill.backends.choice.requested()) or "reference",
    )
    with use_backend("reference"):
        list(on_device(ViewLoader(pictures, View(16), 2).training(0, 2), torch.device("cpu")))
    assert asked == ["reference"] * 2


def test_decoded_files_are_kept(tmp_path):
    write_folder(tmp_path / "raw", 3)
    plain = isp_distill.RawFolder(tmp_path / "raw")
    with closing(plain), closing(
        isp_distill.RawFolder(tmp_path / "raw", cache=tmp_path / "kept")
    ) as kept:  # fmt: skip
        for data, expected in ((kept, 3), (kept, 3), (plain, 3), (plain, 6)):
            for index in range(3):
                assert (data[index].mosaic == raw_image(index).mosaic).all()
            assert data.decoded[0] == expected
        one, other = kept[1], plain[1]
        assert isinstance(one.mosaic, np.ndarray)
        for field in ("pattern", "black", "white", "white_balance", "ccm", "camera", "path"):
            assert getattr(one, field) == getattr(other, field)
        # A file that changed is decoded anew; so is one whose copy is damaged.
        isp_distill.write_dng(tmp_path / "raw" / "00.dng", raw_image(5).mosaic, white=16383)
        assert (kept[0].mosaic == raw_image(5).mosaic).all()
        for copy in (tmp_path / "kept").glob("*.safetensors"):
            copy.write_bytes(copy.read_bytes()[:-100])
        assert (kept[2].mosaic == raw_image(2).mosaic).all()
        assert kept.decoded[0] == 5
    with closing(isp_distill.RawFolder(tmp_path / "raw", cache=tmp_path / "kept")) as later:
        assert (later[2].mosaic == raw_image(2).mosaic).all()
        assert later.decoded[0] == 0
    assert not list((tmp_path / "kept").glob(".*"))


def test_what_packing_saves_is_said_once(tmp_path, capsys):
    write_folder(tmp_path / "raw", 10)
    with closing(isp_distill.RawFolder(tmp_path / "raw")) as data:
        assert packing_note(data, 2) is None
        run(tmp_path / "out", steps=8, data=data, progress=True)
        shown = capsys.readouterr()
        assert (shown.out + shown.err).count("ms a RAW file") == 1
        files, seconds = data.decoded
        assert f"decoding takes {1e3 * seconds / files:.0f} ms" in packing_note(data, 2)
    with closing(isp_distill.RawFolder(tmp_path / "raw", cache=tmp_path / "kept")) as data:
        run(tmp_path / "kept-out", steps=8, data=data)
        assert packing_note(data, 2) is None
    assert packing_note([raw_image(0)], 2) is None


def test_what_packing_saves_is_said_of_several_folders(tmp_path):
    """Those that keep nothing decoded count together, and are named."""
    parts = []
    for name in ("a", "b", "kept"):
        write_folder(tmp_path / name, 9)
        kept = tmp_path / "copies" if name == "kept" else None
        parts.append(isp_distill.RawFolder(tmp_path / name, cache=kept))
    joined = isp_distill.sources.open_source(parts)
    for index in range(15):
        assert joined[index].mosaic is not None
    assert packing_note(joined, 2) is None
    for index in range(15, len(joined)):
        assert joined[index].mosaic is not None
    note = packing_note(joined, 2)
    seconds = parts[0].decoded[1] + parts[1].decoded[1]
    assert f"decoding takes {1e3 * seconds / 18:.0f} ms a RAW file (18 measured), so 18" in note
    assert f"pack each of {tmp_path / 'a'}, {tmp_path / 'b'} into a folder of its own" in note
    joined.close()
