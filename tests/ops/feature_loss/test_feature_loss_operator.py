"""The operator of the feature loss: what torch asks of it, and how its gradient comes out."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from seen_operators import SeenOperators
from torch.autograd import forward_ad

from isp_distill import feature_loss, release_memory

SHAPES = [(4, 24), (2, 5, 24), (2, 24, 3, 4)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pair(shape, **options):
    return torch.randn(shape, **options).requires_grad_(), torch.randn(shape)


def test_opcheck():
    operator = torch.ops.isp_distill.feature_loss.default
    for shape in ((4, 24), (2, 24, 5), (2, 24, 3, 4)):
        s, t = pair(shape)
        positions = (shape[0], *shape[2:])
        rows = (torch.rand(24), torch.ones(24), torch.rand(positions) > 0.3, torch.rand(positions))
        for reduction in ("mean", "none"):
            torch.library.opcheck(
                operator,
                (
                    s,
                    t,
                    *rows,
                    "cosine_smooth_l1",
                    [0.9, 0.1, 1.0],
                    "teacher",
                    reduction,
                    [],
                    True,
                    1.0,
                ),
            )
    torch.library.opcheck(
        operator, (s, t, None, None, None, None, "cosine", [], "l2", "mean", [], True, 1.0)
    )
    # At another grid than either's.
    rows = (None, None, torch.rand(2, 5, 7) > 0.3, torch.rand(2, 5, 7))
    for reduction in ("mean", "none"):
        with_gradient = reduction != "none"
        torch.library.opcheck(
            operator,
            (s.detach() if not with_gradient else s, t, *rows, "cosine", [], "l2", reduction,
             [5, 7], with_gradient, 1.0),
        )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_compiles_without_a_graph_break(shape):
    t = torch.randn(shape)

    def step(x):
        return feature_loss(
            2 * x, t, objective="cosine_smooth_l1", normalise="layer", return_similarity=True
        )

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        x = torch.linspace(-1, 3, t.numel()).sin().view(shape).requires_grad_()
        loss, similarity = run(x)
        loss.backward()
        results.append((loss.detach(), similarity, x.grad))
    torch.testing.assert_close(*results)


def test_compiles_with_grids_that_differ():
    t = torch.randn(2, 8, 6, 6)

    def step(x):
        return feature_loss(x, t, objective="cosine", size=6)

    x = torch.randn(2, 8, 3, 3, requires_grad=True)
    found = [
        torch.autograd.grad(run(x), x)[0]
        for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager"))
    ]
    torch.testing.assert_close(*found)


def test_second_derivative_is_an_error():
    s, t = pair((4, 24))
    loss = feature_loss(s, t, objective="cosine")
    (gradient,) = torch.autograd.grad(loss, s, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_backward_twice_through_a_kept_graph():
    s, t = pair((4, 24))
    loss = -3 * feature_loss(s, t, objective="mse")
    (first,) = torch.autograd.grad(loss, s, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    torch.testing.assert_close(second, kept, rtol=0, atol=0)


def test_nothing_is_aliased():
    release_memory()
    shape = (64, 80, 64)  # large enough to be kept
    found = []
    for _ in range(3):
        s, t = pair(shape)
        before, teacher = s.detach().clone(), t.clone()
        (gradient,) = torch.autograd.grad(feature_loss(s, t, objective="mse"), s)
        assert torch.equal(s.detach(), before)
        assert torch.equal(t, teacher)
        found.append((gradient, gradient.clone()))
    for gradient, copy in found:
        assert torch.equal(gradient, copy)
    assert len({gradient.data_ptr() for gradient, _ in found}) == 3
    release_memory()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_operator_and_the_direct_way_give_the_same_bits(dtype, shape):
    student, teacher = pair(shape, dtype=dtype)
    results = []
    for mode in (contextlib.nullcontext(), SeenOperators()):
        with mode:
            loss, similarity = feature_loss(
                student, teacher, objective="smooth_l1", return_similarity=True
            )
            (gradient,) = torch.autograd.grad(3 * loss, student)
        results.append((loss, similarity, gradient))
    assert "isp_distill::feature_loss" in mode.names
    for direct, through_operator in zip(*results, strict=True):
        assert direct.dtype == through_operator.dtype
        assert torch.equal(direct, through_operator)


def test_float16_keeps_the_gradient_of_a_mean_over_many_rows():
    s = torch.randn(1, 4096, 64)
    t = s + 0.01 * torch.randn_like(s)
    half = s.half().requires_grad_()
    loss = 4096 * feature_loss(half, t, objective="mse")
    (gradient,) = torch.autograd.grad(loss, half)
    wide = half.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(4096 * feature_loss(wide, t, objective="mse"), wide)
    assert (gradient.double() - expected).abs().max() <= 2e-3 * expected.abs().max()


def test_autocast_leaves_it_alone():
    s, t = pair((4, 24))
    plain = feature_loss(s, t, objective="cosine")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(feature_loss(s, t, objective="cosine"), plain)


@pytest.mark.parametrize("normalise", ["none", "l2", "layer"])
@pytest.mark.parametrize("shape", [*SHAPES, "grid"])
def test_transforms_of_torch_func(shape, normalise):
    size = 5 if shape == "grid" else None
    shape = (2, 24, 3, 4) if shape == "grid" else shape
    student, t = torch.randn(shape), torch.randn(shape)

    def call(s):
        return feature_loss(s, t, objective="cosine_smooth_l1", normalise=normalise, size=size)

    def plain_gradient(x):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(call(leaf), leaf)[0]

    expected, direction = plain_gradient(student), torch.randn(shape)
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    close(torch.func.grad(call)(student), expected)
    value, tangent = torch.func.jvp(call, (student,), (direction,))
    close(value, call(student))
    close(tangent, (expected * direction).sum())
    close(torch.func.jacrev(call)(student), expected)
    close(torch.func.jacfwd(call)(student), expected)
    batch = torch.stack([student, student + direction])
    close(torch.func.vmap(call)(batch), torch.stack([call(x) for x in batch]))
    close(
        torch.func.vmap(torch.func.grad(call))(batch),
        torch.stack([plain_gradient(x) for x in batch]),
    )
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(student, direction)
        close(forward_ad.unpack_dual(call(dual)).tangent, (expected * direction).sum())
