"""select= and limit= of the three kinds of folder."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import isp_distill
from isp_distill import ImageFolder, RawFolder, SensorFolder, SensorFormat
from isp_distill.files.chosen import chosen_files, matches

FORM = SensorFormat(8, 8, "uint16", "RGGB", 0, bits=10)


@pytest.fixture(params=["raw", "dumps", "pictures"])
def opened(request, tmp_path):
    """Opens a folder of ten files: five of a day, five of a night."""
    for number in range(10):
        path = tmp_path / ("day" if number % 2 else "night") / f"{number}"
        path.parent.mkdir(exist_ok=True)
        if request.param == "raw":
            path.with_suffix(".dng").write_bytes(b"never opened")
        elif request.param == "dumps":
            np.save(path.with_suffix(".npy"), np.full((2, 8, 8), number, np.uint16))
        else:
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path.with_suffix(".png"))
    return {
        "raw": lambda **s: RawFolder(tmp_path, **s),
        "dumps": lambda **s: SensorFolder(tmp_path, FORM, **s),
        "pictures": lambda **s: ImageFolder(tmp_path, **s),
    }[request.param]


def names(folder):
    found = dict.fromkeys(folder.paths)
    return [path.relative_to(folder.root).with_suffix("").as_posix() for path in found]


def test_select_and_limit(opened):
    night = ["night/0", "night/2", "night/4", "night/6", "night/8"]
    assert names(opened(select="night")) == night
    assert names(opened(select="night/*")) == night
    assert names(opened(select="*/[4-6].*")) == ["day/5", "night/4", "night/6"]
    assert names(opened(select=lambda path: path.stem in "27")) == ["day/7", "night/2"]
    assert names(opened(limit=3)) == ["day/1", "day/7", "night/2"]
    assert names(opened(limit=99)) == names(opened())
    assert names(opened(select="night", limit=2)) == ["night/0", "night/4"]
    chosen = opened(select="night", limit=2, labels="folder")
    assert (chosen.classes, chosen.label(0)) == (["night"], 0)
    assert (chosen.is_whole, opened().is_whole) == (False, not isinstance(chosen, SensorFolder))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"select": "dusk"},
            ValueError,
            "select='dusk' takes none of its 10 files, such as 'day/1",
        ),
        ({"select": lambda path: False}, ValueError, "select takes none of its 10 files"),
        ({"select": 3}, TypeError, "select must be a glob .* not 3"),
        ({"limit": 0}, ValueError, "limit must be at least 1, not 0"),
        ({"limit": 2.0}, TypeError, r"limit must be a whole number of files, not 2\.0"),
        ({"limit": True}, TypeError, "limit must be a whole number of files"),
    ],
)
def test_what_cannot_be_is_refused(opened, settings, error, message):
    with pytest.raises(error, match=message):
        opened(**settings)


def test_all_frames_of_a_limited_file(tmp_path):
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.full((4, 8, 8), number, np.uint16))
    folder = SensorFolder(tmp_path, FORM, limit=2)
    assert [int(raw.mosaic[0, 0]) for raw in folder] == [0] * 4 + [1] * 4


@given(count=st.integers(1, 60), limit=st.integers(1, 70))
def test_a_limit_takes_files_that_are_spread_evenly(tmp_path_factory, count, limit):
    root = tmp_path_factory.getbasetemp()
    paths = [root / f"{number:03}" for number in range(count)]
    chosen = [paths.index(path) for path in chosen_files(root, paths, None, limit)]
    assert len(chosen) == min(count, limit)
    assert chosen[0] == 0
    gaps = np.diff([*chosen, count])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_a_folder_is_no_prefix_of_another_folders_name():
    assert matches("night/a.dng", "night/")
    assert not matches("nights/a.dng", "night")


def test_labels_of_a_file_may_name_files_that_are_not_selected(opened, tmp_path):
    lines = ["path,label", *(f"{p.relative_to(tmp_path)},{p.stem}" for p in opened().paths)]
    (tmp_path / "l.csv").write_text("\n".join(dict.fromkeys(lines)))
    folder = opened(labels=tmp_path / "l.csv", select="day", limit=1)
    assert folder.label(0) == 1


def test_train_takes_what_is_chosen(tmp_path):
    from training_run import files, teacher

    files(tmp_path / "raw", 6).close()
    folder = RawFolder(tmp_path / "raw", limit=3)
    report = isp_distill.evaluate(
        isp_distill.rawify(teacher().model), teacher(), folder, progress=False
    )
    folder.close()
    assert report.samples == 3
