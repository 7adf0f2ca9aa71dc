"""The CUDA kernels of ``distill_loss``, run on the CPU, against the reference in float64."""

from __future__ import annotations

import functools
import math

import distill_cases
import pytest
import torch
from distill_cases import assert_nan_is_kept, assert_same, assert_same_call, calls
from distill_loss_host_backend import operator
from hypothesis import assume, given, settings

from isp_distill import distill_loss, use_backend
from isp_distill.ops.distill_loss.cuda import CudaKernels, refuses
from isp_distill.ops.distill_loss.options import checked_options
from isp_distill.ops.distill_loss.request import Call

both = functools.partial(distill_cases.both, "cuda")
OBJECTIVES = ["forward_kl", "reverse_kl", "jsd(0.3)", "mse"]


@settings(max_examples=60)
@given(drawn=calls(batches=2))
def test_kernels_are_the_reference(drawn):
    s, t, rows, options = drawn
    assume(options["objective"] in OBJECTIVES)
    together = s.stride(1) == t.stride(1) == 1
    assume(s.shape[1] <= 160 or together)
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
@pytest.mark.parametrize("shape", [(3, 64), (2, 513), (2, 1024), (2, 4104), (1, 5003), (1, 19, 44),
                                   (1, 150, 4, 10), (1, 33, 5, 7)])  # fmt: skip
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_every_kernel(objective, shape, alpha):
    torch.manual_seed(sum(shape))
    s, t = 3 * torch.randn(shape), 3 * torch.randn(shape)
    if objective != "reverse_kl":
        t[:, 1] = -math.inf
    s[:, 5] += 12
    rows = (shape[0], *shape[2:])
    labels = torch.randint(2, shape[1], rows)
    labels.view(-1)[0] = -100
    mask = torch.rand(rows) < 0.8
    for dtype in (torch.float32, torch.bfloat16) if alpha == 1 else (torch.float16,):
        results = both(
            lambda a, b: distill_loss(
                a, b, labels, mask=mask, objective=objective, temperature=2.0, alpha=alpha,
                label_smoothing=0.1, return_agreement=True, inplace_grad=False,
            ),
            s.to(dtype), t,
        )  # fmt: skip
        assert_same(results, dtype, objective, 2.0, 2.0)


def test_zz_every_kernel_was_taken():
    """Each with vectors and, where their number or place forbids it, without."""
    assert set(operator.taken) == {
        (shape, vectors) for shape in range(5) for vectors in (True, False)
    }


@pytest.mark.parametrize("shape", [(3, 64), (2, 1024), (2, 5000), (1, 19, 44), (1, 150, 4, 10)])
@pytest.mark.parametrize("grad", [False, True])
def test_contiguous_logits_move_in_vectors(shape, grad):
    operator.taken.clear()
    s, t = torch.randn(shape, requires_grad=grad), torch.randn(shape)
    with use_backend("cuda"):
        distill_loss(s, t)
    assert {vectors for _, vectors in operator.taken} == {True}


@pytest.mark.parametrize("shape", [(5, 64), (2, 600), (1, 4200), (2, 19, 8), (2, 19, 9)])
def test_gradient_in_place_is_the_gradient(shape):
    torch.manual_seed(4)
    s, t = torch.randn(shape).requires_grad_(), torch.randn(shape)
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    with use_backend("cuda"):
        (plain,) = torch.autograd.grad(distill_loss(s, t, labels, alpha=0.5), s)
        loss = distill_loss(s * 1, t, labels, alpha=0.5, inplace_grad=True)
        (in_place,) = torch.autograd.grad(loss, s)
    assert torch.equal(in_place, plain)


def test_masked_logits_are_not_looked_at():
    for shape in ((4, 70, 5), (4, 19, 8), (6, 5000)):
        s, t = torch.randn(shape), torch.randn(shape)
        mask = torch.ones(shape[0], *shape[2:], dtype=torch.bool)
        mask[1:3] = False
        s[1:3], t[1:3] = math.nan, math.inf
        for objective in OBJECTIVES:
            x = s.clone().requires_grad_()
            with use_backend("cuda"):
                loss = distill_loss(x, t, objective=objective, mask=mask)
            loss.backward()
            assert loss.isfinite()
            assert bool(x.grad.isfinite().all())
            assert bool((x.grad[1:3] == 0).all())


@pytest.mark.parametrize("objective", [*OBJECTIVES, "none"])
def test_nan_and_infinite_logits_are_seen(objective):
    for classes, positions in ((64, ()), (600, ()), (4200, ()), (19, (8,)), (40, (8,))):
        assert_nan_is_kept("cuda", objective, classes, positions)


@pytest.mark.parametrize("shape", [(3, 64), (2, 600), (2, 5000), (2, 19, 8), (2, 40, 8)])
def test_a_label_that_is_no_class_is_not_looked_up(shape):
    """On a GPU nothing checks labels first: their rows become NaN, and no others."""
    torch.manual_seed(5)
    s, t = torch.randn(shape), torch.randn(shape)
    for label in (-1, shape[1], 2**32, 2**40, -(2**62)):
        labels = torch.ones(shape[0], *shape[2:], dtype=torch.int64)
        labels[-1] = label
        options = checked_options("forward_kl", 1.0, 0.5, -100, 0.1, "none")
        gradient, factors = torch.empty_like(s), torch.tensor([0.5, 0.5], dtype=torch.float64)
        call = Call((labels, None, None), factors, options, gradient, 1.0)
        loss, _ = CudaKernels().logits(s, t, call)
        assert bool(loss[-1].isnan().all())
        assert bool(gradient[-1].isnan().all())
        assert bool(loss[:-1].isfinite().all())
        assert bool(gradient[:-1].isfinite().all())


def test_first_of_equal_logits_is_the_choice():
    for classes in (5, 40, 700, 5000):
        s, t = torch.zeros(6, classes), torch.zeros(6, classes)
        t[:3, 2:] = 1.0
        s[:2, 2] = s[:2, 4] = 1.0
        with use_backend("cuda"):
            _, agreed = distill_loss(s, t, return_agreement=True)
        assert int(agreed) == 2 + 3


def test_what_is_refused():
    call = {"student": torch.float32, "teacher": torch.float32, "form": "logits"}
    call |= {"objective": "forward_kl", "classes": 161, "classes_together": False}
    assert "neighbours" in str(refuses(**call))
    assert refuses(**(call | {"classes_together": True})) is None
    assert "tvd" in str(refuses(**(call | {"objective": "tvd"})))
    assert "float64" in str(refuses(**(call | {"teacher": torch.float64})))
