"""train, evaluate, pack and export on frames of filters beyond Bayer's, from their folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training_run import teacher

import isp_distill
from isp_distill import ISP, PackedRaw, RawImage, SensorFolder, evaluate, export, pack, train
from isp_distill.data.batch import RawBatch
from isp_distill.models.student import as_student
from isp_distill.raw.filters import filter_of
from isp_distill.reports.contact_sheet import coloured_mosaic

WIDTH, HEIGHT = 64, 48
SETTINGS = {
    "steps": 3,
    "batch_size": 4,
    "progress": False,
    "tensorboard": False,
    "seed": 1,
    "lr": 1e-3,
}
THREE = [[1.5, -0.4, -0.1], [-0.3, 1.5, -0.2], [0.0, -0.5, 1.5]]
FOUR = [[1.3, -0.2, -0.3, -0.1], [-0.2, 1.4, -0.3, -0.2], [0.0, -0.3, -0.2, 1.3]]
PATTERNS = ["RCCB", "GCCR", "YRBY", "RYYCy", "mono", "IrBRG", "BGIrR"]


def matrix_of(pattern):
    return {3: THREE, 4: FOUR, 1: None}[filter_of(pattern).columns]


def write_frames(folder, pattern, count=5, block=1, matrix=True):
    folder.mkdir(parents=True)
    width, height = WIDTH * block, HEIGHT * block
    text = f'packing = "uint16"\nbits = 10\nwidth = {width}\nheight = {height}\nblack = 64\n'
    text += f'pattern = "{pattern}"\nblock = {block}\n'
    if matrix and (ccm := matrix_of(pattern)) is not None:
        text += f"ccm = {ccm}\n"
    (folder / "sensor.toml").write_text(text)
    random = np.random.default_rng(len(pattern))
    for index in range(count):
        coarse = random.integers(64, 1024, (height // 8, width // 8))
        frame = np.kron(coarse, np.ones((8, 8))).astype("<u2")
        np.save(folder / f"{index}.npy", frame)
    return folder


def superpixel_teacher():
    one = teacher()
    return isp_distill.Teacher(one.model, size=16, demosaic="superpixel")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_train_evaluate_pack_export(tmp_path, pattern):
    root = write_frames(tmp_path / "frames", pattern)
    by = superpixel_teacher()
    result = train(
        "rawify", by, root, out=tmp_path / "run", crop=32, vertical_flip=True, **SETTINGS
    )
    assert (tmp_path / "run/contact_sheet.png").stat().st_size > 0
    report = evaluate(result.student, by, root, progress=False)
    pack(root, tmp_path / "packed", progress=False, workers=1)
    packed = PackedRaw(tmp_path / "packed")
    assert (packed[0].pattern, packed[0].ccm) == (pattern, SensorFolder(root)[0].ccm)
    again = evaluate(result.student, by, tmp_path / "packed", progress=False)
    assert again.kl == pytest.approx(report.kl, rel=1e-4)
    # A camera built in, whatever its filter.
    isp = ISP.from_raw(packed[0])
    path = export(result.student, tmp_path / "student.pt2", isp=isp, crop=32)
    program = torch.export.load(path).module()
    mosaic = torch.from_numpy(packed[0].mosaic[None, :32, :32].copy())
    with torch.no_grad():
        expected = as_student(result.student.eval())(mosaic, isp)
        torch.testing.assert_close(program(mosaic), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("block", [2, 3])
def test_quad_bayer_trains(tmp_path, block):
    root = write_frames(tmp_path / "frames", "GRBG", block=block)
    result = train("rawify", teacher(), root, out=tmp_path / "run", crop=32, **SETTINGS)
    assert np.isfinite(evaluate(result.student, teacher(), root, progress=False).kl)


def test_filters_mixed_in_one_training_set(tmp_path):
    """RYYB and RGGB cameras, each with its own matrix, in every batch."""
    roots = [write_frames(tmp_path / p, p, count=4) for p in ("RYYB", "BGGR")]
    result = train("rawify", teacher(), roots, out=tmp_path / "run", crop=32, **SETTINGS)
    report = evaluate(result.student, teacher(), roots, progress=False)
    assert report.samples == 8
    assert np.isfinite(report.kl)


def test_an_untrained_student_sees_what_the_teacher_sees(tmp_path):
    """rawify's start: the RGB model on the superpixel picture, of every filter."""
    by = isp_distill.Teacher(teacher().model, size=16, demosaic="superpixel", tone="gamma")
    student = isp_distill.rawify(
        by.model, mean=by.mean, std=by.std, curve="gamma", colour_matrix=True
    )
    by.model.eval(), student.eval()
    for pattern in PATTERNS:
        raw = SensorFolder(write_frames(tmp_path / pattern, pattern))[0]
        isp = ISP.from_raw(raw)
        mosaic = torch.from_numpy(raw.mosaic[None, :32, :32].copy())
        picture = by.picture(RawBatch(mosaic, isp))
        with torch.no_grad():
            if filter_of(pattern).columns == 3:
                # The greens pass the curve apart in the student: alike where they are equal.
                mosaic[:, 1::2, :] = mosaic[:, ::2, :]
                mosaic[:, :, 1::2] = mosaic[:, :, ::2]
                picture = by.picture(RawBatch(mosaic, isp))
            torch.testing.assert_close(
                student(mosaic, isp), by.logits(picture), atol=2e-3, rtol=2e-3
            )


@pytest.mark.parametrize("learn_camera", [True, False])
@pytest.mark.parametrize("curve", ["linear", "gamma"])
def test_rawify_for_mono_is_the_rgb_model_on_grey(curve, learn_camera):
    """Without a camera's matrix, weights or mix make one grey of a period's four sites."""
    by = teacher()
    model = by.model.eval()
    student = isp_distill.rawify(
        model,
        mean=by.mean,
        std=by.std,
        curve=curve,
        learn_camera=learn_camera,
        colour_filter="mono",
    ).eval()
    mosaic = torch.randint(64, 1024, (2, 32, 32), dtype=torch.int32)
    isp = ISP(black=64, white=1023, pattern="mono")
    sites = ((mosaic - 64) / 959.0).clamp(0, 1).unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
    if learn_camera:
        grey = sites.mean(3) ** (1 / 2.2 if curve == "gamma" else 1)
    else:
        grey = (sites ** (1 / 2.2 if curve == "gamma" else 1)).mean(3)
    with torch.no_grad():
        expected = by.logits(grey[:, None].expand(-1, 3, -1, -1))
        torch.testing.assert_close(student(mosaic, isp), expected, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize(("pattern", "place"), [("RGIrB", 2), ("RIrGB", 1)])
def test_rawify_for_infrared_begins_without_it(pattern, place):
    student = isp_distill.rawify(teacher().model, colour_filter=pattern)
    weight = student.stems[0].weight
    assert not weight[:, place].any()
    assert all(weight[:, plane].any() for plane in range(4) if plane != place)


def test_no_matrix_is_said_before_a_step(tmp_path):
    root = write_frames(tmp_path / "frames", "RCCG", matrix=False)
    with pytest.raises(ValueError, match=r"filter is RCCG.*\(R, C, G\).*sensor\.toml"):
        train("rawify", teacher(), root, out=tmp_path / "run", crop=32, **SETTINGS)


def test_infrared_by_malvar_is_said(tmp_path):
    root = write_frames(tmp_path / "frames", "RGIrB")
    with pytest.raises(ValueError, match=r'use demosaic="superpixel".*Teacher'):
        train("rawify", teacher(), root, out=tmp_path / "run", crop=32, **SETTINGS)


def test_mono_trains_by_the_default_demosaicing(tmp_path):
    root = write_frames(tmp_path / "frames", "mono")
    result = train("rawify", teacher(), root, out=tmp_path / "run", crop=32, **SETTINGS)
    assert np.isfinite(evaluate(result.student, teacher(), root, progress=False).kl)


def test_a_calibrated_student_keeps_its_camera(tmp_path):
    """The matrix of four colours is part of the state dict."""
    make = lambda: isp_distill.rawify(teacher().model, colour_matrix=True)  # noqa: E731 - three words, used three times
    student = make()
    student.calibrate(ISP(white=1023, pattern="IrBRG", ccm=FOUR))
    other = make()
    other.load_state_dict(student.state_dict())
    assert torch.equal(other.stems[0].ccm, torch.tensor(FOUR))
    mosaic = torch.randint(0, 1023, (1, 32, 32), dtype=torch.int32)
    assert torch.equal(other.eval()(mosaic), student.eval()(mosaic))
    with pytest.raises(ValueError, match="filter is RYYB"):
        make().calibrate(ISP(pattern="RYYB"))


def test_a_program_for_any_camera_says_what_it_takes():
    with pytest.raises(ValueError, match=r"export\(student, path, isp=isp\)"):
        isp_distill.camera_inputs(ISP(pattern="mono"))
    inputs = isp_distill.camera_inputs(ISP(pattern="YRBY", ccm=THREE))
    assert inputs["pattern"].tolist() == [1]


def test_the_contact_sheets_colours():
    """White under clear, yellow under yellow."""
    mosaic = torch.full((1, 2, 2), 1023, dtype=torch.int32)
    isp = ISP(white=1023, pattern="YRCyY")
    drawn = coloured_mosaic(RawBatch(mosaic, isp))[0].permute(1, 2, 0)
    assert drawn.tolist() == [[[1, 1, 0], [1, 0, 0]], [[0, 1, 1], [1, 1, 0]]]


def test_unprocess_makes_bayer_alone():
    with pytest.raises(ValueError, match="unprocess makes what a Bayer sensor sees"):
        isp_distill.unprocess(torch.rand(1, 3, 8, 8), pattern="RYYB")


def test_a_dataset_of_images(tmp_path):
    """Not a folder: RawImages of two filters."""
    random = np.random.default_rng(0)
    data = [
        RawImage(
            random.integers(64, 1023, (48, 48)).astype(np.uint16), p, 64, 1023, ccm=matrix_of(p)
        )
        for p in ("RYYB", "GRBG", "RCCG", "BGGR")
    ]
    result = train("rawify", teacher(), data, out=tmp_path / "run", crop=32, **SETTINGS)
    assert np.isfinite(evaluate(result.student, teacher(), data, progress=False).kl)
