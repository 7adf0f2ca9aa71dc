"""Pairs of RAW files and cameras' pictures: the teacher sees what the student sees."""

import dataclasses
import math
import pickle
import shutil
from contextlib import closing

import numpy as np
import pytest
import torch
from fetched import canon_raw
from pair_cases import camera_jpeg, photograph, pixels, with_embedded, write_raw
from PIL import Image

import isp_distill
from isp_distill import RawFolder, View, read_raw, upright
from isp_distill.data.camera_picture import CameraPicture
from isp_distill.data.draw import Draw
from isp_distill.data.label_maps import LabelGrid
from isp_distill.data.loader import ViewLoader
from isp_distill.isp.camera import ISP
from isp_distill.ops.render.call import render

CUT = (12, 20, 8, 10)
NAMES = ("astronaut", "chelsea", "coffee")


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """``raw/a/*.dng``, each with its JPEG beside it, in ``pictures/a``, and in ``in/a/*.dng``."""
    root = tmp_path_factory.mktemp("shots")
    for folder in ("raw/a", "pictures/a", "in/a"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        # The second was taken with the camera on its side.
        path = write_raw(root / f"raw/a/{name}.dng", photograph(name, 480), (1, 6, 1)[number])
        jpeg = camera_jpeg(path, CUT, 1.003)
        (root / f"raw/a/{name}.JPG").write_bytes(jpeg)
        (root / f"pictures/a/{name}.jpeg").write_bytes(jpeg)
        if number == 1:
            # In the file it lies as the sensor does, and says nothing of it.
            laid = Image.fromarray(pixels(jpeg)).transpose(Image.Transpose.ROTATE_90)
            laid.save(root / "laid.jpg", quality=95)
            jpeg = (root / "laid.jpg").read_bytes()
        with_embedded(path, root / f"in/a/{name}.dng", jpeg)
    return root


def of(shots, where, **settings):
    folder = shots / ("in" if where == "embedded" else "raw")
    where = shots / "pictures" if where == "folder" else where
    return RawFolder(folder, picture=where, **settings)


def alike(picture, mosaic, isp):
    """The correlation of the camera's picture with our own render of what the student sees."""
    ours = render(mosaic, isp, size=picture.shape[-2:])
    pairs = zip(picture.flatten(1), ours.flatten(1), strict=True)
    return min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)


@pytest.mark.parametrize("where", ["embedded", "beside", "folder"])
def test_the_teacher_sees_the_view_of_the_student(shots, where):
    view = View(64, area=(0.1, 0.4), flip=True)
    with closing(of(shots, where)) as folder:
        batches = list(ViewLoader(folder, view, 6, seed=3).training(0, 3))
        assert folder.skipped == {}
    for batch in batches:
        assert batch.picture.shape == (6, 3, 64, 64)
        assert alike(batch.picture, batch.mosaic, batch.isp) > 0.93


def test_a_view_a_few_pixels_off_is_less_alike(shots):
    """What the test above would see of a picture that was not registered."""
    with closing(of(shots, "beside")) as folder:
        raw = folder[0]
        aligned = folder.aligned(0)
        mosaic, camera = View(64).cut_raw(raw, Draw((0.5, 0.5)), aligned.within)
        window = View(64).window_within(raw.mosaic.shape, aligned.within, Draw((0.5, 0.5)), "")
        seen = [
            alike(
                torch.from_numpy(aligned.view((window[0] + off, *window[1:]), Draw((0, 0)), 64))
                .permute(2, 0, 1)[None].float(),
                torch.from_numpy(mosaic.copy())[None], ISP.from_raw(camera),
            )
            for off in (0, 12)
        ]  # fmt: skip
    assert seen[0] > seen[1] + 0.05


def test_registration_is_found_once_for_a_camera_and_travels_to_other_processes(shots, monkeypatch):
    from isp_distill.data import pairs

    calls = []
    found = pairs.register
    monkeypatch.setattr(pairs, "register", lambda *a: calls.append(1) or found(*a))
    with closing(of(shots, "beside")) as folder:
        first = [folder.aligned(index).registration for index in range(3)]
        assert len(calls) == 3  # three sizes, so three kinds of pictures
        again = pickle.loads(pickle.dumps(folder))
        assert [again.aligned(index).registration for index in range(3)] == first
        assert len(calls) == 3
    for placed in first:
        assert [round(-s / placed.scale) for s in placed.shift] == [CUT[0], CUT[1]]


def test_files_without_a_picture_and_with_another_ones_are_left_out_with_reasons(shots, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in NAMES:
        (raw / f"{name}.dng").write_bytes((shots / f"raw/a/{name}.dng").read_bytes())
    (raw / "astronaut.jpg").write_bytes((shots / "raw/a/astronaut.JPG").read_bytes())
    (raw / "chelsea.jpg").write_bytes((shots / "raw/a/astronaut.JPG").read_bytes())
    with closing(RawFolder(raw, picture="beside")) as folder:
        assert list(folder.skipped) == [str(raw / "coffee.dng")]
        assert "coffee.jpg is missing" in folder.report()
        batches = list(ViewLoader(folder, View(64), 3).fixed(1))
        assert [len(batch.mosaic) for batch in batches] == [1]
        assert "0 of 9 parts" in folder.skipped[str(raw / "chelsea.dng")]
    (raw / "astronaut.jpg").unlink()
    (raw / "chelsea.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="none of the 3 files has one"):
        RawFolder(raw, picture="beside")
    with pytest.raises(FileNotFoundError, match="no such folder of pictures"):
        RawFolder(raw, picture=tmp_path / "nowhere")
    with (
        closing(RawFolder(raw, picture="embedded")) as folder,
        pytest.raises(isp_distill.RawError, match="no picture of the camera is in it"),
    ):
        folder.aligned(0)
    with pytest.raises(ValueError, match="leave upright at True"):
        RawFolder(shots / "raw", picture="beside", upright=False)


def test_a_picture_that_is_too_far_off_is_left_out_with_its_number(shots):
    with closing(of(shots, "beside", max_misalignment=0.001)) as folder:
        with pytest.raises(isp_distill.RawError, match=r"up to 0\.\d pixels .* at most 0\.001"):
            folder.aligned(0)
        assert "max_misalignment" in folder.skipped[str(folder.paths[0])]
    with closing(of(shots, "beside", max_misalignment=math.inf)) as folder:
        assert folder.aligned(0).registration.residual < 1
    for wrong, error in (
        (0, ValueError),
        (-1, ValueError),
        ("2", TypeError),
        (math.nan, ValueError),
    ):
        with pytest.raises(error, match="max_misalignment"):
            of(shots, "beside", max_misalignment=wrong)


@pytest.mark.parametrize("labelled", [None, "three", "nested"])
def test_pairs_of_a_dataset_with_and_without_labels(shots, labelled):
    items = []
    for name in NAMES:
        pair = (
            upright(read_raw(shots / f"raw/a/{name}.dng")),
            pixels((shots / f"raw/a/{name}.JPG").read_bytes()),
        )
        items.append({None: pair, "three": (*pair, 7), "nested": (pair, 7)}[labelled])
    (batch,) = ViewLoader(items, View(64, area=(0.2, 0.5)), 3, seed=1).training(0, 1)
    assert alike(batch.picture, batch.mosaic, batch.isp) > 0.93
    assert (batch.labels is None) if labelled is None else (batch.labels == 7).all()
    raws = [item[0] for item in items] if labelled != "nested" else [i[0][0] for i in items]
    with pytest.raises(ValueError, match="some items and none for"):
        list(ViewLoader([items[0], raws[1]], View(64), 2).fixed(1))


def test_label_maps_follow_the_part_that_the_picture_shows(shots, tmp_path):
    """A map that is the picture's brightness: the view of it is the view of the picture."""
    maps = tmp_path / "a"
    maps.mkdir()
    with closing(of(shots, "beside")) as folder:
        for index, name in enumerate(NAMES):
            raw = folder[index]
            grey = render(torch.from_numpy(raw.mosaic)[None], ISP.from_raw(raw))[0].mean(0)
            np.save(maps / f"{name}.npy", (200 * grey).byte().numpy())
    with closing(of(shots, "beside", label_maps=tmp_path)) as folder:
        view = View(64, area=(0.2, 0.5), flip=True)
        loader = ViewLoader(folder, view, 6, grid=LabelGrid(64, 64, 256), seed=2)
        (batch,) = loader.training(0, 1)
    for labels, picture in zip(batch.labels.float(), batch.picture.mean(1), strict=True):
        both = torch.stack([labels.flatten(), picture.flatten()])
        assert float(torch.corrcoef(both)[0, 1]) > 0.85


def test_only_the_needed_scale_is_decoded_and_lies_where_the_whole_does(tmp_path, monkeypatch):
    from PIL import JpegImagePlugin

    wide = photograph("retina", 1600)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        path = tmp_path / f"{orientation}.jpg"
        Image.fromarray(wide[:1001, :1403]).save(path, quality=97, exif=exif)
        sizes = []
        load = JpegImagePlugin.JpegImageFile.load
        monkeypatch.setattr(
            JpegImagePlugin.JpegImageFile, "load",
            lambda image, load=load, sizes=sizes: sizes.append(image.size) or load(image),
        )  # fmt: skip
        picture = CameraPicture(path)
        assert picture.orientation == orientation
        assert picture.shape == ((1001, 1403) if orientation < 5 else (1403, 1001))
        assert sizes == []
        window = (
            (100.5, 200.25, 900.5, 1000.25) if orientation < 5 else (200.25, 100.5, 1000.25, 900.5)
        )
        small = picture.cut(window, (100, 100))
        assert sizes[0] == (176, 126)
        monkeypatch.undo()
        from PIL import ImageOps

        whole = ImageOps.exif_transpose(Image.open(path))
        box = (window[1], window[0], window[3], window[2])
        expected = np.asarray(whole.resize((100, 100), Image.Resampling.LANCZOS, box=box))
        assert np.abs(small.astype(float) - expected).mean() < 2.0


@pytest.mark.parametrize("where", ["beside", "pictures"])
def test_sensor_dumps_with_pictures(tmp_path, where):
    raw = tmp_path / "raw"
    raw.mkdir()
    made = write_raw(tmp_path / "x.dng", photograph("coffee", 480))
    mosaic = read_raw(made).mosaic
    Image.fromarray(mosaic).save(raw / "x.png")  # a dump, and no picture of itself
    np.save(raw / "lone.npy", mosaic)
    place = raw if where == "beside" else tmp_path / where
    place.mkdir(exist_ok=True)
    (place / "x.jpg").write_bytes(camera_jpeg(made, CUT))
    form = isp_distill.SensorFormat(
        mosaic.shape[1], mosaic.shape[0], "uint16", "RGGB", black=512, bits=14,
        white_balance=(2.0, 1.0, 1.5),
    )  # fmt: skip
    picture = "beside" if where == "beside" else place
    folder = isp_distill.SensorFolder(raw, form, picture=picture)
    (batch,) = ViewLoader(folder, View(64, area=(0.2, 0.5)), 2, seed=1).training(0, 1)
    assert alike(batch.picture, batch.mosaic, batch.isp) > 0.93
    assert list(folder.skipped) == [str(raw / "lone.npy")]
    with pytest.raises(ValueError, match="sensor dumps hold no pictures"):
        isp_distill.SensorFolder(raw, form, picture="embedded")
    np.save(raw / "two.npy", np.stack([mosaic, mosaic]))
    with pytest.raises(ValueError, match="pictures are of files with one frame"):
        isp_distill.SensorFolder(raw, form, picture=picture)


@pytest.mark.registry
def test_a_real_cameras_own_picture(tmp_path):
    """A Canon's CR2 with the JPEG in it, half as large, from the middle of what LibRaw shows."""
    shutil.copy(canon_raw(), tmp_path / "IMG_5952.CR2")
    with closing(RawFolder(tmp_path, picture="embedded")) as folder:
        raw, aligned = folder[0], folder.aligned(0)
        assert (raw.camera, raw.mosaic.shape) == ("Canon EOS 30D", (2348, 3522))
        assert aligned.picture.shape == (1152, 1728)
        placed = aligned.registration
        assert abs(placed.scale / 0.5 - 1) < 1e-3
        for shift, sides in zip(placed.shift, ((2348, 2304), (3522, 3456)), strict=True):
            assert abs(-shift / placed.scale - (sides[0] - sides[1]) / 2) < 1
        assert placed.residual < 0.3
        (batch,) = ViewLoader(folder, View(512), 1).fixed(1)
    by = isp_distill.Teacher(torch.nn.Identity(), size=128)
    seen = by.picture(batch)
    made = by.picture(dataclasses.replace(batch, picture=None))
    alike = torch.corrcoef(torch.stack([seen.mean(1).flatten(), made.mean(1).flatten()]))
    assert alike[0, 1] > 0.95
