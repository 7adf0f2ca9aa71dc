"""Calls of raw_conv, drawn and fixed, and what holds for them on every backend."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from isp_distill import raw_conv, use_backend
from isp_distill.ops.raw_conv.arguments import MOSAIC_DTYPES
from isp_distill.ops.raw_conv.operator import CURVES


def device_of(backend: str) -> torch.device:
    """Where a backend's tensors are: on the GPU for its kernels, where there is one."""
    on_gpu = backend in ("triton", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


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
        black = torch.tensor([20.0, 24.0, 18.0, 22.0])
        gain = 1.0 + 0.3 * torch.rand(self.batch, 4, generator=g).to(dtype)
        mix = torch.eye(4, dtype=dtype) + 0.2 * randn(self.batch, 4, 4)
        if self.mix and self.curve != "linear":
            # The slope of a curve near black is up to 1e4 times that at white: a mixed value there
            # must not be rounded, or the gradients of two correct results differ. With these
            # numbers float32 is exact up to the curve.
            white = 152.0 if self.dtype == torch.uint8 else 1048.0
            black = torch.full((4,), 24.0)
            gain, mix = (gain * 8).round() / 8, (mix * 8).round() / 8
        parameters = {
            "weight": randn(self.channels, 4, self.kernel, self.kernel) / self.kernel,
            "gain": gain,
        }
        if self.bias:
            parameters["bias"] = 0.1 * randn(self.channels)
        if self.mix:
            parameters["mix"] = mix
        if self.curve == "gamma":
            parameters["gamma"] = torch.tensor(0.45, dtype=dtype)
        arguments = {
            "black": black.expand(self.batch, 4),
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
    where = device_of(backend)
    there = {name: p.to(where) for name, p in parameters.items()}
    arguments = {k: v.to(where) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with use_backend(backend):
        out = raw_conv(mosaic.to(where), **there, **arguments)
    g = torch.Generator().manual_seed(7)
    cotangent = torch.randn(out.shape, generator=g).to(case.out_dtype).to(out.dtype)
    if case.channels_last:
        cotangent = cotangent.contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(out, list(parameters.values()), cotangent.to(where))
    return out.detach().cpu(), dict(zip(parameters, gradients, strict=True))


def size_of_terms(case: Case, name: str, draws: int = 8):
    """The root of the summed squares of what a gradient of one number is the sum of.

    Rounding errors are of this size, and the sum may all but cancel. The gradient for outputs with
    signs of chance has it as its root mean square.
    """
    mosaic, parameters, arguments = case.inputs()
    leaf = parameters[name].requires_grad_()
    with use_backend("reference"):
        out = raw_conv(mosaic, **parameters, **arguments)
    g = torch.Generator().manual_seed(7)
    cotangent = torch.randn(out.shape, generator=g).to(case.out_dtype).to(out.dtype)
    squares = []
    for _ in range(draws):
        signs = (torch.rand(out.shape, generator=g) < 0.5) * 2 - 1
        (gradient,) = torch.autograd.grad(out, leaf, cotangent * signs, retain_graph=True)
        squares.append(gradient.double().square())
    return torch.stack(squares).mean().sqrt()


def assert_close(actual, expected, relative, name, least=1e-3):
    scale = expected.abs().max().clamp(min=least)
    error = (actual.double() - expected.double()).abs().max() / scale
    assert error <= relative, f"{name}: {error:.2e} of the largest value"


def check_against_reference(case: Case, backend: str, half_operands: bool = False):
    """Against the specification in float32, which takes the same side of every clamp and relu.

    ``half_operands``: a 16-bit output's products are of 16-bit numbers, as tensor cores take them.
    """
    out, gradients = forward_and_gradients(case, backend)
    expected, expected_gradients = forward_and_gradients(case, "reference")
    assert out.dtype == expected.dtype == case.out_dtype
    assert out.shape == expected.shape
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    assert out.is_contiguous(memory_format=layout)
    assert expected.is_contiguous(memory_format=layout)
    rounding = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[case.out_dtype]
    if half_operands and case.out_dtype == torch.float16:
        rounding = 5e-3  # products that are large and cancel keep their operands' rounding
    assert_close(out, expected, rounding, "output")
    for name, gradient in gradients.items():
        assert gradient.shape == expected_gradients[name].shape
        relative = 1e-3
        if half_operands:
            relative = {torch.bfloat16: 3e-2, torch.float16: 5e-3}.get(case.out_dtype, relative)
        least = size_of_terms(case, name).item() if name == "gamma" else 1e-3
        assert_close(gradient, expected_gradients[name], relative, name, max(least, 1e-3))


@st.composite
def cases(draw, largest=70):
    """Calls with everything they can ask for; ``largest``: of half the width."""
    kernel = draw(st.integers(1, 7))
    stride = draw(st.sampled_from((1, 2, 3, 4)))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(4))
    return Case(
        batch=draw(st.integers(1, 3)),
        height=2 * draw(st.integers(kernel, min(24, largest))),
        width=2 * draw(st.integers(kernel, largest)),
        channels=draw(st.sampled_from((1, 3, 4, 8, 17, 32, 33))),
        kernel=kernel,
        stride=stride,
        padding=padding,
        padding_value=draw(st.booleans()),
        dtype=draw(st.sampled_from(MOSAIC_DTYPES)),
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


#: Where NaN comes from, the curve, the activation, and whether there is a clip and a mix.
NAN_CASES = [
    ("mosaic", "linear", "none", True, False),
    ("mosaic", "linear", "silu", False, True),
    ("mosaic", "sqrt", "relu", True, False),
    ("mosaic", "log", "relu6", True, True),
    ("mosaic", "gamma", "gelu", False, False),
    ("gain", "linear", "relu", True, False),
    ("gain", "gamma", "none", True, True),
    ("gain", "sqrt", "silu", False, False),
    ("mix", "linear", "relu", True, True),
    ("mix", "log", "none", False, True),
    ("mix", "gamma", "none", True, True),
    ("gamma", "gamma", "relu", True, False),
    ("gamma", "gamma", "none", False, True),
]


def check_nan(
    case: tuple[str, str, str, bool, bool],
    backend: str,
    learn: tuple[str, ...] | None = None,
    edges: bool = True,
):
    """NaN comes out where the specification has it and nowhere else, in the output and in the
    gradients of ``learn`` (all of them if None). Every sensor value is read by some output.

    ``edges``: also for a sensor value that some taps do not read: NaN must not reach their weights.
    """
    where, curve, activation, clip, mixed = case
    g = torch.Generator().manual_seed(3)
    mosaic = 900 * torch.rand(2, 12, 16, generator=g) + 50
    parameters = {
        "weight": torch.randn(3, 4, 3, 3, generator=g),
        "bias": torch.randn(3, generator=g),
        "gain": torch.ones(2, 4),
    }
    if mixed:
        parameters["mix"] = (torch.eye(4) + 0.1).expand(2, 4, 4).clone()
    if curve == "gamma":
        parameters["gamma"] = torch.tensor(0.45)
    nan = float("nan")
    if where == "mosaic":
        mosaic[1, 5, 7] = nan
        if edges:
            mosaic[0, 11, 15] = nan
    elif where == "gain":
        parameters["gain"][1, 2] = nan
    elif where == "mix":
        parameters["mix"][0, 1, 2] = nan
    else:
        parameters["gamma"] = torch.tensor(nan)
    learn = tuple(parameters) if learn is None else learn
    results = []
    for name in (backend, "reference"):
        there = {
            k: p.to(device_of(name)).detach().requires_grad_(k in learn)
            for k, p in parameters.items()
        }
        with use_backend(name):
            y = raw_conv(
                mosaic.to(device_of(name)), **there, black=64.0, white=1000.0, clip=clip,
                curve=curve, activation=activation,
            )  # fmt: skip
            wanted = [there[k] for k in learn]
            gradients = torch.autograd.grad(y, wanted, torch.ones_like(y))
        results.append([t.detach().cpu() for t in (y, *gradients)])
    assert results[1][0].isnan().any()
    for actual, expected, name in zip(*results, ("output", *learn), strict=True):
        assert torch.equal(actual.isnan(), expected.isnan()), f"{name} of {case}"
        # torch itself lets NaN's gradient through relu6 in small tensors, and not in large ones.
        if activation != "relu6":
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3, equal_nan=True)


def check_activation(activation: str, backend: str):
    """Integer weights, levels and bias: no rounding, so that both take the same side of every step
    of relu and relu6, and values on the step itself are there."""
    for out_dtype in (torch.float32, torch.bfloat16, torch.float16):
        for channels_last in (False, True):
            mosaic = torch.randint(0, 5, (2, 16, 72), dtype=torch.int32)
            weight = torch.randint(-1, 2, (18, 4, 3, 3)).float()
            bias = torch.randint(-2, 3, (18,)).float()
            results = []
            for name in (backend, "reference"):
                w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
                where = device_of(name)
                with use_backend(name):
                    y = raw_conv(
                        mosaic.to(where), w.to(where), b.to(where),
                        black=0, white=1, clip=False, padding=1, stride=2,
                        activation=activation, out_dtype=out_dtype,
                        memory_format=torch.channels_last if channels_last else None,
                    )  # fmt: skip
                    g = torch.arange(y.numel()).remainder(7).view(y.shape).to(out_dtype)
                    gradients = torch.autograd.grad(y, (w, b), g.to(where))
                    results.append((y.cpu(), *gradients))
            for actual, expected in zip(*results, strict=True):
                assert_close(
                    actual, expected, 1e-6 if out_dtype == torch.float32 else 1e-2, activation
                )
