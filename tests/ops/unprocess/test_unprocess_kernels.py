"""unprocess and expose on the CPU: the reference's bits on every instruction set; operators."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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

from isp_distill import BackendError, NoiseModel, ShortExposure, expose, unprocess, use_backend
from isp_distill.backends import cpu_library
from isp_distill.ops import philox, reference_unprocess
from isp_distill.ops.unprocess import operator as unprocess_operator
from isp_distill.ops.unprocess.operator import signed

pytestmark = pytest.mark.skipif(
    cpu_library.missing() is not None, reason=str(cpu_library.missing())
)

CPU = torch.device("cpu")
INSTRUCTION_SETS = [] if cpu_library.missing() else cpu_library.instruction_sets()


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request, monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_CPU", request.param)


drawn = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@drawn
@given(case=cases(widest=80, highest=12))
def test_unprocess_is_the_reference(instruction_set, case):
    check_unprocess(case, "cpu", CPU)


@drawn
@given(case=cases(widest=80, highest=12), dtype=st.sampled_from(MOSAICS))
def test_expose_is_the_reference(instruction_set, case, dtype):
    check_expose(case, dtype, "cpu", CPU)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", PICTURE_DTYPES, ids=str)
def test_wider_than_a_tile_and_more_than_a_piece(instruction_set, dtype, layout):
    """Tiles have 768 columns and pieces 65,536 sites."""
    case = Case(1, 50, 1546, dtype, layout, ("BGGR",), noise=NoiseModel(), seed=2**64 - 1)
    check_unprocess(case, "cpu", CPU)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", MOSAICS, ids=str)
def test_expose_wider_than_a_tile(instruction_set, dtype, layout):
    case = Case(1, 50, 1546, layout=layout, patterns=("GRBG",), noise=NoiseModel(), seed=5)
    check_expose(case, dtype, "cpu", CPU)


def test_half_a_million_sites_are_equal(instruction_set):
    """At 16 bits a difference of one unit in the last place would show once in 5,000 sites."""
    check_unprocess(Case(2, 512, 512, bits=16, noise=NoiseModel(), seed=9), "cpu", CPU)


def test_nan_and_infinities(instruction_set):
    check_unusual_values("cpu", CPU)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_are_exact(instruction_set, value):
    picture = torch.full((1, 3, 4, 40), value)
    with use_backend("cpu"):
        mosaic, _ = unprocess(picture, bits=12, black=100.0)
    assert bool((mosaic.int() == (100 if value == 0 else 4095)).all())


def test_halves_round_to_even(instruction_set):
    values = torch.arange(0, 64).float() + 0.5
    mosaic = values.view(1, 2, 32)
    with use_backend("cpu"):
        rounded = expose(mosaic, 1.0, NoiseModel(0.0, 0.0), black=0, white=2.0**10)
    assert torch.equal(rounded.int().flatten(), values.round().int())


def test_the_number_of_threads_changes_nothing():
    case = Case(2, 400, 400, noise=NoiseModel(), patterns=("RGGB", "RGGB"), seed=12)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            check_unprocess(case, "cpu", CPU)
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------- statistics


@pytest.mark.parametrize(("shot", "read"), [(0.01, 1e-3), (1e-4, 1e-6), (0.0, 4e-4)])
def test_noise_of_a_flat_exposure(shot, read):
    """Mean and variance against the signal, and no correlation between neighbouring sites."""
    levels = torch.tensor([0.1, 0.3, 0.6])
    black, white = 16384.0, 65535.0
    mosaic = (black + levels * (white - black)).round()[:, None, None].expand(3, 512, 512)
    with use_backend("cpu"):
        noisy = expose(mosaic, 1.0, NoiseModel(shot, read), black=black, white=white, seed=31)
        other = expose(mosaic, 1.0, NoiseModel(shot, read), black=black, white=white, seed=32)
    x = (noisy.double() - mosaic.double()) / (white - black)
    count, rounding = 512 * 512, 1 / 12 / (white - black) ** 2
    variance = shot * levels.double() + read + rounding
    assert bool((x.mean((1, 2)).abs() < 5 * (variance / count).sqrt()).all())
    assert bool(((x.var((1, 2)) / variance - 1).abs() < 5 * math.sqrt(2 / count)).all())
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0)):
        product = x[:, dy:, dx:] * x[:, : 512 - dy, : 512 - dx] / variance[:, None, None]
        assert bool((product.mean((1, 2)).abs() < 5 / math.sqrt(product[0].numel())).all())
    between = (x[0] * x[1] / (variance[0] * variance[1]).sqrt()).mean()
    assert abs(float(between)) < 5 / math.sqrt(count)
    y = (other.double() - mosaic.double()) / (white - black)
    seeds = (x * y).mean((1, 2)) / variance
    assert bool((seeds.abs() < 5 / math.sqrt(count)).all())


def test_the_stream_is_philox():
    """Noise of variance 1 on a black mosaic is the standard normal numbers themselves."""
    black, white = 30000.0, 35000.0
    mosaic = torch.full((2, 16, 70), black)
    with use_backend("cpu"):
        noisy = expose(mosaic, 1.0, NoiseModel(0.0, 1.0), black=black, white=2 * white, seed=77)
    expected = philox.sensor_noise(2, 16, 70, 77, CPU) * (2 * white - black) + black
    expected = expected.round().clamp(0, 65535)
    assert float((noisy.float() - expected).abs().max()) <= 1


def test_short_exposure():
    with use_backend("cpu"):
        mosaic, isp = unprocess(torch.rand(2, 3, 64, 64), seed=1)
        dark, dark_isp = ShortExposure(0.25, NoiseModel(0.0, 0.0)).apply(mosaic, isp, seed=2)
    light = (mosaic.float() - 512) * 0.25 + 512
    torch.testing.assert_close(dark.float(), light, atol=0.501, rtol=0)
    assert torch.equal(dark_isp.exposure, isp.exposure / 0.25)


# ------------------------------------------------------------------- operators and refusals


@pytest.mark.parametrize("seed", [5, 2**64 - 3])
@pytest.mark.parametrize("noisy", [False, True])
def test_opcheck(noisy, seed):
    camera = unprocess_operator.random_camera(2, seed, CPU)
    gains = reference_unprocess.inverse_gains(
        *(camera[k] for k in ("rgb_gain", "red_gain", "blue_gain"))
    )
    sensor = (torch.tensor([0, 3]), torch.full((2, 4), 64.0), torch.full((2,), 4095.0))
    noise = (camera["shot"], camera["read"])
    for picture in (torch.rand(2, 3, 6, 34), torch.randint(0, 256, (2, 3, 6, 34)).byte()):
        arguments = (picture, camera["rgb_to_camera"], gains, *sensor)
        arguments += (*(noise if noisy else (None, None)), signed(seed), "cpu")
        torch.library.opcheck(torch.ops.isp_distill.unprocess.default, arguments)
    mosaic = torch.randint(0, 4096, (2, 6, 34)).to(torch.int16)
    arguments = (mosaic, torch.tensor([0.1, 0.5]), *noise, *sensor, signed(seed), "cpu")
    torch.library.opcheck(torch.ops.isp_distill.expose.default, arguments)
    torch.library.opcheck(torch.ops.isp_distill.random_camera.default, (2, signed(seed), CPU))


CALLS = ((3, 20), (4, 20), (5, 24), (6, 24))  # seeds and widths


@pytest.mark.parametrize(("backend", "calls"), [("cpu", CALLS), ("reference", CALLS[:1])])
def test_compiles_without_a_graph_break(backend, calls):
    """And a compiled call draws what an uncompiled one does, for seeds it was not compiled for."""

    def both(picture, seed):
        mosaic, isp = unprocess(picture, noise=NoiseModel(), seed=seed)
        short = expose(mosaic, 0.1, NoiseModel(), black=512, white=16383, seed=seed)
        return mosaic, short, isp.ccm

    torch._dynamo.reset()
    # "aot_eager" traces as the default does, and leaves out the C++ compiler's half minute.
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    with use_backend(backend):
        for seed, size in calls:
            picture = torch.rand(2, 3, 10, size)
            for found, expected in zip(compiled(picture, seed), both(picture, seed), strict=True):
                assert torch.equal(found, expected)


def test_empty_batch():
    with use_backend("cpu"):
        mosaic, isp = unprocess(torch.rand(0, 3, 4, 6), noise=NoiseModel())
        short = expose(mosaic, 0.5, NoiseModel(), black=512, white=16383)
    assert mosaic.shape == short.shape == (0, 4, 6)
    assert isp.ccm.shape == (0, 3, 3)


def test_the_compiled_kernels_are_the_usual_choice():
    before = unprocess_operator.functions_of("cpu")
    called = []
    spy = replace(before, unprocess=lambda call: called.append(1) or before.unprocess(call))
    from isp_distill.backends import choice

    usual = choice.registered("unprocess", "cpu")
    choice.register(replace(usual, functions=spy))
    try:
        with use_backend("auto"):
            unprocess(torch.rand(1, 3, 4, 4))
            unprocess(torch.rand(1, 3, 4, 4, dtype=torch.float64))
    finally:
        choice.register(usual)
    assert called == [1]  # float64 went to the reference


def test_refusals():
    with use_backend("cpu"):
        with pytest.raises(BackendError, match="this one is float64"):
            unprocess(torch.rand(1, 3, 4, 4, dtype=torch.float64))
        with pytest.raises(TypeError, match="float tensor"):
            unprocess(torch.zeros(1, 3, 4, 4, dtype=torch.int32))
        with pytest.raises(ValueError, match=r"5 x 4: crop it to even"):
            unprocess(torch.zeros(1, 3, 5, 4))
        with pytest.raises(TypeError, match="has dtype"):
            expose(torch.zeros(1, 4, 4, dtype=torch.bool), 0.5, NoiseModel(), black=0, white=1)
    # The kernels check what they are handed, should somebody call them directly.
    camera, gains = torch.eye(3)[None], torch.ones(1, 3)
    sensor = (torch.zeros(1, dtype=torch.int64), torch.zeros(1, 4), torch.ones(1))
    out = torch.empty(1, 4, 4, dtype=torch.uint16)
    kernel = torch.ops.isp_distill_cpu.unprocess
    for picture, message in (
        (torch.rand(1, 3, 4, 6), r"rgb must be \[N, 3, H, W\]"),
        (torch.rand(1, 3, 4, 4).double(), "rgb must be uint8"),
    ):
        with pytest.raises(RuntimeError, match=message):
            kernel(picture, camera, gains, *sensor, None, None, 0, out)
    with pytest.raises(RuntimeError, match="go together"):
        kernel(torch.rand(1, 3, 4, 4), camera, gains, *sensor, torch.ones(1), None, 0, out)
