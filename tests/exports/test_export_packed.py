"""An exported program takes the sensor's packed bytes and gives what it gives of codes."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from packed_dumps import dump_folder
from training_run import teacher

import isp_distill
from isp_distill import ISP, SensorFolder, camera_inputs, export, rawify
from isp_distill.cli.main import main
from isp_distill.exports.lowered_packing import Unpacking
from isp_distill.raw.packings import PACKED, PACKINGS, pack_rows, row_bytes
from isp_distill.training.checkpoint import load_checkpoint


def student():
    torch.manual_seed(0)
    return rawify(teacher().model, curve="gamma", colour_matrix=True, size=32).eval()


def frames(packing, count, height, width):
    most = 1 << PACKINGS[packing].bits
    codes = np.random.default_rng(0).integers(0, most, (count, height, width)).astype(np.uint16)
    return codes, pack_rows(codes, packing)


def camera(packing):
    most = 1 << PACKINGS[packing].bits
    return ISP(black=most / 16, white=most - 1, pattern="GBRG", white_balance=(2.0, 1.0, 1.5))


def run(path, mosaic, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"mosaic": mosaic, **inputs})[0]


# Whole; a view that begins inside a group of four; a binned one; a width that ends in a group.
WHOLE, INSIDE, BINNED = (32, (32, 32), True), (32, (48, 44), False), (24, (96, 104), True)
ENDING = (32, (36, 38), False)


@pytest.mark.parametrize(
    ("packing", "crop", "size", "built_in"),
    [("mipi10", *WHOLE), *((packing, *INSIDE) for packing in PACKED), ("mipi12", *BINNED),
     ("mipi14", *ENDING)],
)  # fmt: skip
def test_bytes_give_the_numbers_that_codes_give(tmp_path, packing, crop, size, built_in):
    codes, packed = frames(packing, 3, *size)
    isp = camera(packing)
    inputs = {} if built_in else camera_inputs(isp, 3)
    settings = {"isp": isp if built_in else None, "crop": crop, "size": size}
    both = [
        export(student(), tmp_path / f"{name}.onnx", packing=name, **settings)
        for name in (None, packing)
    ]
    assert packed.shape == (3, size[0], row_bytes(size[1], packing))
    assert np.array_equal(run(both[0], codes, **inputs), run(both[1], packed, **inputs))
    said = {p.key: p.value for p in onnx.load(both[1]).metadata_props}
    rows = f"{packing}: {size[0]} rows of {packed.shape[2]} bytes"
    assert said["isp_distill.packing"] == rows
    assert "isp_distill.packing" not in {p.key for p in onnx.load(both[0]).metadata_props}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("width", [12, 14])
def test_every_packing_in_standard_operators(packing, width):
    codes, packed = frames(packing, 2, 60, width)
    padded = np.pad(packed, ((0, 0), (0, 0), (0, 2)), constant_values=255)
    for rows in (packed, padded):
        found = Unpacking(packing)(torch.from_numpy(rows), width)
        assert np.array_equal(found.numpy(), codes)
    last = np.full((1, 1, row_bytes(width, packing)), 255, np.uint8)
    most = (1 << PACKINGS[packing].bits) - 1
    assert set(Unpacking(packing)(torch.from_numpy(last), width).flatten().tolist()) == {most}


@pytest.mark.parametrize("packing", ["mipi10", "gige12packed"])
def test_a_torch_program_of_bytes(tmp_path, packing):
    codes, packed = frames(packing, 2, 40, 44)
    isp = camera(packing)
    path = export(student(), tmp_path / "a.pt2", isp=isp, crop=32, size=(40, 44), packing=packing)
    plain = export(student(), tmp_path / "b.pt2", isp=isp, crop=32, size=(40, 44))
    found, expected = (
        torch.export.load(one).module()(torch.from_numpy(mosaic))
        for one, mosaic in ((path, packed), (plain, codes))
    )
    assert torch.equal(found, expected)


def test_what_is_no_packing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown packing 'mipi11': expected one of mipi10"):
        export(student(), tmp_path / "a.onnx", crop=32, packing="mipi11")
    with pytest.raises(ValueError, match=r"packed as mipi10 are bytes, not torch\.int32"):
        export(student(), tmp_path / "a.onnx", crop=32, packing="mipi10", mosaic_dtype=torch.int32)


def test_a_trained_student_leaves_for_the_sensor(tmp_path, capsys):
    """Trained on dumps in the shell, exported with their camera: its input is the dump's bytes."""
    root = dump_folder(tmp_path / "dumps")
    common = ["--teacher", "training_run:teacher"]
    main(["train", str(root), *common, "--device", "cpu", "--steps", "1", "--batch-size", "2",
          "--crop", "48", "--out", str(tmp_path / "run")])  # fmt: skip
    path = tmp_path / "student.onnx"
    main(["export", str(path), *common, "--checkpoint", str(tmp_path / "run"), "--camera",
          str(root), "--size", "64", "64", "--packing", "mipi12"])  # fmt: skip
    assert str(path) in capsys.readouterr().out
    data = np.stack([np.fromfile(root / f"{i}.raw", np.uint8).reshape(64, 96) for i in range(6)])
    trained = isp_distill.rawify(
        teacher().model, curve="gamma", colour_matrix=True, size=32, demosaic="malvar"
    )
    state = load_checkpoint(tmp_path / "run/checkpoint.pt")
    trained.load_state_dict(state.get("average") or state["student"])
    folder = SensorFolder(root, packed=True)
    with torch.no_grad():
        mosaic, isp = isp_distill.cut_view([folder[i] for i in range(6)], trained.eval())
        expected = trained(mosaic, isp)
    np.testing.assert_allclose(run(path, data), expected, atol=1e-4 * float(expected.abs().max()))
