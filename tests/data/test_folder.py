"""RawFolder: which files it finds, what it says about them, and what it remembers."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from torch.utils.data import DataLoader

from isp_distill.data.folder import RawFolder
from isp_distill.errors import CorruptRawError, RawError, UnsupportedRawError
from isp_distill.raw.dng.writer import write_dng

pytest.importorskip("tifffile", reason="the tests' DNG files are written with it")


def mosaic(seed=0, shape=(24, 32)):
    return np.random.default_rng(seed).integers(1, 4096, shape, dtype=np.uint16)


@pytest.fixture
def root(tmp_path):
    """Five good files in two classes, and others that do not count."""
    for i, name in enumerate(
        ["cat/a.dng", "cat/deep/b.DNG", "dog/c.dng", "dog/d.nef", "dog/e.dng"]
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_dng(path, mosaic(i), iso=100 + i, orientation=6 if i == 0 else 1)
    (tmp_path / "dog" / "readme.txt").write_text("not a picture")
    (tmp_path / "dog" / "._c.dng").write_bytes(b"what macOS leaves behind")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.fixture
def opened():
    """Makes folders that are closed after the test."""
    made = []

    def make(*arguments, **settings):
        made.append(RawFolder(*arguments, **settings))
        return made[-1]

    yield make
    for folder in made:
        folder.close()


class CountingPool:
    """Counts what reaches the decoders."""

    def __init__(self, folder):
        self.pool = folder._pool
        self.read_paths = []
        folder._pool = self

    def read(self, path):
        self.read_paths.append(path.name)
        return self.pool.read(path)

    def close(self):
        self.pool.close()


def test_finds_files_in_order(root, opened):
    folder = opened(root)
    names = [p.relative_to(root).as_posix() for p in folder.paths]
    assert names == ["cat/a.dng", "cat/deep/b.DNG", "dog/c.dng", "dog/d.nef", "dog/e.dng"]
    assert len(folder) == 5
    assert [folder[i].iso for i in range(5)] == [100, 101, 102, 103, 104]
    np.testing.assert_array_equal(folder[-1].mosaic, mosaic(4))
    assert folder[2].path == str(root / "dog/c.dng")
    with pytest.raises(IndexError):
        folder[5]
    with pytest.raises(IndexError):
        folder[-6]
    # Iteration by index, as Python and DataLoader do it, ends.
    assert [raw.iso for raw in folder] == [100, 101, 102, 103, 104]


def test_extensions(root, opened):
    assert [p.name for p in opened(root, extensions=["NEF"]).paths] == ["d.nef"]
    assert [p.name for p in opened(root, extensions=(".nef",)).paths] == ["d.nef"]
    with pytest.raises(ValueError, match="list of suffixes"):
        RawFolder(root, extensions=".nef")


def test_upright(root, opened):
    turned, stored = opened(root)[0], opened(root, upright=False)[0]
    assert (turned.orientation, stored.orientation) == (1, 6)
    np.testing.assert_array_equal(turned.mosaic, np.rot90(stored.mosaic, -1))


@pytest.mark.parametrize("name", ["no-such-folder", "empty"])
def test_nothing_there(root, name):
    with pytest.raises(FileNotFoundError, match=rf"{name}.*\.dng, \.erf"):
        RawFolder(root / name)


def test_labels_by_folder(root, opened):
    folder = opened(root, labels="folder")
    assert folder.classes == ["cat", "dog"]
    assert [folder.label(i) for i in range(5)] == [0, 0, 1, 1, 1]
    shutil.copy(root / "cat/a.dng", root / "stray.dng")
    with pytest.raises(ValueError, match=r"stray\.dng.*class"):
        RawFolder(root, labels="folder")


def test_labels_by_mapping_and_function(root, opened):
    by_path = {"cat/a.dng": 7, "b.DNG": 8, "c.dng": 1, "d.nef": np.int64(2), "e.dng": 3}
    folder = opened(root, labels=by_path)
    assert [folder.label(i) for i in range(5)] == [7, 8, 1, 2, 3]
    assert type(folder.label(3)) is int
    folder = opened(root, labels=lambda path: len(path.name))
    assert folder.label(1) == 5
    pickle.dumps(folder)  # the function is not kept
    del by_path["c.dng"], by_path["b.DNG"]
    with pytest.raises(ValueError, match=r"b\.DNG: no label for it; 2 of 5"):
        RawFolder(root, labels=by_path)
    with pytest.raises(ValueError, match="labels must be"):
        RawFolder(root, labels="filename")
    folder = opened(root)
    assert folder.label(0) is None
    assert folder.classes == []


def test_bad_files_are_recorded_and_not_decoded_twice(root, opened):
    (root / "dog/c.dng").write_bytes((root / "dog/c.dng").read_bytes()[:-10])
    (root / "dog/d.nef").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    folder = opened(root)
    assert folder.report() == ""
    pool = CountingPool(folder)
    for _ in range(3):
        with pytest.raises(CorruptRawError, match="truncated: 10 bytes") as caught:
            folder[2]
        assert caught.value.path == str(root / "dog/c.dng")
        with pytest.raises(UnsupportedRawError, match="JPEG"):
            folder[-2]
    assert folder[0].iso == 100
    assert pool.read_paths == ["c.dng", "d.nef", "a.dng"]
    assert set(folder.skipped) == {str(root / "dog/c.dng"), str(root / "dog/d.nef")}
    first, *lines = folder.report().splitlines()
    assert first == "2 files were skipped:"
    assert "c.dng: truncated" in lines[0]
    assert "d.nef: it is a JPEG" in lines[1]


def test_on_error_raise_does_not_record(root, opened):
    (root / "dog/c.dng").write_bytes(b"")
    folder = opened(root, on_error="raise")
    with pytest.raises(CorruptRawError, match="empty"):
        folder[2]
    assert folder.skipped == {}
    shutil.copy(root / "dog/e.dng", root / "dog/c.dng")
    assert folder[2].iso == 104  # repaired
    with pytest.raises(ValueError, match="on_error"):
        RawFolder(root, on_error="ignore")


def test_a_file_that_vanished_is_skipped(root, opened):
    folder = opened(root)
    (root / "dog/c.dng").unlink()
    with pytest.raises(RawError, match=r"c\.dng: cannot be opened: No such file"):
        folder[2]
    assert list(folder.skipped) == [str(root / "dog/c.dng")]


def test_cache_is_bounded_and_drops_the_oldest_use(root, opened):
    one = mosaic().nbytes
    folder = opened(root, cache_bytes=2 * one + 10)
    pool = CountingPool(folder)
    assert folder[0] is folder[0]
    folder[1]
    folder[0]  # now 1 is the least recently used
    folder[2]
    assert pool.read_paths == ["a.dng", "b.DNG", "c.dng"]
    folder[0]
    folder[1]
    assert pool.read_paths == ["a.dng", "b.DNG", "c.dng", "b.DNG"]
    assert folder._cached_bytes == 2 * one == sum(r.mosaic.nbytes for r in folder._cache.values())
    assert folder[-5] is folder[0]  # the same file under both names
    with pytest.raises(ValueError, match="cache_bytes"):
        RawFolder(root, cache_bytes=-1)


def test_no_cache_by_default_and_none_too_small(root, opened):
    for size in (0, mosaic().nbytes - 1):
        folder = opened(root, cache_bytes=size)
        assert folder[1] is not folder[1]
        assert len(folder._cache) == 0


def test_threads(root, opened):
    one = mosaic().nbytes
    folder = opened(root, cache_bytes=3 * one)
    with ThreadPoolExecutor(8) as threads:
        raws = list(threads.map(lambda i: folder[i % 5], range(200)))
    assert [raw.iso for raw in raws] == [100 + i % 5 for i in range(200)]
    assert folder._cached_bytes == sum(r.mosaic.nbytes for r in folder._cache.values()) <= 3 * one


def test_pickles_without_pool_and_cache(root, opened):
    folder = opened(root, labels="folder", cache_bytes=1 << 20, workers=1, timeout_s=7)
    for i in range(5):
        folder[i]
    folder.skipped["x"] = "y"
    data = pickle.dumps(folder)
    assert len(data) < 5 * mosaic().nbytes / 2
    again = pickle.loads(data)
    assert again.paths == folder.paths
    assert again.skipped == {"x": "y"}
    assert again.label(4) == 1
    assert again[1].iso == 101
    assert (again._pool.workers, again._pool.timeout_s) == (1, 7)
    again.close()


def _first(batch):
    return batch[0].iso, os.getpid()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_torch_data_loader(root, opened, context):
    """In a forked worker the dataset's lock may be held by a thread that does not exist there."""
    folder = opened(root, cache_bytes=1 << 20)
    folder[0]
    with folder._lock if context == "fork" else threading.Lock():
        loader = DataLoader(
            folder, num_workers=1, collate_fn=_first, multiprocessing_context=context, timeout=60
        )
        seen = list(loader)
    assert [iso for iso, _ in seen] == [100, 101, 102, 103, 104]
    assert {pid for _, pid in seen} != {os.getpid()}
    assert folder[1].iso == 101
