"""render's Triton kernels against the specification, computed in float64.

What is allowed: a few float32 roundings and those of log2 and exp2, times 1 / std, and the rounding
of the result's own type. Just above black the gamma and the log curve are so steep that the
roundings of their argument show, as on the CPU: see render_cases.py.
"""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "cases"))

import render_cases
from render_cases import CAMERA, MOSAIC_DTYPES, STEEP, assert_within, calls, mosaics

from isp_distill import BackendError, render, use_backend
from isp_distill.backends import triton_support
from isp_distill.isp.camera import DEMOSAICS


def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# Triton's interpreter cuts a float32 to bfloat16 where a GPU rounds.
ULP = {
    torch.float32: 2.0**-23,
    torch.bfloat16: 2.0**-7 if triton_support.interpreted() else 2.0**-8,
    torch.float16: 2.0**-11,
}
both = functools.partial(render_cases.both, "triton", device=device())
SMALL = calls(heights=(1, 2, 3, 7, 11), widths=(1, 2, 3, 8, 17), sizes=(1, 2, 3, 7, 16, 31))


def assert_same(picture, expected, isp, std=1.0):
    assert_within(picture, expected, STEEP.get(isp.tone, 1e-5) / std, ULP)


# Shrinking an example takes minutes in the interpreter.
@given(SMALL)
@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_equals_the_reference(call):
    mosaic, isp, options = call
    picture, expected = both(mosaic, isp, **options)
    assert picture.dtype == options["dtype"]
    assert picture.is_contiguous(memory_format=options["memory_format"])
    assert_same(picture, expected, isp, 0.2 if "std" in options else 1.0)


@pytest.mark.parametrize("dtype", MOSAIC_DTYPES, ids=str)
@pytest.mark.parametrize("odd", [False, True], ids=["pairs", "single"])
def test_every_mosaic_type_in_pairs_and_one_by_one(dtype, odd):
    whole = mosaics(2, 8, 15, dtype, top=250)
    mosaic = whole[:, :, 1:13] if odd else whole[:, :, :12].contiguous()
    isp = CAMERA.replace(black=3.0, white=250.0, pattern=["RGGB", "GBRG"], tone="linear")
    assert_same(*both(mosaic, isp), isp)


@pytest.mark.parametrize("resize_in", ["display", "linear"])
@pytest.mark.parametrize("demosaic", DEMOSAICS)
def test_strong_reductions_span_several_programs(demosaic, resize_in):
    """More than one strip of columns, chunk of rows and block of taps."""
    isp = CAMERA.replace(demosaic=demosaic)
    mosaic = mosaics(1, 22, 140)
    assert_same(*both(mosaic, isp, size=(9, 40), resize_in=resize_in), isp)


def test_the_result_does_not_depend_on_how_rows_are_shared_out(monkeypatch):
    from isp_distill.kernels.render import rows as render_rows

    mosaic, found = mosaics(1, 20, 8), []
    for rows in (1, 3, 8):
        monkeypatch.setattr(render_rows, "rows_per_program", lambda *_, rows=rows: rows)
        found.append(both(mosaic, CAMERA, size=(9, 5))[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("size", [None, (5, 6), (16, 6)])
def test_nan_stays_in_its_sample_and_its_neighbourhood(size):
    mosaic = mosaics(2, 14, 16, torch.float32)
    clean, _ = both(mosaic, CAMERA, size=size)
    mosaic[0, 6, 9] = math.nan
    picture, expected = both(mosaic, CAMERA, size=size)
    assert torch.equal(picture[1], clean[1])
    # Filter taps that are zero pass no NaN here, but in the reference they do.
    assert bool((picture.isnan() <= expected.isnan()).all())
    assert bool(picture[0].isnan().any())
    outside = ~expected.isnan()
    torch.testing.assert_close(picture[outside], clean[outside])


def test_infinite_values_are_clipped_and_an_empty_batch_is_empty():
    mosaic = torch.tensor([[math.inf, -math.inf], [3e38, -3e38]]).repeat(1, 4, 4)
    assert_same(*both(mosaic, CAMERA), CAMERA)
    with use_backend("triton"):
        empty = torch.zeros(0, 8, 8, device=device())
        assert render(empty, CAMERA, size=5).shape == (0, 3, 5, 5)


@pytest.mark.parametrize(("source", "target"), [(4000, 224), (17, 17), (3, 7), (9, 1), (1, 5)])
def test_weights_are_those_of_torch(source, target):
    """The columns kernel alone, on the unit vectors of a row: the whole matrix of weights."""
    from isp_distill.kernels.render.columns import launch_columns

    at = torch.linspace(0, source - 1, min(source, 4)).long()
    rows = torch.zeros(1, 3, len(at), source)
    rows[0, :, torch.arange(len(at)), at] = 1.0
    rows = rows.to(device())
    out = torch.empty(1, 3, len(at), target, device=rows.device)
    zero, one = torch.zeros(3, device=rows.device), torch.ones(3, device=rows.device)
    place = dict(zip(
        ("origin", "out_sample", "out_channel", "out_row", "out_column"), (0, *out.stride()),
        strict=True,
    ))  # fmt: skip
    call = {"ccm": one, "mean": zero, "std": one, "TONE": "linear"}
    launch_columns(rows, call, place, out, (len(at), target), develop=False)
    expected = torch.nn.functional.interpolate(
        rows.double().cpu(), (len(at), target), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(out.double().cpu(), expected, atol=2e-7, rtol=2e-6)


def test_refuses_with_a_sentence():
    with use_backend("triton"):
        with pytest.raises(BackendError, match="float64 was asked for"):
            render(mosaics().to(device()), CAMERA, dtype=torch.float64)
        with pytest.raises(BackendError, match="float64 was asked for"):
            render(mosaics().double().to(device()), CAMERA)
        white = torch.tensor(1023.0, requires_grad=True)
        with pytest.raises(BackendError, match="no gradient"):
            render(mosaics().to(device()), CAMERA.replace(white=white))
