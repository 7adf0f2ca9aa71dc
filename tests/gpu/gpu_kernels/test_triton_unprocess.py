"""The Triton kernels of unprocess and expose: the reference's bits, whatever the call."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "cases"))

from isp_distill.kernels.unprocess.kernel import _key
from unprocess_cases import (
    LAYOUTS,
    MOSAICS,
    PICTURE_DTYPES,
    Case,
    cases,
    check_expose,
    check_unprocess,
    check_unusual_values,
)

from isp_distill import BackendError, NoiseModel, expose, unprocess, use_backend
from isp_distill.backends import triton_support

drawn = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@drawn
@given(case=cases(widest=40, highest=6))
def test_unprocess_is_the_reference(device, case):
    check_unprocess(case, "triton", device)


@drawn
@given(case=cases(widest=40, highest=6), dtype=st.sampled_from(MOSAICS))
def test_expose_is_the_reference(device, case, dtype):
    check_expose(case, dtype, "triton", device)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", PICTURE_DTYPES, ids=str)
def test_several_blocks_of_a_row(device, dtype, layout):
    """A program has 512 columns."""
    case = Case(2, 4, 1058, dtype, layout, noise=NoiseModel(), seed=2**64 - 1)
    check_unprocess(case, "triton", device)


@pytest.mark.parametrize("dtype", MOSAICS, ids=str)
def test_expose_several_blocks(device, dtype):
    check_expose(Case(2, 4, 1058, noise=NoiseModel(), seed=2**63), dtype, "triton", device)


def test_many_sites_are_equal(device):
    check_unprocess(
        Case(1, 32, 1024, patterns=("GRBG",), bits=16, noise=NoiseModel(), seed=9), "triton", device
    )


def test_nan_and_infinities(device):
    check_unusual_values("triton", device)


def test_empty_batch(device):
    with use_backend("triton"):
        mosaic, _ = unprocess(torch.rand(0, 3, 4, 6, device=device), noise=NoiseModel())
        short = expose(mosaic, 0.5, NoiseModel(), black=512, white=16383)
    assert mosaic.shape == short.shape == (0, 4, 6)


@given(st.integers(-(2**63), 2**63 - 1))
def test_the_seed_is_handed_over_whole(seed):
    low, high = _key(seed)
    assert min(low, high) >= -(2**31)
    assert max(low, high) < 2**31
    assert (high % 2**32 << 32 | low % 2**32) == seed % 2**64


def test_refuses_float64(device):
    with use_backend("triton"), pytest.raises(BackendError, match="this one is float64"):
        unprocess(torch.rand(1, 3, 4, 4, dtype=torch.float64, device=device))


@pytest.mark.skipif(
    triton_support.interpreted(), reason="the interpreter has no device to wait for"
)
def test_no_call_waits_for_the_device(device):
    picture = torch.rand(2, 3, 8, 8, device=device)
    with use_backend("triton"):
        unprocess(picture, noise=NoiseModel())
        torch.cuda.set_sync_debug_mode("error")
        try:
            unprocess(picture, noise=NoiseModel(), seed=1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
