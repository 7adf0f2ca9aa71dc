"""A student is used as it was measured: the trained view, its size, and the cut that makes it."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from training_run import files, raw_image, teacher

import isp_distill
from isp_distill import ISP, View, cut_view, evaluate, export, rawify, read_raw, train
from isp_distill.models.student import as_student, student_module

QUIET = {"progress": False, "tensorboard": False}


def seen_by_evaluate(student, data, **settings):
    """The logits of every view, in order, as evaluate computes them."""
    found = []
    pupil = as_student(student)
    hook = pupil.register_forward_hook(lambda _, __, output: found.append(output.clone()))
    evaluate(pupil, teacher(), data, progress=False, batch_size=3, workers=1, **settings)
    hook.remove()
    return torch.cat(found)


@pytest.mark.parametrize("settings", [{}, {"binning": 1}, {"crop_area": (0.3, 1.0)}])
def test_the_logits_of_a_cut_are_those_that_evaluate_sees(tmp_path, settings):
    data = [raw_image(i, side=48 + 12 * (i % 3)) for i in range(4)]
    result = train("rawify", teacher(), data, out=tmp_path, steps=1, crop=22, **settings, **QUIET)
    mosaic, isp = cut_view(data, result.student)
    assert mosaic.shape == (4, 22, 22)
    assert mosaic.dtype == torch.uint16
    with torch.no_grad():
        actual = result.student(mosaic, isp)
        one = result.student(*cut_view(data[1], result.student))
    expected = seen_by_evaluate(result.student, data)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(one, expected[1:2])
    torch.testing.assert_close(cut_view(data, result.student.view)[0], mosaic)


def test_files_are_turned_upright_as_a_folder_does(tmp_path):
    folder = files(tmp_path / "raw", count=2)
    raws = [read_raw(path) for path in folder.paths]
    raws.append(dataclasses.replace(raw_image(3), orientation=6))
    student = student_module("rawify", teacher()).eval()
    view = View(16, 2)
    expected = seen_by_evaluate(student, folder, crop=16, binning=2)
    with torch.no_grad():
        torch.testing.assert_close(student(*cut_view(raws[:2], view)), expected)
        upright = isp_distill.upright(raws[2])
        expected = student(*cut_view(upright, view))
        torch.testing.assert_close(student(*cut_view(raws[2], view)), expected)
    mosaic = isp_distill.bin_mosaic(upright.mosaic, 2)
    assert torch.equal(cut_view(upright, View(24, 2))[0][0], torch.from_numpy(mosaic))


@pytest.mark.parametrize("planes", [False, True])
def test_a_trained_student_refuses_mosaics_of_another_size(tmp_path, planes):
    data = [raw_image(i) for i in range(3)]
    student = (
        nn.Sequential(nn.Conv2d(4, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))
        if planes
        else "rawify"
    )
    result = train(student, teacher(), data, out=tmp_path / "run", steps=1, crop=16, **QUIET)
    student = result.student
    whole, isp = torch.from_numpy(data[0].mosaic)[None], ISP.from_raw(data[0])
    with pytest.raises(ValueError, match=r"16 x 16, this one is 48 x 48.*cut_view.*view = None"):
        student(whole, isp)
    with pytest.raises(ValueError, match="16 x 16, this one is 16 x 18"):
        student(whole[:, :16, :18], isp)
    # What asks for another size by name gets it, and the view stays.
    for _ in range(2):
        assert evaluate(student, teacher(), data, crop=32, progress=False).samples == 3
        assert student.view.crop == 16
    # Without a crop it is the trained one, where the default was twice the teacher's size.
    assert seen_by_evaluate(student, data).equal(seen_by_evaluate(student, data, crop=16))
    side = 32 if planes else None
    path = export(student, tmp_path / "student.pt2", crop=side, verify=planes)
    assert torch.export.load(path).module()(*inputs(side or 16)).shape == (2, 7)
    # Training goes on at another size, and that is then the view.
    again = train(student, teacher(), data, out=tmp_path / "on", steps=1, crop=32, **QUIET)
    assert again.student.view.crop == 32
    student.view = None
    assert student(whole, isp).shape == (1, 7)


def inputs(side):
    mosaic = torch.full((2, side, side), 3000).to(torch.uint16)
    camera = isp_distill.camera_inputs(ISP(black=500.0, white=16000.0), 2)
    return mosaic, *(torch.from_numpy(value) for value in camera.values())


def test_the_view_goes_where_the_weights_go():
    student = student_module("rawify", teacher())
    student.view = View(16, area=(0.2, 0.9), ratio=(0.5, 2.0), flip=True)
    fresh = student_module("rawify", teacher())
    assert fresh.view is None
    fresh.load_state_dict(student.state_dict())
    assert fresh.view == copy.deepcopy(fresh).view == student.view


def test_what_cannot_be_cut_is_refused():
    student = rawify(teacher().model)
    with pytest.raises(ValueError, match=r"knows no view.*View\(448\)"):
        cut_view(raw_image(0), student)
    with pytest.raises(TypeError, match="a trained student or a View, not int"):
        cut_view(raw_image(0), 16)
    with pytest.raises(ValueError, match="empty"):
        cut_view([], View(16))
    with pytest.raises(TypeError, match="not str"):
        cut_view(["photo.dng"], View(16))
    with pytest.raises(isp_distill.RawError, match="too small for a crop of 64"):
        cut_view(raw_image(0), View(64))


@pytest.mark.parametrize("settings", [("448",), (448.0,), (448, 2.0), (True,)])
def test_a_view_is_made_of_whole_numbers(settings):
    with pytest.raises(TypeError, match=r"(crop|binning) must be a whole number"):
        View(*settings)
