"""raw_conv: the compiled backend against the specification, then the operator itself."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import isp_distill
from isp_distill import BackendError, extension, raw_conv, use_backend
from isp_distill.ops import raw_conv as module
from isp_distill.ops.raw_conv_operator import ACTIVATIONS, CURVES

built = pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))
INSTRUCTION_SETS = [] if extension.missing() else extension.instruction_sets()
INTEGERS = (torch.uint8, torch.uint16, torch.int16, torch.int32)


@dataclass
class Case:
    """A call with all that it can ask for."""

    batch: int = 2
    height: int = 24
    width: int = 28
    channels: int = 5
    kernel: int = 3
    stride: int = 2
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    padding_value: bool = False
    dtype: torch.dtype = torch.uint16
    clip: bool = True
    mix: bool = False
    curve: str = "linear"
    activation: str = "none"
    bias: bool = True
    out_dtype: torch.dtype = torch.float32
    channels_last: bool = False
    cropped: bool = False
    seed: int = 0

    def inputs(self, dtype=torch.float32):
        """The mosaic, the learnable tensors by name, and the other arguments."""
        g = torch.Generator().manual_seed(self.seed)

        def randn(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

        top = 300 if self.dtype == torch.uint8 else 1100
        shape = (self.batch, self.height + 4 * self.cropped, self.width + 6 * self.cropped)
        # Values below black and above white; those that uint8 cannot hold wrap to others.
        mosaic = torch.randint(0, top, shape, generator=g).to(self.dtype)
        if self.cropped:
            mosaic = mosaic[:, 2:-2, 4:-2]
        white = 200.0 if self.dtype == torch.uint8 else 1000.0
        parameters = {
            "weight": randn(self.channels, 4, self.kernel, self.kernel) / self.kernel,
            "gain": 1.0 + 0.3 * torch.rand(self.batch, 4, generator=g).to(dtype),
        }
        if self.bias:
            parameters["bias"] = 0.1 * randn(self.channels)
        if self.mix:
            parameters["mix"] = torch.eye(4, dtype=dtype) + 0.2 * randn(self.batch, 4, 4)
        if self.curve == "gamma":
            parameters["gamma"] = torch.tensor(0.45, dtype=dtype)
        arguments = {
            "black": torch.tensor([20.0, 24.0, 18.0, 22.0]).expand(self.batch, 4),
            "white": torch.full((self.batch,), white),
            "pattern": torch.randint(0, 4, (self.batch,), generator=g),
            "stride": self.stride,
            "padding": self.padding,
            "padding_value": [0.1, -0.2, 0.3, 0.4] if self.padding_value else None,
            "clip": self.clip,
            "curve": self.curve,
            "activation": self.activation,
            "out_dtype": self.out_dtype,
            "memory_format": torch.channels_last if self.channels_last else None,
        }
        return mosaic, parameters, arguments


def forward_and_gradients(case: Case, backend: str, dtype=torch.float32):
    """The output and the gradient of each learnable tensor, on one backend."""
    mosaic, parameters, arguments = case.inputs(dtype)
    parameters = {name: p.requires_grad_() for name, p in parameters.items()}
    if dtype == torch.float64:
        arguments["out_dtype"] = torch.float64
    with use_backend(backend):
        out = raw_conv(mosaic, **parameters, **arguments)
    g = torch.Generator().manual_seed(7)
    cotangent = torch.randn(out.shape, generator=g).to(case.out_dtype).to(out.dtype)
    if case.channels_last:
        cotangent = cotangent.contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(out, list(parameters.values()), cotangent)
    return out.detach(), dict(zip(parameters, gradients, strict=True))


def assert_close(actual, expected, relative, name):
    scale = expected.abs().max().clamp(min=1e-3)
    error = (actual.double() - expected.double()).abs().max() / scale
    assert error <= relative, f"{name}: {error:.2e} of the largest value"


def check_against_reference(case: Case, backend: str):
    """Against the specification in float32, which takes the same side of every clamp and relu."""
    out, gradients = forward_and_gradients(case, backend)
    expected, expected_gradients = forward_and_gradients(case, "reference")
    assert out.dtype == expected.dtype == case.out_dtype
    assert out.shape == expected.shape
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    assert out.is_contiguous(memory_format=layout)
    assert expected.is_contiguous(memory_format=layout)
    rounding = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[case.out_dtype]
    assert_close(out, expected, rounding, "output")
    for name, gradient in gradients.items():
        assert gradient.shape == expected_gradients[name].shape
        # The slope of the sqrt and gamma curves at black is up to 1e4 times that at white.
        assert_close(gradient, expected_gradients[name], 1e-3, name)


@st.composite
def cases(draw):
    kernel = draw(st.integers(1, 7))
    stride = draw(st.sampled_from((1, 2, 3, 4)))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(4))
    return Case(
        batch=draw(st.integers(1, 3)),
        height=2 * draw(st.integers(kernel, 24)),
        width=2 * draw(st.integers(kernel, 70)),
        channels=draw(st.sampled_from((1, 3, 4, 8, 17, 32, 33))),
        kernel=kernel,
        stride=stride,
        padding=padding,
        padding_value=draw(st.booleans()),
        dtype=draw(st.sampled_from(module.MOSAIC_DTYPES)),
        clip=draw(st.booleans()),
        mix=draw(st.booleans()),
        curve=draw(st.sampled_from(CURVES)),
        # relu and relu6 have a step in their derivative, which rounding may take the other way.
        activation=draw(st.sampled_from(("none", "silu", "gelu"))),
        bias=draw(st.booleans()),
        out_dtype=draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16))),
        channels_last=draw(st.booleans()),
        cropped=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


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
    for out_dtype in (torch.float32, torch.bfloat16, torch.float16):
        for channels_last in (False, True):
            # Integer weights, levels and bias: no rounding, so that both take the same side of
            # every step of relu and relu6, and values on the step itself are there.
            mosaic = torch.randint(0, 5, (2, 16, 72), dtype=torch.int32)
            weight = torch.randint(-1, 2, (18, 4, 3, 3)).float()
            bias = torch.randint(-2, 3, (18,)).float()
            results = []
            for backend in ("cpu", "reference"):
                w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
                with use_backend(backend):
                    y = raw_conv(
                        mosaic, w, b, black=0, white=1, clip=False, padding=1, stride=2,
                        activation=activation, out_dtype=out_dtype,
                        memory_format=torch.channels_last if channels_last else None,
                    )  # fmt: skip
                    g = torch.arange(y.numel()).remainder(7).view(y.shape).to(out_dtype)
                    results.append((y, *torch.autograd.grad(y, (w, b), g)))
            for actual, expected in zip(*results, strict=True):
                assert_close(
                    actual, expected, 1e-6 if out_dtype == torch.float32 else 1e-2, activation
                )


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
            case.stride,
            case.padding,
            True,
            "gamma",
            activation,
            dtype,
            batch > 1,
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
        ({"pattern": "RGBG"}, ValueError, "unknown CFA pattern"),
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
            mosaic, weight, None, four, one, pattern, gain, None, None, None,
            1, 0, 0, 0, 0, True, 0, 0, out,
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
