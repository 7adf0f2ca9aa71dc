"""raw_conv: the compiled backend against the specification, then the operator itself."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from raw_conv_cases import (
    NAN_CASES,
    Case,
    assert_close,
    cases,
    check_activation,
    check_against_reference,
    check_nan,
    forward_and_gradients,
)

import isp_distill
from isp_distill import BackendError, raw_conv, use_backend
from isp_distill.backends import cpu_library
from isp_distill.ops.raw_conv.operator import ACTIVATIONS, CURVES

built = pytest.mark.skipif(cpu_library.missing() is not None, reason=str(cpu_library.missing()))
INSTRUCTION_SETS = [] if cpu_library.missing() else cpu_library.instruction_sets()
INTEGERS = (torch.uint8, torch.uint16, torch.int16, torch.int32)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@built
def test_cpu_agrees_with_the_reference(instruction_set, monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_CPU", instruction_set)

    @given(cases())
    @settings(max_examples=40, deadline=None)
    def check(case):
        check_against_reference(case, "cpu")

    check()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@built
def test_activations(activation, instruction_set, monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_CPU", instruction_set)
    check_activation(activation, "cpu")


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("case", NAN_CASES)
@built
def test_nan_comes_through(case, instruction_set, monkeypatch):
    """A camera parameter that has diverged must be seen."""
    monkeypatch.setenv("ISP_DISTILL_CPU", instruction_set)
    check_nan(case, "cpu")


@built
@pytest.mark.parametrize("curve", CURVES)
def test_infinity_comes_through(curve):
    mosaic = torch.rand(1, 8, 8)
    mosaic[0, 3, 3] = float("inf")
    gamma = 0.4 if curve == "gamma" else None
    outs = []
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            outs.append(
                raw_conv(
                    mosaic, torch.ones(1, 4, 1, 1), black=0.0, white=1.0, clip=False, curve=curve,
                    gamma=gamma,
                )
            )  # fmt: skip
    torch.testing.assert_close(*outs)
    assert outs[0].isinf().any()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@built
def test_shapes_of_real_stems(instruction_set, monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_CPU", instruction_set)
    resnet = Case(1, 64, 1100, 64, 7, 2, (3, 3, 3, 3), activation="silu")
    convnext = Case(1, 64, 320, 96, 4, 4, (0, 0, 0, 0), mix=True, curve="gamma")
    patches = Case(1, 96, 128, 40, 16, 16, (0, 0, 0, 0), curve="sqrt", mix=True)
    sparse = Case(1, 64, 90, 8, 2, 5, (1, 0, 0, 1), mix=True, curve="log")
    narrow = Case(3, 2, 2, 3, 1, 1, (0, 0, 0, 0))
    all_padding = Case(1, 8, 8, 4, 3, 1, (9, 0, 0, 9), padding_value=True, mix=True)
    for case in (resnet, convnext, patches, sparse, narrow, all_padding):
        check_against_reference(case, "cpu")
        check_against_reference(replace(case, channels_last=True), "cpu")


@built
@pytest.mark.parametrize("curve", CURVES)
def test_float32_is_as_close_to_float64_as_the_reference_is(curve):
    """The kernels' own curves (exp2 and log2 by polynomials) lose nothing that torch's keep."""
    case = Case(curve=curve, mix=True, height=64, width=64)
    exact, _ = forward_and_gradients(case, "reference", torch.float64)
    ours, _ = forward_and_gradients(case, "cpu")
    assert_close(ours, exact, 2e-6, curve)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("curve", CURVES)
def test_gradcheck_in_float64(curve, activation):
    case = Case(1, 8, 8, 2, 3, 2, mix=True, curve=curve, activation=activation, padding_value=True)
    mosaic, parameters, arguments = case.inputs(torch.float64)
    # Levels well inside the clamp, so that finite differences do not step over it.
    mosaic = torch.randint(200, 700, mosaic.shape, generator=torch.Generator().manual_seed(3))
    names = list(parameters)
    arguments["out_dtype"] = torch.float64

    def call(*values):
        return raw_conv(
            mosaic.to(torch.int32), **dict(zip(names, values, strict=True)), **arguments
        )

    values = [parameters[n].requires_grad_() for n in names]
    assert torch.autograd.gradcheck(call, values, fast_mode=True)


def test_equals_the_pytorch_that_it_replaces():
    mosaic = torch.randint(0, 4096, (2, 32, 48)).to(torch.uint16)
    weight, bias = torch.randn(8, 4, 3, 3), torch.randn(8)
    packed = F.pixel_unshuffle(mosaic.float()[:, None], 2)
    x = ((packed - 256) / (4095 - 256)).clamp(0, 1)
    expected = F.relu(F.conv2d(x, weight, bias, stride=2, padding=1))
    actual = raw_conv(
        mosaic, weight, bias, black=256, white=4095, stride=2, padding=1, activation="relu"
    )
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    case = Case(mix=True, curve="gamma", activation="relu", batch=1, height=8, width=8)
    mosaic, parameters, arguments = case.inputs()
    batch = mosaic.shape[0]
    for activation in ("relu", "gelu"):
        args = (
            mosaic,
            parameters["weight"].to(dtype).requires_grad_(),
            parameters["bias"].to(dtype).requires_grad_(),
            arguments["black"],
            arguments["white"],
            arguments["pattern"],
            parameters["gain"].requires_grad_(),
            None,
            parameters["mix"].requires_grad_(),
            parameters["gamma"].requires_grad_(),
            None,
            case.stride,
            case.padding,
            True,
            "gamma",
            activation,
            dtype,
            batch > 1,
            None,
            None,
            "cpu",
        )
        # autograd and aot checks run backward with random cotangents.
        torch.library.opcheck(torch.ops.isp_distill.raw_conv.default, args, atol=1e-3, rtol=1e-2)


class Stem(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3) / 6)
        self.bias = torch.nn.Parameter(torch.randn(8))
        self.gain = torch.nn.Parameter(torch.ones(4))
        self.mix = torch.nn.Parameter(torch.eye(4))
        self.gamma = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, mosaic):
        return raw_conv(
            mosaic, self.weight, self.bias, black=64, white=1023, pattern="GRBG", gain=self.gain,
            mix=self.mix, curve="gamma", gamma=self.gamma, stride=2, padding=1, activation="silu",
        )  # fmt: skip


def test_compiles_without_a_graph_break():
    stem = Stem()
    mosaic = torch.randint(0, 1023, (2, 16, 24)).to(torch.uint16)
    expected = stem(mosaic)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in stem.parameters()]
    stem.zero_grad()
    compiled = torch.compile(stem, fullgraph=True, backend="aot_eager")
    actual = compiled(mosaic)
    actual.square().sum().backward()
    torch.testing.assert_close(actual, expected)
    for p, gradient in zip(stem.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_export_leaves_no_operator_of_this_library():
    stem = Stem().eval()
    mosaic = torch.randint(0, 1023, (2, 16, 24), dtype=torch.int32)
    program = torch.export.export(stem, (mosaic,))
    names = [str(node.target) for node in program.graph.nodes]
    assert not [name for name in names if "isp_distill" in name]
    torch.testing.assert_close(program.module()(mosaic), stem(mosaic), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_autocast_sets_the_output_type_and_nothing_else(backend):
    stem = Stem()
    mosaic = torch.randint(0, 1023, (2, 16, 24)).to(torch.uint16)
    with use_backend(backend):
        exact = stem(mosaic)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = stem(mosaic)
            out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, exact.to(torch.bfloat16), rtol=1e-2, atol=1e-2)
    assert all(p.grad.dtype == torch.float32 for p in stem.parameters())


def test_channels_last_follows_the_weight():
    mosaic = torch.randint(0, 1023, (2, 16, 24)).to(torch.uint16)
    weight = torch.randn(8, 4, 3, 3)
    last = weight.to(memory_format=torch.channels_last)
    y = raw_conv(mosaic, weight, black=0, white=1023)
    z = raw_conv(mosaic, last, black=0, white=1023)
    assert y.is_contiguous()
    assert z.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, z.contiguous())


@built
@pytest.mark.parametrize("strides", ["expanded", "transposed"])
def test_gradients_with_any_strides(strides):
    mosaic = torch.randint(0, 1023, (2, 16, 24)).to(torch.uint16)
    results = []
    for backend in ("cpu", "reference"):
        weight = torch.linspace(-1, 1, 8 * 36).view(8, 4, 3, 3).requires_grad_()
        with use_backend(backend):
            y = raw_conv(mosaic, weight, black=0, white=1023, activation="silu")
        out = y.sum() if strides == "expanded" else (y.transpose(2, 3) * torch.arange(6.0)).sum()
        out.backward()
        results.append(weight.grad)
    assert_close(results[0], results[1], 1e-5, strides)


@built
def test_results_do_not_depend_on_the_number_of_threads():
    case = Case(3, 64, 96, 16, mix=True, curve="gamma", activation="gelu")
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            out, gradients = forward_and_gradients(case, "cpu")
            results.append([out, *gradients.values()])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@built
def test_only_the_mosaic_and_the_output_are_kept_for_the_backward_pass():
    mosaic = torch.randint(0, 1023, (1, 256, 256)).to(torch.uint16)
    for activation, with_output in (("none", False), ("relu", True), ("gelu", False)):
        weight = torch.randn(16, 4, 3, 3, requires_grad=True)
        y = raw_conv(mosaic, weight, black=0, white=1023, activation=activation)
        saved = [t for t in y.grad_fn.saved_tensors if t is not None]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
        large = sorted(n for n in storages.values() if n > 4096)
        expected = [mosaic.nbytes] + ([y.nbytes] if with_output else [])
        assert large == sorted(expected)


MEMORY = """
    import resource, torch
    from isp_distill import raw_conv
    torch.set_num_threads(2)

    def step(size):
        mosaic = torch.randint(0, 4095, (1, size, size), dtype=torch.int16).view(torch.uint16)
        weight = torch.randn(32, 4, 3, 3, requires_grad=True)
        y = raw_conv(mosaic, weight, black=64, white=4095, stride=2, padding=1, activation="relu")
        y.backward(torch.ones_like(y))
        return mosaic.nbytes + 2 * y.nbytes

    def peak():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    step(64)
    before = peak()
    needed = step(4096)
    print((peak() - before) / needed)
"""


@built
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_peak_memory_is_mosaic_output_and_its_gradient():
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY)],
        capture_output=True, text=True, check=True,
        env={**os.environ, "ISP_DISTILL_BACKEND": "cpu"},
    )  # fmt: skip
    assert float(result.stdout) <= 1.05


@built
def test_float64_goes_to_the_reference_and_cpu_says_why_not():
    mosaic = torch.randint(0, 1023, (1, 8, 8), dtype=torch.int32)
    weight = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    assert raw_conv(mosaic, weight, black=0, white=1023).dtype == torch.float64
    with use_backend("cpu"), pytest.raises(BackendError, match="computes in float32"):
        raw_conv(mosaic, weight, black=0, white=1023)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mosaic": torch.zeros(1, 7, 8)}, ValueError, "even, positive height"),
        ({"mosaic": torch.zeros(8)}, ValueError, r"expected \[N, H, W\]"),
        ({"mosaic": torch.zeros(1, 8, 8, dtype=torch.int64)}, TypeError, "int64"),
        ({"weight": torch.zeros(2, 3, 3, 3)}, ValueError, r"\[C, 4, K, K\]"),
        ({"weight": torch.zeros(2, 4, 9, 9)}, ValueError, "does not fit"),
        ({"bias": torch.zeros(3)}, ValueError, "bias has shape"),
        ({"black": [1.0, 2.0]}, ValueError, "black has shape"),
        ({"pattern": "RGBG"}, ValueError, "unknown pattern 'RGBG': expected one of RGGB"),
        ({"stride": 0}, ValueError, "stride"),
        ({"padding": (1, 2, 3)}, ValueError, "padding"),
        ({"padding": -1}, ValueError, "padding"),
        ({"mix": torch.zeros(3, 3)}, ValueError, "mix has shape"),
        ({"curve": "srgb"}, ValueError, "unknown curve"),
        ({"gamma": 2.2}, ValueError, "gamma goes with"),
        ({"curve": "gamma"}, ValueError, "gamma goes with"),
        ({"activation": "tanh"}, ValueError, "unknown activation"),
        ({"out_dtype": torch.int32}, TypeError, "out_dtype"),
        ({"memory_format": torch.channels_last_3d}, ValueError, "memory_format"),
    ],
)
def test_bad_input_is_named(change, error, message):
    call = {
        "mosaic": torch.zeros(1, 8, 8), "weight": torch.zeros(2, 4, 3, 3), "black": 0, "white": 1
    }  # fmt: skip
    with pytest.raises(error, match=message):
        raw_conv(**{**call, **change})


@built
def test_the_kernels_check_their_arguments_themselves():
    """A wrong size must be an error there too, before any memory is touched."""
    mosaic, one = torch.zeros(1, 8, 8), torch.ones(1)
    weight, four = torch.zeros(2, 4, 3, 3), torch.zeros(1, 4)
    pattern = torch.zeros(1, dtype=torch.int64)

    def call(out, gain=four, weight=weight):
        torch.ops.isp_distill_cpu.raw_conv_forward(
            mosaic, weight, None, four, one, pattern, gain, None, None, None, None,
            1, 0, 0, 0, 0, True, 0, 0, 0, 8, out,
        )  # fmt: skip

    call(torch.empty(1, 2, 2, 2))
    for wrong in (
        {"out": torch.empty(1, 2, 3, 2)},
        {"out": torch.empty(1, 2, 2, 2, dtype=torch.float64)},
        {"out": torch.empty(1, 2, 2, 2), "gain": torch.zeros(2, 4)},
        {"out": torch.empty(1, 2, 2, 2), "weight": weight.double()},
    ):
        with pytest.raises(RuntimeError):
            call(**wrong)


def test_empty_batches():
    y = isp_distill.raw_conv(torch.zeros(0, 8, 8), torch.zeros(2, 4, 3, 3), black=0, white=1)
    assert y.shape == (0, 2, 2, 2)
