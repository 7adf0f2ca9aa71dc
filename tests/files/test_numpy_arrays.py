"""Arrays in files are read again where the interpreter's own count of depth went wrong."""

from __future__ import annotations

import ast
import zipfile
from pathlib import Path

import numpy as np
import pytest

from isp_distill import SensorFolder
from isp_distill.data.label_maps import LabelMaps
from isp_distill.files.numpy_arrays import array_header, mapped_array, read_array

FORMAT = 'packing = "uint16"\nbits = 10\nwidth = 8\nheight = 4\npattern = "RGGB"\nblack = 0\n'


@pytest.fixture
def parser_fails(monkeypatch):
    """Every other header is refused as CPython 3.11 refuses one by chance."""
    sound, calls = ast.literal_eval, []

    def parse(text):
        calls.append(text)
        if len(calls) % 2:
            raise SystemError("AST constructor recursion depth mismatch (before=63, after=58)")
        return sound(text)

    monkeypatch.setattr(ast, "literal_eval", parse)
    return calls


def test_every_way_to_read_an_array(tmp_path, parser_fails):
    array = np.arange(32, dtype=np.uint16).reshape(4, 8)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", array)
    np.testing.assert_array_equal(mapped_array(tmp_path / "a.npy"), array)
    with open(tmp_path / "a.npy", "rb") as file:
        assert array_header(file) == ((4, 8), np.dtype(np.uint16))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive, archive.open("arr_0.npy") as member:
        np.testing.assert_array_equal(read_array(member), array)
    assert len(parser_fails) == 6


def test_no_frame_is_left_out(tmp_path, parser_fails):
    (tmp_path / "sensor.toml").write_text(FORMAT)
    array = np.arange(32, dtype=np.uint16).reshape(4, 8)
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, array)
    np.savez(tmp_path / "c.npz", array)
    folder = SensorFolder(tmp_path)
    assert len(folder) == 3
    assert not folder.skipped
    for raw in folder:
        np.testing.assert_array_equal(raw.mosaic, array)


def test_a_fault_that_stays_is_raised(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((4, 8), np.uint16))

    def parse(text):
        raise SystemError("always")

    monkeypatch.setattr(ast, "literal_eval", parse)
    with pytest.raises(SystemError, match="always"):
        mapped_array(tmp_path / "a.npy")


def test_a_label_map(tmp_path, parser_fails):
    np.save(tmp_path / "a.npy", np.ones((4, 8), np.uint8))
    maps = LabelMaps(tmp_path, [Path("a.dng")])
    np.testing.assert_array_equal(maps[0], np.ones((4, 8)))
