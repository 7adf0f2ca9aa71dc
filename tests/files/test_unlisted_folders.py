"""A folder that cannot be listed is reported, and nothing is taken for deleted because of it."""

from __future__ import annotations

import errno
import json
import os
from contextlib import closing

import numpy as np
import pytest
import torch
from packed_folders import write
from training_run import teacher

import isp_distill
from isp_distill import PackedRaw, RawFolder, pack, verify
from isp_distill.data.image_folder import ImageFolder
from isp_distill.data.label_maps import LabelMaps
from isp_distill.packs.stored_teacher import stored_sets

pytest.importorskip("tifffile", reason="the tests' DNG files are written with it")


@pytest.fixture
def root(tmp_path):
    """Two files in each of two folders, one of them of two levels."""
    for i, name in enumerate(["a/0", "a/1", "b/2", "b/deep/3"]):
        write(tmp_path / f"raw/{name}.dng", i, iso=100 + i)
    return tmp_path / "raw"


@pytest.fixture
def unlist(monkeypatch):
    """Make the system refuse to list a folder."""
    unlisted = {}
    for name in ("scandir", "listdir"):
        real = getattr(os, name)

        def refuse(path=".", real=real):
            if os.fspath(path) in unlisted:
                error = unlisted[os.fspath(path)]
                raise OSError(error, os.strerror(error), os.fspath(path))
            return real(path)

        monkeypatch.setattr(os, name, refuse)
    return lambda path, error=errno.EACCES: unlisted.update({str(path): error})


def test_a_folder_of_raw_files(root, unlist, tmp_path):
    unlist(root / "b/deep")
    with closing(RawFolder(root)) as folder:
        assert [path.name for path in folder.paths] == ["0.dng", "1.dng", "2.dng"]
        assert list(folder.skipped) == [str(root / "b/deep")]
        assert "cannot be listed (Permission denied)" in folder.report()
        assert folder[2].iso == 102
        result = isp_distill.train(
            "rawify", teacher(), folder, out=tmp_path / "out", steps=1, batch_size=1, crop=24,
            progress=False, tensorboard=False,
        )  # fmt: skip
        found = isp_distill.evaluate(
            lambda m, i: torch.zeros(len(m), 7), teacher(), folder, crop=24, progress=False
        )
    assert list(found.skipped) == list(result.skipped) == [str(root / "b/deep")]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert list(report["skipped"]) == [str(root / "b/deep")]
    unlist(root / "a", errno.EIO)
    unlist(root / "b", errno.EIO)
    with pytest.raises(OSError, match=r"no RAW files.*raw/a: the folder cannot be listed \(Input"):
        RawFolder(root)


def test_a_folder_of_pictures(unlist, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="pictures are written with it")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name / "x.png")
    unlist(tmp_path / "b")
    folder = ImageFolder(tmp_path)
    assert folder.paths == [tmp_path / "a/x.png"]
    assert list(folder.skipped) == [str(tmp_path / "b")]
    unlist(tmp_path)
    with pytest.raises(OSError, match=r"no pictures in it.*cannot be listed"):
        ImageFolder(tmp_path)


def test_an_entry_of_unknown_kind(root, monkeypatch):
    """Where the system must be asked whether it is a folder, and fails."""
    real = os.scandir

    class Entry:
        def __init__(self, entry):
            self.name, self.path, self.is_symlink = entry.name, entry.path, entry.is_symlink
            self._entry = entry

        def is_dir(self):
            if self.name == "deep":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return self._entry.is_dir()

    class Listing:
        def __init__(self, path):
            self._found = real(path)

        def __enter__(self):
            return map(Entry, self._found)

        def __exit__(self, *_):
            self._found.close()

    monkeypatch.setattr(os, "scandir", Listing)
    with closing(RawFolder(root)) as folder:
        # That one alone: what lies beside it is seen.
        assert list(folder.skipped) == [str(root / "b/deep")]
        assert "Input/output error" in folder.report()
        assert [path.name for path in folder.paths] == ["0.dng", "1.dng", "2.dng"]


def test_nothing_is_pruned_that_is_not_seen(root, unlist, monkeypatch, tmp_path):
    out = tmp_path / "packed"
    pack(root, out, labels="folder", progress=False)
    (root / "a/1.dng").unlink()
    with monkeypatch.context():
        unlist(root / "b/deep")
        report = pack(root, out, labels="folder", prune=True, progress=False)
    assert (report.files, report.missing, report.unseen) == (4, ["a/1.dng"], ["b/deep/3.dng"])
    assert list(report.skipped) == [str(root / "b/deep")]
    assert "nothing was pruned" in str(report)
    packed = PackedRaw(out)
    assert [raw.iso for raw in packed] == [100, 101, 102, 103]
    assert [packed.label(i) for i in range(4)] == [0, 0, 1, 1]
    assert "cannot be listed" in packed.report()
    unlisted_no_more = tmp_path / "moved"  # the same files where all can be listed
    root.rename(unlisted_no_more)
    report = pack(unlisted_no_more, out, labels="folder", prune=True, progress=False)
    assert (report.files, report.unseen, report.skipped) == (3, [], {})
    assert PackedRaw(out).report() == ""


def test_stored_logits_and_label_maps(root, unlist, monkeypatch, tmp_path):
    out = tmp_path / "packed"
    pack(root, out, teacher=teacher(), views=1, crop=24, progress=False)
    assert len(stored_sets(out)) == 1
    unlist(out / "teachers", errno.EIO)
    for use in (stored_sets, lambda path: verify(path, progress=False)):
        with pytest.raises(OSError, match="Input/output error"):
            use(out)
    (tmp_path / "maps").mkdir()
    real = os.stat

    def fails(path, *args, **kwargs):
        if str(path).endswith("0.png"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", fails)
    with pytest.raises(OSError, match="Input/output error"):
        LabelMaps(tmp_path / "maps", [root.relative_to(root) / "0.dng"])


def test_a_shard_that_cannot_be_read_now_is_not_dropped(root, monkeypatch, tmp_path):
    out = tmp_path / "packed"
    pack(root, out, progress=False)
    shard = out / "shard-000000.safetensors"
    manifest = (out / "isp-distill.json").read_bytes()
    path_type = type(shard)
    real = path_type.stat

    def fails(self, **settings):
        if self == shard:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return real(self, **settings)

    monkeypatch.setattr(path_type, "stat", fails)
    with pytest.raises(OSError, match=r"shard-000000.*cannot be read"):
        pack(root, out, progress=False)
    monkeypatch.undo()
    assert (out / "isp-distill.json").read_bytes() == manifest
    assert pack(root, out, progress=False).packed == 0
