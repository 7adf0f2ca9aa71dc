"""train(exposure=0.1): the student sees the dark, noisy shot, the teacher the clean one."""

import json

import pytest
import torch
from training_run import raw_image, teacher

import isp_distill
from isp_distill import NoiseModel, ShortExposure
from isp_distill.data.loader import ViewLoader
from isp_distill.data.views import View

QUIET = ShortExposure(0.1, NoiseModel(shot=1e-5, read=0.0))


def light(mosaic, isp):
    """Mean signal above black, as a share of the sensor's range."""
    camera = isp.batched(len(mosaic))
    black = camera.black.mean(1)
    return ((mosaic.float().mean((1, 2)) - black) / (camera.white - black)).mean()


def test_who_sees_what(tmp_path):
    data = [raw_image(i) for i in range(6)]
    seen, shown = [], []
    chosen = teacher()
    student = isp_distill.rawify(chosen.model, curve="gamma")
    student.register_forward_pre_hook(lambda _, given: seen.append(given))
    chosen.model.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    isp_distill.train(
        student, chosen, data, out=tmp_path, steps=1, batch_size=6, exposure=QUIET, progress=False,
        tensorboard=False,
    )  # fmt: skip
    batch = next(ViewLoader(data, View(32), 6).training(0, 1))
    mosaic, isp = seen[0]
    assert mosaic.dtype == torch.uint16
    torch.testing.assert_close(
        light(mosaic, isp), 0.1 * light(batch.mosaic, batch.isp), rtol=0.02, atol=0
    )
    assert torch.equal(torch.as_tensor(isp.exposure), torch.full((6,), 10.0))
    clean = chosen.picture(batch)
    mean, std = (torch.tensor(v)[:, None, None] for v in (chosen.mean, chosen.std))
    # It is shown one picture before, and others after the training.
    trained_on = next(pictures for pictures in shown if len(pictures) == 6)
    torch.testing.assert_close(trained_on, (clean - mean) / std)


@pytest.mark.parametrize("exposure", [0.1, ShortExposure(1 / 30, NoiseModel.preset("high"))])
def test_the_student_learns_the_dark(tmp_path, exposure):
    data = [raw_image(i) for i in range(10)]
    # Whoever is told of no exposure sees a black picture: this one has to learn the brightness.
    student = isp_distill.rawify(teacher().model, curve="gamma", white_balance=False)
    result = isp_distill.train(
        student, teacher(), data, out=tmp_path, steps=80, batch_size=5, validation=data,
        exposure=exposure, lr=1e-3, stem_lr=0.1, progress=False, tensorboard=False,
    )  # fmt: skip
    assert result.after.kl < 0.5 * result.before.kl
    again = isp_distill.evaluate(result.student, teacher(), data, exposure=exposure, progress=False)
    assert again.kl == pytest.approx(result.after.kl, rel=0.2)


def test_each_view_draws_its_own():
    short = ShortExposure((1 / 32, 1.0), NoiseModel(shot=1e-6, read=0.0))
    mosaic = torch.full((400, 4, 4), 8512, dtype=torch.uint16)
    dark, isp = short.apply(mosaic, isp_distill.ISP(black=512, white=16383), seed=3)
    factors = 1 / isp.exposure
    assert factors.min() >= 1 / 32
    assert factors.max() <= 1
    # Evenly in stops: a fifth of them in each of five, within what 400 draws scatter.
    counts = torch.histc(-torch.log2(factors), bins=5, min=0, max=5)
    assert (counts - 80).abs().max() < 40
    torch.testing.assert_close(
        (dark.float() - 512).mean((1, 2)) / 8000, factors, rtol=0.05, atol=2e-4
    )
    again = short.apply(mosaic, isp_distill.ISP(black=512, white=16383), seed=3)[1]
    other = short.apply(mosaic, isp_distill.ISP(black=512, white=16383), seed=4)[1]
    assert torch.equal(again.exposure, isp.exposure)
    assert not torch.equal(other.exposure, isp.exposure)


def test_the_same_on_both_ends_is_one_factor():
    mosaic = torch.full((3, 8, 8), 8512, dtype=torch.uint16)
    camera = isp_distill.ISP(black=512, white=16383)
    noise = NoiseModel.preset("low")
    one, _ = ShortExposure(0.25, noise).apply(mosaic, camera, seed=5)
    both, _ = ShortExposure((0.25, 0.25), noise).apply(mosaic, camera, seed=5)
    assert torch.equal(one, both)


def test_a_range_trains_and_evaluates(tmp_path):
    data = [raw_image(i) for i in range(4)]
    isp_distill.train(
        "rawify", teacher(), data, out=tmp_path, steps=2, batch_size=2, validation=data,
        exposure=(0.1, 1), progress=False, tensorboard=False,
    )  # fmt: skip
    settings = json.loads((tmp_path / "report.json").read_text())["settings"]
    assert isp_distill.TrainSettings.from_plain(settings).exposure.factor == (0.1, 1.0)
    kept = json.loads((tmp_path / "student" / "config.json").read_text())
    assert kept["exposure"]["factor"] == [0.1, 1.0]
