"""Packed bytes from the dump to the kernels: views, batches, students, teachers, and the rules."""

import dataclasses
import functools
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_dumps import SETTINGS, assert_same, both, codes_of, dump_folder
from training_run import teacher

import isp_distill
from isp_distill import ISP, RawImage, SensorFolder, SensorFormat, View, upright
from isp_distill.data.device_input import moved, on_device
from isp_distill.data.draw import Draw
from isp_distill.data.loader import ViewLoader
from isp_distill.data.stacking import stacked
from isp_distill.models.student import PlanesModel
from isp_distill.ops.packed_calls import takes
from isp_distill.raw.image import crop
from isp_distill.raw.packings import PACKED, PACKINGS, pack_rows, row_bytes
from isp_distill.raw.pixels import Pixels
from isp_distill.raw.sensor_file import read_pixels


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_window_of_packed_rows_is_that_of_the_codes(data):
    packing = data.draw(st.sampled_from(PACKED))
    height, width = (data.draw(st.integers(1, 12)) for _ in range(2))
    codes = codes_of(packing, height, width)
    padding = data.draw(st.integers(0, 3))
    rows = np.pad(pack_rows(codes, packing), ((0, 0), (0, padding)), constant_values=255)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    found = Pixels(rows, packing, width).window(top, left, *box)
    expected = codes[top : top + box[0], left : left + box[1]]
    assert (found.packing is None) == (left % PACKINGS[packing].pixels > 0)
    assert (found.height, found.width) == box
    assert np.array_equal(found.codes, expected)
    assert np.array_equal(found.flipped().codes, expected[::-1])
    assert np.array_equal(found.mirrored().codes, expected[:, ::-1])
    assert np.array_equal(found.transposed().codes, expected.T)
    if found.packing is not None:
        assert found.array.shape[1] == row_bytes(box[1], packing)
        assert np.shares_memory(found.array, rows)


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_and_cut_as_their_codes_are(packing, orientation):
    plain, packed = both(packing, orientation=orientation, default_crop=(2, 4, 12, 20))
    turned = upright(packed)
    assert (turned.packing is not None) == (orientation in (1, 4))
    assert_same(upright(plain), turned)
    for corner in ((0, 0), (3, 2), (1, 8), (4, 5)):
        assert_same(crop(plain, *corner, 12, 20), crop(packed, *corner, 12, 20))
    assert packed.width == 40
    assert packed.unpacked().unpacked().packing is None


def test_what_is_no_packed_mosaic_is_refused_by_name():
    rows = np.zeros((4, 10), np.uint8)
    good = {"pattern": "RGGB", "black": 0, "white": 1023, "packing": "mipi10", "packed_width": 8}
    assert RawImage(rows, **good).width == 8
    for change, message in (
        ({"packing": "mipi11"}, "packing must be one of mipi10, .* or None, not 'mipi11'"),
        ({"packed_width": None}, "needs packed_width"),
        ({"packing": None}, "packing must be one of"),
        (
            {"packed_width": 12},
            r"12 columns packed as mipi10 is uint8 \[H, 15 or more\], not uint8",
        ),
        ({"packed_width": 7}, "must be even, not 4x7"),
        ({"mosaic": rows.astype(np.uint16)}, r"not uint16 \[4, 10\]; codes have packing=None"),
        ({"mosaic": rows[:3]}, "must be even, not 3x8"),
    ):
        with pytest.raises(ValueError, match=message):
            RawImage(**{"mosaic": rows, **good, **change})
    with pytest.raises(TypeError, match=r"packed_width must be a whole number, not 8\.0"):
        RawImage(rows, **{**good, "packed_width": 8.0})
    with pytest.raises(ValueError, match="packing and width"):
        ISP(packing="mipi10")
    with pytest.raises(ValueError, match="unknown packing 'uint16'"):
        ISP(packing="uint16", width=8)
    other = both("mipi12")[1]
    with pytest.raises(ValueError, match=r"unpack them first, raw\.unpacked\(\)"):
        ISP.from_raw([RawImage(rows, **good), other])


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("view", [View(12), View(12, 1), View(8, area=(0.2, 0.6))])
def test_views_of_packed_images_are_those_of_codes(packing, mirror, flip, view):
    plain, packed = both(packing)
    for place in ((0.5, 0.5), (0.1, 0.9), (0.0, 0.0), (1.0, 1.0), (0.3, 0.2)):
        drawn = Draw(place, mirror, flip, None if view.area is None else 0.4)
        expected, camera = view.cut_raw(plain, drawn)
        assert_same(camera, view.cut_raw(packed, drawn)[1])
        assert np.array_equal(expected, view.cut_raw(packed, drawn)[0])
        found, seen = view.cut_raw(packed, drawn, packed=True)
        left = view.window(24, 40, drawn, "")[1]
        stays = view.binning == 1 and not mirror and left % PACKINGS[packing].pixels == 0
        assert (seen.packing is not None) == stays
        assert np.array_equal(expected, Pixels(found, seen.packing, view.crop).codes)
        assert (seen.pattern, seen.width) == (camera.pattern, 12 if stays else 2)


def test_a_batch_is_packed_where_all_of_it_is():
    images = [both("mipi10", seed=i)[1] for i in range(3)]
    mosaic, isp = stacked([raw.mosaic for raw in images], images)
    assert (mosaic.dtype, tuple(mosaic.shape)) == (torch.uint8, (3, 24, 50))
    assert (isp.packing, isp.width, isp.sides(mosaic)) == ("mipi10", 40, (24, 40))
    batch = isp_distill.collate(images)
    assert torch.equal(batch.mosaic, mosaic)
    codes = np.stack([both("mipi10", seed=i)[0].mosaic for i in range(3)])
    assert np.array_equal(batch.unpacked().mosaic.numpy(), codes)
    assert batch.unpacked().isp.packing is None
    assert batch.unpacked().unpacked().mosaic.dtype == torch.uint16
    mixed = isp_distill.collate([images[0], both("mipi10", seed=1)[0], both("pfnc10p", seed=2)[1]])
    assert np.array_equal(mixed.mosaic[:2].numpy(), codes[:2])
    assert mixed.isp.packing is None


@pytest.mark.parametrize("packing", PACKED)
def test_students_teachers_and_render_read_packed_batches(packing):
    images = [both(packing, 64, 64, seed=i) for i in range(2)]
    plain, packed = (isp_distill.collate([pair[kind] for pair in images]) for kind in (0, 1))
    assert packed.mosaic.dtype == torch.uint8
    model = teacher()
    student = isp_distill.rawify(model.model, size=32).eval()
    planes = PlanesModel(torch.nn.Sequential(torch.nn.Conv2d(4, 5, 3), torch.nn.Flatten())).eval()
    dark = isp_distill.ShortExposure(0.25)
    with torch.no_grad():
        for call in (
            lambda b: student(b.mosaic, b.isp),
            lambda b: planes(b.mosaic, b.isp),
            lambda b: isp_distill.render(b.mosaic, b.isp, size=32),
            lambda b: model.picture(b, isp_distill.ISPAugmentation(), 3),
            lambda b: dark.apply(b.mosaic, b.isp, seed=2)[0].int(),
        ):
            assert torch.equal(call(plain), call(packed))
        student.view = View(64)
        assert torch.equal(student(plain.mosaic, plain.isp), student(packed.mosaic, packed.isp))
        student.view = View(32)
        with pytest.raises(ValueError, match="mosaics of 32 x 32, this one is 64 x 64"):
            student(packed.mosaic, packed.isp)
    with pytest.raises(TypeError, match=f"one that is packed as {packing} is bytes"):
        isp_distill.render(plain.mosaic, packed.isp)


def test_a_device_whose_kernels_read_codes_gets_codes(monkeypatch):
    images = [both("mipi10", seed=i) for i in range(2)]
    plain, packed = (isp_distill.collate([pair[kind] for pair in images]) for kind in (0, 1))
    cpu = torch.device("cpu")
    assert moved(packed, cpu).mosaic.dtype == torch.uint8
    with isp_distill.use_backend("reference"):
        assert takes(cpu, "mipi10")

    def refuses(operation, device, **call):
        name = "reference" if call["packing"] is not None else "triton"
        return types.SimpleNamespace(backend=name)

    monkeypatch.setattr("isp_distill.ops.packed_calls.choice.choose", refuses)
    assert not takes(cpu, "mipi10")
    (found,) = on_device([packed], cpu)
    assert torch.equal(found.mosaic, plain.mosaic)
    assert found.isp.packing is None


def test_a_cut_view_stays_packed_for_the_student_where_it_can(tmp_path):
    folder = SensorFolder(dump_folder(tmp_path / "dumps", "mipi10"), packed=True)
    assert folder[0].packing == "mipi10"
    mosaic, isp = isp_distill.cut_view(folder[0], View(48, 1))  # begins at column 8
    assert (mosaic.dtype, isp.width) == (torch.uint8, 48)
    assert isp_distill.cut_view(folder[0], View(44, 1))[0].dtype == torch.uint16  # at column 10
    assert isp_distill.cut_view(folder[0], View(32))[0].dtype == torch.uint16  # binned
    loader = torch.utils.data.DataLoader(
        folder, 3, collate_fn=functools.partial(isp_distill.collate, view=View(48, 1))
    )
    assert [batch.mosaic.dtype for batch in loader] == [torch.uint8] * 2


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("suffix", [".raw", ".npy"])
def test_rows_alone_are_read_and_are_those_of_the_frame(tmp_path, packed, orientation, suffix):
    codes = np.stack([codes_of("mipi10", 24, 36, seed) for seed in range(3)])
    rows = np.pad(pack_rows(codes, "mipi10"), ((0, 0), (0, 0), (0, 3)))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(rows.tobytes()) if suffix == ".raw" else np.save(path, rows)
    form = SensorFormat(36, 24, "mipi10", "RGGB", 64, stride=48, orientation=orientation)
    folder = SensorFolder(tmp_path, form, packed=packed)
    turns = orientation > 4
    assert [folder.reads_rows(i) for i in range(3)] == [not turns] * 3
    for index in range(3):
        whole = folder[index]
        assert (whole.packing is None) == (not packed or orientation in (2, 3, 6))
        assert np.array_equal(whole.unpacked().mosaic, upright(form.image(codes[index])).mosaic)
        if turns:
            continue
        assert folder.shape(index) == (24, 36)
        assert folder.default_crop(index) is None
        for top, bottom in ((0, 24), (2, 8), (22, 24)):
            part = folder.rows(index, top, bottom)
            assert (part.packing, part.pattern) == (whole.packing, whole.pattern)
            assert np.array_equal(part.mosaic, whole.mosaic[top:bottom])
        for top, bottom in ((1, 4), (0, 26), (4, 4), (-2, 2)):
            with pytest.raises(ValueError, match="must be even and inside"):
                folder.rows(index, top, bottom)


def test_no_other_rows_are_read(tmp_path, monkeypatch):
    """Of a frame in uint16, of a Quad-Bayer one, and of packed ones."""
    read = []

    def counted(path, frame, top, bottom, form):
        read.append((top, bottom))
        return read_pixels(path, frame, top, bottom, form)

    monkeypatch.setattr("isp_distill.data.sensor_files.read_pixels", counted)
    for name, form in {
        "uint16": SensorFormat(64, 80, "uint16", "RGGB", 64, bits=10),
        "quad": SensorFormat(128, 160, "mipi10", "RGGB", 64, block=2),
        "mipi10": SensorFormat(64, 80, "mipi10", "RGGB", 64),
    }.items():
        (tmp_path / name).mkdir()
        codes = codes_of("mipi10", form.height, form.width)
        (tmp_path / name / "a.raw").write_bytes(pack_rows(codes, form.packing).tobytes())
        folder = SensorFolder(tmp_path / name, form)
        read.clear()
        loader = ViewLoader(folder, View(16, 1), 1)
        (batch,) = loader.fixed(1)
        assert read == [(32 * form.block, 48 * form.block)]
        assert np.array_equal(batch.mosaic[0].numpy(), folder[0].mosaic[32:48, 24:40])


@pytest.mark.parametrize("packing", ["mipi10", "mipi12"])
def test_training_and_evaluation_on_bytes_are_those_on_codes(tmp_path, packing, monkeypatch):
    """Bit for bit: what the kernels compute of the bytes is what they compute of the codes."""
    root = dump_folder(tmp_path / "dumps", packing)
    plain = [raw for raw in SensorFolder(root)]
    assert {raw.packing for raw in plain} == {None}
    kinds = set()
    render = isp_distill.models.teacher.render

    def noted(mosaic, *args, **options):
        kinds.add(mosaic.dtype)
        return render(mosaic, *args, **options)

    monkeypatch.setattr("isp_distill.models.teacher.render", noted)
    found = {}
    for name, data in {"dumps": root, "codes": plain}.items():
        kinds.clear()
        result = isp_distill.train(
            "rawify", teacher(), data, validation=data, out=tmp_path / name, crop=56, binning=1,
            **SETTINGS,
        )  # fmt: skip
        report = isp_distill.evaluate(
            result.student, teacher(), data, views=5, crop=48, binning=1, batch_size=3,
            progress=False,
        )  # fmt: skip
        found[name] = result.after, report
        assert (torch.uint8 in kinds) == (name == "dumps")
    for one, other in zip(found["dumps"], found["codes"], strict=True):
        assert dataclasses.replace(one, skipped={}) == dataclasses.replace(other, skipped={})
    seen = []

    def student(mosaic, isp):
        seen.append((mosaic.dtype, isp.packing))
        return torch.zeros(len(mosaic), 7)

    isp_distill.evaluate(student, teacher(), root, progress=False, crop=56, binning=1)
    assert set(seen) == {(torch.uint16, None)}, "a function is given codes"
