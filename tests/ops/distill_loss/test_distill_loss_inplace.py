"""``inplace_grad``: what it refuses to overwrite, and the promises of torch that it must keep."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from isp_distill import distill_loss


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize(
    "overlapping",
    [
        lambda b: b.unfold(0, 10, 1),
        lambda b: b[:10].expand(5, 10),
        lambda b: b.as_strided((6, 10), (3, 2)),
        lambda b: b.as_strided((6, 10), (2, 4)),
        lambda b: b.as_strided((2, 10, 3), (9, 1, 9)),
    ],
)
def test_overlapping_logits_are_refused(overlapping):
    base = leaf(200)
    z = overlapping(base * 1)
    with pytest.raises(RuntimeError, match="overlap themselves: clone"):
        distill_loss(z, torch.randn(z.shape), inplace_grad=True)
    assert distill_loss(z.clone(), torch.randn(z.shape), inplace_grad=True).isfinite()


@pytest.mark.parametrize(
    "view",
    [
        lambda z: z.t(),
        lambda z: z[:, ::2],
        lambda z: z[1:3],
        lambda z: z.view(6, 2, 5).transpose(0, 2),
        lambda z: z.as_strided((1, 4), (0, 1)),
    ],
)
def test_views_that_do_not_overlap_are_served(view):
    s = leaf(6, 10)
    t = torch.randn(view(s).shape)
    (expected,) = torch.autograd.grad(distill_loss(view(s * 1), t), s)
    (found,) = torch.autograd.grad(distill_loss(view(s * 1), t, inplace_grad=True), s)
    torch.testing.assert_close(found, expected)


def test_memory_shared_with_another_tensor_of_the_call_is_refused():
    z = leaf(20, 10) * 1
    before = z.detach().clone()
    with pytest.raises(RuntimeError, match="teacher lies in the same memory"):
        distill_loss(z[1:], z.detach()[:-1], inplace_grad=True)
    with pytest.raises(RuntimeError, match="teacher lies in the same memory"):
        distill_loss(z, z.detach().view(torch.int32).view(torch.float32), inplace_grad=True)
    with pytest.raises(RuntimeError, match="weight lies in the same memory"):
        distill_loss(z, torch.randn(20, 10), weight=z.detach()[:, 0].abs_(), inplace_grad=True)
    z = leaf(20, 10) * 1
    before = z.detach().clone()
    inside = z.detach().view(torch.bool)[:, 0]
    with pytest.raises(RuntimeError, match="mask lies in the same memory"):
        distill_loss(z, torch.randn(20, 10), mask=inside, inplace_grad=True)
    labels = z.detach().view(torch.int64)[:, 0]
    with pytest.raises(RuntimeError, match="labels lies in the same memory"):
        distill_loss(z, torch.randn(20, 10), labels, alpha=0.5, inplace_grad=True)
    assert torch.equal(z, before)
    # Neighbours in one storage share none of it.
    pair = leaf(2, 4, 5) * 1
    expected = distill_loss(pair[0].clone(), pair[1])
    assert distill_loss(pair[0], pair[1].detach(), inplace_grad=True).item() == expected.item()


def test_a_leaf_and_its_views_keep_their_values():
    s = leaf(4, 6)
    kept = s.detach().clone()
    for z in (s, s.view(8, 3), s[1:], s.t(), s.view_as(s), s.expand(4, 6)):
        with pytest.raises(RuntimeError, match="leaf"):
            distill_loss(z, torch.randn(z.shape), inplace_grad=True)
    assert torch.equal(s, kept)


def test_a_negated_view_is_refused():
    numbers = torch.randn(4, 3, dtype=torch.complex64, requires_grad=True)
    z = (numbers * 1).conj().imag
    assert z.is_neg()
    t = torch.randn(4, 3)
    with pytest.raises(RuntimeError, match="negated view"):
        distill_loss(z, t, inplace_grad=True)
    (expected,) = torch.autograd.grad(distill_loss(z.clone(), t), numbers, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(distill_loss(z, t), numbers)[0], expected)


@pytest.mark.parametrize(
    "change", [lambda z: z.mul_(0), lambda z: z[0].zero_(), lambda z: z.detach().add_(1)]
)
def test_a_change_of_the_gradients_memory_before_the_backward_is_an_error(change):
    z = leaf(5, 7) * 1
    loss = distill_loss(z, torch.randn(5, 7), inplace_grad=True)
    with torch.no_grad():
        change(z)
    with pytest.raises(RuntimeError, match="holds the gradient and was changed after the loss"):
        loss.backward()


def test_a_second_loss_in_the_same_memory_is_an_error():
    z, t = leaf(5, 7) * 1, torch.randn(5, 7)
    both = distill_loss(z, t, inplace_grad=True) + distill_loss(z, t, inplace_grad=True)
    with pytest.raises(RuntimeError, match="was changed after the loss"):
        both.backward()


def test_earlier_uses_of_the_logits_keep_their_gradient():
    s, t = leaf(5, 7), torch.randn(5, 7)
    z = s * 1
    (expected,) = torch.autograd.grad(distill_loss(z, t) + 2 * z.sum(), s)
    z = s * 1
    other = 2 * z.sum()
    (found,) = torch.autograd.grad(distill_loss(z, t, inplace_grad=True) + other, s)
    torch.testing.assert_close(found, expected)
    z = s * 1
    other = z.square().sum()  # saves its input
    loss = distill_loss(z, t, inplace_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()


def test_hooks_of_the_logits_see_and_change_the_gradient():
    s, t = leaf(5, 7), torch.randn(5, 7)
    (expected,) = torch.autograd.grad(distill_loss(s, t), s)
    z = s * 1
    seen = []
    z.register_hook(lambda g: seen.append(g.clone()))
    z.register_hook(lambda g: 3 * g)
    z.retain_grad()
    distill_loss(z, t, inplace_grad=True).backward()
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(s.grad, 3 * expected)
    torch.testing.assert_close(z.grad, 3 * expected)


def test_second_derivative_and_second_backward_are_errors():
    s, t = leaf(3, 4), torch.randn(3, 4)
    loss = distill_loss(s * 1, t, inplace_grad=True)
    (gradient,) = torch.autograd.grad(loss, s, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
    loss = distill_loss(s * 1, t, inplace_grad=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already handed out"):
        loss.backward()


def test_bad_values_leave_the_logits_as_they_were():
    z = leaf(3, 4) * 1
    before = z.detach().clone()
    with pytest.raises(ValueError, match="label 9"):
        distill_loss(z, torch.randn(3, 4), torch.tensor([0, 9, 1]), alpha=0.5, inplace_grad=True)
    assert torch.equal(z, before)


def test_nobody_holds_the_logits_after_the_backward():
    z = leaf(3, 4) * 1
    loss = distill_loss(z, torch.randn(3, 4), inplace_grad=True)
    memory = weakref.ref(z)
    del z
    loss.backward()
    gc.collect()
    assert memory() is None


def test_saved_tensors_hooks_pack_nothing_of_it():
    s, t = leaf(3, 4), torch.randn(3, 4)
    (expected,) = torch.autograd.grad(3 * distill_loss(s, t), s)
    packed = []

    def pack(x):
        packed.append((x, x.clone()))
        return x

    z = s * 1
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = distill_loss(z, t, inplace_grad=True)
    (found,) = torch.autograd.grad(3 * loss, s)
    torch.testing.assert_close(found, expected)
    assert packed == []


def test_other_losses_see_the_logits_where_it_has_no_effect():
    """A student without gradient, and a mode that looks at operations: nothing is overwritten."""
    s, t, y = leaf(3, 4), torch.randn(3, 4), torch.tensor([0, 1, 2])
    z = s * 1
    with torch.no_grad():
        distill_loss(z, t, inplace_grad=True)
    (expected,) = torch.autograd.grad(F.cross_entropy(s, y), s)
    torch.testing.assert_close(torch.autograd.grad(F.cross_entropy(z, y), s)[0], expected)
