"""Label maps in train() and evaluate(): what is learnt from them, and how it is measured."""

import functools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_models import Coarse
from label_map_cases import patches, raw_of, write_map, write_scene
from training_run import raw_image, teacher

import isp_distill
from isp_distill import PackedRaw, RawFolder, pack, train
from isp_distill.cli import main
from isp_distill.data.label_maps import IGNORED, LabelGrid
from isp_distill.data.loader import ViewLoader
from isp_distill.data.source import has_label_maps
from isp_distill.data.views import View
from isp_distill.ops.dense_logits import upsampled_bands
from isp_distill.raw.cfa import PATTERNS
from isp_distill.reports.classes import ClassTally

QUIET = {"progress": False, "tensorboard": False}


def pairs(count=6):
    """Scenes and their maps, in the middle of which are pixels of no class."""
    found = [patches(96, 128, seed) for seed in range(count)]
    for scene in found:
        scene[32:56, 48:80] = 255
    return [(raw_of(np.where(s == 255, 0, s), i), s) for i, s in enumerate(found)]


def losses(out):
    return [json.loads(x)["loss"] for x in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("size", [None, (12, 20)])
def test_a_student_learns_from_label_maps_alone(tmp_path, size):
    """The teacher knows nothing of these classes, so nobody could learn them from it."""
    result = train(
        "rawify", teacher(dense=True), pairs(), out=tmp_path, steps=60, batch_size=4, alpha=0.0,
        lr=3e-2, dense_size=size, validation=pairs(), vertical_flip=True, **QUIET,
    )  # fmt: skip
    curve = losses(tmp_path)
    assert np.mean(curve[-5:]) < 0.3 * curve[0]
    assert result.after.accuracy > 0.85 > 0.5 > result.before.accuracy
    assert result.after.label_iou > 0.75
    assert result.after.teacher_accuracy == result.before.teacher_accuracy
    assert result.after.teacher_label_iou < 0.3
    assert "label_iou" in json.loads((tmp_path / "report.json").read_text())["after"]


def test_the_loss_is_the_cross_entropy_of_the_views(tmp_path):
    """alpha mixes in what torch's own loss says of the same batch."""
    data, dense, size = pairs(), teacher(dense=True), (10, 14)
    settings = {"steps": 1, "batch_size": 6, "dense_size": size, "temperature": 1.0, **QUIET}
    for alpha in (0.0, 0.3, 1.0):
        train("rawify", dense, data, out=tmp_path / str(alpha), alpha=alpha, **settings)
    loader = ViewLoader(data, View(32), 6, grid=LabelGrid(*size, 7))
    (batch,) = loader.training(0, 1)
    student = isp_distill.rawify(
        dense.model, curve="gamma", white_balance=True, colour_matrix=True, mean=dense.mean,
        std=dense.std, demosaic="malvar",
    ).eval()  # fmt: skip
    with torch.no_grad():
        s, t = student(batch.mosaic, batch.isp), dense.logits(dense.picture(batch))
        s, t = (F.interpolate(x, size, mode="bilinear") for x in (s, t))
        entropy = float(F.cross_entropy(s, batch.labels))
        kl = F.kl_div(s.log_softmax(1), t.softmax(1), reduction="none").sum(1).mean()
    assert (batch.labels == IGNORED).any()
    for alpha in (0.0, 0.3, 1.0):
        expected = alpha * float(kl) + (1 - alpha) * entropy
        assert losses(tmp_path / str(alpha))[0] == pytest.approx(expected, rel=2e-3)


def confusion(labels, predicted, classes):
    """Pixel accuracy and mean IoU by plain numpy."""
    table = np.zeros((classes, classes))
    np.add.at(table, (labels, predicted), 1)
    hit = np.diag(table)
    union = table.sum(0) + table.sum(1) - hit
    return hit.sum() / table.sum(), np.mean([h / u for h, u in zip(hit, union, strict=True) if u])


@pytest.mark.parametrize("size", [None, (12, 20)])
def test_reports_against_a_confusion_matrix(monkeypatch, size):
    bands = functools.partial(upsampled_bands, budget=500)  # a row or two each
    monkeypatch.setattr("isp_distill.reports.classes.upsampled_bands", bands)
    chosen, data = teacher(dense=True), pairs(5)
    chosen.model.eval()
    student = isp_distill.rawify(Coarse(chosen.model), curve="gamma").eval()
    report = isp_distill.evaluate(
        student, chosen, data, views=2, batch_size=4, dense_size=size, progress=False
    )
    height, width = size or (8, 8)
    found = []
    with torch.no_grad():
        for batch in ViewLoader(data, View(32), 4, grid=LabelGrid(height, width, 7)).fixed(2):
            both = student(batch.mosaic, batch.isp), chosen.logits(chosen.picture(batch))
            both = (F.interpolate(x, (height, width), mode="bilinear").argmax(1) for x in both)
            found.append(torch.stack([batch.labels, *both]).flatten(1))
    labels, of_s, of_t = torch.cat(found, 1).numpy()
    known = labels != IGNORED
    assert 0 < known.mean() < 1
    for predicted, accuracy, iou in (
        (of_s, report.accuracy, report.label_iou),
        (of_t, report.teacher_accuracy, report.teacher_label_iou),
    ):
        expected = confusion(labels[known], predicted[known], 7)
        assert (accuracy, iou) == pytest.approx(expected, abs=2e-3)
    assert report.mean_iou == pytest.approx(confusion(of_t, of_s, 7)[1], abs=2e-3)
    shown = f"pixel accuracy {report.accuracy:.3f} (teacher {report.teacher_accuracy:.3f}), "
    shown += f"mIoU with the labels {report.label_iou:.3f} (teacher {report.teacher_label_iou:.3f})"
    assert shown in str(report)


def test_counts_of_several_processes_add_up():
    torch.manual_seed(0)
    s, t = torch.randn(2, 4, 3, 8, 8)
    labels = torch.randint(-1, 3, (4, 8, 8))
    labels[labels < 0] = IGNORED
    whole, parts, merged = ClassTally(), [ClassTally() for _ in range(3)], ClassTally()
    whole.add(s, t, labels)
    parts[0].add(s[:1], t[:1], labels[:1])
    parts[2].add(s[1:], t[1:], labels[1:])  # the second one's share of the data was empty
    for part in parts:
        merged.merge(part)
    found, expected = merged.figures(), whole.figures()
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name
    only = ClassTally()
    only.add(s, t, torch.full_like(labels, IGNORED))
    assert only.figures()["label_iou"] is None
    assert only.figures()["accuracy"] is None


@pytest.fixture
def folder(tmp_path):
    """Eight RAW files of all orientations and their maps."""
    for index in range(8):
        scene = patches(96, 128, index)
        write_scene(tmp_path, str(index), scene, PATTERNS[index % 4], index + 1)
        write_map(tmp_path, str(index), scene)
    return tmp_path


def test_folders_and_packed_folders_train_alike(folder):
    maps = folder / "maps"
    pack(folder / "raw", folder / "packed", labels=lambda path: 99, progress=False)
    for name, data in (
        ("files", RawFolder(folder / "raw", label_maps=maps)),
        ("packed", PackedRaw(folder / "packed", label_maps=maps)),
    ):
        train("rawify", teacher(dense=True), data, out=folder / name, steps=4, batch_size=4,
              alpha=0.2, crop_area=(0.2, 0.8), vertical_flip=True, **QUIET)  # fmt: skip
    np.testing.assert_allclose(losses(folder / "files"), losses(folder / "packed"), rtol=1e-5)


def test_label_maps_follow_stored_views(folder):
    chosen = teacher(dense=True)
    pack(
        folder / "raw", folder / "packed", teacher=chosen, views=3, crop=32, vertical_flip=True,
        crop_area=(0.2, 0.9), progress=False,
    )  # fmt: skip
    data = PackedRaw(folder / "packed", label_maps=folder / "maps")
    seen = []

    class Recorded(ViewLoader):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            self.batches = seen if self.stored is not None else []

        def _collate(self, samples, number):
            self.batches.append(super()._collate(samples, number))
            return self.batches[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isp_distill.training.data.ViewLoader", Recorded)
        # It is not run, for its shape neither; and the contact sheet would run it.
        patch.setattr(chosen.model, "forward", None)
        patch.setattr("isp_distill.training.finish.contact_sheet", lambda *_, **__: None)
        train(
            isp_distill.rawify(teacher(dense=True).model), chosen, data, out=folder / "out",
            steps=6, batch_size=8, crop=32, alpha=0.5, vertical_flip=True, crop_area=(0.2, 0.9),
            dense_size=20, device="cpu", **QUIET,
        )  # fmt: skip
    for batch in seen[:6]:
        assert batch.teacher.shape == (8, 7, 8, 8)
        picture = isp_distill.render(batch.mosaic, batch.isp, size=(20, 20))
        high, low = (F.max_pool2d(x.float(), 5, 1, 2) for x in (batch.labels, -batch.labels))
        assert (high == -low).float().mean() > 0.2
        assert (picture.argmax(1) == batch.labels)[high == -low].all()


def test_label_maps_are_drawn(folder):
    """As a third column, in the colours of the models' maps; the scenes are of three classes."""
    from PIL import Image

    data = RawFolder(folder / "raw", label_maps=folder / "maps")
    arguments = {"out": folder / "out", "steps": 1, "batch_size": 4, **QUIET}
    widths = []
    for alpha, validation in ((1.0, None), (0.5, None), (1.0, data)):
        train("rawify", teacher(dense=True), data, alpha=alpha, validation=validation,
              resume=False, **arguments)  # fmt: skip
        with Image.open(folder / "out" / "contact_sheet.png") as sheet:
            widths.append((sheet.width - 10) // 3 - 10)
            pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert widths == [448, 672, 672]
    shown = pixels[10 + 224 : 10 + 448, 10 + 448 : 10 + 672].reshape(-1, 3)
    colours, counts = np.unique(shown // 64, axis=0, return_counts=True)
    assert 2 <= (counts > 1000).sum() <= 12, colours
    assert (shown.max(-1) - shown.min(-1)).mean() > 60


def test_classes_of_whole_files_are_not_drawn(folder):
    """A dense teacher's validation may have classes, whatever the training data have."""
    from PIL import Image

    maps = RawFolder(folder / "raw", label_maps=folder / "maps")
    classes = RawFolder(folder / "raw", labels=lambda path: 3)
    arguments = {"out": folder / "out", "steps": 1, "batch_size": 4, "resume": False, **QUIET}
    for data, alpha in ((RawFolder(folder / "raw"), 1.0), (maps, 0.5)):
        train("rawify", teacher(dense=True), data, alpha=alpha, validation=classes, **arguments)
        with Image.open(folder / "out" / "contact_sheet.png") as sheet:
            assert (sheet.width - 10) // 3 - 10 == 448


def test_label_maps_are_read_where_they_count(folder, tmp_path):
    """Without cross entropy a training needs none; a class too many is found in the evaluation."""
    write_map(folder, "3", np.full((96, 128), 9, np.uint8))
    data = RawFolder(folder / "raw", label_maps=folder / "maps")
    dense = teacher(dense=True)
    train("rawify", dense, data, out=tmp_path / "a", steps=2, batch_size=8, **QUIET)
    message = r"maps/3\.png: holds the class 9, but the teacher knows 7"
    with pytest.raises(ValueError, match=message):
        train("rawify", dense, data, out=tmp_path / "b", steps=2, batch_size=8, alpha=0.9, **QUIET)
    with pytest.raises(ValueError, match=message):
        isp_distill.evaluate(isp_distill.rawify(dense.model), dense, data, progress=False)
    for alpha in (0.5, 1.0):
        with pytest.raises(ValueError, match=r"need a dense teacher, .* \['N', 7\]"):
            train("rawify", teacher(), data, out=tmp_path / f"c{alpha}", steps=2, alpha=alpha,
                  validation=data, **QUIET)  # fmt: skip


def test_which_data_have_label_maps():
    raw, label_map = raw_image(0), np.zeros((48, 48), np.uint8)
    for data, expected in (
        ([raw], False), ([(raw, 3)], False), ([(raw, np.int64(3)), (raw, label_map)], False),
        ([(raw, torch.tensor(3))], False), ([(raw, None), (raw, label_map)], True),
        ([(raw, torch.zeros(48, 48, dtype=torch.uint8))], True),
    ):  # fmt: skip
        assert has_label_maps(data) == expected, data

    class Labelled(list):
        def label(self, index):
            return label_map

    assert has_label_maps(Labelled([raw]))
    (batch,) = ViewLoader(Labelled([raw]), View(32), 1, grid=LabelGrid(4, 4, 2)).fixed(1)
    assert batch.labels.shape == (1, 4, 4)


def test_the_command_line(folder, capsys, monkeypatch):
    (folder / "my_teacher.py").write_text(
        "from training_run import teacher\ndef dense():\n    return teacher(dense=True)\n"
    )
    monkeypatch.chdir(folder)
    shared = ["--teacher", "my_teacher:dense", "--label-maps", "maps", "--dense-size", "12"]
    for data in ("raw", "packed"):
        if data == "packed":
            assert main(["pack", "raw", "packed"]) == 0
        arguments = ["train", data, *shared, "--out", f"out-{data}", "--steps", "2", "--alpha",
                     "0.5", "--validation", data, "--validation-label-maps", "maps"]  # fmt: skip
        assert main(arguments) == 0
        assert "mIoU with the labels" in capsys.readouterr().out
        checkpoint = ["--checkpoint", f"out-{data}/checkpoint.pt"]
        assert main(["evaluate", data, *shared, *checkpoint]) == 0
        assert "pixel accuracy" in capsys.readouterr().out
    for wrong, message in (
        (["evaluate", "raw", "--teacher", "my_teacher:none"], "has no function none"),
        (["evaluate", "raw", "--teacher", "no_module:none"], "No module named 'no_module'"),
        (["evaluate", "raw", *shared[:2], "--label-maps", "raw"], "0.png: there is no such label"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
