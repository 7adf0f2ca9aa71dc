"""An exported student computes what the student computes, and needs nothing of this library."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fetched import colorchart
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_run import raw_image, teacher

import isp_distill
from isp_distill import ISP, camera_inputs, export, rawify, read_raw, write_dng
from isp_distill.cli import main
from isp_distill.data.draw import Draw
from isp_distill.data.views import View
from isp_distill.exports.lowering import AnyCamera, OneCamera, StandardStem
from isp_distill.exports.verification import Program, examples, expected_logits
from isp_distill.models.raw_model import RawModel
from isp_distill.models.stem import RawStem

CAMERA = ISP(
    black=[500, 510, 520, 515], white=16000, pattern="GBRG", white_balance=(2.0, 1.0, 1.6),
    ccm=((1.6, -0.4, -0.2), (-0.3, 1.6, -0.3), (0.0, -0.5, 1.5)), exposure=1.3,
)  # fmt: skip


class Shaped(nn.Module):
    """Looks at its input's shape, and returns a dictionary, as segmentation models do."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        low = self.last(self.first(x).relu())
        return {"out": nn.functional.interpolate(low, x.shape[-2:], mode="bilinear")}


def learnt(student, seed=0):
    """The camera's numbers as training leaves them: none of them at its start."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        stem = next(m for m in student.modules() if isinstance(m, RawStem))
        stem.gain += 0.2 * torch.rand(4, generator=draw)
        stem.mix += 0.1 * torch.rand(4, 4, generator=draw)
        stem.gamma += 0.05
    return student.eval()


def small(**settings):
    return learnt(rawify(teacher().model, **settings))


def mosaics(count, side, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 16384, (count, side, side)).astype(np.uint16)


def run_onnx(path, mosaic, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"mosaic": mosaic, **inputs})[0]


@given(
    curve=st.sampled_from(["linear", "sqrt", "log", "gamma"]),
    flags=st.tuples(*[st.booleans()] * 4),
    activation=st.sampled_from(["none", "relu", "relu6", "silu", "gelu"]),
    geometry=st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 4])),
    padding=st.one_of(st.just("same"), st.tuples(*[st.integers(0, 3)] * 4)),
    built_in=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_stem_in_standard_operators(
    curve, flags, activation, geometry, padding, built_in, seed
):
    torch.manual_seed(seed)
    bias, white_balance, colour_matrix, learn_camera = flags
    stem = RawStem(
        6, *geometry, padding, bias, curve=curve, white_balance=white_balance,
        colour_matrix=colour_matrix, learn_camera=learn_camera, activation=activation,
        clip=curve != "gamma" or seed % 2 == 0,
    )  # fmt: skip
    stem.padding_value.uniform_(-1, 1)
    student = learnt(RawModel(nn.Sequential(stem, nn.Identity())), seed)
    isp, view = CAMERA.replace(pattern=seed % 4) if built_in else None, View(20)
    program = Program(view, (20, 20), isp, None, torch.uint16)
    inputs = examples(program, 4, seed)
    with torch.no_grad():
        expected = expected_logits(student, inputs, program)
        form = OneCamera if built_in else AnyCamera
        actual = form(student, view, isp)(*inputs.values())
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("built_in", [False, True], ids=["any camera", "one camera"])
@pytest.mark.parametrize("grid", ["packed", "sensor"])
def test_files_of_any_batch(tmp_path, suffix, built_in, grid):
    student = small(curve="gamma", colour_matrix=True, grid=grid)
    isp = CAMERA if built_in else None
    path = export(student, tmp_path / f"student{suffix}", isp=isp, crop=32)
    program = None if suffix == ".onnx" else torch.export.load(path).module()
    for batch in (1, 2, 5):
        pattern = [("RGGB", "GRBG", "GBRG", "BGGR")[i % 4] for i in range(batch)]
        camera = CAMERA if built_in else CAMERA.replace(pattern=pattern)
        mosaic = mosaics(batch, 32)
        inputs = {} if built_in else camera_inputs(camera, batch)
        if program is None:
            actual = run_onnx(path, mosaic, **inputs)
        else:
            tensors = [torch.from_numpy(v) for v in (mosaic, *inputs.values())]
            actual = program(*tensors).detach().numpy()
        with torch.no_grad():
            expected = student(torch.from_numpy(mosaic), camera).numpy()
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())
    assert not list(tmp_path.glob(".*")), "temporary files stay behind"


def test_onnx_is_standard_and_describes_itself(tmp_path):
    path = export(small(curve="gamma"), tmp_path / "student.onnx", crop=32)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    inputs = {i.name: i.type.tensor_type for i in model.graph.input}
    assert list(inputs) == ["mosaic", "black", "white", "gain", "pattern", "ccm"]
    assert inputs["mosaic"].elem_type == onnx.TensorProto.UINT16
    assert [d.dim_param or d.dim_value for d in inputs["mosaic"].shape.dim] == ["batch", 32, 32]
    notes = {p.key: p.value for p in model.metadata_props}
    assert notes["isp_distill.pattern"] == "0 is RGGB, 1 is GRBG, 2 is GBRG, 3 is BGGR"


WITHOUT_THE_LIBRARY = """
import sys
sys.modules["isp_distill"] = None  # importing it fails
import numpy as np
folder, form = sys.argv[1:]
data = np.load(folder + "/data.npz")
if form == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(folder + "/student.onnx")
    actual = session.run(None, {"mosaic": data["mosaic"]})[0]
else:
    import torch
    program = torch.export.load(folder + "/student.pt2").module()
    actual = program(torch.from_numpy(data["mosaic"])).detach().numpy()
np.testing.assert_allclose(actual, data["expected"], atol=1e-4 * np.abs(data["expected"]).max())
"""


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_it_runs_where_the_library_is_not(tmp_path, form):
    student = small(curve="gamma", colour_matrix=True)
    export(student, tmp_path / f"student.{form}", isp=CAMERA, crop=32)
    mosaic = mosaics(2, 32)
    with torch.no_grad():
        expected = student(torch.from_numpy(mosaic), CAMERA).numpy()
    np.savez(tmp_path / "data.npz", mosaic=mosaic, expected=expected)
    code = [sys.executable, "-c", WITHOUT_THE_LIBRARY, str(tmp_path), form]
    subprocess.run(code, check=True, timeout=120)


def real_files(folder):
    """DNG files of four cameras, one with a black level of its own at each site."""
    for index in range(4):
        raw = raw_image(index, side=120)
        write_dng(
            folder / f"{index}.dng", raw.mosaic[:104], pattern=raw.pattern, black=raw.black,
            white=raw.white, white_balance=raw.white_balance, ccm=raw.ccm, bits=14,
        )  # fmt: skip
    return sorted(folder.glob("*.dng"))


def as_evaluated(student, raw, crop):
    """What evaluate() compares: the student on the file's middle view."""
    mosaic, camera = View(crop).cut_raw(raw, Draw((0.5, 0.5)))
    with torch.no_grad():
        view = torch.from_numpy(np.ascontiguousarray(mosaic))[None]
        return student(view, ISP.from_raw(camera)).numpy()


def test_whole_files_in_predictions_out(tmp_path):
    student = small(curve="gamma", colour_matrix=True)
    raws = [read_raw(path) for path in real_files(tmp_path)]
    size = raws[0].mosaic.shape
    path = export(student, tmp_path / "student.onnx", crop=32, size=size)
    stacked = np.stack([raw.mosaic for raw in raws])
    actual = run_onnx(path, stacked, **camera_inputs(ISP.from_raw(raws), len(raws)))
    expected = np.concatenate([as_evaluated(student, raw, 32) for raw in raws])
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.registry
def test_a_real_cameras_file(tmp_path):
    student = small(curve="gamma", colour_matrix=True)
    raw = read_raw(colorchart())
    path = export(
        student, tmp_path / "student.onnx", isp=ISP.from_raw(raw), crop=64, size=raw.mosaic.shape
    )
    actual, expected = run_onnx(path, raw.mosaic[None]), as_evaluated(student, raw, 64)
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("built_in", [False, True])
def test_students_without_a_stem(tmp_path, channels, built_in):
    student = nn.Sequential(nn.Conv2d(channels, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 5, 1))
    isp = CAMERA if built_in else None
    path = export(student, tmp_path / "student.onnx", isp=isp, crop=16)
    mosaic = mosaics(3, 16)
    inputs = {} if built_in else camera_inputs(CAMERA, 3)
    with torch.no_grad():
        wrapped = isp_distill.models.student.as_student(student)
        expected = wrapped(torch.from_numpy(mosaic), CAMERA).numpy()
    np.testing.assert_allclose(run_onnx(path, mosaic, **inputs), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float32])
def test_dense_students_and_other_mosaics(tmp_path, dtype):
    student = learnt(rawify(Shaped(), curve="sqrt"))
    camera = CAMERA.replace(black=10, white=250)
    path = export(student, tmp_path / "student.onnx", isp=camera, crop=32, mosaic_dtype=dtype)
    mosaic = torch.from_numpy(mosaics(2, 32) % 256).to(dtype)
    with torch.no_grad():
        expected = student(mosaic, camera)["out"].numpy()
    actual = run_onnx(path, mosaic.numpy())
    assert actual.shape == (2, 5, 16, 16)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    student, path = small(), tmp_path / "student.onnx"
    path.write_text("the one before")
    forward = StandardStem.forward
    monkeypatch.setattr(StandardStem, "forward", lambda self, x: forward(self, x) * 1.1)
    with pytest.raises(RuntimeError, match=r"student\.onnx: was not written.*differ by"):
        export(student, path, isp=CAMERA, crop=32)
    assert path.read_text() == "the one before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_student_stays_as_it_was(tmp_path):
    student = small(curve="gamma").train()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    export(student, tmp_path / "student.pt2", isp=CAMERA, crop=32)
    assert student.training
    assert isinstance(student.stem, RawStem)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_from_a_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("isp_distill.cli.training.as_teacher", lambda name: teacher())
    raw = read_raw(real_files(tmp_path)[0])
    isp_distill.train(
        "rawify", teacher(), [raw_image(i) for i in range(2)], out=tmp_path / "run", steps=1,
        batch_size=2, progress=False, tensorboard=False,
    )  # fmt: skip
    out, checkpoint = tmp_path / "student.onnx", tmp_path / "run" / "checkpoint.pt"
    arguments = ["--checkpoint", str(checkpoint), "--camera", raw.path, "--size", "104", "120"]
    assert main(["export", str(out), "--teacher", "any", *arguments]) == 0
    assert capsys.readouterr().out.split() == [str(out), str(out.with_suffix(".model_card.md"))]
    assert run_onnx(out, raw.mosaic[None]).shape == (1, 7)
    assert main(["export", str(tmp_path / "student.h5"), "--teacher", "any"]) == 2
    assert "must end in .onnx or .pt2" in capsys.readouterr().err


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x).reshape(x.shape[0] // 1 if x.shape[0] == 1 else 2, -1)


def test_a_model_that_fixes_its_batch(tmp_path):
    student = rawify(FixedBatch()).eval()
    with pytest.raises(ValueError, match="batch=1"):
        export(student, tmp_path / "student.onnx", isp=CAMERA, crop=16)
    path = export(student, tmp_path / "student.onnx", isp=CAMERA, crop=16, batch=1)
    assert run_onnx(path, mosaics(1, 16)).shape == (1, 144)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "student.pth"}, "must end in .onnx or .pt2"),
        ({"crop": 31}, "crop must be even"),
        ({"size": (64, 63)}, "even numbers"),
        ({"size": (32, 32)}, "too small for a crop of 48"),
        ({"size": (96, 96), "binning": 3}, "too small for a crop of 48, binning 3"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"mosaic_dtype": torch.float16}, "mosaic_dtype torch.float16"),
        ({"isp": ISP(white=[4095, 16383])}, "white"),
    ],
)
def test_settings_out_of_range(tmp_path, settings, message):
    options = {"path": "student.onnx", "crop": 48, **settings}
    with pytest.raises(ValueError, match=message):
        export(small(), tmp_path / options.pop("path"), **options)
    assert not list(tmp_path.iterdir())


def test_a_function_is_no_student():
    with pytest.raises(TypeError, match=r"nn\.Module"):
        export(lambda mosaic, isp: mosaic, Path("student.onnx"))


def test_a_size_is_two_whole_numbers(tmp_path):
    student = rawify(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
    for size in (128, "12", (16.5, 16)):
        with pytest.raises(TypeError, match=r"size \(height, width\) must be (a )?whole number"):
            export(student, tmp_path / "student.pt2", crop=16, size=size)
