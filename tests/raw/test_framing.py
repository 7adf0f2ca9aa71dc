"""The camera's default crop: read, moved with the mosaic, and what label maps lie over."""

import dataclasses
import types
import warnings
from contextlib import closing

import numpy as np
import pytest
import torch
from dng_cases import noise, random_raw, rationals
from label_map_cases import LAID, raw_of, write_map
from opcode_cases import write
from PIL import Image

from isp_distill import PackedRaw, RawFolder, RawImage, pack, read_raw
from isp_distill.data.label_maps import IGNORED, LabelGrid
from isp_distill.data.loader import ViewLoader
from isp_distill.data.views import View
from isp_distill.raw import framing
from isp_distill.raw.cfa import PATTERNS
from isp_distill.raw.changes import binned
from isp_distill.raw.image import crop, upright
from isp_distill.sources import open_source


def crop_tags(origin, size):
    return [
        (50719, "2I", 2, rationals(origin), True),
        (50720, "2I", 2, rationals(size), True),
    ]


@pytest.mark.parametrize(
    ("area", "origin", "size", "expected"),
    [
        (None, (3, 5), (40, 30), (5, 3, 30, 40)),
        ((4, 6, 44, 58), (3, 5), (40, 30), (5, 3, 30, 40)),
        # LibRaw begins an odd active area one row and one column later.
        ((5, 7, 45, 59), (3, 5), (40, 30), (4, 2, 30, 40)),
        ((5, 7, 45, 59), (0, 0), (52, 40), (0, 0, 38, 50)),
        (None, (3.4, 4.6), (39.6, 30), (5, 3, 30, 40)),
        ((4, 6, 44, 58), (0, 0), (52, 40), (0, 0, 40, 52)),
    ],
)
def test_the_default_crop_of_a_dng(tmp_path, area, origin, size, expected):
    path = write(tmp_path / "a.dng", noise((50, 64)), crop_tags(origin, size), area)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*default crop.*")
        assert read_raw(path).default_crop == expected


@pytest.mark.parametrize(
    ("origin", "size"), [((3, 5), (70, 30)), ((90, 0), (10, 10)), ((0, 48), (5, 5))]
)
def test_a_default_crop_outside_is_ignored(tmp_path, origin, size):
    path = write(tmp_path / "a.dng", noise((50, 64)), crop_tags(origin, size))
    with pytest.warns(UserWarning, match=r"a\.dng: its default crop, .* is not inside .* 64 x 50"):
        assert read_raw(path).default_crop is None
    assert read_raw(write(tmp_path / "b.dng", noise((50, 64)))).default_crop is None


def test_the_default_crop_of_makers_notes():
    def found(left, top, width, height):
        sizes = types.SimpleNamespace(
            top_margin=18, left_margin=30, crop_left_margin=left, crop_top_margin=top,
            crop_width=width, crop_height=height,
        )  # fmt: skip
        return framing.default_crop_of({}, sizes, 2348, 3522)

    # Canon 30D: LibRaw counts from the sensor's corner.
    assert found(40, 26, 3504, 2336) == ((8, 10, 2336, 3504), None)
    assert found(0, 0, 0, 0) == (None, None)
    assert found(65535, 65535, 65535, 65535) == (None, None)
    crop, note = found(20, 26, 3504, 2336)
    assert crop is None
    assert "is not inside" in note


def marked(height, width, rectangle):
    """A mosaic whose rectangle is bright."""
    mosaic = np.zeros((height, width), np.uint16)
    top, left, rows, columns = rectangle
    mosaic[top : top + rows, left : left + columns] = 1
    return mosaic


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_crop_moves_with_the_mosaic(orientation):
    rectangle = (3, 5, 11, 20)
    raw = RawImage(marked(20, 30, rectangle), "RGGB", (0,) * 4, 9, default_crop=rectangle,
                   orientation=orientation)  # fmt: skip
    turned = upright(raw)
    np.testing.assert_array_equal(turned.mosaic, marked(*turned.mosaic.shape, turned.default_crop))
    part = crop(raw, 1, 4, 14, 24)
    np.testing.assert_array_equal(part.mosaic, marked(14, 24, part.default_crop))
    assert crop(raw, 4, 4, 14, 24).default_crop is None
    assert crop(raw, 1, 4, 12, 24).default_crop is None
    assert binned(raw, 2).default_crop == (2, 2, 5, 10)
    _, camera = View(8).cut_raw(raw, View(8).draw(np.random.default_rng(0)))
    assert camera.default_crop is None


@pytest.mark.parametrize("wrong", [(0, 0, 7, 10), (-1, 0, 4, 4), (0, 0, 0, 4), (0, 1.5, 2, 2), 4])
def test_rectangles_that_leave_the_mosaic(wrong):
    with pytest.raises(
        ValueError,
        match=r"default_crop .*(leaves the mosaic|whole numbers|four|integers|positive|at least)",
    ):
        dataclasses.replace(random_raw(), default_crop=wrong)


CROP = (9, 11, 80, 120)  # within 104 x 152: other margins on each side, and another aspect ratio


def stripes(height, width):
    """Classes in vertical stripes of odd widths, and horizontal ones over their lower half."""
    scene = np.tile((np.arange(width) // 7 % 3).astype(np.uint8), (height, 1))
    scene[height // 2 :] = (np.arange(height - height // 2) // 5 % 3)[:, None]
    return scene


@pytest.fixture(scope="module")
def framed(tmp_path_factory):
    """DNGs of every orientation whose scenes are drawn on their default crop; two kinds of map."""
    root = tmp_path_factory.mktemp("framed")
    (root / "raw").mkdir()
    for orientation in range(1, 9):
        pattern = PATTERNS[orientation % 4]
        own = CROP[2:] if orientation < 5 else CROP[:1:-1]
        scene = stripes(*own)
        laid = Image.fromarray(scene)
        laid = np.asarray(laid if orientation == 1 else laid.transpose(LAID[orientation]))
        on_sensor = np.full((104, 152), 3, np.uint8)
        on_sensor[CROP[0] : CROP[0] + CROP[2], CROP[1] : CROP[1] + CROP[3]] = laid
        letters = np.tile(np.array(list(pattern)).reshape(2, 2), (52, 76))
        bright = letters == np.array(["R", "G", "B", "-"])[on_sensor]
        mosaic = np.where(bright, 60000, 5000).astype(np.uint16)
        tags = [*crop_tags((11, 9), (120, 80)), (274, "H", 1, orientation, True)]
        cfa = (33422, "B", 4, tuple("RGB".index(c) for c in pattern), True)
        write(root / f"raw/{orientation}.dng", mosaic, [*tags, cfa])
        write_map(root, orientation, scene)
        whole = Image.fromarray(on_sensor)
        back = {6: 8, 8: 6}.get(orientation, orientation)
        whole = whole if orientation == 1 else whole.transpose(LAID[back])
        (root / "whole").mkdir(exist_ok=True)
        whole.save(root / f"whole/{orientation}.png")
    return root


def sites_of_class(raw, labels):
    """Whether the bright sites of an upright mosaic are those of the labels' colours."""
    letters = np.tile(np.array(list(raw.pattern)).reshape(2, 2), np.array(raw.mosaic.shape) // 2)
    known = labels != IGNORED
    colours = np.array(["R", "G", "B", "-"])[np.where(known, labels, 3)]
    np.testing.assert_array_equal(raw.mosaic > 30000, letters == colours)


@pytest.mark.parametrize("maps", ["maps", "whole"])
@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_boundaries_land_on_their_columns(framed, tmp_path, kind, maps):
    sources = [RawFolder(framed / "raw", label_maps=framed / maps)]
    frame = "default_crop" if maps == "maps" else "visible"
    if kind == "packed":
        pack(framed / "raw", tmp_path / "packed", progress=False)
        sources = [PackedRaw(tmp_path / "packed", label_maps=framed / maps, frame=frame)]
    (source,) = sources
    size = 100
    grid = LabelGrid(size, size, 4)
    with closing(source):
        for view in (View(size, flip=True), View(size, binning=1)):
            loader = ViewLoader(source, view, 1, seed=2, grid=grid)
            batches = [*loader.training(0, 8), *loader.fixed(2)]
            assert len(batches) == 24
            for batch in batches:
                raw = RawImage(batch.mosaic[0].numpy(), PATTERNS[int(batch.isp.pattern[0])],
                               (0,) * 4, 65535)  # fmt: skip
                labels = batch.labels[0].numpy()
                assert ((labels == IGNORED) | (labels == 3)).any()
                sites_of_class(raw, labels)


def test_a_binned_pack_keeps_the_frame(framed, tmp_path):
    pack(framed / "raw", tmp_path / "packed", binning=2, progress=False)
    source = PackedRaw(tmp_path / "packed", label_maps=framed / "maps")
    assert source.default_crop(0) == (4, 6, 40, 60)
    (batch,) = ViewLoader(source, View(52), 8, grid=LabelGrid(52, 52, 3)).fixed(1)
    assert 0.05 < (batch.labels == IGNORED).float().mean() < 0.5


def test_the_frame_that_is_named_is_taken(framed):
    def labels(size, frame, crop=CROP):
        raw = dataclasses.replace(raw_of(np.zeros((104, 152), np.uint8)), default_crop=crop)
        source = type("Framed", (list,), {"frame": frame})([(raw, np.zeros(size, np.uint8))])
        (batch,) = ViewLoader(source, View(104), 1, grid=LabelGrid(52, 52, 3)).fixed(1)
        return bool((batch.labels == IGNORED).any())

    # 104 x 152 is 0.684, 80 x 120 is 0.667.
    assert labels((80, 120), None)
    assert labels((800, 1200), None)
    assert not labels((104, 152), None)
    assert not labels((105, 153), None)
    assert not labels((1040, 1520), None)
    assert labels((80, 120), "default_crop")
    assert not labels((208, 304), "visible")
    # The same aspect ratio: only one of the mosaic's own size lies over the mosaic.
    alike = (4, 6, 96, 140)
    assert not labels((104, 152), None, alike)
    assert labels((96, 140), None, alike)
    assert labels((48, 70), None, alike)
    assert not labels((48, 70), "visible", alike)
    with pytest.raises(ValueError, match="100 x 100 does not fit its picture of 80 x 120"):
        labels((100, 100), "default_crop")
    with pytest.raises(ValueError, match='frame="default_crop", but its picture says of no'):
        labels((104, 152), "default_crop", None)
    for make in (RawFolder, lambda *_, **k: PackedRaw(framed, **k)):
        with pytest.raises(ValueError, match='frame must be "default_crop", "visible" or None'):
            make(framed / "raw", frame="jpeg")


PICTURE = np.zeros((48, 48, 3), np.uint8)
NO_LABELS = [
    (Image.fromarray(PICTURE), r"a picture \(uint8 \[48, 48, 3\]\); a pair of a mosaic and the"),
    (torch.zeros(3, 48, 48), r"a picture \(float32 \[3, 48, 48\]\)"),
    (np.zeros((48, 48), np.float32), r"an array that holds no classes \(float32 \[48, 48\]\)"),
    (np.zeros((0, 48), np.uint8), r"an array that holds no classes"),
    (np.zeros((19, 48, 48), np.uint8), r"an array of 3 axes .*one-hot maps, give the argmax"),
    (np.eye(10)[3], r"a list of 10 numbers .*one-hot labels, give the argmax"),
    ([0, 1], r"a list of 2 numbers"),
    (np.array([["a", "b"]]), "of the type ndarray"),
    ([[1], [2, 3]], "of the type list"),
    ({"class": 3}, "of the type dict"),
    (random_raw(), "a RawImage, and pairs of two pictures are not taken"),
]


@pytest.mark.parametrize(("label", "message"), NO_LABELS)
def test_what_is_no_label_is_refused_before_anything_is_decoded(label, message):
    asked = []

    class Pairs(list):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    raw = raw_of(np.zeros((48, 48), np.uint8))
    data = Pairs([(raw, label)] * 50)
    with pytest.raises(ValueError, match=f"^the label of dataset item 0 is {message}"):
        open_source(data)
    assert asked == [0]
    # One that comes later is found when it is read, whatever the loss would look at.
    loader = ViewLoader([(raw, 1), (raw, label)], View(32), 1)
    with pytest.raises(ValueError, match=f"^the label of dataset item 1 is {message}"):
        list(loader.fixed(1))


def test_a_tuple_of_three_without_a_picture_is_no_pair():
    raw = raw_of(np.zeros((48, 48), np.uint8))
    with pytest.raises(ValueError, match="dataset item 0 is a tuple of 3"):
        list(ViewLoader([(raw, 1, PICTURE)], View(32), 1).fixed(1))
    for label, grid in (
        (np.zeros((48, 48), bool), LabelGrid(4, 4, 4)),
        (np.zeros((48, 48), np.int16), LabelGrid(4, 4, 4)),
        (3, None),
        (np.int64(2), None),
        (torch.tensor(2), None),
        (None, None),
    ):
        source = open_source([(raw, label)])
        assert len(list(ViewLoader(source, View(32), 1, grid=grid).fixed(1))) == 1
