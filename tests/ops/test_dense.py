"""Dense students: the loss at another resolution, mIoU and pixel agreement, class maps."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_models import Coarse
from hypothesis import given
from hypothesis import strategies as st
from training_run import raw_image, teacher

import isp_distill
from isp_distill import DistillLoss, Teacher
from isp_distill.data.loader import ViewLoader
from isp_distill.data.views import View
from isp_distill.ops.dense_logits import class_maps, full_size, upsampled_bands
from isp_distill.raw.image import upright
from isp_distill.reports.overlay import overlay, palette


@given(
    sides=st.tuples(*[st.integers(1, 9)] * 4),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    budget=st.integers(1, 2000),
)
def test_bands_are_an_interpolation(sides, size, budget):
    torch.manual_seed(0)
    logits = [torch.randn(2, 3, *sides[:2]), torch.randn(2, 3, *sides[2:])]
    bands = list(upsampled_bands(logits, size, budget))
    for index, x in enumerate(logits):
        expected = F.interpolate(x, size, mode="bilinear", align_corners=False)
        actual = torch.cat([band[index] for band in bands], 2)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    rows = max(1, budget // (2 * 3 * size[1]))
    assert all(band[0].shape[2] <= rows for band in bands)


def test_the_size_is_one_side_or_two():
    logits = torch.zeros(1, 2, 3, 4)
    assert full_size(None, logits) == (3, 4)
    assert full_size(7, logits) == (7, 7)
    assert full_size((7, 8), logits) == (7, 8)
    for size in (0, (1, 2, 3), (4, 0)):
        with pytest.raises(ValueError, match="dense_size"):
            full_size(size, logits)


@pytest.mark.parametrize("size", [None, 12, (10, 14)])
@pytest.mark.parametrize("student_side", [4, 6, 12])
def test_the_loss_is_that_of_upsampled_logits(size, student_side):
    torch.manual_seed(0)
    student = torch.randn(2, 5, student_side, student_side, requires_grad=True)
    target = torch.randn(2, 5, 6, 6)
    loss_of = DistillLoss("reverse_kl", temperature=2.0, return_agreement=True, size=size)
    loss, agreement = loss_of(student, target)
    full = full_size(size, target)
    both = [F.interpolate(x, full, mode="bilinear") for x in (student, target)]
    expected, count = isp_distill.distill_loss(
        *both, objective="reverse_kl", temperature=2.0, return_agreement=True
    )
    torch.testing.assert_close(loss, expected)
    assert abs(int(agreement) - int(count)) <= 1  # a tie may fall either way
    assert loss_of.positions(target) == 2 * full[0] * full[1]
    got, wanted = (torch.autograd.grad(x, student)[0] for x in (loss, expected))
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)


def test_reports_count_pixels_at_the_full_size():
    chosen = teacher(dense=True)
    chosen.model.eval()
    data = [raw_image(i) for i in range(5)]
    student = isp_distill.rawify(Coarse(chosen.model), curve="gamma").eval()
    report = isp_distill.evaluate(
        student, chosen, data, batch_size=2, dense_size=(12, 20), progress=False
    )
    best_s, best_t, sure, kl = [], [], [], 0.0
    with torch.no_grad():
        for batch in ViewLoader(data, View(32), 2).fixed(1):
            s = F.interpolate(student(batch.mosaic, batch.isp), (12, 20), mode="bilinear")
            t = F.interpolate(chosen.logits(chosen.picture(batch)), (12, 20), mode="bilinear")
            kl += float(F.kl_div(s.log_softmax(1), t.softmax(1), reduction="sum"))
            best_s.append(s.argmax(1))
            best_t.append(t.argmax(1))
            sure.append(t.softmax(1).amax(1) > 0.5)
    s, t, sure = (torch.cat(x).numpy() for x in (best_s, best_t, sure))
    ious = [
        np.mean((s == c)[(s == c) | (t == c)] & (t == c)[(s == c) | (t == c)])
        for c in range(7)
        if (s == c).any() or (t == c).any()
    ]
    assert report.samples == 5
    assert report.agreement_top1 == pytest.approx((s == t).mean(), abs=2e-3)
    assert report.mean_iou == pytest.approx(np.mean(ious), abs=5e-3)
    assert report.kl == pytest.approx(kl / s.size, rel=1e-3)
    assert 0.02 < sure.mean() < 0.98
    assert report.confident == pytest.approx(sure.mean(), abs=2e-3)
    assert report.agreement_confident == pytest.approx((s == t)[sure].mean(), abs=5e-3)
    assert "pixel agreement" in str(report)


def test_a_coarse_student_is_trained_and_drawn(tmp_path):
    from PIL import Image

    data = [raw_image(i) for i in range(6)]
    dense = teacher(dense=True)
    student = isp_distill.rawify(Coarse(dense.model))
    result = isp_distill.train(
        student, dense, data, out=tmp_path, steps=30, batch_size=3, validation=data, dense_size=16,
        lr=1e-3, progress=False, tensorboard=False,
    )  # fmt: skip
    assert result.after.kl < 0.7 * result.before.kl
    assert result.after.agreement_top1 > result.before.agreement_top1
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["agreement"] <= 1 for line in lines)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    # Under each mosaic lies a map in colours: saturated, where pictures of these data are not.
    below = pixels[10 + 224 : 10 + 448, 10 : 10 + 224]
    assert (below.max(-1) - below.min(-1)).mean() > 30
    with pytest.raises(ValueError, match="dense_size was 16, is None"):
        isp_distill.train(
            student, dense, data, out=tmp_path, steps=30, batch_size=3, lr=1e-3, progress=False
        )


def test_mosaics_on_their_side_are_refused_where_pixels_are_compared(tmp_path):
    data = [dataclasses.replace(raw_image(i), orientation=6) for i in range(3)]
    dense, whole = teacher(dense=True), teacher()
    student = isp_distill.rawify(dense.model)
    with pytest.raises(ValueError, match=r"orientation is 6.*upright"):
        isp_distill.evaluate(student, dense, data, progress=False)
    with pytest.raises(ValueError, match=r"orientation is 6.*upright"):
        isp_distill.train(student, dense, data, out=tmp_path, steps=1, batch_size=3, progress=False)
    # One class for the whole picture has no place.
    isp_distill.evaluate(isp_distill.rawify(whole.model), whole, data, progress=False)
    turned = [upright(raw) for raw in data]
    isp_distill.evaluate(student, dense, turned, progress=False)


def test_maps_are_drawn_where_they_are():
    picture = torch.full((3, 4, 8), 0.5)
    classes = torch.tensor([[3] * 4 + [9] * 2 + [8] * 2] * 4)
    colours = palette([classes, torch.full((2, 2), 3)], 1)
    assert list(colours) == [3]
    sure = torch.ones(4, 8)
    sure[0] = 0
    drawn = overlay(picture, classes, sure, colours).astype(int)
    for row, opacity in ((0, 0.2), (1, 0.8)):
        expected = (1 - opacity) * 127.5 + opacity * np.array(colours[3])
        np.testing.assert_allclose(drawn[row, :4], np.tile(expected, (4, 1)), atol=1)
    assert (drawn[:, 4] == 255).all(), "the line at a class that is drawn"
    assert (drawn[:, 5:] == 128).all(), "classes without a colour, and no lines between them"


def test_class_maps():
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits, (9, 10), mode="bilinear").softmax(1).max(1)
    classes, confidence = class_maps(logits, (9, 10))
    assert (classes == expected.indices).float().mean() > 0.99
    torch.testing.assert_close(confidence, expected.values)


def test_students_and_teachers_of_different_kinds(tmp_path):
    data = [raw_image(0)]
    with pytest.raises(ValueError, match="shape"):
        isp_distill.train(
            isp_distill.rawify(teacher(dense=True).model), teacher(), data, out=tmp_path, steps=1,
            batch_size=1, progress=False,
        )  # fmt: skip
    assert isinstance(teacher(dense=True), Teacher)
