"""read_raw of bytes and of open files: the same image as of the path, and named errors."""

import io
import os
import pathlib
import tempfile
import zipfile

import numpy as np
import pytest
import tifffile
from dng_cases import CFA, bare_dng, noise

from isp_distill import CorruptRawError, UnsupportedRawError, read_raw, write_dng


class NamedPath:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return os.fsencode(self.path)


@pytest.fixture
def path(tmp_path):
    return write_dng(tmp_path / "a.dng", noise((32, 48)), bits=14, white=16000, pattern="GBRG")


def same(raw, expected, path):
    assert np.array_equal(raw.mosaic, expected.mosaic)
    assert raw.path == path
    for field in ("pattern", "black", "white", "white_balance", "ccm", "camera"):
        assert getattr(raw, field) == getattr(expected, field)


def test_every_kind_of_input_gives_the_same_image(path, tmp_path):
    expected, data = read_raw(str(path)), path.read_bytes()
    for one in (path, pathlib.PurePath(path), NamedPath(path)):
        same(read_raw(one), expected, str(path))
    for one in (data, bytearray(data), memoryview(data), io.BytesIO(data)):
        same(read_raw(one), expected, "")
    with open(path, "rb") as file:
        same(read_raw(file), expected, str(path))
    with open(path, "rb", buffering=0) as file, os.fdopen(os.dup(file.fileno()), "rb") as other:
        same(read_raw(other), expected, "")  # its name is a number
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "photos/a.dng")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive, archive.open("photos/a.dng") as member:
        same(read_raw(member), expected, "photos/a.dng")


def test_an_open_file_is_read_from_where_it_stands(path):
    data = path.read_bytes()
    file = io.BytesIO(b"a header" + data)
    file.seek(8)
    same(read_raw(file), read_raw(path), "")
    with pytest.raises(CorruptRawError, match=r"<BytesIO>: there are no bytes .* seek\(0\)"):
        read_raw(file)


def test_a_floating_point_file_in_memory(tmp_path):
    """Its samples are read by ourselves, and not by LibRaw."""
    samples = np.random.default_rng(0).random((32, 48)).astype(np.float32)
    path = bare_dng(tmp_path / "f.dng", samples, CFA)
    same(read_raw(path.read_bytes()), read_raw(path), "")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d[: len(d) // 2], CorruptRawError, r"^<\d+ bytes>: truncated: \d+ bytes"),
        (lambda d: d[:-2], CorruptRawError, r"^<\d+ bytes>: truncated: 2 bytes"),
        (lambda d: b"", CorruptRawError, r"^<0 bytes>: there are no bytes in it"),
        (lambda d: b"words, no photograph" * 99, UnsupportedRawError, r"^<1980 bytes>: "),
        (lambda d: io.BytesIO(d[:-2]), CorruptRawError, r"^<BytesIO>: truncated"),
        (lambda d: io.StringIO("words"), TypeError, r'<StringIO>: .* open the file with "rb"'),
        (lambda d: 3, TypeError, "takes a path, the bytes of a file or a binary file .* not int"),
        (lambda d: None, TypeError, "not NoneType"),
    ],
)
def test_errors_name_what_was_given(path, change, error, message):
    with pytest.raises(error, match=message) as refused:
        read_raw(change(path.read_bytes()))
    assert tempfile.gettempdir() + "/isp-distill" not in str(refused.value)


def test_warnings_name_what_was_given(tmp_path):
    path = tmp_path / "bare.dng"
    tifffile.imwrite(path, noise((32, 48)), photometric=32803, extratags=[
        (50706, "B", 4, (1, 4, 0, 0)), (33421, "H", 2, (2, 2)), (33422, "B", 4, (0, 1, 1, 2)),
    ])  # fmt: skip
    with pytest.warns(UserWarning, match=r"^<\d+ bytes>: ") as said:
        read_raw(path.read_bytes())
    assert said[0].filename == __file__


def test_bytes_that_are_a_path_are_not_taken_for_a_file(path):
    with pytest.raises(ValueError, match=r"is the path of one: give os\.fsdecode\(path\)"):
        read_raw(os.fsencode(path))


def test_nothing_is_left_behind(path, tmp_path, monkeypatch):
    kept = tmp_path / "temporary"
    kept.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(kept))
    read_raw(path.read_bytes())
    with pytest.raises(CorruptRawError):
        read_raw(path.read_bytes()[:-2])
    assert list(kept.iterdir()) == []
