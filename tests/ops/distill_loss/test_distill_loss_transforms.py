"""Derivatives other than one backward pass: torch.func, forward mode, hooks, batched gradients."""

from __future__ import annotations

import functools

import pytest
import torch
from distill_cases import OBJECTIVES
from torch.autograd import forward_ad

from isp_distill import distill_loss, linear_distill_loss, upsampled_distill_loss

LABELS = torch.tensor([0, 1, -100])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def forms():
    """Each form of the loss as a function of the student alone, with a student and labels."""
    t, low = torch.randn(3, 5), torch.randn(3, 5, 2, 2)
    heads = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    w, b = torch.randn(5, 4), torch.randn(5)
    common = {"temperature": 2.0, "alpha": 0.5}
    dense = LABELS[:, None, None].expand(3, 3, 4)
    return {
        "logits": (lambda s: distill_loss(s, t, LABELS, **common), torch.randn(3, 5)),
        "in place": (
            lambda s: distill_loss(s * 1, t, LABELS, inplace_grad=True, **common),
            torch.randn(3, 5),
        ),
        "upsampled": (
            lambda s: upsampled_distill_loss(s, low, (3, 4), dense, **common),
            torch.randn(3, 5, 2, 2),
        ),
        "linear": (
            lambda f: linear_distill_loss(f, w, b, *heads, LABELS, **common),
            torch.randn(3, 4),
        ),
    }


def plain_gradient(call, student):
    leaf = student.clone().requires_grad_()
    return torch.autograd.grad(call(leaf), leaf)[0]


@pytest.mark.parametrize("form", forms())
def test_transforms_of_torch_func(form):
    call, student = forms()[form]
    expected = plain_gradient(call, student)
    direction = torch.randn_like(student)
    along = (expected * direction).sum()
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    close(torch.func.grad(call)(student), expected)
    value, tangent = torch.func.jvp(call, (student,), (direction,))
    close(value, call(student))
    close(tangent, along)
    close(torch.func.jacrev(call)(student), expected)
    close(torch.func.jacfwd(call)(student), expected)
    close(torch.func.vjp(call, student)[1](torch.tensor(2.0))[0], 2 * expected)
    batch = torch.stack([student, student + direction])
    close(torch.func.vmap(call)(batch), torch.stack([call(x) for x in batch]))
    close(
        torch.func.vmap(torch.func.grad(call))(batch),
        torch.stack([plain_gradient(call, x) for x in batch]),
    )


@pytest.mark.parametrize("form", forms())
@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode(form, requires_grad):
    call, student = forms()[form]
    direction = torch.randn_like(student)
    expected = (plain_gradient(call, student) * direction).sum()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(student.clone().requires_grad_(requires_grad), direction)
        tangent = forward_ad.unpack_dual(call(dual)).tangent
        # A student without a tangent goes the usual way.
        assert forward_ad.unpack_dual(call(student)).tangent is None
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parameter", [1, 2])
def test_forward_mode_of_a_heads_parameters(parameter):
    student = [torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)]
    teacher = torch.randn(3, 2), torch.randn(5, 2), None
    leaves = [x.clone().requires_grad_() for x in student]
    loss = linear_distill_loss(*leaves, *teacher)
    gradient = torch.autograd.grad(loss, leaves)[parameter]
    direction = torch.randn_like(gradient)

    def call(x):
        return linear_distill_loss(*student[:parameter], x, *student[parameter + 1 :], *teacher)

    _, tangent = torch.func.jvp(call, (student[parameter],), (direction,))
    torch.testing.assert_close(tangent, (gradient * direction).sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_has_its_directional_derivative(objective):
    s, t, direction = torch.randn(3, 3, 4, 5, dtype=torch.float64).unbind(1)

    def call(x):
        return distill_loss(x.unsqueeze(-1), t.unsqueeze(-1), objective=objective)

    _, tangent = torch.func.jvp(call, (s,), (direction,))
    expected = (call(s + 1e-6 * direction) - call(s - 1e-6 * direction)) / 2e-6
    assert tangent.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)


def test_hessian():
    t = torch.randn(1, 3, dtype=torch.float64)
    s = torch.randn(1, 3, dtype=torch.float64)
    found = torch.func.hessian(lambda x: distill_loss(x, t))(s)[0, :, 0]
    q = s.softmax(1)[0]
    torch.testing.assert_close(found, torch.diag(q) - q[:, None] * q)


def test_labels_are_checked_under_transforms_too():
    call = functools.partial(distill_loss, teacher=torch.randn(2, 3), alpha=0.5)
    with pytest.raises(ValueError, match="label 7"):
        torch.func.grad(lambda s: call(s, labels=torch.tensor([0, 7])))(torch.randn(2, 3))


def test_gradients_of_several_upstreams_at_once():
    s, t = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    upstreams = torch.eye(4)
    for call in (
        lambda: distill_loss(s, t, reduction="none"),
        lambda: distill_loss(s * 1, t, reduction="none", inplace_grad=True),
    ):
        (found,) = torch.autograd.grad(call(), s, upstreams, is_grads_batched=True)
        expected = [torch.autograd.grad(call(), s, one)[0] for one in upstreams]
        torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("form", ["logits", "upsampled", "linear"])
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_users_packed_tensor_is_left_alone(form, factor):
    """Neither scaled in place nor handed out as the gradient, which may be changed by anybody."""
    call, student = forms()[form]
    expected = factor * plain_gradient(call, student)
    packed = []

    def pack(x):
        packed.append((x, x.clone()))
        return x

    leaf = student.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = factor * call(leaf)
    (found,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(found, expected)
    found.zero_()
    assert packed
    for held, before in packed:
        assert torch.equal(held, before)


@pytest.mark.parametrize("form", ["logits", "upsampled", "linear"])
def test_a_kept_graphs_gradient_is_not_the_one_handed_out(form):
    call, student = forms()[form]
    expected = plain_gradient(call, student)
    leaf = student.clone().requires_grad_()
    loss = call(leaf)
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    first.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], expected)


def test_saved_gradients_may_live_elsewhere():
    s, t = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    (expected,) = torch.autograd.grad(2 * distill_loss(s, t), s)
    with torch.autograd.graph.save_on_cpu():
        loss = 2 * distill_loss(s, t)
    torch.testing.assert_close(torch.autograd.grad(loss, s)[0], expected)
