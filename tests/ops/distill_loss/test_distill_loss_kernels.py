"""The CPU kernels against the reference in float64, on every instruction set of this processor."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import distill_cases
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from distill_cases import (
    DTYPES,
    OBJECTIVES,
    assert_nan_is_kept,
    assert_same,
    assert_same_call,
    calls,
)
from hypothesis import given, settings

from isp_distill import distill_loss, linear_distill_loss, upsampled_distill_loss, use_backend
from isp_distill.backends import cpu_library

pytestmark = pytest.mark.skipif(
    cpu_library.missing() is not None, reason=str(cpu_library.missing())
)
SETS = cpu_library.instruction_sets() if cpu_library.missing() is None else []


@pytest.fixture(params=SETS)
def instruction_set(request, monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_CPU", request.param)
    return request.param


both = functools.partial(distill_cases.both, "cpu")


@settings(max_examples=120, deadline=None)
@given(drawn=calls(), name=st.sampled_from(SETS or ["generic"]))
def test_kernels_are_the_reference(drawn, name):
    s, t, rows, options = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISP_DISTILL_CPU", name)
        results = both(
            lambda a, b, c, m, w: distill_loss(
                a, b, c, mask=m, weight=w, return_agreement=True, **options
            ),
            s,
            t,
            *rows,
        )
    assert_same_call(results, s, t, options)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("T", [0.01, 100.0])
@pytest.mark.parametrize("shape", [(3, 100, 5), (4, 300)])
def test_extremes_stay_finite_and_right(instruction_set, objective, T, shape):
    if objective == "cwd" and len(shape) == 2:
        pytest.skip("cwd needs pixels")
    torch.manual_seed(1)
    s, t = 1e4 * torch.randn(shape).clamp(-1, 1), 1e4 * torch.randn(shape).clamp(-1, 1)
    (loss, _, gradient), (expected, _, expected_gradient) = both(
        lambda *x: distill_loss(*x, objective=objective, temperature=T, return_agreement=True), s, t
    )
    assert bool(gradient.isfinite().all())
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    # Differences of logits near 1e4 are exact to 2^-11: an exponent is to 2^-11 / T.
    tolerance = min(1.0, 1e-3 / T + 1e-4)
    scale = expected_gradient.abs().max().item()
    assert (gradient - expected_gradient).abs().max().item() <= tolerance * scale + 1e-6


def test_many_classes(instruction_set):
    torch.manual_seed(2)
    s, t = 3 * torch.randn(3, 100_003), 3 * torch.randn(3, 100_003)
    for layout in (s, s.t().contiguous().t()):
        results = both(
            lambda *x: distill_loss(*x, temperature=2.0, return_agreement=True), layout, t
        )
        assert_same(results, torch.float32, "forward_kl", 2.0)


def test_first_of_equal_logits_is_the_choice(instruction_set):
    for classes in (5, 40, 200):
        s, t = torch.zeros(6, classes, 3), torch.zeros(6, classes, 3)
        t[:3, 2:] = 1.0
        s[:2, 2] = s[:2, 4] = 1.0
        for x in (s, s.movedim(1, -1).contiguous().movedim(-1, 1)):
            with use_backend("cpu"):
                _, agreed = distill_loss(x, t, return_agreement=True)
            assert int(agreed) == 3 * (2 + 3)


def test_masked_logits_are_not_looked_at(instruction_set):
    for classes in (7, 150):
        s, t = torch.randn(4, classes, 5), torch.randn(4, classes, 5)
        mask = torch.ones(4, 5, dtype=torch.bool)
        mask[1:3, 2] = False
        clean = s.clone()
        s[1:3, :, 2] = math.nan
        t[1:3, :, 2] = math.inf
        for objective in OBJECTIVES:
            x = s.clone().requires_grad_()
            with use_backend("cpu"):
                loss = distill_loss(x, t, objective=objective, mask=mask)
            loss.backward()
            assert loss.isfinite()
            assert bool(x.grad.isfinite().all())
            assert bool((x.grad[1:3, :, 2] == 0).all())
        assert bool((clean == s).sum() == clean.numel() - 2 * classes)


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o != "cwd"])
def test_a_row_does_not_depend_on_its_neighbours(instruction_set, objective):
    """Rows are computed several at a time, those that the mask leaves: bit for bit as if alone."""
    for classes in (5, 10, 50, 150, 1000):
        torch.manual_seed(classes)
        s, t = (3 * torch.randn(37, classes) for _ in range(2))
        labels = torch.randint(0, classes, (37,))
        mask = torch.rand(37) < 0.7
        mask[11:29] = False
        mask[0] = True

        def result(part, s=s, t=t, labels=labels, mask=mask):
            x = s[part].clone().requires_grad_()
            with use_backend("cpu"):
                loss = distill_loss(
                    x, t[part], labels[part], mask=mask[part], objective=objective, alpha=0.5,
                    temperature=2.0, reduction="none",
                )  # fmt: skip
            return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]

        loss, gradient = result(slice(None))
        assert bool((loss[~mask] == 0).all())
        assert bool((gradient[~mask] == 0).all())
        for row in mask.nonzero().flatten().tolist():
            alone = result(slice(row, row + 1))
            assert torch.equal(loss[row], alone[0][0])
            assert torch.equal(gradient[row], alone[1][0])


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o != "cwd"])
def test_a_pixel_whose_teacher_rules_out_every_class_is_nan(instruction_set, objective):
    torch.manual_seed(1)
    s, t = torch.randn(1, 21, 3, 4), torch.randn(1, 21, 3, 4)
    t[:, :, 0, 0] = -math.inf
    t[:, 4, 2] = -math.inf  # one class of other pixels is an ordinary thing
    call = {"objective": objective, "reduction": "none"}
    with use_backend("cpu"):
        loss = upsampled_distill_loss(s, t, (12, 16), **call)
    with use_backend("reference"):
        expected = upsampled_distill_loss(s.double(), t.double(), (12, 16), **call)
    assert torch.equal(loss.isnan(), expected.isnan())
    assert bool(loss.isnan().any()) != objective.startswith(("mse", "binary_kl"))


@pytest.mark.parametrize("objective", [*OBJECTIVES, "none"])
def test_nan_and_infinite_logits_are_seen(instruction_set, objective):
    for classes, positions in ((5, ()), (67, ()), (5, (3,)), (33, (20,))):
        if objective != "cwd" or positions:
            assert_nan_is_kept("cpu", objective, classes, positions)
    if objective != "cwd":
        assert_nan_is_kept("cpu", objective, 5, (3, 3), size=(7, 8))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(SETS or ["generic"]),
    objective=st.sampled_from([o for o in OBJECTIVES if o != "cwd"]),
    student=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    teacher=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    classes=st.sampled_from([2, 5, 16, 37]),
    dtype=st.sampled_from(DTYPES),
    align_corners=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5]),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_upsampled_kernel_is_the_reference(
    name,
    objective,
    student,
    teacher,
    size,
    classes,
    dtype,
    align_corners,
    alpha,
    channels_last,
    seed,
):
    g = torch.Generator().manual_seed(seed)
    s = (3 * torch.randn(2, classes, *student, generator=g)).to(dtype)
    t = 3 * torch.randn(2, classes, *teacher, generator=g)
    if objective != "reverse_kl" and classes > 3:
        t[:, 1] = -math.inf
    if channels_last:
        s = s.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(2, max(3, classes), (2, *size), generator=g) % classes
    labels[torch.rand(2, *size, generator=g) < 0.2] = -100
    options = {
        "objective": objective,
        "temperature": 2.0,
        "alpha": alpha,
        "mask": torch.rand(2, *size, generator=g) < 0.8,
        "weight": torch.tensor([0.5, 1.5]),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISP_DISTILL_CPU", name)
        results = both(
            lambda a, b, c: upsampled_distill_loss(
                a, b, size, c, align_corners=align_corners, return_agreement=True, **options
            ),
            s,
            t,
            labels,
        )
    # An interpolated tie may break either way: the weights are float32 here, float64 there.
    (loss, _, gradient), (expected, agreed, expected_gradient) = results
    assert_same(
        [(loss, agreed, gradient), (expected, agreed, expected_gradient)],
        dtype,
        objective,
        2.0,
        2.0,
    )


# 2100: more classes than go into one product of matrices.
@pytest.mark.parametrize("classes", [70, 2100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_with_kernels_is_the_reference(instruction_set, dtype, classes):
    torch.manual_seed(3)
    heads = [torch.randn(50, 12), torch.randn(classes, 12), torch.randn(classes)]
    teacher = [torch.randn(50, 9), torch.randn(classes, 9), torch.randn(classes)]
    labels = torch.randint(0, classes, (50,))
    labels[::7] = -100
    options = {"temperature": 3.0, "alpha": 0.5, "mask": torch.rand(50) < 0.9}
    found = []
    for backend, to in (("cpu", dtype), ("reference", torch.float64)):
        leaves = [x.to(dtype).to(to).detach().clone().requires_grad_() for x in heads]
        with use_backend(backend):
            loss = linear_distill_loss(
                *leaves, *[x.to(dtype).to(to) for x in teacher], labels, chunk_rows=16, **options
            )
            loss.backward()
        found.append([loss.detach().double(), *[x.grad.double() for x in leaves]])
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}[dtype]
    for ours, theirs in zip(*found, strict=True):
        bound = tolerance * theirs.abs().max()
        assert bool(((ours - theirs).abs() <= bound).all())


def test_in_place_gradient_is_the_gradient(instruction_set):
    torch.manual_seed(4)
    for shape in ((9, 200), (2, 19, 8, 9)):
        for objective in OBJECTIVES:
            if objective == "cwd" and len(shape) == 2:
                continue
            s, t = torch.randn(shape).requires_grad_(), torch.randn(shape)
            labels = torch.randint(0, shape[1], (shape[0], *shape[2:]))
            call = {"labels": labels, "alpha": 0.5, "objective": objective}
            with use_backend("cpu"):
                (plain,) = torch.autograd.grad(distill_loss(s, t, **call), s)
                (in_place,) = torch.autograd.grad(
                    distill_loss(s * 1, t, inplace_grad=True, **call), s
                )
            torch.testing.assert_close(in_place, plain, rtol=0, atol=0)


def test_result_does_not_depend_on_the_threads():
    torch.manual_seed(5)
    before = torch.get_num_threads()
    s, t = torch.randn(3, 150, 40, 50), torch.randn(3, 150, 40, 50)
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            x = s.clone().requires_grad_()
            y = s[:, :, :20, :30].clone().requires_grad_()
            with use_backend("cpu"):
                dense = distill_loss(x, t, temperature=4.0)
                up = upsampled_distill_loss(y, t[:, :, :20, :30], (47, 66))
                rows = distill_loss(x.flatten(0, 1).flatten(1), t.flatten(0, 1).flatten(1))
                (dense + up + rows).backward()
            found.append((dense.detach(), up.detach(), rows.detach(), x.grad, y.grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


MEMORY = """
import resource, sys, torch
from isp_distill import distill_loss, upsampled_distill_loss
kind = sys.argv[1]
# 128 MiB each: fresh pages are what the peak counts.
n = 32 * 1024 * 1024
torch.set_num_threads(2)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
small = torch.randn(2, 64, 8, 8, requires_grad=True)
(distill_loss(small * 1, small.detach(), inplace_grad=True)
 + upsampled_distill_loss(small, small.detach(), 16)).backward()
if kind == "upsampled":
    leaf = torch.randn(1, 64, 64, 64, requires_grad=True)
    t = torch.randn(1, 64, 64, 64)
    before = peak()
    upsampled_distill_loss(leaf, t, 1024, temperature=4.0).backward()
else:
    t = torch.randn(1, 128, 512, 512)
    if kind == "in place":
        leaf = torch.zeros((), requires_grad=True)
        s = leaf + torch.zeros(1, 128, 512, 512)
    else:
        s = torch.zeros(1, 128, 512, 512).requires_grad_()
    before = peak()
    loss = distill_loss(s, t, temperature=4.0, inplace_grad=kind == "in place")
    torch.autograd.grad(loss, s)
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("kind", "bound"),
    [("plain", 128 + 16), ("in place", 16), ("upsampled", 16)],
)
def test_extra_memory(kind, bound):
    """Peak of forward and backward: the gradient alone (128 MiB), nothing, the low resolution."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, kind], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= bound * 2**20


def test_compiled_model_uses_the_kernels():
    torch.manual_seed(6)
    head, x, t = torch.nn.Linear(8, 30), torch.randn(5, 8), torch.randn(5, 30)

    def step(x):
        return distill_loss(F.relu(head(x)), t, temperature=4.0)

    with use_backend("cpu"):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        gradients = []
        for run in (step, compiled):
            head.zero_grad()
            run(x).backward()
            gradients.append(head.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_opcheck_of_the_kernels():
    torch.manual_seed(7)
    s, t = torch.randn(3, 20, 4).requires_grad_(), torch.randn(3, 20, 4)
    rows = (torch.randint(0, 20, (3, 4)), torch.rand(3, 4) > 0.5, torch.rand(3))
    options = ("jsd", [0.5], 2.0, 0.5, -100, 0.1)
    with use_backend("cpu"):
        torch.library.opcheck(
            torch.ops.isp_distill.distill_loss.default, (s, t, *rows, *options, "mean", True, 1.0)
        )
        low = torch.randn(2, 20, 3, 3).requires_grad_()
        torch.library.opcheck(
            torch.ops.isp_distill.upsampled_distill_loss.default,
            (low, low.detach(), 5, 5, False, None, None, None, *options[:2], 2.0, 1.0, -100, 0.0,
             "mean", True, 1.0),
        )  # fmt: skip


def test_float64_goes_to_the_reference_and_is_refused_by_name():
    s, t = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3)
    assert distill_loss(s, t).dtype == torch.float64
    with use_backend("cpu"), pytest.raises(RuntimeError, match="compute in float32"):
        distill_loss(s, t)
