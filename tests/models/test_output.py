"""Outputs of every library: real classes of transformers, timm and torchvision, and odd ones."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest
import torch
from library_models import MODELS, SIDE, model
from torch import nn
from training_run import raw_image

import isp_distill
from isp_distill import Teacher
from isp_distill.models.fingerprint import fingerprint
from isp_distill.models.output import described_output, read_output
from isp_distill.models.taps import Taps
from isp_distill.models.teacher_output import lacks_classifier

CPU = torch.device("cpu")
QUIET = {"progress": False, "tensorboard": False}


@pytest.mark.parametrize("name", MODELS)
def test_real_models_are_teachers_and_students(name, tmp_path):
    """Read, rawified (equal to the RGB model: rawify checks that), trained, reported."""
    _, shape, embeds = MODELS[name]
    teacher = Teacher(model(name), size=SIDE)
    assert teacher.output_shape(CPU) == shape
    assert lacks_classifier(teacher, CPU) == embeds
    data = [raw_image(i, 2 * SIDE + 32) for i in range(2)]
    result = isp_distill.train(
        "rawify", teacher, data, validation=data, out=tmp_path, steps=1, batch_size=2, **QUIET
    )
    report = result.after
    if embeds:
        assert report.agreement_top1 is None
        assert -1 <= report.cosine <= 1
        assert 0 <= report.retrieval_top1 <= report.retrieval_top5 <= 1
    else:
        assert report.cosine is None
        assert 0 <= report.agreement_top1 <= 1
    assert (report.mean_iou is not None) == (len(shape) == 3)
    mosaic, isp = isp_distill.cut_view(data[0], result.student)
    assert read_output(result.student(mosaic, isp)).shape == (1, *shape)


@pytest.mark.parametrize("name", ["transformers ViTForImageClassification", "torchvision LR-ASPP"])
def test_a_student_of_another_library_is_exported(name, tmp_path):
    student = isp_distill.rawify(model(name), size=SIDE)
    path = isp_distill.export(student, tmp_path / "student.pt2", crop=2 * SIDE, batch=2)
    inputs = torch.randint(500, 9000, (2, 2 * SIDE, 2 * SIDE), dtype=torch.int32).to(torch.uint16)
    isp = isp_distill.ISP(black=512.0, white=16383.0)
    camera = isp_distill.camera_inputs(isp, batch=2)
    found = torch.export.load(path).module()(inputs, *map(torch.from_numpy, camera.values()))
    with torch.no_grad():
        expected = read_output(student.eval()(inputs, isp))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@dataclasses.dataclass
class Result:
    boxes: torch.Tensor
    scores: torch.Tensor
    hidden_states: tuple


VALUE = torch.arange(6.0).reshape(2, 3)
Pair = collections.namedtuple("Pair", ["scores", "boxes"])


@pytest.mark.parametrize(
    ("output", "how"),
    [
        (VALUE, None),
        ({"out": VALUE, "aux": VALUE + 1}, None),
        ({"logits": VALUE, "out": VALUE + 1}, None),
        ({"loss": None, "logits": VALUE}, None),
        ((VALUE, VALUE + 1), None),
        ([{"out": VALUE}, VALUE + 1], None),
        ({"pooler_output": VALUE, "last_hidden_state": VALUE + 1}, None),
        (VALUE.numpy(), None),
        ([VALUE.numpy()], None),
        ({"aux": VALUE, "out": VALUE + 1}, "aux"),
        (Result(VALUE + 1, VALUE, ()), "scores"),
        (Pair(VALUE, VALUE + 1), "scores"),
        (Result(VALUE + 1, VALUE + 1, (VALUE + 1, VALUE)), "hidden_states.1"),
        (Result(VALUE + 1, VALUE, ()), lambda output: output.scores),
        ({"x": VALUE}, lambda output: output["x"]),
    ],
)
def test_an_output_is_read(output, how):
    torch.testing.assert_close(read_output(output, how), VALUE)


@pytest.mark.parametrize(
    ("output", "how", "words"),
    [
        ({"boxes": VALUE, "scores": VALUE[0]}, None,
         r"dict with the keys boxes \(\[2, 3\]\), scores \(\[3\]\): say .* student_output=\.\.\."),
        (Result(VALUE, VALUE, ()), None, r"Result with the keys boxes .*hidden_states \(tuple\)"),
        (Result(VALUE, VALUE, ()), "logits", r"no 'logits' \(student_output=\.\.\.\): Result with"),
        ([], None, "a list of nothing"),
        (VALUE[0], None, r"returned \[3\]"),
        (None, None, "returned None"),
        ({"a": 3}, "a", "returned int"),
        (VALUE, lambda output: None, "returned None"),
        (Pair(VALUE, VALUE), None, "Pair with the keys scores"),
    ],
)  # fmt: skip
def test_an_output_that_is_not_understood_lists_its_keys(output, how, words):
    with pytest.raises(TypeError, match=words):
        read_output(output, how)


class Odd(nn.Module):
    """A model with an output of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 8, 8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        features = self.body(x).mean((2, 3))
        return {"scores": 9 * self.head(features), "features": features}


def scores(output):
    """A reader that a file can name."""
    return output["scores"]


def test_an_odd_model_is_refused_by_the_name_of_the_option(tmp_path):
    data = [raw_image(i) for i in range(2)]
    options = {"steps": 1, "batch_size": 2, **QUIET}
    with pytest.raises(TypeError, match=r"keys scores .*Teacher\(\.\.\., output=\.\.\.\)"):
        isp_distill.train("rawify", Teacher(Odd(), size=16), data, out=tmp_path, **options)
    teacher = Teacher(Odd(), size=16, output="scores")
    with pytest.raises(TypeError, match=r"keys scores .*student_output=\.\.\."):
        isp_distill.train("rawify", teacher, data, out=tmp_path, **options)
    with pytest.raises(TypeError, match=r"student_output=\.\.\."):
        isp_distill.evaluate(isp_distill.rawify(Odd()), teacher, data, progress=False)


@pytest.mark.parametrize("how", ["scores", scores, "test_output:scores"])
def test_an_output_by_name_or_function(how, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent))
    data = [raw_image(i) for i in range(4)]
    teacher = Teacher(Odd(), size=16, output=how)
    options = {"steps": 3, "batch_size": 2, "validation": data, "student_output": how, **QUIET}
    result = isp_distill.train("rawify", teacher, data, out=tmp_path / "a", **options)
    report = isp_distill.evaluate(
        result.student, teacher, data, student_output=how, progress=False, batch_size=2
    )
    assert report == result.after
    saved = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)["settings"]
    assert saved["student_output"] == described_output(how)
    path = isp_distill.export(result.student, tmp_path / "s.pt2", output=how)
    assert path.exists()
    if how is scores:  # goes on where it was, and nowhere else
        again = isp_distill.train("rawify", teacher, data, out=tmp_path / "a", **options)
        assert again.after == result.after
        with pytest.raises(ValueError, match="student_output was"):
            isp_distill.train(
                "rawify", teacher, data, out=tmp_path / "a", **{**options, "student_output": "x"}
            )


def test_the_fingerprint_knows_the_output():
    plain, other = (fingerprint(Teacher(Odd(), size=16, output=o)) for o in (None, "scores"))
    assert {**plain, "output": "scores"} == other


class Session:
    """What onnxruntime's sessions do: arrays of NumPy in, a list of them out."""

    def __init__(self, weight):
        self.weight = weight

    def run(self, names, feed):
        (picture,) = feed.values()
        pooled = picture.reshape(*picture.shape[:2], 4, -1).mean(3).reshape(len(picture), -1)
        return [pooled @ self.weight]


class Around:
    """A function around a session."""

    def __init__(self, session):
        self.session = session
        self.fingerprint = str(session.weight.sum())

    def __call__(self, picture):
        return self.session.run(None, {"input": picture.cpu().numpy()})


def test_any_function_is_a_teacher(tmp_path):
    weight = 20 * np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    teacher = Teacher(Around(Session(weight)), size=16)
    data = [raw_image(i) for i in range(8)]
    body = nn.Sequential(nn.Conv2d(3, 12, 8, 8), nn.Flatten(), nn.Linear(48, 4))
    student = isp_distill.rawify(body, size=16)
    options = {"batch_size": 8, "validation": data, "out": tmp_path, "lr": 1e-2, **QUIET}
    result = isp_distill.train(student, teacher, data, steps=20, **options)
    assert result.after.kl < 0.7 * result.before.kl
    other = Teacher(Around(Session(weight + 1)), size=16)
    with pytest.raises(ValueError, match="teacher: its weights are others"):
        isp_distill.train(student, other, data, steps=20, **options)
    with pytest.raises(ValueError, match='"rawify" is made of the teacher'):
        isp_distill.train("rawify", teacher, data, out=tmp_path / "b")
    with pytest.raises(TypeError, match="or a function of pictures, not int"):
        Teacher(3)
    # A bare function, which onnxruntime or anything else may stand behind.
    report = isp_distill.evaluate(student, lambda x: x.mean((2, 3)).repeat(1, 2)[:, :4], data,
                                  crop=32, progress=False)  # fmt: skip
    assert report.samples == 8


def test_a_real_session_of_onnxruntime(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="its session is the teacher")
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    path, free = str(tmp_path / "teacher.onnx"), ({0: torch.export.Dim("n")},)
    torch.onnx.export(own, (torch.zeros(2, 3, 16, 16),), path, dynamo=True, dynamic_shapes=free)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    teacher = Teacher(lambda x: session.run(None, {name: x.cpu().numpy()}), size=16)
    picture = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            teacher.logits(picture), Teacher(own, size=16).logits(picture), rtol=1e-4, atol=1e-5
        )


def test_taps_take_outputs_keys_and_modules():
    odd = Odd()
    student = isp_distill.rawify(odd)
    picture = torch.rand(2, 3, 16, 16)
    taps = Taps(odd, ["logits", "features", "body", "features"], "scores")
    assert taps.names == ("logits", "features", "body")
    with taps.listening():
        logits, features, body = taps.take(odd(picture))
    torch.testing.assert_close(body.mean((2, 3)), features)
    torch.testing.assert_close(logits, 9 * odd.head(features))
    assert not any(m._forward_hooks for m in odd.modules())
    # What rawify put around the model is left out of names.
    assert Taps(student, ["body"])._modules["body"] is student.model.body
    whole = isp_distill.rawify(odd, picture=True)
    assert Taps(whole, ["body"])._modules["body"] is whole.get_submodule("model.model.body")
    for names, words in (
        (["hed"], r"no module 'hed', .*did you mean 'head'\?"),
        (["zzzzz"], "its modules are in body, head; it returns dict with"),
    ):
        taps = Taps(odd, names, "scores")
        with taps.listening(), pytest.raises(TypeError, match=words):
            taps.take(odd(picture))
    taps = Taps(odd, ["head"], "scores")
    with pytest.raises(TypeError, match="'head' was not called"):
        taps.take({"scores": VALUE})
