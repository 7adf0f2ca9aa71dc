"""train(): the whole job on small data, killed, resumed, and given bad input."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_run import raw_image, run, teacher

import isp_distill
from isp_distill.data.draw import Draw
from isp_distill.data.loader import ViewLoader
from isp_distill.data.order import training_order
from isp_distill.data.views import View
from isp_distill.raw.binning import bin_mosaic
from isp_distill.raw.image import RawImage


def test_training_brings_the_student_nearer(tmp_path):
    data = [raw_image(i) for i in range(10)]
    student = isp_distill.rawify(teacher().model)  # linear: knows neither colours nor curve
    result = isp_distill.train(
        student, teacher(), data, out=tmp_path, steps=60, batch_size=4, validation=data,
        progress=False,
    )  # fmt: skip
    assert result.after.kl < 0.5 * result.before.kl
    assert result.steps == 60
    assert result.skipped == {}
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 61))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["after"]["kl"] == pytest.approx(result.after.kl)
    assert (tmp_path / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_a_profile_says_where_the_time_went(tmp_path, capsys):
    data = [raw_image(i) for i in range(4)]
    result = isp_distill.train(
        "rawify", teacher(), data, out=tmp_path, steps=3, batch_size=4, progress=False,
        profile=True, exposure=0.5,
    )  # fmt: skip
    stages = ["wait for input", "short exposure", "teacher's picture", "teacher", "student", "loss"]
    assert list(result.stages) == [*stages, "backward", "optimiser"]
    assert all(seconds > 0 for seconds in result.stages.values())
    assert sum(result.stages.values()) <= result.seconds
    printed = capsys.readouterr()
    assert "teacher's picture" in printed.out + printed.err
    assert json.loads((tmp_path / "report.json").read_text())["stages"] == result.stages


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run(tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"lr was 0\.001, is 0\.002"):
        run(tmp_path, steps=2, lr=2e-3)
    run(tmp_path, steps=2, lr=2e-3, resume=False)


def test_only_the_stem_trains(tmp_path):
    result = run(tmp_path, steps=3, trainable="stem")
    start = isp_distill.rawify(
        teacher().model, curve="gamma", white_balance=True, colour_matrix=True, demosaic="malvar"
    ).state_dict()
    for name, value in result.student.state_dict().items():
        if name == "_extra_state":
            continue  # the view that it was trained at
        changed = not torch.equal(value, start[name])
        in_stem = name.startswith("model.0.") and name.split(".")[-1] in (
            *("weight", "bias", "gain", "mix", "gamma"),
        )
        assert changed == in_stem, name


def test_batch_norm_statistics_are_frozen_or_not(tmp_path):
    frozen = run(tmp_path / "a", steps=2, ema=0.0).student.model[1].running_mean
    moving = run(tmp_path / "b", steps=2, ema=0.0, freeze_batch_norm=False)
    assert torch.equal(frozen, torch.zeros(16))
    assert not torch.equal(moving.student.model[1].running_mean, torch.zeros(16))


@pytest.mark.parametrize("frozen", [False, True])
def test_every_student_of_a_teacher_is_trained_whole(tmp_path, frozen):
    chosen = teacher()
    chosen.model.requires_grad_(not frozen)
    data = [raw_image(i) for i in range(4)]
    for index in range(2):
        result = isp_distill.train(
            "rawify", chosen, data, out=tmp_path / str(index), steps=2, batch_size=4,
            progress=False, tensorboard=False,
        )  # fmt: skip
        body = dict(result.student.model.named_parameters())
        assert not torch.equal(body["6.weight"], chosen.model[6].weight)
        assert not any(p.requires_grad == frozen for p in chosen.model.parameters())


def test_both_models_take_the_memory_format(tmp_path):
    chosen, seen = teacher(), []
    student = isp_distill.rawify(chosen.model)
    for name, model in (("teacher", chosen.model), ("student", student.model)):
        model[1].register_forward_pre_hook(
            lambda _, x, name=name: seen.append(
                (name, x[0].is_contiguous(memory_format=torch.channels_last))
            )
        )
    data = [raw_image(i) for i in range(4)]
    settings = {"steps": 1, "batch_size": 4, "progress": False, "tensorboard": False}
    for channels_last in (False, True):
        seen.clear()
        isp_distill.train(
            student, chosen, data, out=tmp_path / str(channels_last), channels_last=channels_last,
            **settings,
        )  # fmt: skip
        assert set(seen) == {("teacher", channels_last), ("student", channels_last)}


@pytest.mark.parametrize("channels", [1, 4])
def test_any_module_can_be_the_student(tmp_path, channels):
    student = nn.Sequential(
        nn.Conv2d(channels, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 7),
    )  # fmt: skip
    data = [raw_image(i) for i in range(4)]
    result = isp_distill.train(
        student, teacher(), data, out=tmp_path, steps=3, batch_size=2, progress=False,
        accumulate=2, tensorboard=False,
    )  # fmt: skip
    assert result.steps == 3


def test_dense_students_and_labels(tmp_path):
    data = [raw_image(i) for i in range(4)]
    dense = teacher(dense=True)
    result = isp_distill.train(
        "rawify", dense, data, out=tmp_path / "dense", steps=3, batch_size=2, validation=data,
        progress=False, tensorboard=False,
    )  # fmt: skip
    assert 0 <= result.after.mean_iou <= 1
    labelled = [(raw, index % 7) for index, raw in enumerate(data)]
    result = isp_distill.train(
        "rawify", teacher(), labelled, out=tmp_path / "labels", steps=3, batch_size=2,
        validation=labelled, alpha=0.5, progress=False, tensorboard=False,
    )  # fmt: skip
    assert 0 <= result.after.accuracy <= 1


def test_a_batch_in_which_nothing_has_a_label(tmp_path):
    """Where few files have labels, some batches have none: the teacher is then all there is."""
    data = [(raw_image(i), 3 if i == 0 else None) for i in range(6)]
    result = isp_distill.train(
        "rawify", teacher(), data, out=tmp_path, steps=6, batch_size=2, alpha=0.5, progress=False,
        tensorboard=False,
    )  # fmt: skip
    assert result.steps == 6
    loss = isp_distill.DistillLoss(alpha=0.5)
    student, seen = torch.randn(4, 5), torch.randn(4, 5)
    torch.testing.assert_close(
        loss(student, seen, loss.no_labels(seen)), 0.5 * isp_distill.distill_loss(student, seen)
    )
    dense = isp_distill.DistillLoss(alpha=0.5, size=(6, 8)).no_labels(torch.zeros(2, 5, 3, 4))
    assert dense.shape == (2, 6, 8)


def test_pictures_are_unprocessed(tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        array = np.kron(rng.integers(0, 255, (5, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(array).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG not really")
    result = isp_distill.train(
        "rawify", teacher(), folder, out=tmp_path / "out", steps=4, batch_size=4,
        validation=folder, noise=isp_distill.NoiseModel(), progress=False, tensorboard=False,
    )  # fmt: skip
    assert [Path(p).name for p in result.skipped] == ["broken.png"]
    assert result.after.samples == 4


def test_evaluation_against_a_count_by_hand():
    chosen = teacher()
    chosen.model.eval()
    data = [raw_image(i) for i in range(6)]

    def constant(mosaic, isp):
        logits = torch.zeros(len(mosaic), 7)
        logits[:, 2] = 5
        return logits

    report = isp_distill.evaluate(constant, chosen, data, views=2, progress=False)
    loader = ViewLoader(data, View(32), 4)
    with torch.no_grad():
        tops = torch.cat([chosen.logits(chosen.picture(b)).argmax(1) for b in loader.fixed(2)])
    assert report.samples == 12 == len(tops)
    assert report.agreement_top1 == pytest.approx(float((tops == 2).float().mean()))


def test_a_perfect_student_agrees_wholly():
    chosen = teacher()
    chosen.model.eval()
    data = [raw_image(i) for i in range(6)]

    def echo(mosaic, isp):
        return chosen.logits(isp_distill.render(mosaic, isp, size=(chosen.size, chosen.size)))

    report = isp_distill.evaluate(echo, chosen, data, progress=False)
    assert report.agreement_top1 == report.agreement_top5 == 1.0
    assert report.kl == pytest.approx(0, abs=1e-6)


def test_views_keep_the_colours_of_the_sensor():
    """A scene of one colour stays that colour through crop, mirror and binning."""
    codes = {"R": 1000, "G": 2000, "B": 3000}
    for pattern in ("RGGB", "GRBG", "GBRG", "BGGR"):
        period = np.array([codes[c] for c in pattern], dtype=np.uint16).reshape(2, 2)
        raw = raw_image(0)
        raw = RawImage(**{**raw.__dict__, "mosaic": np.tile(period, (40, 50)), "pattern": pattern})
        for binning in (1, 2):
            for mirror, flip in itertools.product((False, True), repeat=2):
                drawn = Draw((0.3, 0.8), mirror, flip)
                mosaic, camera = View(24, binning).cut_raw(raw, drawn)
                expected = np.array([codes[c] for c in camera.pattern]).reshape(2, 2)
                assert (mosaic == np.tile(expected, (12, 12))).all()
    averaged = bin_mosaic(np.arange(64, dtype=np.uint16).reshape(8, 8), 2)
    assert averaged[0, 0] == np.rint(np.mean([0, 2, 16, 18]))


def test_every_epoch_holds_every_file_once():
    for epoch in range(3):
        order = [training_order(7, 1, 7 * epoch + i) for i in range(7)]
        assert sorted(order) == list(range(7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"trainable": "head"}, "unknown trainable"),
        ({"ema": 1.0}, "ema"),
        ({"crop": 31}, "crop must be even"),
        ({"objective": "kl"}, "objective"),
        ({"exposure": 2.0}, "exposure factor"),
    ],
)
def test_settings_out_of_range(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **settings)


def test_a_crop_larger_than_the_files(tmp_path):
    with pytest.raises(RuntimeError, match="too small for a crop of 64"):
        run(tmp_path, steps=2, crop=64)


def test_an_empty_dataset_and_a_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        isp_distill.train("rawify", teacher(), [], out=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        isp_distill.train("rawify", teacher(), tmp_path / "nowhere", out=tmp_path)
