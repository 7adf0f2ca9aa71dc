"""Curves of companding sensors: their one form, what refuses them, and who may read their codes."""

import dataclasses
import types

import numpy as np
import pytest
import torch
from hdr_frames import BLACK, CURVE, KNOTS, codes_of, hdr_folder, linear
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import isp_distill
from isp_distill import ISP, RawImage, SensorFormat, View, evaluate, register
from isp_distill.data.device_input import moved
from isp_distill.data.draw import Draw
from isp_distill.data.stacking import stacked
from isp_distill.models.student import PlanesModel
from isp_distill.ops.reference_companding import linearised
from isp_distill.raw.changes import binned, corrected
from isp_distill.raw.companding import curve_of, is_knots, linear_values, table_of, value_at
from isp_distill.raw.gain_map import GainMap
from isp_distill.raw.image import crop


def format_of(**changes):
    given = {"black": BLACK, "bits": 12, "companding": KNOTS, **changes}
    return SensorFormat(64, 48, "uint16", "RGGB", **given)


def image(**changes):
    return dataclasses.replace(format_of().image(codes_of(0, 48, 64)), **changes)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_values_are_the_references(data):
    """In NumPy, from knots and from tables, as the operators look codes up."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    bits = data.draw(st.sampled_from([4, 8, 12]))
    if data.draw(st.booleans()):
        count = data.draw(st.integers(2, 9))
        codes = np.sort(random.choice(2**bits, count, replace=False))
        given = np.stack([codes, np.sort(random.integers(0, 2**24, count))], 1).astype(float)
    else:
        given = np.sort(random.uniform(0, 2**20, data.draw(st.integers(2, 2**bits))))
    curve = curve_of(given)
    assert curve_of(curve) == curve == curve_of(given.tolist())
    codes = random.integers(0, 2**bits, (1, 6, 8)).astype(np.uint16)
    one = torch.from_numpy(given)[None]
    expected = linearised(torch.from_numpy(codes), one.float() if given.ndim == 1 else one,
                          torch.float32)  # fmt: skip
    found = linear_values(codes, curve)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
    assert value_at(curve, float(codes[0, 0, 0])) == pytest.approx(float(found[0, 0, 0]), rel=1e-6)


def test_by_hand():
    curve = curve_of([[0, 10], [4, 18], [5, 100]])
    np.testing.assert_array_equal(table_of(curve), [10, 12, 14, 16, 18, 100])
    codes = np.array([[1, 4], [5, 900]], np.uint16)
    np.testing.assert_array_equal(linear_values(codes, curve), [[12, 18], [100, 100]])
    # A table of straight pieces is its knots; others stay tables.
    assert curve_of([10, 12, 14, 16, 18, 100]) == ((0, 10), (4, 18), (5, 100))
    same = curve_of(table_of(CURVE))  # rounded to float32, so of more pieces, but the same table
    np.testing.assert_array_equal(table_of(same), table_of(CURVE))
    squares = [float(code * code) for code in range(1024)]
    assert not is_knots(curve_of(squares))
    assert curve_of(squares) == tuple(squares)


@pytest.mark.parametrize(
    ("curve", "kind", "message"),
    [
        ("log", TypeError, "companding must be knots"),
        ({"a": 1}, TypeError, "companding must be knots"),
        ([[0, 0], [1]], TypeError, "companding must be knots"),
        ([[0, 10**400], [1, 1]], TypeError, "companding must be knots"),
        ([True, False], TypeError, "companding must be knots"),
        ([], ValueError, r"shape \[0\]"),
        ([[0, 0]], ValueError, r"shape \[1, 2\]"),
        ([[0, 1, 2], [3, 4, 5]], ValueError, r"shape \[2, 3\]"),
        ([[0, 0], [0, 1]], ValueError, "codes of companding must increase, and entry 1 is 0"),
        ([[0, 5], [9, 1]], ValueError, "values of companding must not decrease, and entry 1 is 1"),
        ([[0, 0], [9, float("nan")]], ValueError, r"between -2\^24 and 2\^24"),
        ([[0, 0], [9, 2**25]], ValueError, r"between -2\^24 and 2\^24"),
        ([[0, 0], [65536, 9]], ValueError, "from 0 to 65535"),
        ([code**2 for code in range(1024)], ValueError, "1024 values, and there are 4096 codes"),
    ],
)
def test_what_is_no_curve(curve, kind, message):
    with pytest.raises(kind, match=message):
        format_of(companding=curve)


def test_a_format_of_linear_values():
    form = format_of()
    assert hash(form) == hash(format_of(companding=np.array(KNOTS)))
    assert (form.white, form.companding) == (2**24 - 1, CURVE)
    # Of the last code, where the curve goes on beyond it.
    assert format_of(companding=[[0, 0], [4096, 4096]]).white == 4095
    assert SensorFormat.from_plain(dataclasses.asdict(form)) == form
    with pytest.raises(ValueError, match="block is 2, and the sum of companded codes"):
        format_of(block=2)
    with pytest.raises(ValueError, match=r"white is 2e\+07"):
        format_of(white=2e7)
    with pytest.raises(ValueError, match="must be above every black level"):
        format_of(white=10)


def test_moves_keep_the_curve_and_changes_of_codes_are_refused():
    raw = image(orientation=6)
    turned = crop(isp_distill.upright(raw), 2, 4, 16, 16)
    assert turned.linearise == CURVE
    assert binned(raw, 1).linearise == CURVE
    with pytest.raises(ValueError, match="its codes are companded"):
        binned(raw, 2)
    gains = GainMap(np.full((4, 2, 2), 2.0, np.float32), 0.0, 0.0, 24.0, 32.0)
    shaded = image(gain_map=gains)
    with pytest.raises(ValueError, match="leave the correction to render"):
        corrected(shaded)
    # render corrects linear values, of codes and of their linear values alike.
    mosaic, isp = torch.from_numpy(shaded.mosaic[None]), ISP.from_raw(shaded, tone="log")
    values = torch.from_numpy(linear(shaded.mosaic)[None])
    plain = isp_distill.render(values, isp.replace(linearise=None))
    assert torch.equal(isp_distill.render(mosaic, isp), plain)
    without = isp_distill.render(mosaic, isp.replace(gain_map=None))
    assert float((plain - without).mean()) > 0.01


def test_curves_of_an_isp():
    whole = ISP(linearise=KNOTS)
    assert whole.linearise.shape == (1, 4096)
    assert ISP(linearise=torch.tensor([KNOTS, KNOTS])).linearise.shape == (1, 4096)
    two = ISP(linearise=[KNOTS, [[0, 0], [1, 1], [2, 2], [3, 3], [9, 9]]])
    assert two.linearise.shape == (2, 4096)
    assert float(two.linearise[1, -1]) == 9
    assert two.batched(2).linearise.shape == (2, 4096)
    assert whole.batched(5).linearise.shape == (1, 4096)
    with pytest.raises(ValueError, match="expected curves of 1 or 3 samples"):
        two.batched(3)
    with pytest.raises(TypeError, match="linearise must be knots"):
        ISP(linearise="log")
    short = ISP(linearise=[[0, 0], [1, 1]])  # its table is not taken for a knot
    assert torch.equal(short.replace(tone="log").linearise, torch.tensor([[0.0, 1.0, 1.0]]))


def test_a_device_whose_kernels_look_nothing_up_gets_linear_values(monkeypatch):
    raws = [image(), image()]
    batch, cpu = isp_distill.collate(raws), torch.device("cpu")
    assert moved(batch, cpu).mosaic.dtype == torch.uint16

    def refuses(operation, device, **call):
        return types.SimpleNamespace(backend="reference" if call["linearise"] else "triton")

    monkeypatch.setattr("isp_distill.ops.packed_calls.choice.choose", refuses)
    found = moved(batch, cpu)
    assert found.isp.linearise is None
    np.testing.assert_array_equal(found.mosaic[1].numpy(), linear(raws[1].mosaic))


def test_a_student_of_its_own_kind_sees_linear_values(tmp_path):
    root = hdr_folder(tmp_path / "frames", count=2)
    seen = []

    def student(mosaic, isp):
        seen.append((mosaic, isp))
        return mosaic.flatten(1)[:, :7].float()

    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    evaluate(student, isp_distill.Teacher(teacher, size=16), root, crop=64, progress=False)
    ((mosaic, isp),) = seen
    assert isp.linearise is None
    np.testing.assert_array_equal(mosaic[0].numpy(), linear(codes_of(0, 64, 64)))


def test_planes_of_a_plain_network():
    planes = PlanesModel(nn.Sequential(nn.Conv2d(4, 3, 3)))
    batch = isp_distill.collate([image(), image()])
    values = batch.linear()
    assert torch.equal(planes(batch.mosaic, batch.isp), planes(values.mosaic, values.isp))


def test_stacking_turns_all_linear_where_one_is():
    codes, _ = View(16, binning=1).cut_raw(image(), Draw((0.5, 0.5)))
    values = linear(codes)
    camera = image()
    without = dataclasses.replace(camera, linearise=None)
    mosaics, isp = stacked([codes, values, codes], [camera, without, without])
    assert isp.linearise is None
    np.testing.assert_array_equal(mosaics.numpy(), np.stack([values, values, codes]))


def test_registration_reads_linear_values():
    """A picture of the linear values lies over the codes as it does over what they mean."""
    random = np.random.default_rng(3)
    scene = np.kron(random.integers(200, 4000, (30, 40)), np.ones((16, 16))).astype(np.uint16)
    raw = RawImage(scene, "RGGB", black=BLACK, white=2**24 - 1, linearise=KNOTS)
    picture = isp_distill.render(
        torch.from_numpy(scene[None]), ISP.from_raw(raw, tone="srgb", demosaic="bilinear")
    )[0]
    shown = (picture * 255).round().byte().permute(1, 2, 0).numpy()
    found = register(raw, np.ascontiguousarray(shown))
    assert found.residual < 0.3
    assert found.scale == pytest.approx(1, abs=1e-3)
