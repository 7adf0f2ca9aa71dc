"""Detectors of torchvision and transformers give the heads that they themselves detect by."""

from __future__ import annotations

import sys

import detection_cases as cases
import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torchvision.models.detection import FasterRCNN

import isp_distill
from isp_distill.detection import Detector, Heads, detections, teacher
from isp_distill.detection.heads import heads_of
from isp_distill.detection.libraries import check_libraries
from isp_distill.reports.detections import check_precision


@pytest.fixture(scope="module")
def picture():
    return cases.picture()


@pytest.mark.parametrize("name", cases.TORCHVISION)
def test_detections_are_those_of_torchvision(name, picture):
    model = cases.model(name)
    chosen = teacher(model, size=cases.SIDE)
    with torch.no_grad():
        expected = model(list(picture))
        found = detections(chosen.logits(picture), chosen.model.heads)
    assert sum(len(one["scores"]) for one in expected) > 10
    for one, other in zip(found, expected, strict=True):
        order = other["scores"].argsort(descending=True, stable=True)
        torch.testing.assert_close(one.scores, other["scores"][order], atol=1e-4, rtol=1e-3)
        boxes = cases.SIDE * one.boxes
        torch.testing.assert_close(boxes, other["boxes"][order], atol=1e-3, rtol=1e-3)
        assert one.classes.tolist() == other["labels"][order].tolist()


PROCESSORS = {
    "DETR": transformers.DetrImageProcessor,
    "Conditional DETR": transformers.ConditionalDetrImageProcessor,
    "RT-DETR": transformers.RTDetrImageProcessor,
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_detections_are_those_of_transformers(name, picture):
    model = cases.model(name)
    chosen = teacher(model, size=cases.SIDE)
    mean, std = (torch.tensor(v)[:, None, None] for v in (chosen.mean, chosen.std))
    with torch.no_grad():
        outputs = model(pixel_values=(picture - mean) / std)
        found = detections(chosen.logits(picture), chosen.model.heads)
    expected = PROCESSORS[name]().post_process_object_detection(
        outputs, threshold=0.05, target_sizes=[(1, 1)] * 2
    )
    assert sum(len(one["scores"]) for one in expected) > 5
    most = chosen.model.heads.most
    for one, other in zip(found, expected, strict=True):
        order = other["scores"].argsort(descending=True, stable=True)[:most]
        torch.testing.assert_close(one.scores, other["scores"][order], atol=1e-4, rtol=1e-3)
        assert one.classes.tolist() == other["labels"][order].tolist()
        corners = other["boxes"][order].clamp(0, 1)
        torch.testing.assert_close(one.boxes, corners, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", cases.MODELS)
def test_a_student_reads_the_mosaic_with_the_first_convolution(name):
    chosen = cases.teacher_of(name)
    student = isp_distill.rawify(chosen.module, mean=chosen.mean, std=chosen.std, size=chosen.size)
    assert student.takeover.form == "stem"
    assert heads_of(student) == chosen.model.heads
    mosaic = torch.randint(64, 1000, (2, 2 * cases.SIDE, 2 * cases.SIDE), dtype=torch.uint16)
    output = student(mosaic, isp_distill.ISP(black=64, white=1023))
    assert output.shape[1:] == chosen.output_shape(torch.device("cpu"))
    assert output.requires_grad


def test_what_a_model_says_of_itself_is_the_teacher_s():
    ssd, rt_detr, fcos = (cases.teacher_of(n, size=None) for n in ("SSD", "RT-DETR", "FCOS"))
    assert (ssd.size, rt_detr.size, fcos.size) == (cases.SIDE, 640, cases.SIDE)
    assert ssd.model.heads.background == 0
    assert rt_detr.mean == (0.0, 0.0, 0.0)
    assert not rt_detr.model.heads.ordered
    assert rt_detr.classes == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert cases.teacher_of("DETR").classes[-1] == "no object"
    assert fcos.model.heads.classes == 3
    assert teacher(fcos.model, size=96, confidence=0.7).model.heads.confidence == 0.7


def test_a_function_is_a_detector_where_it_says_its_heads():
    def look(picture):
        return np.zeros((len(picture), 9, 6), np.float32)

    chosen = teacher(look, heads=Heads(2), size=32)
    assert chosen.output_shape(torch.device("cpu")) == (9, 6)
    assert heads_of(chosen.model) == Heads(2)
    with pytest.raises(ValueError, match=r"the detector's heads must be \[N, places, 3 logits"):
        teacher(look, heads=Heads(3), size=32).output_shape("cpu")
    both = teacher(lambda p: np.split(look(p), [2], -1), heads=Heads(2), size=32)
    assert both.logits(torch.rand(2, 3, 32, 32)).shape == (2, 9, 6)


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"boxes need torchvision: pip install .*\[detection\]"):
        check_libraries(Heads(2), "smooth_l1")
    with pytest.raises(ImportError, match="pairing the queries of two detectors needs scipy"):
        check_libraries(Heads(2, nms=None, ordered=False), "smooth_l1")
    check_libraries(Heads(2, nms=None), "smooth_l1")
    monkeypatch.undo()
    check_precision()
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ImportError, match="mean average precision needs pycocotools"):
        check_precision()


def test_what_is_no_detector_is_refused_by_name():
    with pytest.raises(TypeError, match="Linear is no detector that is known here"):
        teacher(nn.Linear(2, 2))
    two_stages = FasterRCNN(cases.Pyramid(), 2, rpn_anchor_generator=cases._anchors(1.0))
    with pytest.raises(TypeError, match=r"FasterRCNN is no detector .* one of one stage"):
        teacher(two_stages)
    with pytest.raises(ValueError, match="unknown kind 'boxes'"):
        Detector(nn.Identity(), Heads(2), "boxes")
    with pytest.raises(ValueError, match=r"returned \[1, 3, 8, 8\] and \[1, 3, 8, 8\]"):
        Detector(lambda_module(lambda x: (x, x)), Heads(2))(torch.rand(1, 3, 8, 8))


def lambda_module(function):
    made = nn.Module()
    made.forward = function
    return made


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"logits": 0}, "logits must be at least 1"),
        ({"threshold": 1.5}, r"threshold must be in \[0, 1\]"),
        ({"nms": float("nan")}, r"nms must be in \[0, 1\]"),
        ({"background": 0}, "background must be one of a softmax's"),
        ({"softmax": True, "quality": True}, "quality goes with sigmoids"),
    ],
)
def test_heads_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Heads(**{"logits": 3, **options})


def test_thresholds_suppression_and_the_most():
    heads = Heads(2, threshold=0.4, most=2)
    output = torch.full((1, 5, 6), -9.0)
    output[..., 2:] = torch.tensor([0.1, 0.1, 0.5, 0.5])
    output[0, 0, 0] = 3.0
    output[0, 1, 0] = 2.0  # the same box and class
    output[0, 2, 1] = 1.0  # another class
    output[0, 3, 0], output[0, 3, 2:] = 0.5, torch.tensor([0.5, 0.5, 1.5, 1.5])
    output[0, 4, 0] = -1.0  # too little
    (found,) = detections(output, heads)
    assert found.classes.tolist() == [0, 1]
    (found,) = detections(output, Heads(2, threshold=0.4))
    assert found.classes.tolist() == [0, 1, 0]
    assert found.boxes[2].tolist() == [0.5, 0.5, 1.0, 1.0]
    (found,) = detections(output, Heads(2, threshold=0.4, nms=None))
    assert len(found.scores) == 4
    assert len(found.above(0.8).scores) == 2


def test_nothing_found_is_no_error_and_no_number_is_one():
    heads = Heads(2)
    output = torch.full((3, 7, 6), -9.0)
    assert [len(one.scores) for one in detections(output, heads)] == [0, 0, 0]
    output[1, 2, 3] = float("nan")
    output[1, 3, 0] = float("inf")
    with pytest.raises(ValueError, match="the student's heads are not finite at 2 of 21 places"):
        detections(output, heads, "student")
