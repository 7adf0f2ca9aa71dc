"""Random ISPs: reproducible, inside their ranges, per sample, in the teacher's picture alone."""

from __future__ import annotations

import pytest
import torch

from isp_distill import ISP, ISPAugmentation, NoiseModel, Teacher, render
from isp_distill.data.batch import RawBatch
from isp_distill.isp.camera import ISP_PRESETS

CAMERA = ISP(black=64.0, white=4095.0, white_balance=(2.0, 1.0, 1.6), exposure=1.5)


def test_draws_lie_in_their_ranges_and_fill_them():
    ranges = ISPAugmentation(exposure_stops=(-1.0, 0.5), red=(0.8, 1.3), blue=(0.9, 1.0))
    isp = ranges.draw(CAMERA, 4000, seed=3)
    stops = torch.log2(isp.exposure / 1.5)
    red, green, blue = (isp.white_balance / torch.tensor([2.0, 1.0, 1.6])).unbind(1)
    for values, low, high in ((stops, -1, 0.5), (red.log(), 0.8, 1.3), (blue.log(), 0.9, 1.0)):
        bounds = torch.tensor([low, high], dtype=torch.float32)
        bounds = bounds if values is stops else bounds.log()
        assert values.min() >= bounds[0] - 1e-5
        assert values.max() <= bounds[1] + 1e-5
        # Uniform between the two: mean and spread within five standard errors.
        span = float(bounds[1] - bounds[0])
        assert abs(float(values.mean() - bounds.mean())) < 5 * span / 12**0.5 / 4000**0.5
        assert abs(float(values.std()) - span / 12**0.5) < 0.01 * span
    assert torch.equal(green, torch.ones(4000))
    assert abs(float(torch.corrcoef(torch.stack([stops, red]))[0, 1])) < 0.1


def test_a_seed_gives_the_same_isps_again():
    ranges = ISPAugmentation()
    first, again, other = (ranges.draw(CAMERA, 5, seed=s) for s in (7, 7, 8))
    assert torch.equal(first.exposure, again.exposure)
    assert torch.equal(first.white_balance, again.white_balance)
    assert not torch.equal(first.exposure, other.exposure)


def test_the_teacher_sees_the_drawn_isp():
    batch = RawBatch(torch.randint(64, 4096, (3, 64, 64)).to(torch.uint16), CAMERA.batched(3))
    teacher, ranges = Teacher(torch.nn.Identity(), size=16), ISPAugmentation()
    picture = teacher.picture(batch, ranges, seed=11)
    expected = render(batch.mosaic, ranges.draw(batch.isp, 3, seed=11), size=(16, 16))
    assert torch.equal(picture, expected)
    assert not torch.equal(picture, teacher.picture(batch))


@pytest.mark.parametrize(
    "wrong", [{"red": (0.0, 1.0)}, {"blue": (1.2, 1.1)}, {"exposure_stops": (0.0, float("inf"))}]
)
def test_a_range_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ISPAugmentation(**wrong)


def test_presets():
    for name, fields in ISP_PRESETS.items():
        isp = CAMERA.preset(name)
        assert (isp.demosaic, isp.tone) == (fields["demosaic"], fields["tone"])
        assert isp.white_balance == CAMERA.white_balance
    assert NoiseModel.preset("low").shot < NoiseModel.preset("high").shot
    with pytest.raises(ValueError, match="standard, camera, fast, linear"):
        CAMERA.preset("vivid")
    with pytest.raises(ValueError, match="low, medium, high"):
        NoiseModel.preset("none")
