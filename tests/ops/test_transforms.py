"""torch.func's transforms, forward-mode derivatives, and second derivatives: right, or refused."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from isp_distill import (
    ISP,
    BackendError,
    NoiseModel,
    expose,
    raw_conv,
    render,
    unprocess,
    use_backend,
)

MOSAIC = torch.randint(0, 900, (1, 12, 12), generator=torch.Generator().manual_seed(0)).float()
LEVELS = {"black": 64.0, "white": 900.0}


def features(weight):
    return raw_conv(MOSAIC, weight, curve="gamma", gamma=0.45, activation="silu", **LEVELS)


def exposed(exposure):
    return render(MOSAIC, ISP(exposure=exposure, **LEVELS), size=2)


@pytest.mark.parametrize(
    ("function", "point"), [(features, torch.randn(2, 4, 3, 3)), (exposed, torch.tensor(0.7))]
)
def test_derivatives(function, point):
    """Against the gradient of the ordinary call, one output at a time."""
    leaf = point.clone().requires_grad_()
    out = function(leaf)
    rows = [torch.autograd.grad(y, leaf, retain_graph=True)[0] for y in out.reshape(-1)]
    expected = torch.stack(rows).reshape(*out.shape, *point.shape)
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(jacrev(function)(point), expected, **close)
    torch.testing.assert_close(jacfwd(function)(point), expected, **close)
    total = expected.reshape(out.numel(), *point.shape).sum(0)
    torch.testing.assert_close(grad(lambda x: function(x).sum())(point), total, **close)
    tangent = torch.randn_like(point)
    along = (expected.reshape(*out.shape, -1) * tangent.reshape(-1)).sum(-1)
    torch.testing.assert_close(jvp(function, (point,), (tangent,))[1], along, **close)
    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(point, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, along, **close)


NOISE = NoiseModel.preset("low")
MAPPED = {
    "weight": (features, torch.randn(3, 2, 4, 3, 3)),
    "mosaic": (
        lambda m: raw_conv(m, torch.ones(2, 4, 3, 3), **LEVELS),
        torch.rand(3, 1, 12, 12) * 900,
    ),
    "black": (
        lambda b: raw_conv(MOSAIC, torch.ones(2, 4, 3, 3), black=b, white=900.0),
        60 * torch.rand(3, 4),
    ),
    "render": (lambda m: render(m, ISP(**LEVELS), size=4), torch.rand(3, 1, 12, 12) * 900),
    "expose": (lambda m: expose(m, 0.5, NOISE, **LEVELS), torch.rand(3, 1, 12, 12) * 900),
    "unprocess": (lambda x: unprocess(x, noise=NOISE)[0], torch.rand(3, 1, 3, 12, 12)),
}


@pytest.mark.parametrize("name", MAPPED)
@pytest.mark.filterwarnings("error")
def test_vmap(name):
    function, points = MAPPED[name]
    expected = torch.stack([function(point) for point in points])
    torch.testing.assert_close(vmap(function)(points), expected, rtol=1e-4, atol=1e-4)


def test_kernels_that_were_asked_for_refuse_in_one_sentence():
    weight = torch.randn(2, 4, 3, 3)
    with use_backend("cpu"):
        with pytest.raises(BackendError, match=r"torch\.func.s transforms"):
            jvp(features, (weight,), (weight,))
        black = torch.zeros(4, requires_grad=True)
        with pytest.raises(BackendError, match="no gradient of black, white and padding_value"):
            raw_conv(MOSAIC, weight, black=black, white=900.0)


def test_levels_have_their_gradient():
    black = torch.zeros(4, requires_grad=True)
    white = torch.tensor(900.0, requires_grad=True)
    border = torch.zeros(4, requires_grad=True)
    y = raw_conv(
        MOSAIC, torch.ones(2, 4, 3, 3), black=black, white=white, padding=1, padding_value=border
    )
    gradients = torch.autograd.grad(y.sum(), (black, white, border))
    assert all(bool((g != 0).any()) for g in gradients)


def test_a_second_derivative_is_the_references():
    weight = torch.randn(2, 4, 3, 3, requires_grad=True)
    (first,) = torch.autograd.grad(features(weight).square().sum(), weight, create_graph=True)
    with pytest.raises(BackendError, match=r"no second derivative.*reference"):
        first.sum().backward()
    with use_backend("reference"):
        (first,) = torch.autograd.grad(features(weight).square().sum(), weight, create_graph=True)
        first.sum().backward()
    assert weight.grad is not None
