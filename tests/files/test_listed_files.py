"""Single files and lists of files as data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from raw_folders import write_folder
from training_run import teacher

import isp_distill
from isp_distill import ImageFolder, RawFolder
from isp_distill.sources import open_source


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def raws(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raws")
    write_folder(folder / "raws", 4)
    return sorted(folder.rglob("*.dng"))


def test_a_list_of_files_is_read_in_its_order(raws):
    chosen = [raws[2], str(raws[0])]
    source = open_source(chosen)
    assert isinstance(source, RawFolder)
    assert source.paths == [raws[2], raws[0]]
    whole = RawFolder(raws[0].parent)
    np.testing.assert_array_equal(source[0].mosaic, whole[whole.paths.index(raws[2])].mosaic)


def test_one_file_is_data(raws):
    assert open_source(raws[1]).paths == [raws[1]]
    assert open_source(str(raws[1])).paths == [raws[1]]


def test_evaluate_takes_a_list(raws):
    report = isp_distill.evaluate(
        lambda mosaic, isp: isp_distill.render(mosaic, isp, size=16).mean((2, 3)),
        isp_distill.Teacher(Mean(), size=16),
        raws[:3],
        crop=32,
        progress=False,
    )
    assert report.samples == 3


def test_pictures_by_name(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(tmp_path / name)
    source = open_source([tmp_path / "b.png", tmp_path / "a.jpg"])
    assert isinstance(source, ImageFolder)
    assert [path.name for path in source.paths] == ["b.png", "a.jpg"]


def test_what_is_wrong_with_a_list_is_said_by_name(raws, tmp_path):
    (tmp_path / "x.txt").write_text("no picture")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "p.png")
    for data, error, said in [
        ([raws[0], tmp_path / "gone.dng"], FileNotFoundError, "gone.dng: there is no such file"),
        ([raws[0], tmp_path], IsADirectoryError, "is a folder in a list of files"),
        ([raws[0], raws[0]], ValueError, "named twice"),
        ([raws[0], tmp_path / "x.txt"], ValueError, "x.txt: its name does not end in"),
        (tmp_path / "x.txt", ValueError, "x.txt: its name does not end in"),
        ([raws[0], tmp_path / "p.png"], ValueError, "RAW files or pictures, not both"),
        ([], ValueError, "empty"),
    ]:
        with pytest.raises(error, match=said):
            open_source(data)
    with pytest.raises(ValueError, match="lies outside"):
        RawFolder(tmp_path, files=[raws[0]])


def test_training_says_how_many_files_could_not_be_used(tmp_path):
    """Of a folder of two, "50 files in a row" was said."""
    for name in ("a.dng", "b.dng"):
        (tmp_path / name).write_bytes(b"II*\0no picture")
    with pytest.raises(RuntimeError, match="none of the 2 files could be used"):
        isp_distill.train(
            "rawify", teacher(), tmp_path, out=tmp_path / "out", steps=1, crop=32, progress=False
        )
