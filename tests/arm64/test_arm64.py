"""The CPU kernels on ARM64: cross-compiled, run under qemu-user, against the reference here.

setup.py builds the library as for a wheel. A driver without torch and Python loads it, and every
call of ``torch.ops.isp_distill_cpu`` in these tests goes to it through a pipe, so the checks are
those of the other backends, with the same tolerances.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import cross_build
import distill_cases
import feature_cases
import pytest
import toolchain
import torch
import unprocess_cases
from arm_process import ArmOperators
from companding_cases import KNOTS_24, bits_of, curves
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_cases import WHITE, inside, packed_mosaic, windows
from raw_conv_cases import NAN_CASES, Case, check_activation, check_against_reference, check_nan
from raw_conv_cases import cases as raw_conv_cases
from render_cases import CAMERA, assert_same, both, mosaics, tone_bounds, tone_levels
from render_cases import calls as render_calls

from isp_distill import (
    ISP,
    NoiseModel,
    distill_loss,
    raw_conv,
    render,
    upsampled_distill_loss,
    use_backend,
)
from isp_distill.backends import cpu_library
from isp_distill.isp.camera import DEMOSAICS, TONES
from isp_distill.ops.companding import checked_linearise
from isp_distill.ops.raw_conv.operator import ACTIVATIONS
from isp_distill.ops.reference_companding import linearised
from isp_distill.raw.packings import PACKED

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def process():
    folder = cross_build.ROOT / "build" / "arm64"
    folder.mkdir(parents=True, exist_ok=True)
    # Of several workers one fetches and builds; what they leave is whole when the next one looks.
    with FileLock(folder / "lock"):
        try:
            tools = toolchain.toolchain(folder / "toolchain")
        except (toolchain.MissingError, OSError) as reason:
            pytest.skip(f"ARM64's tools cannot be had here: {reason}")
        built = cross_build.build(tools, folder)
    operators = ArmOperators(*built)
    yield operators
    assert operators.close() == 0


@pytest.fixture
def arm(process, monkeypatch):
    """Sends what the CPU backend would compute to the process; the test has to send something."""
    library = SimpleNamespace(instruction_set=lambda: "generic")
    monkeypatch.setattr(cpu_library, "_load", lambda: (library, None))
    monkeypatch.setattr(torch.ops, "isp_distill_cpu", process)
    before = sum(process.calls.values())
    yield process
    assert sum(process.calls.values()) > before


def drawn(check, examples, *strategies, **named):
    """Run a check on so many drawn examples."""
    settings(max_examples=examples, deadline=None)(given(*strategies, **named)(check))()


# -------------------------------------------------------------------------- raw_conv


def test_raw_conv_forward_and_backward(arm):
    drawn(lambda case: check_against_reference(case, "cpu"), 60, raw_conv_cases(30))
    assert arm.calls["raw_conv_forward"]
    assert arm.calls["raw_conv_backward"]


@pytest.mark.parametrize("channels_last", [False, True])
def test_stems_of_real_models(arm, channels_last):
    resnet = Case(1, 32, 200, 64, 7, 2, (3, 3, 3, 3), activation="silu")
    convnext = Case(1, 32, 80, 96, 4, 4, (0, 0, 0, 0), mix=True, curve="gamma")
    for case in (resnet, convnext):
        check_against_reference(replace(case, channels_last=channels_last), "cpu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(arm, activation):
    check_activation(activation, "cpu")


def test_nan_comes_through_raw_conv(arm):
    for case in NAN_CASES:
        check_nan(case, "cpu")


def test_raw_conv_of_packed_bytes(arm):
    """To the last bit what it computes from the codes."""

    def check(case, packing, window):
        case = replace(case, dtype=torch.uint16, cropped=False)
        codes, packed = packed_mosaic(
            packing, case.batch, case.height, case.width, window[0], case.seed
        )
        _, parameters, arguments = case.inputs()
        arguments["white"] = torch.full((case.batch,), WHITE[packing])
        with use_backend("cpu"):
            expected = raw_conv(codes, **parameters, **arguments)
            found = raw_conv(
                inside(packed, window[1]),
                **parameters,
                **arguments,
                packing=packing,
                width=case.width,
            )
        assert torch.equal(found, expected)

    drawn(check, 25, raw_conv_cases(20), st.sampled_from(PACKED), windows())


def test_raw_conv_of_companded_codes(arm):
    """To the last bit what it computes from the linear values."""

    def check(case, dtype, data):
        case = replace(case, dtype=dtype)
        mosaic, parameters, arguments = case.inputs()
        white = float(arguments["white"][0])
        curve = data.draw(curves(case.batch, bits_of(dtype), white))
        table = checked_linearise(curve, mosaic, None, torch.float32)
        with use_backend("cpu"):
            expected = raw_conv(linearised(mosaic, table, torch.float32), **parameters, **arguments)
            found = raw_conv(mosaic, **parameters, **arguments, linearise=curve)
        assert torch.equal(found, expected)

    drawn(check, 20, raw_conv_cases(20), st.sampled_from([torch.uint8, torch.uint16]), st.data())


# ---------------------------------------------------------------------------- render


def test_render(arm):
    def check(call):
        mosaic, isp, options = call
        picture, expected = both("cpu", mosaic, isp, **options)
        assert_same(picture, expected, isp, 0.2 if "std" in options else 1.0)

    small = render_calls(heights=(1, 2, 7, 20), widths=(1, 3, 9, 33), sizes=(1, 2, 7, 16, 31))
    drawn(check, 150, small)


@pytest.mark.parametrize("resize_in", ["display", "linear"])
@pytest.mark.parametrize("demosaic", DEMOSAICS)
def test_reductions(arm, demosaic, resize_in):
    """Segments of rows, integer sums, several tiles."""
    isp = CAMERA.replace(demosaic=demosaic)
    for mosaic, size in ((mosaics(1, 100, 200), (13, 24)), (mosaics(1, 20, 4402), (5, 40))):
        picture, expected = both("cpu", mosaic, isp, size=size, resize_in=resize_in)
        assert_same(picture, expected, isp)


@pytest.mark.parametrize("tone", TONES)
def test_tone_curves_at_every_level(arm, tone):
    mosaic, isp, expected = tone_levels(tone)
    with use_backend("cpu"):
        picture = render(mosaic, isp)
    assert (picture.double() - expected).abs().max().item() < tone_bounds(tables=False)[tone]
    assert picture[0, 0].flatten().diff().min().item() > -1e-7


@pytest.mark.parametrize("tone", TONES)
def test_nan_stays_where_it_is_in_pictures(arm, tone):
    mosaic = torch.rand(1, 214, 402, generator=torch.Generator().manual_seed(1))
    mosaic[0, 101, 300] = math.nan
    isp = CAMERA.replace(black=0.0, white=1.0, tone=tone)
    picture, expected = both("cpu", mosaic, isp, size=(16, 29))
    assert torch.equal(picture.isnan(), expected.isnan())
    assert_same(picture.nan_to_num(), expected.nan_to_num(), isp)


@pytest.mark.parametrize("packing", PACKED)
def test_render_of_packed_and_companded_bytes(arm, packing):
    codes, packed = packed_mosaic(packing, 2, 40, 70, padding=3)
    isp = CAMERA.replace(white=0.9 * WHITE[packing])
    knots = KNOTS_24 if packing == "mipi12" else None
    if knots:
        isp = isp.replace(black=256.0, white=2.0**23)
    for how in ({}, {"size": (9, 20), "resize_in": "linear"}):
        picture, expected = both(
            "cpu", packed, isp, packing=packing, width=70, linearise=knots, **how
        )
        assert_same(picture, expected, isp)
        with use_backend("cpu"):
            assert torch.equal(picture, render(codes, isp, linearise=knots, **how))


# ------------------------------------------------------------------------- unprocess


def test_unprocess_and_expose_to_the_last_bit(arm):
    """Their noise is Philox's, so this is philox.h with NEON as well."""
    drawn(
        lambda case: unprocess_cases.check_unprocess(case, "cpu", CPU),
        25,
        unprocess_cases.cases(90, 12),
    )
    drawn(
        lambda case, dtype: unprocess_cases.check_expose(case, dtype, "cpu", CPU),
        15,
        unprocess_cases.cases(90, 12),
        st.sampled_from(unprocess_cases.MOSAICS),
    )
    wide = unprocess_cases.Case(
        1, 50, 1546, patterns=("BGGR",), bits=16, noise=NoiseModel(), seed=2**64 - 1
    )
    unprocess_cases.check_unprocess(wide, "cpu", CPU)
    unprocess_cases.check_unusual_values("cpu", CPU)


# ---------------------------------------------------------------------------- losses


def test_distill_loss_of_rows_and_maps(arm):
    def check(call):
        s, t, rows, options = call
        results = distill_cases.both(
            "cpu",
            lambda a, b, c, m, w: distill_loss(
                a, b, c, mask=m, weight=w, return_agreement=True, **options
            ),
            s,
            t,
            *rows,
        )
        distill_cases.assert_same_call(results, s, t, options)

    drawn(check, 120, distill_cases.calls())


@pytest.mark.parametrize("objective", distill_cases.OBJECTIVES)
def test_nan_is_seen_by_distill_loss(arm, objective):
    for classes, positions in ((67, ()), (5, (3,)), (33, (20,))):
        if objective != "cwd" or positions:
            distill_cases.assert_nan_is_kept("cpu", objective, classes, positions)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("objective", [o for o in distill_cases.OBJECTIVES if o != "cwd"])
def test_upsampled_distill_loss(arm, objective, align_corners):
    g = torch.Generator().manual_seed(len(objective))
    for classes, dtype, size in ((5, torch.float32, (13, 21)), (37, torch.bfloat16, (6, 11))):
        s = (3 * torch.randn(2, classes, 4, 5, generator=g)).to(dtype)
        t = 3 * torch.randn(2, classes, 3, 7, generator=g)
        labels = torch.randint(0, classes, (2, *size), generator=g)
        mask = torch.rand(2, *size, generator=g) < 0.8
        results = distill_cases.both(
            "cpu",
            lambda a, b, c, m, size=size: upsampled_distill_loss(
                a, b, size, c, mask=m, objective=objective, temperature=2.0, alpha=0.5,
                align_corners=align_corners, return_agreement=True,
            ),
            s,
            t,
            labels,
            mask,
        )  # fmt: skip
        # A tie may break either way, as in test_distill_loss_kernels.py.
        (loss, _, gradient), (expected, agreed, expected_gradient) = results
        results = [(loss, agreed, gradient), (expected, agreed, expected_gradient)]
        distill_cases.assert_same(results, dtype, objective, 2.0, 2.0)


def test_in_place_gradient(arm):
    """The gradient takes the student's memory: both are one storage for the driver, too."""
    s, t = torch.randn(9, 200).requires_grad_(), torch.randn(9, 200)
    with use_backend("cpu"):
        (plain,) = torch.autograd.grad(distill_loss(s, t), s)
        (in_place,) = torch.autograd.grad(distill_loss(s * 1, t, inplace_grad=True), s)
    assert torch.equal(in_place, plain)


def test_feature_loss(arm):
    def check(call):
        student, teacher, rows, options = call
        results = feature_cases.both("cpu", student, teacher, rows, options)
        feature_cases.assert_same(results, student, rows, options)

    drawn(check, 120, feature_cases.calls())


# ------------------------------------------------------------------- the library itself


def test_operators_refuse_what_they_cannot_read(arm):
    """The checks of the operators are in the library as well, and their errors come through."""
    isp = ISP(white=1023.0)
    with use_backend("cpu"):
        render(mosaics(), isp)
        picture = torch.empty(1, 3, 8, 8)
        with pytest.raises(RuntimeError, match="unknown tone"):
            arm.render(
                mosaics(), *(torch.ones(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64)),
                torch.ones(1, 4), torch.ones(1, 3, 3), torch.zeros(3), torch.ones(3), None,
                2, 9, 1, 0, 0, 64, 80, False, 0, 80, picture,
            )  # fmt: skip
    # Nothing was left in the pipe.
    picture, expected = both("cpu", mosaics(), isp, size=8)
    assert_same(picture, expected, isp)


def test_every_operator_is_there(process):
    """What Python calls is what the library for ARM64 registers."""
    if (reason := cpu_library.missing()) is not None:
        pytest.skip(reason)
    for name, schema in process.schemas.items():
        here = getattr(torch.ops.isp_distill_cpu, name).default._schema
        assert str(here).removeprefix("isp_distill_cpu::") == str(schema)
