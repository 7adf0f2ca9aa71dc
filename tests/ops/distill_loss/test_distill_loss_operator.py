"""The operators of the losses: what torch asks of them, and how their gradients come out."""

from __future__ import annotations

import contextlib

import pytest
import torch
from distill_cases import logits
from seen_operators import SeenOperators

from isp_distill import distill_loss, upsampled_distill_loss, use_backend

ARGUMENTS = ("dkd", [1.0, 8.0], 2.0, 0.5, -100, 0.1)


@pytest.fixture(autouse=True)
def on_the_reference():
    torch.manual_seed(0)
    with use_backend("reference"):
        yield


def test_opcheck():
    s, t = logits(3, 5, 4).requires_grad_(), logits(3, 5, 4)
    rows = (torch.randint(0, 5, (3, 4)), torch.rand(3, 4) > 0.5, torch.rand(3))
    for reduction in ("mean", "none"):
        torch.library.opcheck(
            torch.ops.isp_distill.distill_loss.default,
            (s, t, *rows, *ARGUMENTS, reduction, True, 1.0),
        )
    s, t = logits(2, 5, 3, 3).requires_grad_(), logits(2, 5, 2, 2)
    rows = (torch.randint(0, 5, (2, 4, 4)), None, None)
    torch.library.opcheck(
        torch.ops.isp_distill.upsampled_distill_loss.default,
        (s, t, 4, 4, False, *rows, *ARGUMENTS, "mean", True, 1.0),
    )
    heads = [x.requires_grad_() for x in (logits(6, 4), logits(5, 4), logits(5))]
    torch.library.opcheck(
        torch.ops.isp_distill.linear_distill_loss.default,
        (*heads, logits(6, 2), logits(5, 2), None, 4, None, None, None, "forward_kl", [], 2.0,
         1.0, -100, 0.0, "mean", True, 1.0),
    )  # fmt: skip


def test_compiles_without_a_graph_break():
    t, labels = logits(4, 6, dtype=torch.float32), torch.tensor([0, 1, 2, -100])

    def step(x):
        kd, agreed = distill_loss(2 * x, t, labels, alpha=0.5, return_agreement=True)
        dense = upsampled_distill_loss(x.view(1, 6, 2, 2), t.view(1, 6, 2, 2), 4)
        return kd + 0.25 * dense, agreed

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        x = torch.linspace(-1, 1, 24).view(4, 6).requires_grad_()
        loss, agreed = run(x)
        loss.backward()
        results.append((loss.detach(), agreed, x.grad))
    torch.testing.assert_close(*results)


def test_second_derivative_is_an_error():
    s, t = logits(2, 3).requires_grad_(), logits(2, 3)
    (gradient,) = torch.autograd.grad(distill_loss(s, t), s, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("upstream", [1.0, -3.0])
def test_backward_twice_through_a_kept_graph(upstream):
    s, t = logits(2, 3).requires_grad_(), logits(2, 3)
    loss = upstream * distill_loss(s, t)
    (first,) = torch.autograd.grad(loss, s, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(first, kept)
    torch.testing.assert_close(second, kept)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_inplace_grad(reduction):
    s, t = logits(4, 3).requires_grad_(), logits(4, 3)
    upstream = torch.tensor([0.5, 1.0, -2.0, 3.0], dtype=torch.float64)
    upstream = upstream if reduction == "none" else upstream[3]
    call = {"temperature": 2.0, "reduction": reduction}
    (expected,) = torch.autograd.grad(distill_loss(s, t, **call), s, upstream)
    z = s * 1.0
    address = z.data_ptr()
    seen = []
    z.register_hook(lambda g: seen.append(g.data_ptr()))
    loss = distill_loss(z, t, inplace_grad=True, **call)
    (gradient,) = torch.autograd.grad(loss, s, upstream, retain_graph=True)
    torch.testing.assert_close(gradient, expected)
    assert seen == [address]
    with pytest.raises(RuntimeError, match="already handed out"):
        torch.autograd.grad(loss, s, upstream)


def test_inplace_grad_hazards():
    s, t = logits(2, 3).requires_grad_(), logits(2, 3)
    with pytest.raises(RuntimeError, match="leaf"):
        distill_loss(s, t, inplace_grad=True)
    with pytest.raises(RuntimeError, match="overlap"):
        distill_loss((s[:1] * 2).expand(2, 3), t, inplace_grad=True)
    saved = s.exp()  # exp saves its result for its own backward
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        distill_loss(saved, t, inplace_grad=True).backward()
    plain = s.detach()
    kept = plain.clone()
    distill_loss(plain, t, inplace_grad=True)  # no gradient: nothing to overwrite
    assert torch.equal(plain, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_and_the_direct_way_give_the_same_bits(dtype):
    """In plain eager mode the operator's dispatch is left out; where a mode looks, it is there."""
    student = torch.randn(7, 50, dtype=dtype, requires_grad=True)
    teacher, labels = torch.randn(7, 50), torch.arange(7)
    results = []
    for mode in (contextlib.nullcontext(), SeenOperators()):
        with mode:
            loss, agreement = distill_loss(
                student, teacher, labels, alpha=0.3, temperature=2.0, return_agreement=True
            )
            (gradient,) = torch.autograd.grad(3 * loss, student)
        results.append((loss, agreement, gradient))
    assert "isp_distill::distill_loss" in mode.names
    for direct, through_operator in zip(*results, strict=True):
        assert direct.dtype == through_operator.dtype
        assert torch.equal(direct, through_operator)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@torch.no_grad()
def test_without_a_gradient_the_operator_and_the_direct_way_give_the_same_bits(backend):
    student, teacher, labels = torch.randn(7, 50), torch.randn(7, 50), torch.arange(7)
    call = {"alpha": 0.3, "temperature": 2.0, "return_agreement": True}
    with use_backend(backend):
        direct = distill_loss(student, teacher, labels, **call)
        with SeenOperators() as seen:
            through_operator = distill_loss(student, teacher, labels, **call)
    assert "isp_distill::distill_loss" in seen.names
    for one, other in zip(direct, through_operator, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"temperature": True}, TypeError),
        ({"temperature": 1 + 0j}, TypeError),
        ({"alpha": True}, TypeError),
        ({"ignore_index": -100.0}, TypeError),
        ({"label_smoothing": False}, TypeError),
        ({"reduction": "median"}, ValueError),
    ],
)
def test_options_that_only_look_like_what_was_remembered(change, error):
    """True and 1.0 are equal to 1, and have its hash."""
    s, t = logits(2, 3), logits(2, 3)
    usual = {"temperature": 1, "alpha": 1, "ignore_index": -100, "label_smoothing": 0}
    for _ in range(2):
        distill_loss(s, t, **usual)
        with pytest.raises(error):
            distill_loss(s, t, **{**usual, **change})


def test_remembered_factors_are_not_written_to():
    s, t = logits(2, 3, 4), logits(2, 3, 4)
    with use_backend("auto"):
        by_channel = [distill_loss(s, t, objective="cwd") for _ in range(3)]
        by_class = distill_loss(s, t, objective="tvd")
    for found in by_channel:
        torch.testing.assert_close(found, distill_loss(s, t, objective="cwd"))
    torch.testing.assert_close(by_class, distill_loss(s, t, objective="tvd"))
