"""raw_conv on packed bytes: to the last bit what it computes from the codes.

The kernels unpack a row and go on as with uint16, so nothing may differ, forward or backward. That
the codes themselves are right, and what the bytes mean, tests/ops/test_reference_packing.py says.
"""

from __future__ import annotations

import dataclasses

import onnxruntime
import pytest
import torch
from fuzz.guard_pages import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_cases import WHITE, inside, packed_mosaic, windows
from raw_conv_cases import Case, assert_close, cases

from isp_distill import raw_conv, use_backend
from isp_distill.backends import cpu_library
from isp_distill.raw.packings import PACKED

built = pytest.mark.skipif(cpu_library.missing() is not None, reason=str(cpu_library.missing()))
INSTRUCTION_SETS = [] if cpu_library.missing() else cpu_library.instruction_sets()


def called(case, mosaic, white, backend="cpu", **how):
    """The output and all gradients."""
    _, parameters, arguments = case.inputs()
    leaves = [p.requires_grad_() for p in parameters.values()]
    arguments["white"] = torch.full((case.batch,), white)
    with use_backend(backend):
        out = raw_conv(mosaic, **parameters, **arguments, **how)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
    return out, *torch.autograd.grad(out, leaves, upstream)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@built
def test_the_same_to_the_last_bit(instruction_set, monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_CPU", instruction_set)

    @given(cases(40), st.sampled_from(PACKED), windows())
    @settings(max_examples=60, deadline=None)
    def check(case, packing, window):
        case = dataclasses.replace(case, dtype=torch.uint16, cropped=False)
        padding, apart = window
        codes, packed = packed_mosaic(
            packing, case.batch, case.height, case.width, padding, case.seed
        )
        # A window of a larger tensor ends behind its last row, the bytes of which it may not read.
        bytes_ = guarded(inside(packed, apart))
        found = called(case, bytes_, WHITE[packing], packing=packing, width=case.width)
        for ours, theirs in zip(found, called(case, codes, WHITE[packing]), strict=True):
            assert torch.equal(ours, theirs)

    check()


@pytest.mark.parametrize("packing", PACKED)
@built
def test_against_the_reference(packing):
    """In several bands of columns, which begin in the middle of a group."""
    case = Case(1, 16, 2 * 9002, 8, 3, 1, (0, 1, 1, 1), mix=True, activation="silu")
    _, packed = packed_mosaic(packing, 1, case.height, case.width)
    how = {"packing": packing, "width": case.width}
    found = called(case, packed, WHITE[packing], **how)
    expected = called(case, packed, WHITE[packing], "reference", **how)
    for ours, theirs, allowed in zip(found, expected, (1e-5, *[1e-3] * 4), strict=True):
        assert_close(ours, theirs, allowed, packing)


@built
def test_opcheck():
    case = Case(batch=1, height=8, width=8, activation="relu")
    _, parameters, arguments = case.inputs()
    _, packed = packed_mosaic("mipi10", 1, 8, 8, padding=1)
    torch.library.opcheck(
        torch.ops.isp_distill.raw_conv.default,
        (
            packed, parameters["weight"].requires_grad_(), parameters["bias"].requires_grad_(),
            arguments["black"], arguments["white"], arguments["pattern"],
            parameters["gain"].requires_grad_(), None, None, None, None,
            2, (1, 1, 1, 1), True, "linear", "relu", torch.float32, False, "mipi10", 8, "cpu",
        ),
        atol=1e-3, rtol=1e-2,
    )  # fmt: skip


class Stem(torch.nn.Module):
    def __init__(self, packing="mipi10"):
        super().__init__()
        self.packing = packing
        self.weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3) / 6)

    def forward(self, packed):
        return raw_conv(packed, self.weight, black=64, white=1023, packing=self.packing, width=24)


def test_compiles_and_exports():
    _, packed = packed_mosaic("mipi10", 2, 16, 24, padding=2)
    stem = Stem()
    expected = stem(packed)
    compiled = torch.compile(stem, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(packed), expected)
    program = torch.export.export(stem, (packed,))
    assert "isp_distill" not in str(program.graph)
    torch.testing.assert_close(program.module()(packed), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packing", ["mipi14", "pfnc10p"])  # every kind of operator between them
def test_runs_in_onnxruntime(packing, tmp_path):
    _, packed = packed_mosaic(packing, 2, 16, 24, padding=2)
    stem = Stem(packing).eval()
    path = tmp_path / "stem.onnx"
    torch.onnx.export(stem, (packed,), path, dynamo=True, input_names=["packed"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"packed": packed.numpy()})[0])
    torch.testing.assert_close(found, stem(packed), rtol=1e-4, atol=1e-5)


@built
def test_the_kernels_check_packed_mosaics_themselves():
    weight, four, one = torch.zeros(2, 4, 3, 3), torch.zeros(1, 4), torch.ones(1)

    def call(mosaic, packing, width):
        torch.ops.isp_distill_cpu.raw_conv_forward(
            mosaic, weight, None, four, one, torch.zeros(1, dtype=torch.int64), four, None, None,
            None, None, 1, 0, 0, 0, 0, True, 0, 0, packing, width, torch.empty(1, 2, 2, 2),
        )  # fmt: skip

    packed = torch.zeros(1, 8, 10, dtype=torch.uint8)
    call(packed, 1, 8)
    for mosaic, packing, width in (
        (packed, 0, 8), (packed, 7, 8), (packed, -1, 8), (packed, 1, 10), (packed, 1, -8),
        (packed, 2, 8), (packed[:, :, :9], 1, 8), (packed.short(), 1, 8), (packed, 1, 2**62),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            call(mosaic, packing, width)
