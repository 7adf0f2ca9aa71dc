"""train, evaluate, pack, predict and export on 12-bit codes of a 24-bit sensor, from their folder.

What each gives equals what the same frames give as linear values.
"""

import dataclasses
import json

import numpy as np
import onnxruntime
import pytest
import torch
from hdr_frames import BLACK, CURVE, KNOTS, codes_of, hdr_folder, linear
from training_run import teacher

import isp_distill
from isp_distill import (
    ISP,
    PackedRaw,
    SensorFolder,
    View,
    evaluate,
    export,
    pack,
    predict,
    rawify,
    render,
    train,
)  # fmt: skip
from isp_distill.cli.main import main
from isp_distill.data.batch import RawBatch
from isp_distill.exports.model_card import card_of
from isp_distill.models.student import as_student
from isp_distill.reports.contact_sheet import coloured_mosaic
from isp_distill.storage.manifest import MANIFEST

SETTINGS = {
    "steps": 3, "batch_size": 2, "progress": False, "tensorboard": False, "seed": 1, "crop": 32,
    "lr": 1e-3,
}  # fmt: skip


def hdr_teacher():
    return dataclasses.replace(teacher(), tone="log")


def linear_batch(folder, view):
    """The middle views of all frames: as they are read, and of linear values."""
    raws = [folder[index] for index in range(len(folder))]
    mosaic, isp = isp_distill.cut_view(raws, view)
    return RawBatch(mosaic, isp), RawBatch(mosaic, isp).linear()


def test_a_folder_is_trained_on_as_its_linear_values_are(tmp_path):
    root = hdr_folder(tmp_path / "frames")
    result = train(
        "rawify", teacher(), root, out=tmp_path / "run", validation=root, tone="log", curve="log",
        **SETTINGS,
    )  # fmt: skip
    assert result.student.stem.curve == "log"
    report = evaluate(result.student, hdr_teacher(), root, progress=False)
    assert report.kl == pytest.approx(result.after.kl, rel=1e-5)
    # Views of 32 of 64 x 64 are binned: linear values already. Here codes, and the same, linear.
    view = View(32, binning=1)
    codes, values = linear_batch(SensorFolder(root), view)
    assert codes.isp.linearise is not None
    assert (values.mosaic.dtype, values.isp.linearise) == (torch.float32, None)
    by, pupil = hdr_teacher(), as_student(result.student.eval())
    by.model.eval()
    seen = [by.logits(by.picture(batch)) for batch in (codes, values)]
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        made = [pupil(batch.mosaic, batch.isp) for batch in (codes, values)]
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4)
    # The curves are needed: what the codes themselves say is something else.
    with torch.no_grad():
        wrong = pupil(codes.mosaic, codes.isp.replace(linearise=None))
    assert (wrong - made[0]).abs().max() > 0.01 * made[0].abs().max()


def test_the_shell_trains_and_evaluates_with_the_run_s_curve_and_tone(tmp_path, capsys):
    root = hdr_folder(tmp_path / "frames")
    run = ["--teacher", "training_run:teacher", "--crop", "32", "--steps", "2", "--batch-size", "2"]
    run += ["--no-progress", "--no-tensorboard", "--tone", "log", "--curve", "log"]
    main(["train", str(root), "--validation", str(root), "--out", str(tmp_path / "run"), *run])
    said = json.loads((tmp_path / "run/report.json").read_text())
    capsys.readouterr()
    main(
        ["evaluate", str(root), "--teacher", "training_run:teacher", "--checkpoint",
         str(tmp_path / "run"), "--crop", "32"]
    )  # fmt: skip
    assert f"{said['after']['kl']:.3g}"[:4] in capsys.readouterr().out
    saved = ["--run", str(tmp_path / "run"), "--trust", "training_run"]
    main(["evaluate", str(root), "--teacher", "training_run:teacher", *saved, "--json", "--quiet"])
    shown = capsys.readouterr()
    assert json.loads(shown.out)["kl"] == pytest.approx(said["after"]["kl"], rel=1e-5)
    assert shown.err == ""
    with pytest.raises(ValueError, match='is for the student "rawify"'):
        train(rawify(teacher().model, size=16), teacher(), root, out=tmp_path / "x", curve="log")


def test_binned_and_resized_views_are_means_of_linear_values(tmp_path):
    folder = SensorFolder(hdr_folder(tmp_path / "frames", count=1))
    mosaic, isp = isp_distill.cut_view(folder[0], View(32))
    values = linear(codes_of(0, 64, 64)).astype(np.float64)
    means = values.reshape(16, 2, 2, 16, 2, 2).mean((1, 4)).reshape(32, 32)
    np.testing.assert_array_equal(mosaic[0].numpy(), means.astype(np.float32))
    assert isp.linearise is None
    assert float(isp.white[0]) == 2**24 - 1
    # A constant stays that constant, at any size.
    flat = dataclasses.replace(folder[0], mosaic=np.full((64, 64), 3000, np.uint16))
    view, drawn = View(24, area=(0.5, 0.9)), np.random.default_rng(0)
    resized, camera = view.cut_raw(flat, view.draw(drawn))
    np.testing.assert_allclose(resized, linear(np.array([3000]))[0], rtol=1e-6)
    assert camera.linearise is None


def test_packs_hold_the_codes_and_their_curve(tmp_path):
    root = hdr_folder(tmp_path / "frames")
    by = hdr_teacher()
    out = tmp_path / "packed"
    settings = {"teacher": by, "views": 2, "crop": 32, "progress": False, "workers": 1}
    pack(root, out, **settings)
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["version"] == 4
    packed = PackedRaw(out, packed=True)
    assert (packed[0].packing, packed[0].linearise) == ("mipi12", CURVE)
    np.testing.assert_array_equal(PackedRaw(out)[0].mosaic, codes_of(0, 64, 64))
    student = rawify(teacher().model, curve="log", colour_matrix=True, size=16).eval()
    both = [evaluate(student, by, data, crop=32, progress=False).kl for data in (root, out)]
    assert both[0] == pytest.approx(both[1], rel=1e-6)
    result = train(
        "rawify", by, out, out=tmp_path / "run", curve="log", **SETTINGS, augmentation=None
    )
    assert result.steps == 3
    report = pack(root, tmp_path / "small", binning=2, progress=False, workers=1)
    assert "its codes are companded" in str(report)


@pytest.mark.parametrize("packing", [None, "mipi12"])
@pytest.mark.parametrize(("crop", "size"), [(32, (32, 32)), (32, (64, 64))])
def test_exports_hold_the_curve(tmp_path, packing, crop, size):
    root = hdr_folder(tmp_path / "frames", height=size[0], width=size[1])
    torch.manual_seed(0)
    student = rawify(teacher().model, curve="log", colour_matrix=True, size=16).eval()
    folder = SensorFolder(root, packed=packing is not None)
    path = export(
        student, tmp_path / "student.onnx", isp=ISP.from_raw(folder[0]), crop=crop, size=size,
        packing=packing,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    raws = [folder[index] for index in range(3)]
    (made,) = session.run(None, {"mosaic": np.stack([raw.mosaic for raw in raws])})
    mosaic, isp = isp_distill.cut_view(raws, View(crop))
    with torch.no_grad():
        expected = student(mosaic, isp)
    torch.testing.assert_close(torch.from_numpy(made), expected, rtol=1e-3, atol=1e-3)
    card = card_of(path).read_text()
    assert "by a table of 4096 values, 0 to 16777215; levels are linear values" in card
    assert "white [16777215.0]" in card
    assert "`0 + (37 * row + 101 * column) % 4095`" in card


def test_programs_for_any_camera_take_linear_values(tmp_path):
    raw = SensorFolder(hdr_folder(tmp_path / "frames", count=1, height=32, width=32))[0]
    isp = ISP.from_raw(raw)
    with pytest.raises(ValueError, match=r"takes linear values.*build the camera in"):
        isp_distill.camera_inputs(isp)
    student = rawify(teacher().model, curve="log", colour_matrix=True, size=16).eval()
    with pytest.raises(ValueError, match=r"codes are whole numbers, not torch\.float32"):
        export(student, tmp_path / "a.pt2", isp=isp, crop=32, mosaic_dtype=torch.float32)
    path = export(student, tmp_path / "a.pt2", crop=32, mosaic_dtype=torch.float32)
    inputs = isp_distill.camera_inputs(isp.replace(linearise=None))
    values = torch.from_numpy(linear(raw.mosaic)[None])
    program = torch.export.load(path).module()
    made = program(values, *(torch.from_numpy(value) for value in inputs.values()))
    with torch.no_grad():
        expected = student(torch.from_numpy(raw.mosaic[None]), isp)
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)


def test_predictions_contact_sheet_and_short_exposure(tmp_path):
    root = hdr_folder(tmp_path / "frames", packing="uint16", count=3)
    student = rawify(teacher().model, curve="log", colour_matrix=True, size=16).eval()
    found = list(predict(student, root, crop=32, progress=False))
    mosaic, isp = isp_distill.cut_view(list(SensorFolder(root)), View(32))
    with torch.no_grad():
        shares = student(mosaic, isp).softmax(1)
    assert found[1].top[0].probability == pytest.approx(float(shares[1].max()), rel=1e-4)
    codes, values = linear_batch(SensorFolder(root), View(64))
    shown = coloured_mosaic(codes)
    torch.testing.assert_close(shown, coloured_mosaic(values))
    assert 0.2 < float(shown.amax(1).mean()) < 0.9  # a square root leaves it black
    short = isp_distill.ShortExposure(0.5)
    for batch in (codes, values):
        with pytest.raises(ValueError, match="leave exposure out"):
            short.apply(batch.mosaic, batch.isp, seed=0)


def test_a_batch_mixes_curves_and_none(tmp_path):
    hdr = SensorFolder(hdr_folder(tmp_path / "a", packing="uint16", count=1))[0]
    other = dataclasses.replace(hdr, linearise=[[0, 0], [4095, 65520]], white=65520)
    plain = dataclasses.replace(hdr, linearise=None, white=4095, mosaic=hdr.mosaic * 16)
    batch = isp_distill.collate([hdr, other, plain])
    assert batch.isp.linearise.shape == (3, 65536)
    picture = render(batch.mosaic, batch.isp.replace(tone="log"))
    for index, raw in enumerate((hdr, other, plain)):
        own = ISP.from_raw(raw, tone="log")
        alone = render(torch.from_numpy(raw.mosaic[None]), own)
        assert torch.equal(picture[index : index + 1], alone)
    # One view that is binned makes the whole batch one of linear values.
    small = dataclasses.replace(hdr, mosaic=hdr.mosaic[:32, :32])
    mosaic, isp = isp_distill.cut_view([hdr, small, plain], View(32))
    assert (mosaic.dtype, isp.linearise) == (torch.float32, None)
    np.testing.assert_array_equal(mosaic[1].numpy(), linear(small.mosaic))
    assert KNOTS[0][0] == 0
    assert isp.black[0, 0] == BLACK


@pytest.mark.parametrize("packed", [False, True])
def test_a_calibrated_student_keeps_curve_and_packing(tmp_path, packed):
    root = hdr_folder(tmp_path / "frames", count=1, height=32, width=32)
    raw = SensorFolder(root, packed=packed)[0]
    isp, mosaic = ISP.from_raw(raw), torch.from_numpy(raw.mosaic[None])
    student = rawify(teacher().model, curve="log", colour_matrix=True, size=16).eval()
    fresh = rawify(teacher().model, curve="log", colour_matrix=True, size=16).eval()
    plain_keys = set(student.state_dict())
    with torch.no_grad():
        expected = student(mosaic, isp)
        student.calibrate(isp)
        assert torch.equal(student(mosaic), expected)
        # Codes that are not bytes are codes, whatever the kept camera packs.
        assert torch.equal(student(torch.from_numpy(raw.unpacked().mosaic[None])), expected)
        fresh.load_state_dict(student.state_dict())
        assert torch.equal(fresh(mosaic), expected)
        assert fresh.stem.packing == ("mipi12" if packed else None)
        # A camera without a curve forgets it again.
        student.calibrate(ISP(black=64, white=4095))
        assert set(student.state_dict()) == plain_keys
        fresh.load_state_dict(student.state_dict())
        assert fresh.stem.linearise is None
        assert fresh.stem.packing is None


def test_int8_is_calibrated_on_what_the_file_takes(tmp_path):
    root = hdr_folder(tmp_path / "frames", count=3, height=32, width=32)
    large = hdr_folder(tmp_path / "large", count=3)
    student = rawify(teacher().model, curve="log", colour_matrix=True, size=16).eval()
    isp = ISP.from_raw(SensorFolder(root)[0])
    settings = {"crop": 32, "precision": "int8"}
    path = export(student, tmp_path / "a.onnx", isp=isp, calibration=root, **settings)
    assert path.stat().st_size > 0
    with pytest.raises(ValueError, match="export with size="):
        export(student, path, isp=isp, calibration=large, **settings)
    with pytest.raises(ValueError, match=r"export with mosaic_dtype=torch\.float32"):
        export(student, path, calibration=root, **settings)
    linear_values = {"mosaic_dtype": torch.float32, "calibration": large}
    assert export(student, tmp_path / "b.onnx", **linear_values, **settings).stat().st_size > 0
