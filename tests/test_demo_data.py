"""The demos' photographs and labels: nothing that is measured on is trained on."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DEMO = Path(__file__).parents[1] / "demo"


@pytest.fixture(autouse=True)
def demo_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    yield
    for name in ("photographs", "labelled", "make_raw"):
        sys.modules.pop(name, None)


def test_each_photograph_is_on_one_side():
    from photographs import listed

    sources = listed()
    count = 0
    for name, says in sources.items():
        train, held_out = set(says["train"]), set(says["held_out"])
        assert not train & held_out, name
        assert len(train | held_out) == len(says["train"]) + len(says["held_out"]), name
        assert says["licence"], name
        assert says["folder"], name
        assert ("module" in says) != ("debian" in says), name
        count += len(train | held_out)
    assert count == 206
    whole = [name for name, says in sources.items() if not says["train"]]
    assert {"foolbox", "darknet", "palapeli-data"} <= set(whole)
    few = [name for name, says in sources.items() if says.get("few")]
    assert sum(len(sources[n]["train"]) + len(sources[n]["held_out"]) for n in few) == 32


def test_what_has_a_label_is_held_out():
    import labelled
    from photographs import Photograph, listed

    photographs = [
        Photograph(source, Path(says["folder"]) / name, name in says["held_out"])
        for source, says in listed().items()
        for name in (*says["train"], *says["held_out"])
    ]
    named = labelled.photograph_classes(photographs)
    assert len(named) == 57
    held_out = {p.name for p in photographs if p.held_out}
    assert set(named) <= held_out
    assert all(classes and max(classes) < 1000 for classes in named.values())
    # Every entry names a photograph that is there.
    assert len(named) == 20 + len(labelled._read()["photographs"])
    assert len({p.name for p in photographs}) == len(photographs)


def test_classes_are_read_as_ranges():
    from labelled import classes_of

    assert classes_of("101 385-386") == {101, 385, 386}


def test_a_cut_out_stands_before_its_photograph():
    from labelled import put_on

    cut = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    cut.paste((0, 0, 0, 0), (0, 0, 20, 20))  # its left half is not there
    tile = np.full((100, 100, 3), 7, np.uint8)
    left, right = put_on(cut, tile, 0.0), put_on(cut, tile, 1.0)
    assert (left[50, 60] == [255, 0, 0]).all()
    assert (left[50, 10] == 7).all()
    assert (right[50, 95] == [255, 0, 0]).all()
    assert (right[50, 5] == 7).all()
    assert (left[5] == 7).all(), "above it the photograph is as it was"


def test_photographs_without_debian(tmp_path, monkeypatch, capsys):
    import photographs

    monkeypatch.setattr(photographs.shutil, "which", lambda name: None)
    found = photographs.gather(tmp_path, few=True)
    assert {p.source for p in found} <= {"scikit-image", "scikit-learn"}
    assert {p.held_out for p in found} == {True, False}
    assert "no apt-get" in capsys.readouterr().out
