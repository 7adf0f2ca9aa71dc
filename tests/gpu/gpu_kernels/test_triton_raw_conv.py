"""raw_conv's Triton kernels against the specification: every argument, both passes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from isp_distill.kernels.raw_conv import backward as raw_conv_backward

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "cases"))

from raw_conv_cases import (
    NAN_CASES,
    Case,
    cases,
    check_activation,
    check_against_reference,
    check_nan,
    forward_and_gradients,
)

from isp_distill import BackendError, raw_conv, use_backend
from isp_distill.backends import triton_support
from isp_distill.ops.raw_conv.operator import ACTIVATIONS

SPLITS = raw_conv_backward.SPLITS
DTYPES = (torch.uint8, torch.uint16, torch.int16, torch.int32, torch.float16, torch.float32)


# The interpreter takes as long as there are tiles: of 20 x 20 sensor values that is up to 21.
@given(cases(largest=10 if triton_support.interpreted() else 20), st.sampled_from([3, SPLITS]))
@settings(max_examples=25)
def test_equals_the_reference(case, splits):
    """With 3 splits a program of the backward pass takes several tiles, one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_conv_backward, "SPLITS", splits)
        check_against_reference(case, "triton", half_operands=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    check_activation(activation, "triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("odd", [False, True], ids=["pairs", "single"])
def test_every_mosaic_type_in_pairs_and_one_by_one(device, dtype, odd):
    """A crop that starts at an odd column cannot be read in pairs; both ways give the same."""
    top = 250 if dtype == torch.uint8 else 1000
    whole = torch.randint(0, top, (2, 12, 23)).to(dtype)
    mosaic = whole[:, :, 1:21] if odd else whole[:, :, :20].contiguous()
    call = {"black": 3.0, "white": float(top), "pattern": ["RGGB", "GBRG"], "padding": 1}
    weight = torch.randn(3, 4, 3, 3)
    with use_backend("reference"):
        expected = raw_conv(mosaic, weight, **call)
    with use_backend("triton"):
        out = raw_conv(mosaic.to(device), weight.to(device), **call)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_the_same_every_time():
    case = Case(height=40, width=44, mix=True, curve="gamma", activation="silu")
    _, first = forward_and_gradients(case, "triton")
    for _ in range(2):
        _, again = forward_and_gradients(case, "triton")
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_an_expanded_and_a_transposed_gradient(device):
    case = Case(channels=6)
    mosaic, parameters, arguments = case.inputs()
    weight = parameters["weight"]
    for cotangent in (torch.ones(()), torch.randn(2, 6, 7, 6).transpose(2, 3)):
        found = []
        for backend in ("triton", "reference"):
            w = weight.clone().requires_grad_()
            with use_backend(backend):
                out = raw_conv(mosaic, w, parameters["bias"], **arguments)
            found.append(torch.autograd.grad(out, w, cotangent.expand(out.shape))[0])
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", NAN_CASES)
def test_nan_comes_through(case):
    check_nan(case, "triton")


def test_an_empty_batch_and_empty_gradients():
    weight = torch.randn(3, 4, 3, 3, requires_grad=True)
    mosaic = torch.zeros(0, 8, 8, dtype=torch.uint16)
    with use_backend("triton"):
        out = raw_conv(mosaic, weight, black=0.0, white=1.0)
    assert out.shape == (0, 3, 2, 2)
    out.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"out_dtype": torch.float64}, "float64"),
        ({"kernel": 17, "height": 40, "width": 40}, "16 x 16"),
    ],
)
def test_refuses_with_a_sentence(change, reason):
    mosaic, parameters, arguments = replace(Case(), **change).inputs()
    with use_backend("triton"), pytest.raises(BackendError, match=reason):
        raw_conv(mosaic, **parameters, **arguments)


def test_it_runs_here_on_a_gpu_or_in_the_interpreter():
    assert triton_support.missing() is None
    assert triton_support.interpreted() or torch.cuda.is_available()
