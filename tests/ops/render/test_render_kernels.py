"""The CPU kernels of ``render`` against the reference in float64, on every instruction set here."""

from __future__ import annotations

import functools
import math

import hypothesis.strategies as st
import pytest
import render_cases
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from render_cases import (
    CAMERA,
    CURVE,
    LAYOUTS,
    OUT_DTYPES,
    assert_same,
    calls,
    mosaics,
    tone_bounds,
    tone_levels,
)

from isp_distill import ISP, render, use_backend
from isp_distill.backends import cpu_library
from isp_distill.errors import BackendError
from isp_distill.isp.camera import DEMOSAICS, TONES
from isp_distill.ops import reference
from isp_distill.ops.render.operator import render as operator

pytestmark = pytest.mark.skipif(
    cpu_library.missing() is not None, reason=str(cpu_library.missing())
)
SETS = cpu_library.instruction_sets() if cpu_library.missing() is None else []


@pytest.fixture(params=SETS)
def instruction_set(request, monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_CPU", request.param)
    return request.param


both = functools.partial(render_cases.both, "cpu")


@settings(max_examples=120, deadline=None)
@given(calls())
def test_against_the_reference(call):
    mosaic, isp, options = call
    with pytest.MonkeyPatch.context() as patch:
        for name in SETS:
            patch.setenv("ISP_DISTILL_CPU", name)
            picture, expected = both(mosaic, isp, **options)
            assert picture.dtype == options["dtype"]
            assert picture.is_contiguous(memory_format=options["memory_format"])
            assert_same(picture, expected, isp, 0.2 if "std" in options else 1.0)


@functools.cache
def expected_large(orientation, crop, size):
    with use_backend("reference"):
        isp = CAMERA.replace(orientation=orientation)
        return render(mosaics(1, 322, 4402), isp, crop=crop, size=size, dtype=torch.float64)


# Several tiles and bands and, in float32 where nothing is resized, beyond the streaming threshold.
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_large_pictures(instruction_set, orientation):
    mosaic, isp = mosaics(1, 322, 4402), CAMERA.replace(orientation=orientation)
    for crop, size in (((0, 0, 322, 4402), None), ((1, 3, 320, 4389), None), (None, (160, 4500))):
        expected = expected_large(orientation, crop, size)
        for dtype in OUT_DTYPES:
            for layout in LAYOUTS:
                with use_backend("cpu"):
                    picture = render(
                        mosaic, isp, size=size, crop=crop, dtype=dtype, memory_format=layout
                    )
                assert_same(picture, expected, isp)


@functools.cache
def expected_small(demosaic, resize_in, size):
    with use_backend("reference"):
        isp = CAMERA.replace(demosaic=demosaic)
        return render(
            mosaics(1, 300, 800), isp, size=size, resize_in=resize_in, dtype=torch.float64
        )


@pytest.mark.parametrize("resize_in", ["display", "linear"])
@pytest.mark.parametrize("demosaic", DEMOSAICS)
def test_reductions(instruction_set, demosaic, resize_in):
    isp = CAMERA.replace(demosaic=demosaic)
    for size in ((112, 112), (1, 1), (150, 200), (149, 201), (13, 400)):
        with use_backend("cpu"):
            picture = render(mosaics(1, 300, 800), isp, size=size, resize_in=resize_in)
        # Sums of up to 300 x 800 float32 products.
        expected = expected_small(demosaic, resize_in, size)
        torch.testing.assert_close(picture.double(), expected, atol=CURVE + 1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    sides=st.tuples(st.integers(4, 60), st.integers(4, 320)),
    size=st.tuples(st.integers(1, 120), st.integers(1, 60)),
    tone=st.sampled_from(TONES),
    demosaic=st.sampled_from(DEMOSAICS),
)
def test_display_resize_at_any_ratio(seed, sides, size, tone, demosaic):
    """Groups of rows and strips of columns, whole and broken."""
    generator = torch.Generator().manual_seed(seed)
    mosaic = torch.rand(1, 2 * sides[0], 2 * sides[1], generator=generator) * 1.2 - 0.1
    isp = CAMERA.replace(black=0.0, white=1.0, tone=tone, demosaic=demosaic)
    with pytest.MonkeyPatch.context() as patch:
        for name in SETS:
            patch.setenv("ISP_DISTILL_CPU", name)
            picture, expected = both(mosaic, isp, size=size)
            assert_same(picture, expected, isp)


@pytest.mark.parametrize("demosaic", DEMOSAICS)
@pytest.mark.parametrize("tone", TONES)
def test_what_is_not_a_number_stays_where_it_is(instruction_set, tone, demosaic):
    """A broken pixel shows in the pixels of the picture that it has a part in, and in no others."""
    mosaic = torch.rand(1, 214, 402, generator=torch.Generator().manual_seed(1))
    mosaic[0, 101, 300] = math.nan
    isp = CAMERA.replace(black=0.0, white=1.0, tone=tone, demosaic=demosaic)
    picture, expected = both(mosaic, isp, size=(16, 29))
    assert 0 < picture.isnan().sum() < 0.1 * picture.numel()
    assert torch.equal(picture.isnan(), expected.isnan())
    assert_same(picture.nan_to_num(), expected.nan_to_num(), isp)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    sides=st.tuples(st.integers(4, 60), st.integers(1, 70)),
    ratio=st.sampled_from([4, 4.3, 5, 7.5, 13.4]),
    bits=st.sampled_from([8, 12, 14, 16]),
    clipped=st.sampled_from([0, 0.02, 0.5]),
    demosaic=st.sampled_from(DEMOSAICS),
)
def test_linear_resize_of_whole_values(seed, sides, ratio, bits, clipped, demosaic):
    """Integer sums, below, at and above what 16 bits hold, and where values are clipped."""
    generator = torch.Generator().manual_seed(seed)
    height, width = 2 * sides[0], 2 * sides[1]
    top, random = 2**bits, functools.partial(torch.rand, generator=generator)
    scene = random(2, height, width) * (top - 1) * (1 - 0.3 * random(2, 1, 1))
    scene = torch.where(random(2, height, width) < clipped, top - 1, scene)
    mosaic = scene.to(torch.int32).to(torch.uint16)
    isp = ISP(
        black=(random(2, 4) * top / 16).floor(),
        white=torch.full((2,), top * 0.9),
        pattern=torch.randint(0, 4, (2,), generator=generator),
        white_balance=1 + 2 * random(2, 3),
        tone="linear",
        demosaic=demosaic,
    )
    size = (max(int(height // 2 / ratio), 1), max(int(width // 3), 1))
    with pytest.MonkeyPatch.context() as patch:
        for name in SETS:
            patch.setenv("ISP_DISTILL_CPU", name)
            picture, expected = both(mosaic, isp, size=size, resize_in="linear")
            assert_same(picture, expected, isp)


@pytest.mark.parametrize("tone", TONES)
def test_tone_curves_at_every_level(instruction_set, tone):
    """With no other arithmetic than x / 65535."""
    mosaic, isp, expected = tone_levels(tone)
    with use_backend("cpu"):
        picture = render(mosaic, isp)
    bound = tone_bounds(tables=instruction_set == "avx512")[tone]
    assert (picture.double() - expected).abs().max().item() < bound
    # No step back that a 16-bit display would show.
    assert picture[0, 0].flatten().diff().min().item() > -1e-7


def test_the_result_does_not_depend_on_threads_or_neighbours(instruction_set):
    mosaic = mosaics(3, 200, 4200)
    threads = torch.get_num_threads()
    with use_backend("cpu"):
        for call in ({}, {"size": (50, 300)}, {"size": (50, 300), "resize_in": "linear"}):
            together = render(mosaic, CAMERA, **call)
            try:
                torch.set_num_threads(1)
                alone = [render(m[None], CAMERA, **call) for m in mosaic]
            finally:
                torch.set_num_threads(threads)
            assert torch.equal(together, torch.cat(alone))


def test_levels_far_from_zero(instruction_set):
    """int32 levels around 1e6, where x * scale - black * scale would have lost ten bits."""
    mosaic = mosaics(1, 16, 40, torch.int32, top=1000) + 1_000_000
    isp = ISP(black=1_000_000.0, white=1_001_000.0)
    assert_same(*both(mosaic, isp), isp)


@pytest.mark.parametrize(
    "call", [{}, {"size": (9, 11)}, {"size": (9, 11), "resize_in": "linear"}, {"size": (90, 110)}]
)
def test_nan_stays_in_its_sample_and_its_neighbourhood(instruction_set, call):
    mosaic = mosaics(2, 40, 64, torch.float32)
    clean, _ = both(mosaic, CAMERA, **call)
    mosaic[0, 20, 33] = math.nan
    picture, expected = both(mosaic, CAMERA, **call)
    assert torch.equal(picture[1], clean[1])
    # Bilinear filters whose taps are zero pass no NaN here, but in the reference they do.
    assert bool((picture.isnan() <= expected.isnan()).all())
    assert bool(picture[0].isnan().any(0).any())
    outside = ~expected.isnan()
    torch.testing.assert_close(picture[outside], clean[outside])


def test_infinite_and_extreme_values_are_clipped(instruction_set):
    mosaic = torch.tensor([[math.inf, -math.inf], [3e38, -3e38]]).repeat(1, 8, 8)
    picture, expected = both(mosaic, CAMERA)
    assert bool(picture.isfinite().all())
    assert_same(picture, expected, CAMERA)


def test_empty_batch_and_smallest_mosaic(instruction_set):
    with use_backend("cpu"):
        assert render(torch.zeros(0, 8, 8), CAMERA, size=5).shape == (0, 3, 5, 5)
    for demosaic in DEMOSAICS:
        isp = CAMERA.replace(demosaic=demosaic)
        for size in (None, (1, 1), (5, 9)):
            assert_same(*both(mosaics(1, 2, 2), isp, size=size), isp)


# -------------------------------------------------------------------------- torch and refusals


def arguments(
    mosaic, size=(6, 7), dtype=torch.float32, channels_last=False, packing=None, width=None,
    linearise=None,
):  # fmt: skip
    n = len(mosaic)
    sides = mosaic.shape[1], width or mosaic.shape[2]
    isp = CAMERA.batched(n)
    return (
        mosaic, isp.black, isp.white, isp.pattern, CAMERA.gain(n), isp.ccm, torch.zeros(3),
        torch.ones(3), linearise, "malvar", "srgb", 6, (0, 0, *sides), size, "linear", dtype,
        channels_last, packing, width, "cpu",
    )  # fmt: skip


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last):
    call = arguments(mosaics(2, 16, 20), channels_last=channels_last)
    torch.library.opcheck(operator, call)
    torch.library.opcheck(operator, arguments(mosaics(2, 16, 20, torch.float32), (30, 8)))
    packed = mosaics(2, 16, 27, torch.uint8, top=256)
    table = torch.arange(1024.0)[None]
    for linearise in (None, table):
        call = arguments(packed, packing="mipi10", width=20, linearise=linearise)
        torch.library.opcheck(operator, call)


def test_compiles_without_graph_breaks():
    def picture(mosaic, black):
        return render(mosaic, CAMERA.replace(black=black), size=(12, 14), mean=0.5, std=0.25) * 2

    mosaic, black = mosaics(2), torch.tensor([64.0, 60.0, 70.0, 66.0])
    with use_backend("cpu"):
        compiled = torch.compile(picture, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(mosaic, black), picture(mosaic, black))


def test_is_the_default_and_says_what_it_refuses():
    from isp_distill.backends import choice

    def chosen(**call):
        settings = {"mosaic": torch.uint16, "dtype": torch.float32, "needs_gradient": False}
        return choice.choose("render", torch.device("cpu"), **{**settings, **call}).backend

    assert chosen() == "cpu"
    for refused in ({"mosaic": torch.float64}, {"dtype": torch.float64}, {"needs_gradient": True}):
        assert chosen(**refused) == "reference"
    with use_backend("cpu"):
        with pytest.raises(BackendError, match="float64 was asked for"):
            render(mosaics(), CAMERA, dtype=torch.float64)
        with pytest.raises(BackendError, match="float64 was asked for"):
            render(mosaics(dtype=torch.float64), CAMERA)
        with pytest.raises(BackendError, match="no gradient"):
            render(mosaics(), CAMERA.replace(white=torch.tensor(1023.0, requires_grad=True)))


def test_gradients_are_the_references():
    balance = torch.tensor([1.9, 1.0, 1.5], requires_grad=True)
    render(mosaics(), CAMERA.replace(white_balance=balance), size=8).sum().backward()
    assert bool((balance.grad != 0).all())


def test_the_kernel_checks_what_it_is_handed():
    good = arguments(mosaics(2, 16, 20))
    names = ("mosaic", "black", "white", "pattern", "gain", "ccm", "mean", "std")
    out = torch.empty(2, 3, 6, 7)

    def call(out=out, crop=(0, 0, 16, 20), demosaic=2, **changed):
        tensors = [changed.get(n, t) for n, t in zip(names, good, strict=False)]
        tensors = [t.contiguous() if i else t for i, t in enumerate(tensors)]
        torch.ops.isp_distill_cpu.render(
            *tensors, None, demosaic, 1, 1, *crop, False, 0, tensors[0].shape[2], out
        )

    call()
    for wrong in (
        {"mosaic": mosaics(2, 15, 20)},
        {"mosaic": mosaics(2, 16, 40)[:, :, ::2]},
        {"mosaic": mosaics(2, 16, 20, torch.float64)},
        {"black": torch.zeros(2, 3)},
        {"white": torch.ones(3)},
        {"pattern": torch.zeros(2)},
        {"ccm": torch.eye(3)},
        {"out": torch.empty(2, 4, 6, 7)},
        {"out": torch.empty(1, 3, 6, 7)},
        {"out": torch.empty(2, 3, 6, 7, dtype=torch.float64)},
        {"out": torch.empty(2, 3, 0, 7)},
        {"crop": (0, 0, 17, 20)},
        {"crop": (-1, 0, 4, 4)},
        {"crop": (2, 2**62, 4, 4)},
        {"crop": (1, 0, 4, 4), "demosaic": 0},
        {"demosaic": 4},
        {"ccm": torch.ones(2, 3, 4)},  # of superpixels alone
        {"ccm": torch.ones(2, 3, 1), "demosaic": 3},
    ):
        with pytest.raises(RuntimeError):
            call(**wrong)


def test_antialiased_resize_is_torchs(instruction_set):
    """The plain pixels of a superpixel picture, resized by torch itself."""
    isp = ISP(white=1023.0, demosaic="superpixel", tone="linear")
    with use_backend("cpu"):
        whole = render(mosaics(top=1023), isp)
        for size in ((8, 9), (32, 17), (60, 70), (7, 90), (90, 7), (31, 40)):
            expected = F.interpolate(
                whole.double(), size, mode="bilinear", align_corners=False, antialias=True
            )
            for resize_in in ("display", "linear"):
                resized = render(mosaics(top=1023), isp, size=size, resize_in=resize_in)
                torch.testing.assert_close(resized.double(), expected, atol=2e-6, rtol=0)


def test_reference_resizes_to_a_width_of_one():
    """Where torch, asked for both axes at once, repeats the first row."""
    column = torch.rand(1, 3, 12, 5, dtype=torch.float64)
    resized = reference._resize(column, (4, 1))
    expected = F.interpolate(column, (4, 5), mode="bilinear", antialias=True)
    expected = F.interpolate(
        expected.transpose(2, 3).contiguous(), (1, 4), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(resized, expected.transpose(2, 3))
