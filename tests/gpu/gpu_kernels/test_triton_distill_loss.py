"""The Triton kernels of distill_loss against the reference in float64."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from isp_distill.kernels.distill_loss import held as distill_held
from isp_distill.kernels.distill_loss import streamed as distill_streamed

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "cases"))

import distill_cases
from distill_cases import DTYPES, OBJECTIVES, assert_nan_is_kept, assert_same_call, calls

from isp_distill import distill_loss, linear_distill_loss, upsampled_distill_loss, use_backend
from isp_distill.errors import BackendError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter cuts bfloat16 off instead of rounding it, which is half as much again.
ROUNDING = {**distill_cases.ROUNDING}
if DEVICE == "cpu":
    ROUNDING[torch.bfloat16] *= 1.5

# numpy warns of -inf less -inf where the kernels select another value.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


both = functools.partial(distill_cases.both, "triton", device=DEVICE)
assert_same = functools.partial(distill_cases.assert_same, rounding=ROUNDING)
SMALL = calls(
    classes=(2, 3, 5, 16, 19, 33, 50),
    positions=((), (5,), (3, 4), (1, 37), (16, 3), (2, 3, 2)),
    batches=3,
)


def shorten(patch):
    """Have short class axes streamed, in several chunks."""
    patch.setattr(distill_held, "LONGEST_ROW", 1)
    patch.setattr(distill_held, "LONGEST_DENSE", 1)
    patch.setattr(distill_streamed, "ROW_CHUNK", 16)
    patch.setattr(distill_streamed, "DENSE_CHUNK", 16)


@settings(max_examples=80, deadline=None)
@given(drawn=SMALL, streamed=st.booleans())
def test_kernels_are_the_reference(drawn, streamed):
    s, t, rows, options = drawn
    with pytest.MonkeyPatch.context() as patch:
        if streamed:
            shorten(patch)
        results = both(
            lambda a, b, c, m, w: distill_loss(
                a, b, c, mask=m, weight=w, return_agreement=True, **options
            ),
            s,
            t,
            *rows,
        )
    assert_same_call(results, s, t, options, ROUNDING)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_extremes_stay_finite_and_right(objective, streamed, monkeypatch):
    if streamed:
        shorten(monkeypatch)
    torch.manual_seed(1)
    for shape in ((2, 40, 5), (4, 70)):
        if objective == "cwd" and len(shape) == 2:
            continue  # it needs pixels
        s, t = (1e4 * torch.randn(shape).clamp(-1, 1) for _ in range(2))
        for T in (0.01, 100.0):
            (loss, _, gradient), (expected, _, expected_gradient) = both(
                lambda *x, T=T: distill_loss(
                    *x, objective=objective, temperature=T, return_agreement=True
                ),
                s,
                t,
            )
            assert bool(gradient.isfinite().all())
            torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
            # Differences of logits near 1e4 are exact to 2^-11: an exponent is to 2^-11 / T.
            tolerance = min(1.0, 1e-3 / T + 1e-4)
            scale = expected_gradient.abs().max().item()
            assert (gradient - expected_gradient).abs().max().item() <= tolerance * scale + 1e-6


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o != "cwd"])
def test_many_classes(objective):
    torch.manual_seed(2)
    s, t = 3 * torch.randn(2, 5003), 3 * torch.randn(2, 5003)
    labels = torch.tensor([4999, -100])
    options = {"objective": objective, "temperature": 2.0, "alpha": 0.5, "label_smoothing": 0.1}
    results = both(lambda *x: distill_loss(*x, return_agreement=True, **options), s, t, labels)
    assert_same(results, torch.float32, objective, 2.0, 2.0)


@pytest.mark.parametrize("streamed", [False, True])
def test_first_of_equal_logits_is_the_choice(streamed, monkeypatch):
    if streamed:
        shorten(monkeypatch)
    for classes in (5, 40):
        s, t = torch.zeros(6, classes, 3), torch.zeros(6, classes, 3)
        t[:3, 2:] = 1.0
        s[:2, 2] = s[:2, 4] = 1.0
        s, t = s.to(DEVICE), t.to(DEVICE)
        for x in (s, s.movedim(1, -1).contiguous().movedim(-1, 1)):
            with use_backend("triton"):
                _, agreed = distill_loss(x, t, return_agreement=True)
            assert int(agreed) == 3 * (2 + 3)


@pytest.mark.parametrize("streamed", [False, True])
def test_masked_logits_are_not_looked_at(streamed, monkeypatch):
    if streamed:
        shorten(monkeypatch)
    for last in (False, True):
        s, t = torch.randn(4, 20, 5), torch.randn(4, 20, 5)
        mask = torch.ones(4, 5, dtype=torch.bool)
        mask[1:3, 2] = False
        s[1:3, :, 2] = math.nan
        t[1:3, :, 2] = math.inf
        if last:
            s, t = (x.movedim(1, -1).contiguous().movedim(-1, 1) for x in (s, t))
        for objective in OBJECTIVES:
            x = s.clone().to(DEVICE).requires_grad_()
            with use_backend("triton"):
                loss = distill_loss(x, t.to(DEVICE), objective=objective, mask=mask.to(DEVICE))
            loss.backward()
            assert loss.isfinite()
            assert bool(x.grad.isfinite().all())
            assert bool((x.grad[1:3, :, 2] == 0).all())


@pytest.mark.parametrize("streamed", [False, True])
def test_in_place_gradient_is_the_gradient(streamed, monkeypatch):
    if streamed:
        shorten(monkeypatch)
    torch.manual_seed(4)
    for shape in ((3, 40), (2, 19, 2, 9)):
        for objective in OBJECTIVES:
            if objective == "cwd" and len(shape) == 2:
                continue
            s = torch.randn(shape, device=DEVICE).requires_grad_()
            t = torch.randn(shape, device=DEVICE)
            labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=DEVICE)
            call = {"labels": labels, "alpha": 0.5, "objective": objective}
            with use_backend("triton"):
                (plain,) = torch.autograd.grad(distill_loss(s, t, **call), s)
                (in_place,) = torch.autograd.grad(
                    distill_loss(s * 1, t, inplace_grad=True, **call), s
                )
            torch.testing.assert_close(in_place, plain, rtol=0, atol=0)


def test_axes_that_cannot_be_merged():
    torch.manual_seed(5)
    s, t = torch.randn(2, 2, 2, 5, 3, 2), torch.randn(2, 5, 2, 3, 2, 2)
    # Sliced along two axes and turned: four separate axes of rows.
    s = s.permute(0, 3, 2, 4, 1, 5)[:, :, :, ::2, :, ::1]
    t = t[:, :, :, ::2].permute(0, 1, 2, 3, 5, 4)
    for objective in ("forward_kl", "cwd"):
        results = both(
            lambda *x, o=objective: distill_loss(*x, objective=o, return_agreement=True), s, t
        )
        assert_same(results, torch.float32, objective, 1.0, 2.0)


@settings(max_examples=14, deadline=None)
@given(
    objective=st.sampled_from([o for o in OBJECTIVES if o != "cwd"]),
    student=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    teacher=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    classes=st.sampled_from([2, 5, 7]),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    align_corners=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5, 0.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_upsampled_kernels_are_the_reference(
    objective,
    student,
    teacher,
    size,
    classes,
    dtypes,
    align_corners,
    alpha,
    smoothing,
    channels_last,
    seed,
):
    g = torch.Generator().manual_seed(seed)
    s = (3 * torch.randn(2, classes, *student, generator=g)).to(dtypes[0])
    t = (3 * torch.randn(2, classes, *teacher, generator=g)).to(dtypes[1])
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
        "label_smoothing": smoothing,
        "align_corners": align_corners,
    }
    results = both(
        lambda a, b, c, m, w: upsampled_distill_loss(
            a, b, size, c, mask=m, weight=w, return_agreement=True, **options
        ),
        s,
        t,
        labels,
        torch.rand(2, *size, generator=g) < 0.8,
        torch.tensor([0.5, 1.5]),
    )
    assert_same(results, dtypes[0], objective, 2.0, 2.0)


@pytest.mark.parametrize("align_corners", [False, True])
def test_upsampled_over_more_than_one_program(align_corners):
    """More pixels, cells and classes than a program of each kernel takes."""
    torch.manual_seed(6)
    s, t = torch.randn(1, 18, 2, 35), torch.randn(1, 18, 1, 9)
    results = both(
        lambda *x: upsampled_distill_loss(
            *x, (3, 66), align_corners=align_corners, return_agreement=True
        ),
        s,
        t,
    )
    assert_same(results, torch.float32, "forward_kl", 1.0)


def test_upsampled_rows_without_reduction():
    torch.manual_seed(7)
    s, t = torch.randn(2, 5, 2, 3, device=DEVICE), torch.randn(2, 5, 3, 2, device=DEVICE)
    found = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            found.append(upsampled_distill_loss(s, t, (4, 5), reduction="none"))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_masked_pixels_of_upsampled_logits_are_not_looked_at():
    s = torch.randn(1, 4, 2, 4, device=DEVICE)
    s[..., 3] = math.nan
    t, mask = torch.randn_like(s).nan_to_num(), torch.ones(1, 4, 8, dtype=torch.bool, device=DEVICE)
    mask[..., 5:] = False  # the pixels that the last column reaches
    s.requires_grad_()
    with use_backend("triton"):
        loss = upsampled_distill_loss(s, t, (4, 8), mask=mask)
    loss.backward()
    assert loss.isfinite()
    assert bool((s.grad[..., 3] == 0).all())
    assert bool(s.grad.isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_is_the_reference(dtype):
    torch.manual_seed(3)
    heads = [torch.randn(20, 12), torch.randn(30, 12), torch.randn(30)]
    teacher = [torch.randn(20, 9), torch.randn(30, 9), torch.randn(30)]
    labels = torch.randint(0, 30, (20,), device=DEVICE)
    labels[::7] = -100
    options = {"temperature": 3.0, "alpha": 0.5, "mask": torch.rand(20, device=DEVICE) < 0.9}
    found = []
    for backend, to in (("triton", dtype), ("reference", torch.float64)):
        leaves, fixed = (
            [x.to(DEVICE, dtype).to(to).detach() for x in head] for head in (heads, teacher)
        )
        for leaf in leaves:
            leaf.requires_grad_()
        with use_backend(backend):
            loss = linear_distill_loss(*leaves, *fixed, labels, chunk_rows=8, **options)
            loss.backward()
        found.append([loss.detach().double(), *[x.grad.double() for x in leaves]])
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}[dtype]
    for ours, theirs in zip(*found, strict=True):
        bound = tolerance * theirs.abs().max()
        assert bool(((ours - theirs).abs() <= bound).all())


def test_a_batch_in_which_nothing_counts():
    mask = torch.zeros(2, 3, dtype=torch.bool, device=DEVICE)
    for objective in OBJECTIVES:
        s = torch.randn(2, 4, 3, device=DEVICE).requires_grad_()
        with use_backend("triton"):
            loss = distill_loss(s, torch.randn_like(s), objective=objective, mask=mask)
        loss.backward()
        assert loss.item() == 0
        assert bool((s.grad == 0).all())


def test_refusals_name_their_reason():
    s, t = torch.randn(2, 3, 2, 2, device=DEVICE), torch.randn(2, 3, 2, 2, device=DEVICE)
    with use_backend("triton"):
        with pytest.raises(BackendError, match="compute in float32"):
            distill_loss(s.double(), t)
        with pytest.raises(BackendError, match="no kernel for cwd of upsampled"):
            upsampled_distill_loss(s, t, 4, objective="cwd")


@pytest.mark.skipif(DEVICE == "cpu", reason="a CUDA graph needs a GPU")
def test_a_call_can_be_captured_in_a_graph():
    s = torch.randn(64, 100, device="cuda").requires_grad_()
    t = torch.randn(64, 100, device="cuda")

    def step():
        with use_backend("triton"):
            (gradient,) = torch.autograd.grad(distill_loss(s, t, temperature=4.0), s)
        return gradient

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.testing.assert_close(captured, step())


@pytest.mark.parametrize("objective", [*OBJECTIVES, "none"])
def test_nan_and_infinite_logits_are_seen(monkeypatch, objective):
    sizes = (19, ()) if objective != "cwd" else (5, (3,))
    assert_nan_is_kept("triton", objective, *sizes, DEVICE)
    if DEVICE == "cpu" and objective not in ("forward_kl", "cwd", "dkd(1, 8)"):
        return  # the arithmetic is one; the interpreter is slow
    shorten(monkeypatch)
    assert_nan_is_kept("triton", objective, *sizes, DEVICE)
    if objective != "cwd":
        assert_nan_is_kept("triton", objective, 4, (1, 1), DEVICE, (1, 2), [math.nan])
