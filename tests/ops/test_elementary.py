"""The elementary functions against float64: the errors that their docstrings state."""

from __future__ import annotations

import math

import pytest
import torch

from isp_distill.ops import elementary


def dense(low, high, count=400_001):
    return torch.linspace(low, high, count, dtype=torch.float64).float()


def test_inverse_smoothstep():
    x = torch.cat([dense(0, 1), dense(0, 1e-4), dense(1 - 1e-4, 1), torch.tensor([0.0, 0.5, 1.0])])
    found = elementary.inverse_smoothstep(x).double()
    expected = 0.5 - torch.sin(torch.asin(1 - 2 * x.double()) / 3)
    assert float((found - expected).abs().max()) < 2e-7
    assert found[-3] == 0
    assert found[-1] == 1
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


def test_log2():
    x = torch.cat([dense(1e-9, 1), dense(0.999, 1), torch.logspace(-8, 0, 10001)])
    found, expected = elementary.log2(x).double(), torch.log2(x.double())
    rounding = expected.abs() * 2.0**-24
    assert float(((found - expected).abs() - rounding).max()) < 1.2e-7
    assert float(found.max()) <= 0
    # Relative as well, next to 1, where Box and Muller take its root.
    near = 1 - torch.arange(1, 1000) * 2.0**-24
    torch.testing.assert_close(
        elementary.log2(near).double(), torch.log2(near.double()), rtol=1e-6, atol=0
    )


def test_exp2():
    x = torch.cat([dense(-60, 0), dense(-1, 1), torch.tensor([-126.0, 127.0])])
    found, expected = elementary.exp2(x).double(), torch.exp2(x.double())
    assert float((found / expected - 1).abs().max()) < 3.2e-7
    assert float(elementary.exp2(torch.zeros(()))) == 1


def test_sine_cosine():
    angle = torch.cat([torch.arange(0, 2**24, 37), torch.arange(2**24 - 5, 2**24)])
    angle = torch.cat([angle, torch.arange(8) << 21])
    turn = angle.double() * (2 * math.pi / 2**24)
    sine, cosine = elementary.sine_cosine(angle)
    assert float((sine.double() - turn.sin()).abs().max()) < 1.2e-7
    assert float((cosine.double() - turn.cos()).abs().max()) < 1.2e-7


@pytest.mark.parametrize("count", [1, 7, 1_000_000])
def test_square_root_is_rounded_correctly(count):
    x = torch.rand(count, generator=torch.Generator().manual_seed(count)) * 4
    root = elementary.square_root(x)
    # Half a unit in the last place from the exact one, at most.
    unit = torch.nextafter(root, torch.tensor(math.inf)) - root
    error = (root.double() - x.double().sqrt()).abs()
    assert bool((error <= unit.double() / 2 * (1 + 1e-7)).all())
