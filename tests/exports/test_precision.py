"""float16 and int8 files, and the card beside them."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from openvino_process import openvino_outputs
from raw_folders import write_folder
from torch import nn
from training_run import raw_image

import isp_distill
from isp_distill.cli.main import main
from isp_distill.exports.calibration import feeds_of
from isp_distill.exports.model_card import card_of, example_inputs
from isp_distill.exports.precision import INT8, float32_nodes, to_int8
from isp_distill.exports.verification import Program
from isp_distill.models.student import as_student

CAMERA = isp_distill.ISP(black=512, white=16383, pattern="GRBG", white_balance=(2.0, 1.0, 1.6))


def student(**settings):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=6)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.running_var.uniform_(0.5, 1.5)
    return isp_distill.rawify(model, curve="gamma", colour_matrix=True, **settings).eval()


def images(count, side=96):
    return [raw_image(index, side=side) for index in range(count)]


def run(path, feed):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value) for name, value in feed.items()})[0]


@pytest.mark.parametrize("built_in", [False, True])
@pytest.mark.parametrize("kind", ["stem", "picture", "planes"])
def test_both_precisions_keep_what_the_student_says(tmp_path, kind, built_in):
    torch.manual_seed(1)
    if kind == "planes":
        made = timm.create_model("test_resnet", num_classes=6, in_chans=4).eval()
    else:
        made = student(picture=kind == "picture", size=64)
    isp = CAMERA if built_in else None
    program = Program(isp_distill.View(64), (64, 64), isp, None, torch.uint16)
    (feed,) = feeds_of([raw_image(3, side=96)], program, progress=False)
    camera = isp or isp_distill.ISP.from_raw(raw_image(3, side=96))
    with torch.no_grad():
        expected = as_student(made)(torch.from_numpy(feed["mosaic"]), camera).numpy()
    scale = np.abs(expected).max()
    for precision, worst in (("float16", 0.02), ("int8", 0.25), ("int8_signed", 0.25)):
        path = tmp_path / f"{precision}.onnx"
        calibration = images(8) if precision in INT8 else None
        isp_distill.export(
            made, path, isp=isp, crop=64, precision=precision, calibration=calibration
        )
        assert np.abs(run(path, feed) - expected).max() < worst * scale
        model = onnx.load(path)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata["isp_distill.precision"] == precision
        kinds = {node.op_type for node in model.graph.node}
        types = {entry.data_type for entry in model.graph.initializer}
        if precision in INT8:
            assert "QuantizeLinear" in kinds
            weights = {
                initializer.data_type
                for initializer in model.graph.initializer
                if initializer.name.endswith("weight_quantized")
            }
            signed = precision == "int8_signed"
            assert weights == {onnx.TensorProto.INT8 if signed else onnx.TensorProto.UINT8}
            card = card_of(path).read_text()
            assert ("sums overflow" if signed else "right on every processor") in card
        else:
            assert onnx.TensorProto.FLOAT16 in types
        assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert (tmp_path / "int8.onnx").stat().st_size < 0.75 * (
        tmp_path / "float16.onnx"
    ).stat().st_size


def test_values_beyond_float16_stay_float32(tmp_path):
    """A 16-bit sensor's white is above 65504, the largest number of float16."""
    made = student()
    camera = CAMERA.replace(black=0.0, white=65535.0)
    path = isp_distill.export(made, tmp_path / "a.onnx", isp=camera, crop=64, precision="float16")
    mosaic = np.linspace(0, 65535, 64 * 64).reshape(1, 64, 64).astype(np.uint16)
    with torch.no_grad():
        expected = made(torch.from_numpy(mosaic), camera).numpy()
    assert np.abs(run(path, {"mosaic": mosaic}) - expected).max() < 0.02 * np.abs(expected).max()


def test_the_stem_s_steps_are_found(tmp_path):
    isp_distill.export(student(), tmp_path / "a.onnx", isp=CAMERA, crop=64, size=(128, 192))
    model = onnx.load(tmp_path / "a.onnx")
    kept = set(float32_nodes(model))
    kinds = [node.op_type for node in model.graph.node if node.name in kept]
    assert {"Cast", "Conv", "Clip", "Log", "Exp"} <= set(kinds)
    assert kinds.count("Conv") == 2  # the packing and the colour matrix
    del model.graph.node[:]
    with pytest.raises(ValueError, match="holds no stem"):
        float32_nodes(model)


def test_card_says_what_the_file_does(tmp_path):
    path = isp_distill.export(student(), tmp_path / "s.onnx", crop=64, classes=list("abcdef"))
    card = card_of(path).read_text()
    assert card_of(path).name == "s.model_card.md"
    for name, kind in (("mosaic", "uint16"), ("black", "float32"), ("pattern", "int64")):
        assert re.search(rf"\| `{name}` \| {kind} \| \[N", card), name
    assert '["a", "b", "c", "d", "e", "f"]' in card
    # The example in the card's own words.
    formula = re.search(r"with `(\d+) \+ \(37 \* row \+ 101 \* column\) % (\d+)`", card)
    rows, columns = np.mgrid[:64, :64]
    mosaic = (int(formula[1]) + (37 * rows + 101 * columns) % int(formula[2])).astype(np.uint16)
    feed = {"mosaic": mosaic[None]}
    for name in ("black", "white", "gain", "pattern", "ccm"):
        numbers = re.search(rf"- `{name}` \[?([^\]\n]*)", card)[1]
        values = np.array([float(v) for v in numbers.split(",")], np.float32)
        shape = {"black": (1, 4), "white": (1,), "gain": (1, 4), "pattern": (1,), "ccm": (1, 3, 3)}
        values = values.reshape(shape[name])
        feed[name] = values.astype(np.int64) if name == "pattern" else values
    shown = re.search(r"begin with ([-\d., ]+)\. The largest is class (\d)", card)
    logits = run(path, feed)[0]
    assert np.allclose([float(v) for v in shown[1].split(",")], logits[:5], atol=1e-3)
    assert int(shown[2]) == logits.argmax()


def test_card_of_a_program_of_torch(tmp_path):
    path = isp_distill.export(student(), tmp_path / "s.pt2", isp=CAMERA, crop=64, batch=2)
    card = card_of(path).read_text()
    assert "from the first row and column: pattern GRBG" in card
    assert "| `mosaic` | uint16 | [2, 64, 64] |" in card
    assert "gives [2, 6] logits" in card


def test_int8_is_measured_on_what_it_has_not_seen(tmp_path):
    made = student()
    path = isp_distill.export(
        made, tmp_path / "s.onnx", crop=64, precision="int8", calibration=images(9)
    )
    card = card_of(path).read_text()
    found = re.search(
        r"float32 file: (\d\.\d{3}), over 4 files that it was not calibrated on", card
    )
    assert 0 <= float(found[1]) <= 1
    assert re.search(r"\d+\.\d\d ms in float32, \d+\.\d\d ms in int8", card)
    isp_distill.export(made, tmp_path / "f.onnx", crop=64, precision="int8", calibration=images(2))
    assert "over 2 the files it was calibrated on" in card_of(tmp_path / "f.onnx").read_text()


def test_larger_mosaics_and_fixed_batches(tmp_path):
    made = student()
    path = isp_distill.export(
        made, tmp_path / "s.onnx", isp=CAMERA, crop=64, size=(128, 192), batch=2,
        precision="int8", calibration=images(4, side=240),
    )  # fmt: skip
    assert run(path, {"mosaic": np.full((2, 128, 192), 900, np.uint16)}).shape == (2, 6)
    with pytest.raises(ValueError, match=r"2 files, 0 could be used.*96 x 96 is smaller"):
        isp_distill.export(
            made, tmp_path / "t.onnx", isp=CAMERA, crop=64, size=(128, 192), batch=2,
            precision="int8", calibration=images(4),
        )  # fmt: skip
    assert not (tmp_path / "t.onnx").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.model_card.md", "s.onnx"]


def test_what_is_refused(tmp_path):
    made = student()
    for settings, message in (
        ({"precision": "int4"}, "unknown precision 'int4'"),
        ({"precision": "int8"}, "needs calibration"),
        ({"calibration": images(1)}, "other precisions take none"),
    ):
        with pytest.raises(ValueError, match=message):
            isp_distill.export(made, tmp_path / "s.onnx", crop=64, **settings)
    with pytest.raises(ValueError, match=r"int8 is for \.onnx"):
        isp_distill.export(
            made, tmp_path / "s.pt2", crop=64, precision="int8", calibration=images(1)
        )
    with pytest.raises(TypeError, match="these are pictures"):
        isp_distill.export(
            made, tmp_path / "s.onnx", crop=64, precision="int8",
            calibration=[np.zeros((96, 96, 3), np.uint8)],
        )  # fmt: skip
    with pytest.raises(ValueError, match="there are none"):
        to_int8(tmp_path / "s.onnx", tmp_path / "t.onnx", [])
    assert list(tmp_path.iterdir()) == []


def test_shell(tmp_path, capsys):
    write_folder(tmp_path / "raw", 4)
    isp_distill.train(
        "rawify", isp_distill.Teacher(timm.create_model("test_resnet", num_classes=6), size=16),
        tmp_path / "raw", out=tmp_path / "run", steps=1, batch_size=2, progress=False,
        tensorboard=False,
    )  # fmt: skip
    capsys.readouterr()
    out = tmp_path / "s.onnx"
    arguments = ["export", str(out), "--run", str(tmp_path / "run"), "--precision", "int8"]
    assert main(arguments) == 2
    assert main([*arguments, "--calibration", str(tmp_path / "raw")]) == 0
    assert capsys.readouterr().out.split() == [str(out), str(card_of(out))]


def test_openvino_computes_the_same(tmp_path):
    made = student()
    program = Program(isp_distill.View(64), (64, 64), None, None, torch.uint16)
    feed = {name: value.numpy() for name, value in example_inputs(program).items()}
    for precision, limit in (("float32", 1e-3), ("int8", 0.1)):
        path = tmp_path / f"{precision}.onnx"
        calibration = images(8) if precision == "int8" else None
        isp_distill.export(made, path, crop=64, precision=precision, calibration=calibration)
        expected = run(path, feed)
        actual = openvino_outputs(path, feed, tmp_path)
        assert np.abs(actual - expected).max() < limit * np.abs(expected).max()
