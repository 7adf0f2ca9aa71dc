"""raw_conv's CUDA kernels, run on the CPU under sanitisers, against the specification.

tests/test_cuda_host.py builds the module and runs this file in a process with the sanitisers.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import raw_conv_host
import raw_conv_host_backend
import torch
import torch.nn.functional as F
from companding_cases import bits_of, curves
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from packed_cases import inside, packed_mosaic
from raw_conv_cases import NAN_CASES, Case, cases, check_activation, check_nan

from isp_distill import BackendError, raw_conv, use_backend
from isp_distill.ops import reference
from isp_distill.ops.companding import checked_linearise
from isp_distill.ops.raw_conv import cuda as raw_conv_cuda
from isp_distill.ops.raw_conv.operator import raw_conv as operator
from isp_distill.ops.reference_companding import linearised
from isp_distill.raw.packings import PACKED, packing_number


def passes(case: Case, backend: str, learn: bool):
    """Output and the gradients of weight and bias."""
    mosaic, p, arguments = case.inputs()
    p = {n: t.requires_grad_(learn and n in ("weight", "bias")) for n, t in p.items()}
    with use_backend(backend):
        out = raw_conv(mosaic, **p, **arguments)
    if not learn:
        return (out,)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    wanted = [p[name] for name in ("weight", "bias") if name in p]
    return (out.detach(), *torch.autograd.grad(out, wanted, cotangent))


def magnitudes(case: Case, learn: bool):
    """What the sums of :func:`passes` would be if nothing in them cancelled: rounding's measure."""
    mosaic, p, a = case.inputs()
    x = reference.pack(mosaic.float(), a["pattern"])
    x = reference.normalise(x, a["black"], a["white"], p["gain"], case.clip)
    if case.mix:
        x = torch.einsum("nij,njhw->nihw", p["mix"], x)
        x = reference.clamp(x, 0, 1) if case.clip else x
    x = reference.apply_curve(x, case.curve, p.get("gamma"))
    border = torch.tensor(a["padding_value"] or [0.0] * 4)[:, None, None]
    x = (F.pad(x - border, case.padding) + border).abs()
    weight = p["weight"].abs().requires_grad_()
    bias = p.get("bias", torch.zeros(case.channels)).abs().requires_grad_()
    out = F.conv2d(x, weight, bias, case.stride)
    if not learn:
        return (out.detach(),)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).abs()
    return (out.detach(), *torch.autograd.grad(out, (weight, bias), cotangent))


def check(case: Case, learn: bool = True):
    """Each number against the specification, by what rounding may do to it.

    Both operands and the output are rounded to 16 bits once, each by at most 2^-8 (bfloat16) or
    2^-11 of itself; float32 is three TensorFloat-32 products.
    """
    found, expected = passes(case, "cuda", learn), passes(case, "reference", learn)
    relative = {torch.float32: 2**-18, torch.bfloat16: 3 * 2**-8, torch.float16: 3 * 2**-11}
    names = ("output", "weight", "bias")
    for name, a, b, m in zip(names, found, expected, magnitudes(case, learn), strict=False):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        # Near black a curve's float32 has fewer digits than the numbers that come of it.
        allowed = relative[case.out_dtype] * m + 1e-5 * m.max()
        excess = ((a.float() - b.float()).abs() - allowed).max()
        assert excess <= 0, f"{name} of {case}: {excess:.2e} more than rounding explains"


@given(cases(largest=17))
@settings(max_examples=15)
def test_equals_the_reference(case):
    assume(case.dtype != torch.float64)
    needed = raw_conv_cuda.shared_bytes(case.kernel, case.stride, case.dtype, case.out_dtype)
    assume(needed <= raw_conv_cuda.SHARED_BYTES)
    check(case, learn=False)
    check(replace(case, activation="none"))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_several_tiles_of_a_block_and_whole_16_bytes(out_dtype, channels_last):
    """Two tiles across and two down for three blocks, 40 columns: aligned rows in and out."""
    call = {"height": 36, "width": 160, "channels": 40, "batch": 1, "out_dtype": out_dtype}
    check(Case(**call, channels_last=channels_last))


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_activations_where_nothing_is_rounded(activation):
    check_activation(activation, "cuda")


def test_relu6_of_float32():
    check(Case(activation="relu6", channels_last=True, padding_value=True))


def test_the_order_of_threads_and_of_blocks_changes_nothing(monkeypatch):
    case = Case(out_dtype=torch.bfloat16, width=100, height=50)
    results = []
    for seed, blocks in ((1, 3), (2, 3), (3, 2)):
        monkeypatch.setenv("ISP_HOST_SEED", str(seed))
        monkeypatch.setattr(raw_conv_host_backend, "BLOCKS", blocks)
        results.append(passes(case, "cuda", learn=True))
    for first, second in zip(results[0], results[1], strict=True):
        assert torch.equal(first, second)
    assert torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize("case", NAN_CASES)
def test_nan_comes_through(case):
    """With relu, whose derivative these kernels have, in the place of other activations. At an edge
    NaN reaches the gradients of all taps, of those that do not read it too."""
    where, curve, activation, clip, mixed = case
    activation = "none" if activation == "none" else "relu"
    check_nan(
        (where, curve, activation, clip, mixed), "cuda", learn=("weight", "bias"), edges=False
    )


def test_nothing_that_pads_the_kernel_counts():
    """Infinity in the mosaic: a padded position would make NaN of it."""
    mosaic = torch.rand(1, 16, 16)
    mosaic[0, 5, 5] = float("inf")
    weight = torch.rand(4, 4, 3, 3)
    found = []
    for backend in ("cuda", "reference"):
        with use_backend(backend):
            found.append(
                raw_conv(mosaic, weight, black=0, white=1, clip=False, out_dtype=torch.bfloat16)
            )
    assert torch.equal(found[0].isinf(), found[1].isinf())
    assert not found[0].isnan().any()


def test_shared_memory_is_counted_alike():
    for kernel in range(1, 8):
        for stride in (1, 2, 3, 4):
            for index, sensor in enumerate(raw_conv_cuda.SENSORS):
                for out in (torch.bfloat16, torch.float32):
                    expected = raw_conv_host.shared_bytes(kernel, stride, index, out.itemsize, 0)
                    assert raw_conv_cuda.shared_bytes(kernel, stride, sensor, out) == expected
            for name in PACKED:
                expected = raw_conv_host.shared_bytes(kernel, stride, 0, 2, packing_number(name))
                found = raw_conv_cuda.shared_bytes(
                    kernel, stride, torch.uint8, torch.bfloat16, name
                )
                assert found == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel": 8, "height": 40, "width": 40}, "up to 7 x 7"),
        ({"dtype": torch.float32, "stride": 4, "kernel": 7}, "KiB of shared memory"),
        ({"activation": "silu"}, "derivative of silu"),
        ({"activation": "relu6", "out_dtype": torch.bfloat16}, "derivative of relu6"),
    ],
)
def test_refusals(change, reason):
    with pytest.raises(BackendError, match=reason):
        passes(replace(Case(), **change), "cuda", learn=True)


def test_colour_gradients_are_refused():
    mosaic, parameters, arguments = Case().inputs()
    parameters["gain"].requires_grad_()
    with pytest.raises(BackendError, match="no gradient of gain"), use_backend("cuda"):
        raw_conv(mosaic, **parameters, **arguments)


@pytest.mark.parametrize("more", [4, 8 << 20, -4])
def test_two_bits_of_a_pattern_count(more):
    """A code on a GPU is not checked; the operator is called, since the public function checks."""
    mosaic = torch.randint(0, 900, (4, 16, 16)).to(torch.uint16)
    weight = torch.randn(3, 4, 3, 3)
    levels = torch.full((4, 4), 16.0), torch.full((4,), 900.0)
    outs = [
        operator(
            mosaic, weight, None, *levels, codes, torch.ones(4, 4), None, None, None, None,
            1, [1, 1, 1, 1], True, "linear", "none", torch.float32, False, None, None, "cuda",
        )
        for codes in (torch.arange(4), torch.arange(4) + more)
    ]  # fmt: skip
    assert torch.equal(*outs)


# Rows that end in the middle of a group, tiles that begin there, both sides padded.
READ = [
    Case(2, 20, 2 * 67, 3, 3, 1, (1, 2, 1, 0), mix=True, curve="sqrt"),
    Case(1, 40, 2 * 71, 5, 2, 2, (3, 0, 0, 1), out_dtype=torch.bfloat16),
    Case(1, 12, 6, 2, 1, 1, (0, 0, 0, 0), padding_value=True, channels_last=True),
]


def passes_of(case: Case, mosaic: torch.Tensor, **how):
    """Output and the gradients of weight and bias, of a mosaic of one's own."""
    _, p, arguments = case.inputs()
    wanted = [p[name].requires_grad_() for name in ("weight", "bias")]
    with use_backend("cuda"):
        out = raw_conv(mosaic, **p, **arguments, **how)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    return (out.detach(), *torch.autograd.grad(out, wanted, cotangent))


@pytest.mark.parametrize("packing", PACKED)
def test_packed_bytes_are_the_codes_to_the_last_bit(packing):
    for case, padding in zip(READ, (3, 0, 9), strict=True):
        codes, packed = packed_mosaic(
            packing, case.batch, case.height, case.width, padding, case.width
        )
        how = {"packing": packing, "width": case.width}
        found = passes_of(case, inside(packed, padding > 0), **how)
        for ours, theirs in zip(found, passes_of(case, codes), strict=True):
            assert torch.equal(ours, theirs)


@given(st.data())
@settings(max_examples=12)
def test_companded_codes_are_their_linear_values(data):
    case = data.draw(st.sampled_from(READ))
    packing = data.draw(st.sampled_from([None, *PACKED]))
    dtype = data.draw(st.sampled_from([torch.uint8, torch.uint16, torch.int16, torch.int32]))
    curve = data.draw(curves(case.batch, bits_of(dtype, packing), 1000.0))
    how = {"linearise": curve}
    if packing is None:
        mosaic = codes = replace(case, dtype=dtype).inputs()[0]
    else:
        codes, mosaic = packed_mosaic(packing, case.batch, case.height, case.width, 1)
        how |= {"packing": packing, "width": case.width}
    found = passes_of(case, mosaic, **how)
    table = checked_linearise(curve, codes, None, torch.float32)
    expected = passes_of(case, linearised(codes, table, torch.float32))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
