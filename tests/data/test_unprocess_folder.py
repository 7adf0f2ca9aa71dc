"""``isp-distill unprocess``: a tree of pictures becomes a like tree of DNG files, none lost."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from isp_distill import read_raw
from isp_distill.cli import main


def picture(path, seed=0, sides=(32, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (*sides, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def test_the_tree_is_kept(tmp_path):
    """Four photographs in three class folders once gave two DNG files."""
    names = ["a/x.png", "b/x.png", "b/y.png", "c/deep/x.jpg"]
    for seed, name in enumerate(names):
        picture(tmp_path / "in" / name, seed)
    assert main(["unprocess", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    written = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.dng"))
    assert [p.as_posix() for p in written] == ["a/x.dng", "b/x.dng", "b/y.dng", "c/deep/x.dng"]
    raws = [read_raw(tmp_path / "out" / p) for p in written]
    assert len({r.mosaic.tobytes() for r in raws}) == 4
    assert {r.pattern for r in raws} == {"RGGB", "GRBG", "GBRG", "BGGR"}


@pytest.mark.parametrize("other", ["x.jpg", "X.png"])
def test_two_sources_of_one_name_are_refused_before_anything_is_written(tmp_path, capsys, other):
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "x.png")
    picture(tmp_path / "in" / other, 1)
    assert main(["unprocess", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "x.png" in said
    assert other in said
    assert "nothing was written" in said
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_used_is_listed_and_the_rest_written(tmp_path, capsys):
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "small.png", sides=(10, 40))
    (tmp_path / "in" / "torn.png").write_bytes(b"\x89PNG")
    assert main(["unprocess", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "small.png: it has 40 x 10 pixels" in said
    assert "torn.png: cannot be read" in said
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.dng"]
