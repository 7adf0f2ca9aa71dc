"""The feature loss and its reference, against independent code in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from feature_cases import NORMALISATIONS, OBJECTIVES, shape_of, statistics_of

from isp_distill import BackendError, feature_loss, use_backend

SHAPES = [(3, 6), (3, 4, 6), (3, 6, 2, 4)]
WIDTH = 6


@pytest.fixture(autouse=True)
def on_the_reference():
    torch.manual_seed(0)
    with use_backend("reference"):
        yield


def features(*shape):
    return 1 + 2 * torch.randn(shape, dtype=torch.float64)


def statistics(normalise):
    return statistics_of(WIDTH) if normalise == "teacher" else {}


# ------------------------------------------------------------- formulas, written another way


def rows_of(x):
    """Lists of Python numbers, a row each."""
    return (x if x.dim() == 3 else x.movedim(1, -1)).reshape(-1, WIDTH).tolist()


def normalised(row, normalise, mean=None, std=None):
    if normalise == "l2":
        length = math.sqrt(sum(v * v for v in row))
        return [v / length for v in row]
    if normalise == "layer":
        middle = sum(row) / len(row)
        variance = sum((v - middle) ** 2 for v in row) / len(row)
        return [(v - middle) / math.sqrt(variance + 1e-5) for v in row]
    if normalise == "teacher":
        return [(v - float(m)) / float(d) for v, m, d in zip(row, mean, std, strict=True)]
    return row


def cosine(s, t):
    product = sum(a * b for a, b in zip(s, t, strict=True))
    return product / math.hypot(*s) / math.hypot(*t)


def by_hand(s, t, objective):
    distances = [abs(a - b) for a, b in zip(s, t, strict=True)]
    if objective == "cosine":
        return 1 - cosine(s, t)
    if objective == "mse":
        return sum(d * d for d in distances) / len(distances)
    of_cosine, of_smooth, beta = {
        "smooth_l1": (0, 1, 1),
        "smooth_l1(0.3)": (0, 1, 0.3),
        "cosine_smooth_l1": (0.9, 0.1, 1),
        "cosine_smooth_l1(0.5, 2, 0.1)": (0.5, 2, 0.1),
    }[objective]
    smooth = [d * d / (2 * beta) if d < beta else d - beta / 2 for d in distances]
    return of_cosine * (1 - cosine(s, t)) + of_smooth * sum(smooth) / len(smooth)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objective_is_its_formula(objective, normalise, shape):
    s, t, of = features(*shape), features(*shape), statistics(normalise)
    pairs = [
        (normalised(a, normalise, **of), normalised(b, normalise, **of))
        for a, b in zip(rows_of(s), rows_of(t), strict=True)
    ]
    options = {"objective": objective, "normalise": normalise, **of}
    value = feature_loss(s, t, reduction="none", **options)
    assert value.dtype == torch.float64
    assert value.shape == (shape[:2] if len(shape) == 3 else (shape[0], *shape[2:]))
    expected = [by_hand(a, b, objective) for a, b in pairs]
    assert value.flatten().tolist() == pytest.approx(expected, abs=1e-12)
    mean, similarity = feature_loss(s, t, return_similarity=True, **options)
    assert mean.item() == pytest.approx(sum(expected) / len(expected))
    assert similarity.item() == pytest.approx(sum(cosine(*p) for p in pairs) / len(pairs))
    assert not similarity.requires_grad


def test_it_is_what_torch_computes():
    s, t = features(4, 5, WIDTH).requires_grad_(), features(4, 5, WIDTH)
    for ours, theirs in (
        (feature_loss(s, t, objective="cosine"), 1 - F.cosine_similarity(s, t, -1).mean()),
        (feature_loss(s, t, objective="mse"), F.mse_loss(s, t)),
        (feature_loss(s, t, objective="smooth_l1(0.7)"), F.smooth_l1_loss(s, t, beta=0.7)),
        (
            feature_loss(s, t, objective="mse", normalise="layer"),
            F.mse_loss(*(F.layer_norm(x, (WIDTH,)) for x in (s, t))),
        ),
    ):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (ours, theirs)))


@pytest.mark.parametrize("weighed", ["samples", "rows"])
def test_mask_and_weight_count_rows_one_by_one(weighed):
    s, t = features(3, 4, WIDTH), features(3, 4, WIDTH)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]])
    weight = torch.rand(3) if weighed == "samples" else torch.rand(3, 4)
    of_row = weight[:, None].expand(3, 4) if weighed == "samples" else weight
    total = count = similarity = 0.0
    for n in range(3):
        for k in range(4):
            if mask[n, k]:
                a, b, w = s[n, k].tolist(), t[n, k].tolist(), float(of_row[n, k])
                total, count = total + w * by_hand(a, b, "cosine"), count + w
                similarity += w * cosine(a, b)
    s[1] = math.nan  # outside the mask: not looked at
    s.requires_grad_()
    call = {"objective": "cosine", "mask": mask, "weight": weight}
    mean, seen = feature_loss(s, t, return_similarity=True, **call)
    assert mean.item() == pytest.approx(total / count)
    assert seen.item() == pytest.approx(similarity / count)
    (gradient,) = torch.autograd.grad(mean, s)
    assert bool((gradient[mask == 0] == 0).all())
    assert feature_loss(s, t, reduction="sum", **call).item() == pytest.approx(total)
    assert feature_loss(s, t, reduction="batchmean", **call).item() == pytest.approx(total / 3)
    rows = feature_loss(s, t, reduction="none", **call)
    assert rows.sum().item() == pytest.approx(total)
    assert bool((rows[mask == 0] == 0).all())


def test_nothing_counts():
    s, t = features(2, WIDTH).requires_grad_(), features(2, WIDTH)
    loss, similarity = feature_loss(
        s, t, objective="cosine_smooth_l1", mask=torch.zeros(2, dtype=torch.bool),
        return_similarity=True,
    )  # fmt: skip
    loss.backward()
    assert loss.item() == similarity.item() == 0
    assert bool((s.grad == 0).all())


@pytest.mark.parametrize("normalise", ["none", "l2"])
def test_a_row_of_length_0_has_no_direction(normalise):
    s, t = torch.zeros(2, WIDTH, dtype=torch.float64).requires_grad_(), features(2, WIDTH)
    for student, teacher in ((s, t), (t.clone().requires_grad_(), s.detach())):
        loss = feature_loss(student, teacher, objective="cosine", normalise=normalise)
        assert loss.item() == 1
        loss.backward()
        assert bool((student.grad == 0).all())


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("objective", ["cosine", "mse", "cosine_smooth_l1(0.5, 2, 0.1)"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(objective, normalise, reduction):
    s, t = features(2, 3, WIDTH).requires_grad_(), features(2, 3, WIDTH)
    of = {"mask": torch.tensor([[1, 1, 0], [1, 1, 1]]), "weight": torch.tensor([0.5, 2.0])}
    of |= {"objective": objective, "normalise": normalise, "reduction": reduction}
    of |= statistics(normalise)
    assert torch.autograd.gradcheck(lambda x: feature_loss(x, t, **of), (s,))


@pytest.mark.parametrize("size", [5, (7, 3)])
def test_grids_that_differ_are_resampled(size):
    s, t = features(2, WIDTH, 3, 4).requires_grad_(), features(2, WIDTH, 7, 3)
    wide, target = (
        F.interpolate(x, (size, size) if size == 5 else size, mode="bilinear") for x in (s, t)
    )
    ours = feature_loss(s, t, objective="cosine_smooth_l1", size=size)
    theirs = feature_loss(wide, target, objective="cosine_smooth_l1")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (ours, theirs)))


def test_the_teacher_gets_no_gradient_and_views_pass_it_on():
    base = features(2, 8, WIDTH).requires_grad_()
    t = features(2, 4, WIDTH).requires_grad_()
    feature_loss(base[:, ::2], t, objective="mse").backward()
    assert t.grad is None
    assert bool((base.grad[:, 1::2] == 0).all())
    expected = 2 * (base - t.repeat_interleave(2, 1))[:, ::2] / (2 * 4 * WIDTH)
    torch.testing.assert_close(base.grad[:, ::2], expected.detach())


def test_what_it_refuses():
    s, t = torch.randn(2, 5, WIDTH), torch.randn(2, 5, WIDTH)

    def refused(match, kind=ValueError, student=s, teacher=t, **options):
        with pytest.raises(kind, match=match):
            feature_loss(student, teacher, **{"objective": "cosine", **options})

    refused("unknown objective 'cosin'.*cosine", objective="cosin")
    refused("must be a string", TypeError, objective=1)
    refused("takes 3 parameters", objective="cosine_smooth_l1(1)")
    refused("must be numbers", objective="smooth_l1(x)")
    refused("beta must lie in", objective="smooth_l1(0)")
    refused("shares must be finite", objective="cosine_smooth_l1(-1, 1, 1)")
    refused("unknown normalise", normalise="batch")
    refused("unknown reduction", reduction="max")
    refused("True or False", TypeError, return_similarity=1)
    refused("must be a tensor", TypeError, student=[1.0])
    refused("expected one of float16", TypeError, student=s.long())
    refused(r"expected \[N, D\]", student=s[0, 0], teacher=t[0, 0])
    refused("an empty one has no loss", student=s[:0], teacher=t[:0])
    refused("projection", student=s[..., :3])
    refused("size=", student=s[:, :3])
    refused("same axes", student=s[:, 0])
    refused("view", size=3)
    maps = torch.randn(2, 3, 4, 4)
    refused("projection", student=maps, teacher=torch.randn(2, 4, 2, 2), size=4)
    refused(r"mask has shape \[2\]", mask=torch.ones(2, dtype=torch.bool))
    refused("mask must be bool", TypeError, mask=torch.ones(2, 5))
    refused("weight has shape", weight=torch.ones(5))
    refused("weight requires grad", TypeError, weight=torch.ones(2, requires_grad=True))
    refused("weight must be finite", weight=torch.tensor([1.0, math.nan]))
    refused("of normalise=", mean=torch.zeros(WIDTH))
    of_teacher = {"normalise": "teacher", "mean": torch.zeros(WIDTH)}
    refused("needs std", **of_teacher)
    refused("std has shape", std=torch.ones(2), **of_teacher)
    refused("std.clamp", std=torch.zeros(WIDTH), **of_teacher)
    with use_backend("cuda"):
        refused("no kernels for it", BackendError)


def test_every_shape_has_its_rows():
    for positions in ((), (4,), (2, 3)):
        x = torch.randn(shape_of(2, WIDTH, positions))
        assert feature_loss(x, x, objective="mse", reduction="none").shape == (2, *positions)
