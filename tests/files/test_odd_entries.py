"""Links to nowhere, pipes and devices in a folder: each is reported, and nothing else suffers."""

from __future__ import annotations

import os
import threading
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from isp_distill import (
    CorruptRawError,
    DamagedPackError,
    PackedRaw,
    RawError,
    RawFolder,
    read_raw,
    write_dng,
)
from isp_distill.data.image_folder import ImageFolder


def write(path):
    write_dng(path, np.full((24, 24), 300, np.uint16), black=64, white=1023, bits=10)


def finished(function, *arguments):
    """The error of a call that may wait for ever."""
    errors = []

    def run():
        try:
            function(*arguments)
        except (RawError, DamagedPackError) as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for the pipe"
    (error,) = errors
    return error


def test_a_link_to_itself_hides_no_other_file(tmp_path):
    """Asking whether it is a folder fails; the files that the system lists after it are seen."""
    for name in "abcdefgh":
        write(tmp_path / f"{name}.dng")
    os.symlink("loop.dng", tmp_path / "loop.dng")
    os.symlink("round", tmp_path / "round")
    with closing(RawFolder(tmp_path)) as folder:
        assert [p.name for p in folder.paths] == [*(f"{n}.dng" for n in "abcdefgh"), "loop.dng"]
        assert not folder.skipped
        with pytest.raises(CorruptRawError, match=r"loop\.dng: cannot be opened"):
            folder[8]
        assert folder[7].mosaic.shape == (24, 24)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.dng")
    assert "it is a pipe, not a file" in str(finished(read_raw, tmp_path / "a.dng"))
    os.mkfifo(tmp_path / "a.png")
    Image.new("RGB", (24, 24)).save(tmp_path / "b.png")
    pictures = ImageFolder(tmp_path)
    assert "a.png: it is a pipe" in str(finished(lambda: pictures[0]))
    assert pictures[1].shape == (24, 24, 3)


def test_a_device_is_refused_by_what_it_is(tmp_path):
    os.symlink("/dev/zero", tmp_path / "a.dng")
    with pytest.raises(CorruptRawError, match="it is a device, not a file"):
        read_raw(tmp_path / "a.dng")


def test_a_manifest_that_is_a_pipe_is_damaged(tmp_path):
    os.mkfifo(tmp_path / "isp-distill.json")
    assert "it is a pipe" in str(finished(PackedRaw, tmp_path))
