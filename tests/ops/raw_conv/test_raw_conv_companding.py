"""raw_conv with ``linearise``: to the last bit what it computes from the linear values.

A kernel looks a row's codes up and goes on as with float32, so nothing may differ, forward or
backward. What the values are, tests/ops/test_reference_companding.py says.
"""

from __future__ import annotations

import dataclasses

import onnxruntime
import pytest
import torch
from companding_cases import KNOTS_24, bits_of, curves
from fuzz.guard_pages import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_cases import inside, packed_mosaic, windows
from raw_conv_cases import Case, assert_close, cases

from isp_distill import raw_conv, use_backend
from isp_distill.backends import cpu_library
from isp_distill.ops.companding import checked_linearise
from isp_distill.ops.reference_companding import linearised
from isp_distill.raw.packings import PACKED

built = pytest.mark.skipif(cpu_library.missing() is not None, reason=str(cpu_library.missing()))
INSTRUCTION_SETS = [] if cpu_library.missing() else cpu_library.instruction_sets()
WHOLE = (torch.uint8, torch.uint16, torch.int16, torch.int32)


def called(case, mosaic, backend="cpu", **how):
    """The output and all gradients."""
    _, parameters, arguments = case.inputs()
    leaves = [p.requires_grad_() for p in parameters.values()]
    with use_backend(backend):
        out = raw_conv(mosaic, **parameters, **arguments, **how)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
    return out, *torch.autograd.grad(out, leaves, upstream)


def linear(mosaic, curve):
    return linearised(mosaic, checked_linearise(curve, mosaic, None, torch.float32), torch.float32)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@built
def test_the_same_to_the_last_bit(instruction_set, monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_CPU", instruction_set)

    @given(cases(40), st.sampled_from(WHOLE), st.data())
    @settings(max_examples=60, deadline=None)
    def check(case, dtype, data):
        case = dataclasses.replace(case, dtype=dtype)
        mosaic, _, arguments = case.inputs()
        curve = data.draw(curves(case.batch, bits_of(dtype), float(arguments["white"][0])))
        found = called(case, mosaic, linearise=curve)
        for ours, theirs in zip(found, called(case, linear(mosaic, curve)), strict=True):
            assert torch.equal(ours, theirs)

    check()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@built
def test_packed_bytes_to_the_last_bit(instruction_set, monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_CPU", instruction_set)

    @given(cases(40), st.sampled_from(PACKED), windows(), st.data())
    @settings(max_examples=60, deadline=None)
    def check(case, packing, window, data):
        case = dataclasses.replace(case, dtype=torch.uint16, cropped=False)
        curve = data.draw(curves(case.batch, bits_of(None, packing), 1000.0))
        codes, packed = packed_mosaic(
            packing, case.batch, case.height, case.width, window[0], case.seed
        )
        how = {"packing": packing, "width": case.width}
        found = called(case, guarded(inside(packed, window[1])), linearise=curve, **how)
        for ours, theirs in zip(found, called(case, linear(codes, curve)), strict=True):
            assert torch.equal(ours, theirs)

    check()


@settings(max_examples=25, deadline=None)
@given(case=cases(30), dtype=st.sampled_from(WHOLE), data=st.data())
@built
def test_against_the_reference(case, dtype, data):
    case = dataclasses.replace(case, dtype=dtype, mix=False, curve="linear", activation="none")
    mosaic, _, arguments = case.inputs()
    curve = data.draw(curves(case.batch, bits_of(dtype), float(arguments["white"][0])))
    found = called(case, mosaic, linearise=curve)
    expected = called(case, mosaic, "reference", linearise=curve)
    rounding = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[case.out_dtype]
    for ours, theirs, allowed in zip(found, expected, (rounding, *[1e-3] * 4), strict=False):
        assert_close(ours, theirs, allowed, str(case))


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=built)])
def test_by_hand(backend):
    """One period, the four planes as they are: code 1 is 100, 2 is 300, 3 is 300 + 1500 / 2."""
    mosaic = torch.tensor([[[0, 1], [2, 3]]], dtype=torch.uint8)
    knots = [[0, 0], [1, 100], [2, 300], [4, 1800]]
    weight = torch.eye(4).view(4, 4, 1, 1)
    with use_backend(backend):
        y = raw_conv(mosaic, weight, black=50, white=1050, linearise=knots, clip=False)
    expected = torch.tensor([-0.05, 0.05, 0.25, 1.0])
    torch.testing.assert_close(y.flatten(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=built)])
def test_24_bits_in_float32(backend):
    """A 12-bit code of a 24-bit sensor: whole values, black and white included, are exact."""
    codes, packed = packed_mosaic("mipi12", 1, 8, 12)
    weight = torch.eye(4).view(4, 4, 1, 1)
    settings = {"black": 256, "white": 256 + 2**23, "clip": False, "linearise": KNOTS_24}
    with use_backend(backend):
        found = raw_conv(packed, weight, packing="mipi12", width=12, **settings)
    # float64 rounds nothing but the quotient by 2 ** 23, which is exact.
    with use_backend("reference"):
        expected = raw_conv(codes, weight.double(), **settings)
    whole = (expected * 2**23) == (expected * 2**23).round()
    assert whole.sum() > 10
    assert torch.equal(found.double()[whole], expected[whole])


def test_gradcheck():
    mosaic = torch.randint(0, 4096, (2, 6, 8), dtype=torch.int32)
    curve = torch.tensor([KNOTS_24, [[0, 0], [9, 64], [99, 999], [1000, 5e5], [4095, 9e6]]])
    weight = torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    gain = (1 + torch.rand(2, 4, dtype=torch.float64)).requires_grad_()

    def call(weight, gain):
        return raw_conv(
            mosaic, weight, gain=gain, black=64, white=2**24, clip=False, linearise=curve
        )

    assert torch.autograd.gradcheck(call, (weight, gain))


@built
def test_opcheck():
    case = Case(batch=2, height=8, width=8, activation="relu")
    mosaic, parameters, arguments = case.inputs()
    torch.library.opcheck(
        torch.ops.isp_distill.raw_conv.default,
        (
            mosaic, parameters["weight"].requires_grad_(), parameters["bias"].requires_grad_(),
            arguments["black"], arguments["white"], arguments["pattern"],
            parameters["gain"].requires_grad_(), None, None, None, torch.arange(2048.0)[None],
            2, (1, 1, 1, 1), True, "linear", "relu", torch.float32, False, None, None, "cpu",
        ),
        atol=1e-3, rtol=1e-2,
    )  # fmt: skip


class Stem(torch.nn.Module):
    def __init__(self, linearise):
        super().__init__()
        self.linearise = linearise
        self.weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3) / 6)

    def forward(self, packed):
        return raw_conv(
            packed, self.weight, black=64, white=2**24 - 1, curve="log", packing="mipi12",
            width=24, linearise=self.linearise,
        )  # fmt: skip


TABLE = torch.linspace(0, 8, 4096).exp().mul(5000).round()
FORMS = {"numbers": KNOTS_24, "knots": torch.tensor([KNOTS_24] * 2), "table": TABLE}


@pytest.mark.parametrize("form", FORMS)
def test_compiles(form):
    _, packed = packed_mosaic("mipi12", 2, 16, 24, padding=2)
    stem = Stem(FORMS[form])
    compiled = torch.compile(stem, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(packed), stem(packed))


@pytest.mark.parametrize("form", FORMS)
def test_runs_in_onnxruntime(form, tmp_path):
    _, packed = packed_mosaic("mipi12", 2, 16, 24, padding=2)
    stem = Stem(FORMS[form]).eval()
    program = torch.export.export(stem, (packed,))
    assert "isp_distill" not in str(program.graph)
    path = tmp_path / "stem.onnx"
    torch.onnx.export(program, (packed,), path, dynamo=True, input_names=["packed"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"packed": packed.numpy()})[0])
    torch.testing.assert_close(found, stem(packed), rtol=1e-4, atol=1e-5)


@built
def test_the_kernels_check_the_table_themselves():
    weight, four, one = torch.zeros(2, 4, 3, 3), torch.zeros(2, 4), torch.ones(2)

    def call(mosaic, table):
        torch.ops.isp_distill_cpu.raw_conv_forward(
            mosaic, weight, None, four, one, torch.zeros(2, dtype=torch.int64), four, None, None,
            None, table, 1, 0, 0, 0, 0, True, 0, 0, 0, 8, torch.empty(2, 2, 2, 2),
        )  # fmt: skip

    mosaic = torch.zeros(2, 8, 8, dtype=torch.int32)
    call(mosaic, torch.zeros(1, 1))
    for wrong in (
        torch.zeros(3, 9), torch.zeros(9), torch.zeros(2, 0), torch.zeros(2, 9).double(),
        torch.zeros(9, 2).t(),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            call(mosaic, wrong)
    with pytest.raises(RuntimeError):
        call(mosaic.float(), torch.zeros(1, 9))
