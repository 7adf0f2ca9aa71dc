"""True boxes lie where their objects do, in whatever view; a file that says less is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detection_cases import write_boxes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from training_run import raw_image

from isp_distill import ImageFolder, View
from isp_distill.data.draw import Draw
from isp_distill.data.label_maps import Shown
from isp_distill.data.loader import ViewLoader
from isp_distill.data.true_boxes import TrueBoxes, _Image

HEIGHT, WIDTH = 120, 160
BOX = (40, 24, 60, 32)  # left, top, width, height


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture that is white inside of its box, and the boxes of a picture of twice its size."""
    root = tmp_path_factory.mktemp("boxes")
    (root / "pictures" / "a").mkdir(parents=True)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    left, top, width, height = BOX
    pixels[top : top + height, left : left + width] = 255
    Image.fromarray(pixels).save(root / "pictures" / "a" / "one.png")
    large = [2 * side for side in BOX]
    write_boxes(root / "boxes.json", [("a/one.jpg", 2 * HEIGHT, 2 * WIDTH)], [(0, 1, large)])
    return root


def read(root, source=None, **options):
    source = ImageFolder(root / "pictures") if source is None else source
    return TrueBoxes.read(root / "boxes.json", source, **{"count": 2, **options})


@given(
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    mirror=st.booleans(),
    flip=st.booleans(),
    area=st.none() | st.floats(0.3, 1.0),
    ratio=st.floats(0.8, 1.2),
)
def test_a_view_s_boxes_are_where_it_shows_their_object(folder, place, mirror, flip, area, ratio):
    source = ImageFolder(folder / "pictures")
    view = View(64, area=None if area is None else (area, area))
    drawn = Draw(place, mirror, flip, area, ratio)
    loader = ViewLoader(source, view, 1, boxes=read(folder, source))
    sample = loader._view(0, drawn)
    bright = sample.array[..., 0] > 127
    assert sample.boxes.shape[1] == 6
    if len(sample.boxes) == 0:
        assert bright.mean() < 0.01
        return
    (found,) = sample.boxes
    assert found[0] == 1
    rows, columns = np.nonzero(bright)
    if len(rows) == 0:
        assert (found[3] - found[1]) * (found[4] - found[2]) * 64 * 64 < 70
        return
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(64 * found[1:5], seen, atol=1.5)


def test_boxes_that_are_mostly_outside_are_to_be_ignored(folder):
    boxes = read(folder)
    loader = ViewLoader(ImageFolder(folder / "pictures"), View(120), 1, boxes=boxes)
    inside = loader._view(0, Draw((0.5, 0.0))).boxes
    assert inside[0, 5] == 0
    # A window that begins near the right edge of the box.
    shown = Shown((HEIGHT, WIDTH), (0, 80, HEIGHT, 80), Draw((0, 0)))
    (sliver,) = boxes.view(0, shown)
    assert sliver[5] == 1
    assert sliver[1] == 0
    away = Shown((HEIGHT, WIDTH), (60, 0, 60, 60), Draw((0, 0)))
    assert boxes.view(0, away).shape == (0, 6)


def test_a_picture_without_annotations_has_no_boxes(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "pictures" / "one.png")
    write_boxes(tmp_path / "boxes.json", [("one.png", HEIGHT, WIDTH)], [])
    loader = ViewLoader(ImageFolder(tmp_path / "pictures"), View(64), 1, boxes=read(tmp_path))
    (batch,) = loader.fixed(1)
    assert batch.boxes[0].shape == (0, 6)
    # The shorter side of 120 is all seen; of the longer one of 160 the middle, to a pixel or two.
    assert batch.windows[0] == pytest.approx((0, 20, 120, 120), abs=2)


def test_boxes_of_a_default_crop_lie_in_it():
    boxes = TrueBoxes(Path("boxes.json"), [_image(40, 60, [[0, 0, 0, 30, 20, 0]])])
    shown = Shown((60, 80), (0, 0, 60, 80), Draw((0, 0)), (10, 10, 40, 60))
    (found,) = boxes.view(0, shown)
    np.testing.assert_allclose(found[1:5], [10 / 80, 10 / 60, 40 / 80, 30 / 60], rtol=1e-6)
    wrong = TrueBoxes(Path("boxes.json"), [_image(60, 40, [[0, 0, 0, 30, 20, 0]])])
    with pytest.raises(ValueError, match=r"one.jpg: an annotated picture of 60 x 40 does not fit"):
        wrong.view(0, shown._replace(default_crop=None))


def _image(height, width, rows):
    return _Image("one.jpg", height, width, np.array(rows, float))


GOOD = {
    "images": [{"id": 1, "file_name": "one.jpg", "height": 120, "width": 160}],
    "annotations": [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 1}],
    "categories": [{"id": 7, "name": "sun"}, {"id": 9}],
}


def changed(part, place=0, **values):
    content = json.loads(json.dumps(GOOD))
    content[part][place].update(values)
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON"),
        ([], "has no list of images"),
        ({**GOOD, "annotations": {}}, "has no list of annotations"),
        (changed("images", file_name=3), r"images\[0\] has no file_name"),
        (changed("images", height=0), r"images\[0\] \(one.jpg\) is 0 high and 160 wide"),
        (changed("images", id=None), r"images\[0\] has the id None"),
        ({**GOOD, "images": GOOD["images"] * 2}, r"images\[1\] has the id 1"),
        (changed("annotations", image_id=4), r"annotations\[0\] is of the image 4, which images"),
        (changed("annotations", image_id=[1]), r"annotations\[0\] is of the image \[1\]"),
        (changed("annotations", category_id=8), r"annotations\[0\] is of the category 8, which"),
        (changed("images", height=10**400), r"images\[0\] \(one.jpg\) is 10"),
        (changed("images", file_name=""), r"images\[0\] has no file_name"),
        (changed("images", id=True), r"images\[0\] has the id True"),
        (changed("annotations", image_id=True), r"annotations\[0\] is of the image True"),
        (changed("annotations", iscrowd="x"), r"annotations\[0\] has iscrowd 'x': it is 0 or 1"),
        (changed("annotations", iscrowd=2), r"annotations\[0\] has iscrowd 2"),
        (changed("annotations", category_id=[7]), r"annotations\[0\] is of the category \[7\]"),
        (changed("annotations", bbox=[1, 2, 3]), r"has the bbox \[1, 2, 3\]: give \[left, top"),
        (changed("annotations", bbox=[1, 2, 0, 4]), r"has the bbox \[1, 2, 0, 4\]"),
        (changed("annotations", bbox=[1, 2, float("nan"), 4]), r"has the bbox \[1, 2, nan, 4\]"),
        (changed("annotations", bbox=[1, 2, 10**400, 4]), "has the bbox"),
        (changed("annotations", bbox=[150, 2, 30, 4]), "leaves its picture of 160 x 120"),
        (changed("categories", id="7"), r"categories\[0\] has the id '7'"),
        (changed("categories", place=1, id=7), r"categories\[1\] has the id 7, as another"),
        (changed("categories", name="moon"), "the category 'moon' .* is no class of the teacher"),
        (changed("images", file_name="two.jpg"), "one.png: .*boxes.json lists no image of this"),
        ({**GOOD, "annotations": [3]}, r"annotations\[0\] is of the image None"),
    ],
)
def test_what_is_no_coco_json_of_these_files_is_refused(tmp_path, content, said):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "pictures" / "one.png")
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        read(tmp_path, classes=["sky", "sun"])


def test_classes_are_told_by_name_or_by_number(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "pictures" / "one.png")
    (tmp_path / "boxes.json").write_text(json.dumps(GOOD))
    named = read(tmp_path, classes=["sky", "sun"]).images[0].rows
    assert named.tolist() == [[1, 1, 2, 4, 6, 1]]
    assert read(tmp_path, count=8).images[0].rows[0, 0] == 7
    with pytest.raises(ValueError, match=r"the category 7 .* none of the detector's 7 classes"):
        read(tmp_path, count=7)
    with pytest.raises(FileNotFoundError, match="there is no such file of boxes"):
        TrueBoxes.read(tmp_path / "none.json", ImageFolder(tmp_path / "pictures"), 2)
    with pytest.raises(ValueError, match="the data are no files: give a folder"):
        TrueBoxes.read(tmp_path / "boxes.json", [raw_image(0)], 8)
    double = changed("images", id=2, file_name="b/one.jpg")
    double["images"].append(GOOD["images"][0] | {"file_name": "c/one.png"})
    (tmp_path / "boxes.json").write_text(json.dumps(double))
    with pytest.raises(ValueError, match="lists 2 images of this name"):
        read(tmp_path, classes=["sky", "sun"])
