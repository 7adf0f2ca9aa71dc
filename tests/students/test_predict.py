"""``predict`` says what the student was measured to say, on whatever files there are."""

from __future__ import annotations

import csv
import io
import json
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from raw_folders import write_folder
from torch import nn
from training_run import raw_image, teacher

import isp_distill
from isp_distill.cli.main import main
from isp_distill.students.map_files import save_class_map


def check_same(found, expected):
    """The same classes in the same order; batches of other sizes round otherwise."""
    for one, other in zip(found, expected, strict=True):
        for mine, theirs in zip(one.top, other.top, strict=True):
            assert mine.index == theirs.index
            assert mine.probability == pytest.approx(theirs.probability, abs=1e-5)


FORMAT = isp_distill.SensorFormat(
    96, 64, "uint16", "GRBG", black=64, bits=10, white_balance=(2.0, 1.0, 1.5)
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a timm model, its data, and its result."""
    folder = tmp_path_factory.mktemp("predict")
    write_folder(folder / "raw", 5)
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", num_classes=6)
    with torch.no_grad():
        model.get_classifier().weight.mul_(40)
    chosen = isp_distill.Teacher(model, size=16, classes=[f"name {i}" for i in range(6)])
    result = isp_distill.train(
        "rawify", chosen, folder / "raw", validation=folder / "raw", out=folder / "run", steps=2,
        batch_size=2, progress=False, tensorboard=False,
    )  # fmt: skip
    return folder, chosen, result


def test_agreement_is_the_report_s(run):
    folder, chosen, result = run
    found = isp_distill.predict(folder / "run", folder / "raw", progress=False)
    folder_of_raw = isp_distill.RawFolder(folder / "raw")
    agreed = 0
    for raw, one in zip(folder_of_raw, found, strict=True):
        mosaic, isp = isp_distill.cut_view(raw, isp_distill.View(32))
        batch = isp_distill.collate([raw], view=isp_distill.View(32))
        top = int(chosen.logits(chosen.picture(batch)).argmax())
        agreed += one.top[0].index == top
        shares = result.student(mosaic, isp)[0].softmax(0).detach()
        for score in one.top:
            assert score.probability == pytest.approx(float(shares[score.index]), abs=1e-5)
        assert [s.probability for s in one.top] == sorted(
            (s.probability for s in one.top), reverse=True
        )
    assert agreed / 5 == pytest.approx(result.after.agreement_top1)
    assert [one.name for one in found] == [str(p) for p in folder_of_raw.paths]


def test_what_may_be_given(run):
    folder, _, result = run
    whole = isp_distill.predict(result.student, folder / "raw", progress=False)
    files = sorted((folder / "raw").iterdir())
    raws = [isp_distill.read_raw(file) for file in files]
    for data in (files, raws, [str(file) for file in files]):
        found = isp_distill.predict(result.student, data, batch_size=2, progress=False)
        check_same(found, whole)
    for data in (files[3], raws[3]):
        check_same(isp_distill.predict(result.student, data, progress=False), [whole[3]])


def test_damaged_files_are_listed_and_names_stay_right(run, tmp_path):
    folder, _, result = run
    for index, file in enumerate(sorted((folder / "raw").iterdir())):
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 700 if index in (0, 3) else None])
    found = isp_distill.predict(result.student, tmp_path, batch_size=2, progress=False)
    whole = isp_distill.predict(result.student, folder / "raw", progress=False)
    assert [one.name[-6:] for one in found] == ["01.dng", "02.dng", "04.dng"]
    assert [one.top[0].index for one in found] == [whole[i].top[0].index for i in (1, 2, 4)]
    assert {name[-6:] for name in found.skipped} == {"00.dng", "03.dng"}
    with pytest.raises(ValueError, match=r"(?s)no file could be used:.*00.dng"):
        isp_distill.predict(result.student, tmp_path / "00.dng", progress=False)


def test_frames_in_memory_and_in_files(tmp_path):
    student = isp_distill.rawify(teacher().model)
    codes = np.random.default_rng(0).integers(64, 1023, (3, 64, 96)).astype(np.uint16)
    found = isp_distill.predict(student, codes, format=FORMAT, crop=64, progress=False)
    assert [one.name for one in found] == ["item 0", "item 1", "item 2"]
    (tmp_path / "dumps").mkdir()
    codes.tofile(tmp_path / "dumps" / "a.bin")
    for data in (tmp_path / "dumps", tmp_path / "dumps" / "a.bin"):
        again = isp_distill.predict(student, data, format=FORMAT, crop=64, progress=False)
        check_same(again, found)
        assert len({one.name for one in again}) == 3
    single = isp_distill.predict(student, codes[1], format=FORMAT, crop=64, progress=False)
    assert single[0].top[0].index == found[1].top[0].index
    with pytest.raises(ValueError, match="give format=SensorFormat"):
        isp_distill.predict(student, codes, crop=64)
    with pytest.raises(ValueError, match=r"\[64, 96\] or .* got uint16 \[64, 48\]"):
        isp_distill.predict(student, codes[0, :, ::2], format=FORMAT, crop=64)


def test_the_sensor_that_it_was_trained_on(tmp_path):
    (tmp_path / "dumps").mkdir()
    codes = np.random.default_rng(0).integers(64, 1023, (4, 64, 96)).astype(np.uint16)
    codes.tofile(tmp_path / "dumps" / "a.raw")
    model = timm.create_model("test_resnet", num_classes=6)
    isp_distill.train(
        "rawify", isp_distill.Teacher(model, size=16),
        isp_distill.SensorFolder(tmp_path / "dumps", FORMAT), out=tmp_path / "run", steps=1,
        batch_size=2, progress=False, tensorboard=False,
    )  # fmt: skip
    student = isp_distill.load(tmp_path / "run")
    assert student.description.sensor == FORMAT
    assert len(isp_distill.predict(student, tmp_path / "dumps", progress=False)) == 4


def test_settings_that_are_refused(run):
    folder, _, result = run
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        isp_distill.predict(result.student, folder / "raw", top=0)
    with pytest.raises(ValueError, match=r"never trained.* give crop"):
        isp_distill.predict(isp_distill.rawify(teacher().model), folder / "raw")
    with pytest.raises(TypeError, match="not int"):
        isp_distill.predict(3, folder / "raw")

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.first(x).mean((2, 3)) * float("nan")

    with pytest.raises(ValueError, match=r"00.dng: the student's output is not finite"):
        isp_distill.predict(Broken(), folder / "raw", crop=32, progress=False)


def test_mode_and_view_are_left_as_they_were(run):
    folder, _, result = run
    result.student.train()
    isp_distill.predict(result.student, folder / "raw", crop=48, progress=False)
    assert result.student.training
    assert result.student.view.crop == 32
    result.student.eval()


def test_shell(run, capsys):
    folder, _, _ = run
    arguments = ["predict", str(folder / "run"), str(folder / "raw"), "--quiet", "--top", "2"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "00.dng: " in lines[0]
    assert "name " in lines[0]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["predictions"]) == 5
    assert set(found["predictions"][0]["top"][1]) == {"index", "name", "probability"}
    assert main([*arguments, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 10
    assert rows[1]["rank"] == "2"
    assert main([*arguments, "--save-maps", "maps"]) == 2
    assert "predicts classes, no class map" in capsys.readouterr().err


def test_dense_maps_are_files(run, tmp_path, capsys):
    folder, _, _ = run
    isp_distill.save(
        isp_distill.rawify(teacher(dense=True).model), tmp_path / "s", classes=list("abcdefg"),
        function="dense_of_predict:made",
    )  # fmt: skip
    student = isp_distill.load(tmp_path / "s", model=teacher(dense=True).model)
    found = isp_distill.predict(student, folder / "raw", crop=32, progress=False)
    raw = isp_distill.read_raw(folder / "raw" / "02.dng")
    logits = student(*isp_distill.cut_view(raw, isp_distill.View(32)))
    assert np.array_equal(found[2].class_map, logits[0].argmax(0).numpy())
    shares = [score.probability for score in found[2].top]
    assert sum(shares) <= 1 + 1e-6
    assert shares[0] == pytest.approx((found[2].class_map == found[2].top[0].index).mean())
    plain, legend = save_class_map(tmp_path / "maps" / "a", found[2].class_map, list("abcdefg"))
    with Image.open(plain) as drawn:
        assert np.array_equal(np.asarray(drawn), found[2].class_map)
    with Image.open(legend) as sheet:
        assert sheet.width > found[2].class_map.shape[1]
    many = np.arange(600, dtype=np.uint16).reshape(20, 30)
    plain, _ = save_class_map(tmp_path / "maps" / "many", many, None)
    with Image.open(plain) as drawn:
        assert np.array_equal(np.asarray(drawn), many)


def test_export_from_a_run(run, tmp_path, capsys):
    folder, _, result = run
    out = tmp_path / "student.pt2"
    assert main(["export", str(out), "--run", str(folder / "run")]) == 0
    mosaic, isp = isp_distill.cut_view(raw_image(1), result.student)
    inputs = isp_distill.camera_inputs(isp)
    program = torch.export.load(out).module()
    logits = program(mosaic, *(torch.from_numpy(v) for v in inputs.values()))
    assert torch.allclose(logits, result.student(mosaic, isp), atol=1e-4)
    assert main(["export", str(out)]) == 2
    assert "give --run" in capsys.readouterr().err


def test_the_output_that_was_trained_goes_with_the_student(tmp_path):
    """Of several outputs, `predict` and `export --run` take the one that it was saved for."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.other = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return {"logits": self.first(x).mean((2, 3)), "other": self.other(x).mean((2, 3))}

    (tmp_path / "two_outputs.py").write_text(
        "import sys\nmodel = None\ndef made():\n    return model\n"
    )
    torch.manual_seed(0)
    model = Two()
    sys.path.insert(0, str(tmp_path))
    try:
        import two_outputs

        two_outputs.model = model
        student = isp_distill.rawify(model)
        isp_distill.save(student, tmp_path / "s", function="two_outputs:made", output="other")
        again = isp_distill.load(tmp_path / "s", trust=("two_outputs",))
        raw = raw_image(1, side=96)
        seen = isp_distill.cut_view(raw, isp_distill.View(64))
        with torch.no_grad():
            expected = student(*seen)["other"]
        (found,) = isp_distill.predict(again, raw, crop=64, top=4, progress=False)
        assert found.top[0].index == int(expected.argmax())
        out = tmp_path / "two.pt2"
        arguments = ["export", str(out), "--run", str(tmp_path / "s"), "--trust", "two_outputs"]
        assert main([*arguments, "--crop", "64"]) == 0
        inputs = isp_distill.camera_inputs(seen[1])
        program = torch.export.load(out).module()
        actual = program(seen[0], *(torch.from_numpy(v) for v in inputs.values()))
        assert torch.allclose(actual, expected, atol=1e-4)
    finally:
        sys.path.remove(str(tmp_path))
