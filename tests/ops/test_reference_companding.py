"""The specification of ``linearise``, by hand and against NumPy, and what calls refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from companding_cases import KNOTS_24, curves
from hypothesis import given
from hypothesis import strategies as st

from isp_distill import ISP, raw_conv, render, use_backend
from isp_distill.backends import choice, cpu_library
from isp_distill.ops.companding import checked_linearise
from isp_distill.ops.reference_companding import linearised
from isp_distill.raw.gain_map import GainMap

built = pytest.mark.skipif(cpu_library.missing() is not None, reason=str(cpu_library.missing()))
KNOTS = [[10, 100], [20, 120], [24, 200]]  # 2 a code, then 20 a code; held below 10 and above 24


def values(mosaic, linearise, dtype=torch.float32, packing=None):
    return linearised(mosaic, checked_linearise(linearise, mosaic, packing, dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32])
def test_by_hand(dtype):
    codes = torch.tensor([[[0, 9], [10, 11], [19, 20], [21, 24], [25, 127]]]).to(dtype)
    expected = torch.tensor([[[100, 100], [100, 102], [118, 120], [140, 200], [200, 200.0]]])
    assert torch.equal(values(codes, KNOTS), expected)
    assert torch.equal(values(codes, torch.tensor([KNOTS])), expected)
    table = [100.0] * 10 + [100.0 + 2 * k for k in range(10)] + [120.0, 140, 160, 180, 200]
    assert torch.equal(values(codes, table), expected)


def test_negative_codes_are_held_too():
    codes = torch.tensor([[[-5, -32768], [10, 12]]], dtype=torch.int16)
    assert values(codes, KNOTS).flatten().tolist() == [100, 100, 100, 104]
    assert values(codes, [3.0, 5.0]).flatten().tolist() == [3, 3, 5, 5]


def test_floating_point_mosaics_lie_between_codes():
    x = torch.tensor([[[10.5, 22.25], [-1.0, math.nan], [math.inf, -math.inf]]])
    for dtype in (torch.float32, torch.float64):
        found = values(x, KNOTS, dtype)
        assert found.dtype == dtype
        assert found.flatten()[[0, 1, 2, 4, 5]].tolist() == [101, 165, 100, 200, 100]
        assert math.isnan(found[0, 1, 1])
    table = values(x, torch.arange(30.0))
    assert table.flatten()[[0, 1, 2, 4, 5]].tolist() == [10.5, 22.25, 0, 29, 0]
    assert math.isnan(table[0, 1, 1])


def test_24_bits_are_exact():
    codes = torch.arange(4096, dtype=torch.int32).view(1, 64, 64)
    expected = np.interp(np.arange(4096), *np.array(KNOTS_24).T.astype(float))
    found = values(codes, KNOTS_24)
    whole = expected == np.floor(expected)
    assert whole.sum() > 3000
    assert np.array_equal(found.flatten().numpy()[whole], expected[whole])
    assert float(found.max()) == 2**24 - 1


@given(data=st.data(), batch=st.integers(1, 3))
def test_against_numpy(data, batch):
    curve = data.draw(curves(batch, 11, 1000.0))
    seed = data.draw(st.integers(0, 1000))
    codes = torch.randint(0, 2**11, (batch, 4, 6), generator=torch.Generator().manual_seed(seed))
    each = curve.double().numpy()
    knots = each.shape[-1] == 2
    each = np.broadcast_to(each, (batch, *each.shape[-2 if knots else -1 :]))
    for whole in (codes.to(torch.int32), codes.float() + 0.25):
        found = values(whole, curve, torch.float64)
        for n in range(batch):
            x, y = each[n].T if knots else (np.arange(each.shape[1]), each[n])
            wanted = np.interp(whole[n].double().numpy(), x, y)
            np.testing.assert_allclose(found[n].numpy(), wanted, rtol=1e-12, atol=1e-9)


def convolve(mosaic, linearise, **how):
    return raw_conv(mosaic, torch.ones(2, 4, 1, 1), black=0, white=1023, linearise=linearise, **how)


def picture(mosaic, linearise, **how):
    return render(mosaic, ISP(white=1023.0), linearise=linearise, **how)


CODES = torch.zeros(2, 4, 4, dtype=torch.uint16)


@pytest.mark.parametrize("call", [convolve, picture])
@pytest.mark.parametrize(
    ("linearise", "error", "message"),
    [
        ("curve", TypeError, "linearise is 'curve': expected numbers"),
        (5.0, ValueError, r"linearise has shape \[\]: expected knots \[K, 2\] or \[2, K, 2\]"),
        ([1.0], ValueError, r"has shape \[1\]"),
        ([[1.0, 2.0]], ValueError, r"has shape \[1, 2\]"),
        (torch.zeros(3, 5), ValueError, r"has shape \[3, 5\]"),
        (torch.zeros(3, 4, 2), ValueError, r"has shape \[3, 4, 2\]"),
        (torch.zeros(2, 4, 3), ValueError, r"has shape \[2, 4, 3\]"),
        (torch.zeros(1, 2, 2, 2), ValueError, r"has shape \[1, 2, 2, 2\]"),
        (torch.zeros(65537), ValueError, "up to 65536 values"),
        (torch.zeros(257, 2), ValueError, r"has shape \[257, 2\].*up to 256"),
        ([[0, 0], [0, 1]], ValueError, "codes of linearise must increase"),
        ([[0, 0], [4, 1], [3, 2]], ValueError, "codes of linearise must increase"),
        ([[-1, 0], [4, 1]], ValueError, "codes of linearise must be from 0 to 65535"),
        ([[0, 0], [65536, 1]], ValueError, "codes of linearise must be from 0 to 65535"),
        ([[0, 0], [math.nan, 1]], ValueError, "codes of linearise must be from 0"),
        ([[0, 0], [4, math.inf]], ValueError, "values that are not finite"),
        ([0.0, math.nan, 1.0], ValueError, "values that are not finite"),
        ([[0, 0], [4, 9], [8, 7]], ValueError, "must not decrease, and entry 2 is 7 after 9"),
        ([0.0, 5.0, 4.5], ValueError, "must not decrease, and entry 2 is 4.5 after 5"),
        (torch.ones(4, requires_grad=True), TypeError, r"gets none: detach\(\) it"),
    ],
)
def test_refusals(call, linearise, error, message):
    with pytest.raises(error, match=message):
        call(CODES, linearise)


@pytest.mark.parametrize("call", [convolve, picture])
@built
def test_values_between_codes_are_the_references(call):
    mosaic = 30 * torch.rand(1, 4, 6)
    with use_backend("reference"):
        expected = call(values(mosaic, KNOTS), None)
    torch.testing.assert_close(call(mosaic, KNOTS), expected)
    with use_backend("cpu"), pytest.raises(choice.BackendError, match="values between them"):
        call(mosaic, KNOTS)


def test_a_gain_map_is_applied_to_linear_values():
    codes = torch.randint(0, 30, (1, 16, 24), dtype=torch.int32)
    isp = ISP(black=90.0, white=210.0, gain_map=GainMap(np.ones((4, 2, 3)) * 1.2, 0, 0, 9, 9))
    found = render(codes, isp, size=8, linearise=KNOTS)
    assert torch.equal(found, render(values(codes, KNOTS), isp, size=8))
