"""A detector is distilled end to end: trained, measured, drawn, saved, and asked for boxes."""

from __future__ import annotations

import dataclasses
import json

import detection_cases as cases
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from training_run import raw_image, teacher

import isp_distill
from isp_distill import detection, write_dng
from isp_distill.cli.main import main, parser
from isp_distill.data.loader import ViewLoader
from isp_distill.data.true_boxes import TrueBoxes
from isp_distill.reports.detections import DetectionTally
from isp_distill.reports.overlay import class_colour


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection") / "raw"
    folder.mkdir()
    for index in range(4):
        image = raw_image(index, side=96)
        write_dng(
            folder / f"{index}.dng", image.mosaic, pattern=image.pattern, black=image.black,
            white=image.white, white_balance=image.white_balance, ccm=image.ccm, bits=14,
        )  # fmt: skip
    return folder


def run(out, chosen, data, **settings):
    options = {
        "steps": 2, "batch_size": 2, "progress": False, "tensorboard": False,
        "device": "cpu",
    }  # fmt: skip
    return isp_distill.train("rawify", chosen, data, out=out, **{**options, **settings})


def small(name, **settings):
    return cases.teacher_of(name, **{"size": 32, **settings})


@pytest.mark.parametrize("name", ["RetinaNet", "FCOS", "SSD", "DETR", "RT-DETR"])
def test_training_brings_the_student_nearer(tmp_path, raw, name):
    chosen = small(name)
    result = run(
        tmp_path, chosen, raw, validation=raw, steps=12, batch_size=4, lr=1e-3,
        stem_lr=1e-2, crop_area=(0.9, 1.0),
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    before, after = result.before, result.after
    assert after.samples == 4
    assert after.teacher_detections == before.teacher_detections > 0
    assert after.agreement_top1 is None
    assert 0 <= after.mean_ap <= after.mean_ap50 <= 1
    assert after.label_ap is None


def test_an_equal_student_finds_everything():
    chosen = small("RetinaNet", size=64)
    tally = DetectionTally(chosen.model.heads, chosen.size)
    output = chosen.logits(cases.picture())
    tally.add(output, output, None)
    found = tally.figures()
    assert found["mean_ap"] == found["mean_ap50"] == pytest.approx(1.0)
    assert found["teacher_detections"] > 0
    assert "label_ap" not in found
    other = DetectionTally(chosen.model.heads, chosen.size)
    other.add(output.flip(0), output, None)  # of the other picture each
    assert other.figures()["mean_ap"] < 0.9
    other.merge(tally)
    assert len(other.teacher) == 4


def test_a_teacher_that_detects_nothing_is_said_so():
    heads = detection.Heads(3)
    output = torch.full((2, 5, 7), -9.0)
    tally = DetectionTally(heads, 32)
    tally.add(output, output, [torch.zeros(0, 6)] * 2)
    found = tally.figures()
    assert found["teacher_detections"] == 0
    assert found["mean_ap"] is found["label_ap"] is found["teacher_label_ap50"] is None
    assert str(isp_distill.Report(2, **found)) == "the teacher detects nothing over 2 views"


@pytest.fixture(scope="module")
def suns(tmp_path_factory):
    """Files with one bright square each, a detector of bright squares, and the true boxes."""
    root = tmp_path_factory.mktemp("suns")
    (root / "raw").mkdir()
    images, annotations = [], []
    for index in range(4):
        height, width = 128, 160
        mosaic = np.full((height, width), 600, np.uint16)
        # Cells of 16 sensor pixels of the middle 128 x 128 are the detector's of 8 pixels.
        row, column = 16 * (1 + index), 16 + 16 * (5 - index)
        mosaic[row : row + 16, column : column + 16] = 16000
        pattern = ("RGGB", "GRBG", "GBRG", "BGGR")[index]
        name = f"{index}.dng"
        write_dng(root / "raw" / name, mosaic, pattern=pattern, black=512, white=16383, bits=14)
        images.append((name, height, width))
        annotations.append((index, 0, (column, row, 16, 16)))
    cases.write_boxes(root / "boxes.json", images, annotations)
    return root, [box for _, _, box in annotations]


def test_true_boxes_are_found_in_the_file_s_own_pixels(suns):
    root, boxes = suns
    chosen = cases.bright_teacher()
    student = isp_distill.rawify(chosen.module, mean=0.0, std=1.0, size=64, curve="gamma")
    report = isp_distill.evaluate(
        student, chosen, root / "raw", crop=128, boxes=root / "boxes.json", progress=False
    )
    assert report.teacher_detections == 4
    assert report.mean_ap == report.label_ap == report.teacher_label_ap == pytest.approx(1.0)
    assert "mAP with the true boxes 1.000 (teacher 1.000)" in str(report)
    found = isp_distill.predict(
        student, root / "raw", crop=128, classes=chosen.classes, progress=False
    )
    for one, (left, top, width, height) in zip(found, boxes, strict=True):
        (box,) = one.boxes
        assert (box.index, box.name) == (0, "sun")
        assert box.box == pytest.approx((left, top, left + width, top + height), abs=1e-3)
    lines = found.csv().splitlines()
    assert lines[0] == "name,index,class,score,left,top,right,bottom"
    assert lines[1].startswith(f"{root / 'raw' / '0.dng'},0,sun,")
    assert json.loads(found.json())["predictions"][2]["boxes"][0]["name"] == "sun"
    assert "sun at (96, 16, 112, 32)" in str(found)


def test_a_picture_s_boxes_are_in_its_own_pixels(tmp_path):
    pixels = np.zeros((256, 320, 3), np.uint8)
    pixels[64:96, 96:128] = 255
    Image.fromarray(pixels).save(tmp_path / "one.png")
    chosen = cases.bright_teacher()
    student = isp_distill.rawify(chosen.module, mean=0.0, std=1.0, size=64, curve="gamma")
    (found,) = isp_distill.predict(student, tmp_path, crop=128, progress=False)
    assert found.boxes[0].box == pytest.approx((96, 64, 128, 96), abs=1e-3)
    dark = dataclasses.replace(raw_image(0), mosaic=np.zeros((128, 128), np.uint16))
    nothing = isp_distill.predict(student, [dark], crop=128, progress=False)
    assert nothing[0].boxes == ()
    assert str(nothing).endswith(": nothing")


def test_boxes_turn_over_with_the_frame(suns):
    """Teacher and student see one view: flipped in training as it is."""
    root, _ = suns
    chosen = cases.bright_teacher()
    student = isp_distill.rawify(chosen.module, mean=0.0, std=1.0, size=64, curve="gamma")
    loader = ViewLoader(
        isp_distill.RawFolder(root / "raw"), isp_distill.View(128, flip=True), 1, seed=1,
        boxes=TrueBoxes.read(
            root / "boxes.json", isp_distill.RawFolder(root / "raw"), 2
        ),
    )  # fmt: skip
    heads = chosen.model.heads
    turned = set()
    batches = loader.training(0, 12)
    with loader.closing(batches):
        for batch in batches:
            if not len(batch.boxes[0]):
                continue
            (true,) = batch.boxes[0]
            for output in (student(batch.mosaic, batch.isp), chosen.logits(chosen.picture(batch))):
                (found,) = detection.detections(output, heads)
                if true[5] == 0 and len(found.scores) == 1:
                    torch.testing.assert_close(found.boxes[0], true[1:5], atol=0.07, rtol=0)
                    turned.add(tuple((true[1:3] > 0.5).tolist()))
    assert len(turned) > 1


def test_a_run_leaves_everything(tmp_path, suns):
    root, _ = suns
    chosen = cases.bright_teacher()
    result = run(
        tmp_path / "run", chosen, root / "raw", validation=root / "raw",
        boxes=root / "boxes.json", box_objective="smooth_l1", match=[
            "logits", {"student": "look", "objective": "smooth_l1", "weight": 0.1},
        ],
    )  # fmt: skip
    assert result.after.teacher_label_ap == pytest.approx(1.0)
    assert result.after.matches["look"]["cosine"] > 0.9
    sheet = np.asarray(Image.open(result.out / "contact_sheet.png"))
    blue = (sheet == np.array(class_colour(0), np.uint8)).all(-1).sum()
    assert blue > 100  # lines of boxes, and what stands in them
    report = json.loads((result.out / "report.json").read_text())
    assert report["settings"]["boxes"] == str(root / "boxes.json")
    assert report["after"]["label_ap"] == result.after.label_ap
    student = isp_distill.load(result.out, model=chosen.model)
    assert student.description.output == "boxes"
    assert student.description.shape == (64, 6)
    found = isp_distill.predict(student, root / "raw", progress=False)
    again = isp_distill.predict(result.student, root / "raw", progress=False)
    assert found.csv() == again.csv()
    assert found[0].boxes[0].name == "sun"  # saved with the student


def test_packed_files_train_the_same_student(tmp_path, raw):
    isp_distill.pack(raw, tmp_path / "packed", progress=False)
    chosen = small("FCOS")
    one = run(tmp_path / "raw", chosen, raw)
    other = run(tmp_path / "pack", chosen, tmp_path / "packed")
    for a, b in zip(one.student.parameters(), other.student.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_what_detection_does_not_serve_is_refused(tmp_path, raw, suns):
    chosen = small("RetinaNet")
    with pytest.raises(ValueError, match="pack stores no output of a detector"):
        isp_distill.pack(raw, tmp_path / "packed", teacher=chosen, progress=False)
    with pytest.raises(ValueError, match=r"alpha=0.5 mixes in .* a detector is trained on no"):
        run(tmp_path / "a", chosen, raw, alpha=0.5)
    with pytest.raises(ValueError, match="objective='cosine' compares features"):
        run(tmp_path / "b", chosen, raw, objective="cosine")
    with pytest.raises(ValueError, match="are of the validation data, and there are none"):
        run(tmp_path / "c", chosen, raw, boxes="boxes.json")
    with pytest.raises(ValueError, match=r"boxes='x\.json' are for a detector"):
        isp_distill.evaluate(
            isp_distill.rawify(teacher().model, size=16), teacher(), raw, boxes="x.json"
        )
    with pytest.raises(TypeError, match="boxes must be the path of a COCO JSON, got 3"):
        isp_distill.TrainSettings(boxes=3)
    with pytest.raises(ValueError, match="unknown box_objective 'iou'"):
        isp_distill.TrainSettings(box_objective="iou")
    with pytest.raises(FileNotFoundError, match="there is no such file of boxes"):
        run(tmp_path / "d", chosen, raw, validation=raw, boxes=tmp_path / "boxes.json")


def test_a_student_of_no_number_is_found_out(tmp_path, raw):
    chosen = small("RetinaNet")
    student = isp_distill.rawify(chosen.module, mean=chosen.mean, std=chosen.std, size=32)
    with torch.no_grad():
        next(p for n, p in student.named_parameters() if "cls_logits" in n).fill_(float("nan"))
    with pytest.raises(ValueError, match="the student's heads are not finite"):
        isp_distill.evaluate(student, chosen, raw, progress=False)
    with pytest.raises(RuntimeError, match="the loss is nan"):
        isp_distill.train(student, chosen, raw, out=tmp_path, steps=1, batch_size=2,
                          progress=False, tensorboard=False)  # fmt: skip


def test_the_shell_takes_boxes(tmp_path, suns, monkeypatch, capsys):
    root, _ = suns
    given = parser().parse_args(
        ["train", "raw", "--teacher", "m:f", "--boxes", "b.json", "--box-objective", "giou"]
    )
    assert (given.boxes, given.box_objective) == ("b.json", "giou")
    (tmp_path / "suns_module.py").write_text(
        "import detection_cases\n\ndef teacher():\n    return detection_cases.bright_teacher()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    main([
        "evaluate", str(root / "raw"), "--teacher", "suns_module:teacher", "--crop", "128",
        "--boxes", str(root / "boxes.json"), "--device", "cpu",
    ])  # fmt: skip
    assert "mAP with the true boxes 1.000 (teacher 1.000) over 4 views" in capsys.readouterr().out


def test_a_detector_is_exported(tmp_path):
    import onnxruntime

    chosen = small("RetinaNet")
    student = isp_distill.rawify(chosen.module, mean=chosen.mean, std=chosen.std, size=32)
    path = isp_distill.export(student, tmp_path / "student.onnx", crop=64, batch=1)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [1, *chosen.output_shape(torch.device("cpu"))]


def test_a_student_of_its_own_is_trained(tmp_path, raw):
    """Of the same heads, on the four planes."""
    chosen = cases.bright_teacher(32)
    body = cases.Bright()
    body.look = nn.Conv2d(4, 2, 8, 8)
    student = detection.Detector(body, chosen.model.heads)
    result = isp_distill.train(
        student, chosen, raw, out=tmp_path, steps=1, batch_size=2, progress=False,
        tensorboard=False, validation=raw,
    )  # fmt: skip
    assert result.after.samples == 4
