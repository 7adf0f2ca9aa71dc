"""train() and evaluate() where the teacher sees the camera's own picture."""

import json
import shutil
from contextlib import closing

import numpy as np
import pytest
import torch
from pair_cases import camera_jpeg, photograph, pixels, write_raw
from PIL import Image
from training_run import teacher

import isp_distill
from isp_distill import RawFolder, Teacher, View
from isp_distill.cli import main
from isp_distill.data.loader import ViewLoader
from isp_distill.reports.contact_sheet import contact_sheet
from isp_distill.sources import open_source
from isp_distill.training.config import RunConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three shots of one camera, each with its JPEG beside it; registered before."""
    root = tmp_path_factory.mktemp("pairs")
    for name in ("astronaut", "coffee", "chelsea"):
        path = write_raw(root / f"{name}.dng", photograph(name, 320))
        (root / f"{name}.jpg").write_bytes(camera_jpeg(path, (8, 12, 10, 8), 1.003))
    with closing(RawFolder(root, picture="beside")) as pairs:
        for index in range(3):
            pairs.aligned(index)
        yield pairs


class Seen(torch.nn.Module):
    """A teacher that keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.model, self.shown = teacher().model, []

    def forward(self, picture):
        self.shown.append(picture)
        return self.model(picture)


@pytest.mark.parametrize("exposure", [None, 0.1])
def test_training_shows_the_teacher_the_cameras_pictures(folder, tmp_path, exposure):
    model = Seen().eval()
    seen = Teacher(model, mean=(0, 0, 0), std=(1, 1, 1), size=16)
    result = isp_distill.train(
        "rawify" if exposure is None else isp_distill.rawify(teacher().model), seen, folder,
        out=tmp_path, steps=2, batch_size=3, crop=32, exposure=exposure, validation=folder,
        progress=False, tensorboard=False, device="cpu", resume=False,
    )  # fmt: skip
    assert result.after.samples == 3
    assert (tmp_path / "contact_sheet.png").is_file()
    # What the validation shows is known: the middle views of the JPEGs, whatever the exposure.
    (batch,) = ViewLoader(folder, View(32), 3).fixed(1)
    expected = torch.nn.functional.interpolate(
        batch.picture, (16, 16), mode="bilinear", antialias=True
    )
    assert any(
        picture.shape == expected.shape and torch.allclose(picture, expected)
        for picture in model.shown
    )


def test_a_short_exposure_is_dark_for_the_student_alone(folder):
    (batch,) = ViewLoader(folder, View(32), 3).fixed(1)
    dark, isp = isp_distill.ShortExposure(0.1).apply(batch.mosaic, batch.isp, seed=0)
    assert dark.float().mean() < 0.4 * batch.mosaic.float().mean()
    assert torch.equal(
        Teacher(teacher().model, size=16).picture(batch),
        Teacher(teacher().model, size=16).picture(type(batch)(dark, isp, picture=batch.picture)),
    )


def test_evaluate_compares_with_what_the_teacher_says_of_the_jpeg(folder):
    judge = teacher()
    judge.model.eval()
    (batch,) = ViewLoader(folder, View(32), 3).fixed(1)
    with torch.no_grad():
        said = judge.logits(judge.picture(batch))

    def echo(mosaic, isp):
        return said

    report = isp_distill.evaluate(echo, judge, folder, crop=32, device="cpu", progress=False)
    assert report.samples == 3
    assert report.kl == pytest.approx(0.0, abs=1e-5)


def test_the_contact_sheet_shows_the_cameras_picture(folder, tmp_path):
    judge = teacher()
    judge.model.eval()
    student = isp_distill.rawify(judge.model, mean=0.5, std=0.25)
    # 224 pixels, as its tiles are: nothing is scaled twice.
    wide = Teacher(judge.model, size=224)
    loader = ViewLoader(folder, View(224), 1)
    path = contact_sheet(tmp_path / "sheet.png", student, wide, loader, torch.device("cpu"))
    sheet = np.asarray(Image.open(path)).astype(float)
    first = next(loader.fixed(1))
    expected = (first.picture[0] * 255).permute(1, 2, 0).numpy()
    assert np.abs(sheet[10:234, 234:458] - expected).max() <= 1


def test_a_run_without_pictures_does_not_go_on_with_them(folder, tmp_path):
    settings = {
        "out": tmp_path, "steps": 1, "batch_size": 2, "crop": 32, "progress": False,
        "tensorboard": False, "device": "cpu",
    }  # fmt: skip
    with closing(RawFolder(folder.root)) as plain:
        isp_distill.train("rawify", teacher(), plain, **settings)
    with pytest.raises(ValueError, match="the cameras' pictures of it"):
        isp_distill.train("rawify", teacher(), folder, **settings)


def test_pairs_of_a_dataset_train(folder, tmp_path):
    pairs = [
        (folder[i], pixels((folder.root / f"{folder.paths[i].stem}.jpg").read_bytes()), i)
        for i in range(3)
    ]
    result = isp_distill.train(
        "rawify", teacher(), pairs, out=tmp_path, steps=1, batch_size=3, crop=32, alpha=0.5,
        progress=False, tensorboard=False, device="cpu",
    )  # fmt: skip
    assert result.steps == 1
    assert result.skipped == {}


def test_the_shell_shows_the_teacher_the_cameras_pictures(folder, tmp_path, capsys):
    """And the run's config.toml says so: the same run again is the same run."""
    root, out = str(folder.root), tmp_path / "run"
    common = ["--teacher", "training_run:teacher", "--crop", "32", "--device", "cpu"]
    run = [*common, "--steps", "1", "--batch-size", "2", "--quiet", "--no-tensorboard", "--json"]
    pictures = ["--picture", "beside", "--validation-picture", "beside"]
    assert main(["train", root, "--validation", root, *pictures, "--out", str(out), *run]) == 0
    first = json.loads(capsys.readouterr().out)
    config = RunConfig.read(out / "config.toml")
    assert (config.picture, config.validation_picture) == ("beside", "beside")
    again = ["train", "--config", str(out / "config.toml"), "--restart", "--json", "--quiet"]
    assert main(again) == 0
    assert json.loads(capsys.readouterr().out)["after"] == first["after"]
    # Measured by itself, with the pictures and without.
    measure = ["evaluate", root, *common, "--run", str(out), "--trust", "training_run", "--quiet"]
    found = []
    for shown in (["--picture", "beside"], []):
        assert main([*measure, *shown, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["kl"])
    assert found[0] == pytest.approx(first["after"]["kl"], rel=1e-5)
    assert found[1] != pytest.approx(found[0], rel=1e-3)
    # A run that was given the dataset in Python says it too.
    isp_distill.train(
        "rawify", "training_run:teacher", folder, out=tmp_path / "python", steps=1, batch_size=2,
        crop=32, progress=False, tensorboard=False, device="cpu",
    )  # fmt: skip
    assert RunConfig.read(tmp_path / "python" / "config.toml").picture == "beside"
    assert main(["pack", root, str(tmp_path / "packed"), "--picture", "beside",
                 "--picture-side", "64"]) == 0  # fmt: skip
    packed = isp_distill.PackedRaw(tmp_path / "packed")
    assert min(packed.aligned(0).picture.shape[:2]) == 64


def test_pictures_where_they_belong_to_nothing_are_refused(folder, tmp_path):
    isp_distill.pack(folder.root, tmp_path / "packed", progress=False)
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    for data, said in (
        (tmp_path / "packed", "is packed, with whatever pictures it has: leave picture"),
        (tmp_path / "x.png", "is a picture, or holds them, and mosaics are made of them"),
        ([folder[0]], "picture is of paths: a dataset has its own"),
    ):
        with pytest.raises(ValueError, match=said):
            open_source(data, picture="beside")
    with pytest.raises(ValueError, match="picture_side=64 is of the cameras' pictures, and none"):
        isp_distill.pack(folder.root, tmp_path / "other", picture_side=64, progress=False)


def test_a_folder_of_pictures_lies_as_several_folders_do(folder, tmp_path):
    for part, name in (("a", "astronaut"), ("b", "coffee")):
        (tmp_path / "raw" / part).mkdir(parents=True)
        (tmp_path / "jpeg" / part).mkdir(parents=True)
        shutil.copy(folder.root / f"{name}.dng", tmp_path / "raw" / part)
        shutil.copy(folder.root / f"{name}.jpg", tmp_path / "jpeg" / part)
    roots = [tmp_path / "raw" / part for part in "ab"]
    source = open_source(roots, picture=tmp_path / "jpeg")
    assert [part.pictures.where for part in source.parts] == [
        str(tmp_path / "jpeg" / part) for part in "ab"
    ]
    assert source.stated["picture"] == str(tmp_path / "jpeg")
