"""A student comes back from its two files as it was, or is refused with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from raw_folders import write_folder
from torch import nn
from training_run import raw_image, teacher

import isp_distill
from isp_distill.students.saved import CONFIG, WEIGHTS


def timm_model(classes=5):
    return timm.create_model("test_resnet", num_classes=classes)


def shot(index=0):
    return raw_image(index, side=96)


def same(one, other, view=None):
    seen = isp_distill.cut_view(shot(), isp_distill.View(64))
    one.eval(), other.eval()
    with torch.no_grad():
        return torch.equal(one(*seen), other(*seen))


def some_weights(student):
    with torch.no_grad():
        for value in student.parameters():
            value.add_(torch.rand_like(value), alpha=0.01)
    return student


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"curve": "gamma", "colour_matrix": True, "mean": 0.5, "std": (0.4, 0.5, 0.6)},
        {"grid": "sensor", "learn_camera": False},
        {"picture": True, "size": 64},
    ],
)
def test_timm_is_made_again_by_name(tmp_path, options):
    student = some_weights(isp_distill.rawify(timm_model(), **options))
    isp_distill.save(student, tmp_path / "s")
    again = isp_distill.load(tmp_path / "s")
    assert again.stem.extra_repr() == student.stem.extra_repr()
    assert same(student, again)
    assert again.description.shape == (5,)
    assert again.description.architecture.kind == "timm"


def test_random_numbers_are_left_as_they_were(tmp_path):
    student = isp_distill.rawify(timm_model())
    before = torch.get_rng_state()
    isp_distill.save(student, tmp_path / "s")
    assert torch.equal(before, torch.get_rng_state())


def test_a_changed_model_of_timm_is_not_taken_for_it(tmp_path):
    model = timm_model()
    model.act1 = nn.Tanh()  # the name says otherwise
    isp_distill.save(isp_distill.rawify(model), tmp_path / "s")
    with pytest.raises(ValueError, match=r"not what timm.create_model.*load\(path, model=MODEL\)"):
        isp_distill.load(tmp_path / "s")
    again = isp_distill.load(tmp_path / "s", model=model)
    assert same(isp_distill.rawify(model), again)


@pytest.mark.parametrize("of_student", [False, True])
def test_own_model_is_given(tmp_path, of_student):
    torch.manual_seed(0)
    model = teacher().model
    student = some_weights(isp_distill.rawify(model, curve="sqrt"))
    isp_distill.save(student, tmp_path / "s")
    given = isp_distill.rawify(teacher().model, curve="sqrt") if of_student else teacher().model
    assert same(student, isp_distill.load(tmp_path / "s", model=given))


def test_another_model_is_refused(tmp_path):
    isp_distill.save(isp_distill.rawify(teacher().model), tmp_path / "s")
    with pytest.raises(ValueError, match=r"model.safetensors: is of another student"):
        isp_distill.load(tmp_path / "s", model=teacher(classes=3).model)
    with pytest.raises(ValueError, match="does not fit this student"):
        isp_distill.load(tmp_path / "s", model=isp_distill.rawify(teacher().model, curve="gamma"))


def test_double_precision_stays(tmp_path):
    student = isp_distill.rawify(timm_model().double())
    isp_distill.save(student, tmp_path / "s")
    again = isp_distill.load(tmp_path / "s")
    assert again.stem.weight.dtype == torch.float64
    assert same(student, again)


def test_planes_model(tmp_path):
    model = timm.create_model("test_resnet", num_classes=3, in_chans=4)
    isp_distill.save(model, tmp_path / "s")
    from isp_distill.models.student import as_student

    assert same(as_student(model), isp_distill.load(tmp_path / "s"))


def test_several_stems_still_share_their_camera(tmp_path):
    class TwoReaders(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.cat([self.one(x), self.other(x)], 1).mean((2, 3))

    student = some_weights(isp_distill.rawify(TwoReaders()))
    assert len(student.stems) == 2
    isp_distill.save(student, tmp_path / "s")
    again = isp_distill.load(tmp_path / "s", model=TwoReaders())
    assert again.stems[0].gain is again.stems[1].gain
    assert same(student, again)


def test_a_function_is_called_only_where_it_is_trusted(tmp_path):
    (tmp_path / "own_models.py").write_text(
        "import training_run\n"
        "open('called', 'w').close()\n"
        "def made():\n    return training_run.teacher()\n"
    )
    student = some_weights(isp_distill.rawify(teacher().model))
    isp_distill.save(student, tmp_path / "s", function="own_models:made")
    script = (
        "import sys, torch, isp_distill; from pathlib import Path\n"
        "try:\n    isp_distill.load('s')\nexcept ValueError as error:\n"
        "    assert \"trust=('own_models',)\" in str(error).replace('\"', \"'\"), error\n"
        "else:\n    raise SystemExit('loaded')\n"
        "assert not Path('called').exists()\n"
        "torch.save(isp_distill.load('s', trust=('own_models',)).state_dict(), 'weights.pt')\n"
    )
    cases = str(Path(__file__).parents[1] / "cases")
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONPATH": cases},
    )
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, value in student.state_dict().items():
        assert torch.equal(weights[name], value), name


def test_damage_is_noticed(tmp_path):
    folder = isp_distill.save(isp_distill.rawify(timm_model()), tmp_path / "s")
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors: is not what config.json was"):
        isp_distill.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "describes no student"),
        ({"version": 2}, "is of version 2, this library reads 1"),
        ({"output": "scores"}, "output is 'scores'"),
        ({"output": "boxes"}, "shape is"),
        ({"shape": [5, 2]}, r"shape is \[5, 2\]"),
        ({"shape": [True]}, "shape is"),
        ({"crop": -2}, "crop is -2"),
        ({"classes": [1, 2]}, "classes is"),
        ({"architecture": {"kind": "timm"}}, "architecture must hold"),
        ({"sensor": {"width": 4}}, "sensor|must be given"),
        ({"more": 1}, "more is new"),
    ],
)
def test_edited_config_is_refused(tmp_path, change, message):
    folder = isp_distill.save(isp_distill.rawify(timm_model()), tmp_path / "s")
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, **change}))
    with pytest.raises(ValueError, match=message) as raised:
        isp_distill.load(folder)
    assert str(folder / CONFIG) in str(raised.value)


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there"):
        isp_distill.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds neither config\.json"):
        isp_distill.load(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="let its run end"):
        isp_distill.load(tmp_path)


def test_a_failed_save_leaves_the_old_student(tmp_path, monkeypatch):
    student = isp_distill.rawify(timm_model())
    isp_distill.save(student, tmp_path / "s")
    before = (tmp_path / "s" / WEIGHTS).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="s: cannot be written"):
        isp_distill.save(some_weights(student), tmp_path / "s")
    assert (tmp_path / "s" / WEIGHTS).read_bytes() == before
    assert os.listdir(tmp_path) == ["s"]


def test_state_that_is_no_tensor_is_refused(tmp_path):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(4, 2, 1)

        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

        def forward(self, x):
            return self.layer(x).mean((2, 3))

    with pytest.raises(ValueError, match="_extra_state of the student is a dict"):
        isp_distill.save(Keeps(), tmp_path / "s")


def test_hub_repositories_are_fetched_and_made(tmp_path, monkeypatch):
    import huggingface_hub

    student = isp_distill.rawify(timm_model())
    folder = isp_distill.save(student, tmp_path / "s")
    asked = []

    class Api:
        def create_repo(self, name, **options):
            asked.append((name, options))
            return f"https://hub/{name}"

        def upload_folder(self, repo_id, folder_path):
            asked.append((repo_id, folder_path))

    def fetched(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    assert isp_distill.push_to_hub(tmp_path / "s", "me/raw", private=True) == "https://hub/me/raw"
    assert same(student, isp_distill.load("hf-hub:me/raw@v1"))
    assert asked == [
        ("me/raw", {"exist_ok": True, "private": True}),
        ("me/raw", str(folder)),
        ("me/raw", "v1", [WEIGHTS, CONFIG]),
    ]


def test_a_run_leaves_its_student(tmp_path):
    write_folder(tmp_path / "raw", 4)
    chosen = isp_distill.Teacher(timm_model(), size=16, classes=list("abcde"))
    result = isp_distill.train(
        "rawify", chosen, tmp_path / "raw", validation=tmp_path / "raw", out=tmp_path / "run",
        steps=2, batch_size=2, ema=0.5, progress=False, tensorboard=False, exposure=0.5,
    )  # fmt: skip
    again = isp_distill.load(tmp_path / "run")
    for name, value in result.student.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    described = again.description
    assert described.classes == tuple("abcde")
    assert described.crop == 32
    assert described.exposure["factor"] == 0.5
    assert described.training["agreement"]["samples"] == 4
    assert isp_distill.predict(result.student, tmp_path / "raw", progress=False)[0].top[0].name in (
        *"abcde",
    )


def test_a_student_that_cannot_be_kept_is_a_warning(tmp_path):
    write_folder(tmp_path / "raw", 2)

    class Head(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    chosen = teacher()
    chosen.model[-1] = Head(16, 7)
    with pytest.warns(UserWarning, match="leaves no folder student: .*its checkpoint is whole"):
        isp_distill.train(
            "rawify", chosen, tmp_path / "raw", out=tmp_path / "run", steps=1, batch_size=2,
            progress=False, tensorboard=False,
        )  # fmt: skip
    assert (tmp_path / "run" / "report.json").is_file()


def test_dense_student(tmp_path):
    model = teacher(dense=True).model
    isp_distill.save(isp_distill.rawify(model), tmp_path / "s")
    again = isp_distill.load(tmp_path / "s", model=model)
    assert again.description.output == "class map"
