"""The public losses and the reference, against independent code in float64."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from distill_cases import OBJECTIVES, logits
from hypothesis import given, settings

import isp_distill
from isp_distill import (
    DistillLoss,
    distill_loss,
    linear_distill_loss,
    upsampled_distill_loss,
    use_backend,
)

GRADCHECK_OBJECTIVES = [o for o in OBJECTIVES if o != "tvd"]  # |p - q| has kinks


@pytest.fixture(autouse=True)
def on_the_reference():
    torch.manual_seed(0)
    with use_backend("reference"):
        yield


# ------------------------------------------------------------- formulas, written another way


def probabilities(x, T):
    """One row of logits to its softmax, in Python numbers."""
    top = max(x)
    e = [math.exp((v - top) / T) for v in x]
    return [v / sum(e) for v in e]


def divergence(a, b):
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def by_hand(s, t, objective, T, target):
    """One row of each objective from its published formula, on lists of Python numbers."""
    q, p = probabilities(s, T), probabilities(t, T)
    if objective in ("forward_kl", "cwd"):
        return T * T * divergence(p, q)
    if objective == "reverse_kl":
        return T * T * divergence(q, p)
    if objective == "jsd(0.3)":
        m = [0.3 * x + 0.7 * y for x, y in zip(p, q, strict=True)]
        return T * T * (0.3 * divergence(p, m) + 0.7 * divergence(q, m))
    if objective == "tvd":  # the other form: the mass that has to move
        return sum(max(x - y, 0) for x, y in zip(p, q, strict=True))
    if objective == "mse":
        return sum((x - y) ** 2 for x, y in zip(s, t, strict=True) if y != -math.inf)
    if objective.startswith("binary_kl"):
        gamma, floor = (2, 0.1) if "(" in objective else (0, 0)
        total = 0.0
        for x, y in zip(s, t, strict=True):
            p, q = ([1 / (1 + math.exp(sign * v / T)) for sign in (-1, 1)] for v in (y, x))
            total += max(p[0], floor) ** gamma * divergence(p, q)
        return T * T * total
    if objective == "dkd(1, 8)":
        pt, qt = p[target], q[target]
        rest_p = [v / (1 - pt) for k, v in enumerate(p) if k != target]
        rest_q = [v / (1 - qt) for k, v in enumerate(q) if k != target]
        binary = divergence([pt, 1 - pt], [qt, 1 - qt])
        return T * T * (1 * binary + 8 * divergence(rest_p, rest_q))
    raise AssertionError(objective)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
def test_objective_is_its_formula(objective, T):
    s, t = logits(3, 5, 2, 2), logits(3, 5, 2, 2)
    if objective not in ("reverse_kl", "cwd"):
        t[:, 2] = -math.inf  # a class that the teacher rules out
    labels = torch.randint(0, 5, (3, 2, 2))
    labels[labels == 2] = 1
    value = distill_loss(
        s, t, labels, objective=objective, temperature=T, alpha=1.0, reduction="none"
    )
    if objective == "cwd":
        for n in range(3):
            for c in range(5):
                row = by_hand(s[n, c].flatten().tolist(), t[n, c].flatten().tolist(), "cwd", T, 0)
                assert value[n, c].item() == pytest.approx(row, abs=1e-12)
        return
    for n, y, x in [(n, y, x) for n in range(3) for y in range(2) for x in range(2)]:
        row = by_hand(
            s[n, :, y, x].tolist(), t[n, :, y, x].tolist(), objective, T, int(labels[n, y, x])
        )
        assert value[n, y, x].item() == pytest.approx(row, abs=1e-12)


def test_forward_kl_is_torch_kl_div():
    s, t, T = logits(7, 11).requires_grad_(), logits(7, 11), 4.0
    ours = distill_loss(s, t, temperature=T)
    (gradient,) = torch.autograd.grad(ours, s)
    theirs = T**2 * F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction="batchmean")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, torch.autograd.grad(theirs, s)[0])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(9, 6), (2, 6, 3, 4)])
def test_cross_entropy_is_torch_cross_entropy(reduction, smoothing, shape):
    s, t = logits(*shape).requires_grad_(), logits(*shape)
    labels = torch.randint(0, 6, (shape[0], *shape[2:]))
    labels[0] = 255
    options = {"reduction": reduction, "ignore_index": 255, "label_smoothing": smoothing}
    ours = distill_loss(s, t, labels, alpha=0.0, **options)
    theirs = F.cross_entropy(s, labels, **options)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, s, upstream)[0], torch.autograd.grad(theirs, s, upstream)[0]
    )


def test_mix_mask_and_weight_count_rows_one_by_one():
    s, t = logits(4, 5, 3), logits(4, 5, 3)
    labels = torch.randint(0, 5, (4, 3))
    labels[0, 1] = labels[2, 2] = -100
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    weight = torch.tensor([0.5, 3.0, 1.0, 2.0])
    kd = ce = kd_weight = ce_weight = 0.0
    agreed = 0
    for n in range(4):
        for k in range(3):
            if not mask[n, k]:
                continue
            row_s, row_t, label = s[n, :, k].tolist(), t[n, :, k].tolist(), int(labels[n, k])
            w = float(weight[n])
            kd, kd_weight = kd + w * by_hand(row_s, row_t, "forward_kl", 2.0, 0), kd_weight + w
            agreed += row_s.index(max(row_s)) == row_t.index(max(row_t))
            if label >= 0:
                ce -= w * math.log(probabilities(row_s, 1.0)[label])
                ce_weight += w
    call = {"temperature": 2.0, "alpha": 0.7, "mask": mask, "weight": weight}
    mean, count = distill_loss(s, t, labels, return_agreement=True, **call)
    assert mean.item() == pytest.approx(0.7 * kd / kd_weight + 0.3 * ce / ce_weight)
    assert count.dtype == torch.int64
    assert int(count) == agreed
    total = distill_loss(s, t, labels, reduction="sum", **call)
    assert total.item() == pytest.approx(0.7 * kd + 0.3 * ce)
    assert distill_loss(s, t, labels, reduction="batchmean", **call).item() == pytest.approx(
        total.item() / 4
    )
    rows = distill_loss(s, t, labels, reduction="none", **call)
    assert rows.shape == (4, 3)
    assert rows.sum().item() == pytest.approx(total.item())
    assert bool((rows[mask == 0] == 0).all())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
def test_nothing_counts(objective, reduction):
    s, t = logits(2, 4, 3).requires_grad_(), logits(2, 4, 3)
    t[0, :, 0] = math.nan  # outside the mask: not looked at
    loss, agreed = distill_loss(
        s,
        t,
        torch.full((2, 3), -100),
        objective=objective,
        alpha=0.5,
        mask=torch.zeros(2, 3, dtype=torch.bool),
        reduction=reduction,
        return_agreement=True,
    )
    loss.backward()
    assert loss.item() == 0
    assert int(agreed) == 0
    assert bool((s.grad == 0).all())


@pytest.mark.parametrize("objective", GRADCHECK_OBJECTIVES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(objective, reduction):
    s, t = logits(2, 4, 3, spread=1.0).requires_grad_(), logits(2, 4, 3, spread=1.0)
    if objective != "reverse_kl":
        t[:, 1] = -math.inf if objective != "cwd" else t[:, 1]
    labels = torch.tensor([[0, 2, -100], [3, 0, 2]])
    alpha = 1.0 if objective == "cwd" and reduction == "none" else 0.6
    mask = torch.tensor([[1, 1, 1], [1, 0, 1]])

    def call(x):
        return distill_loss(
            x, t, labels, objective=objective, temperature=2.0, alpha=alpha, mask=mask,
            weight=torch.tensor([0.5, 2.0]), label_smoothing=0.1, reduction=reduction,
        )  # fmt: skip

    assert torch.autograd.gradcheck(call, (s,))


def test_tvd_gradient_away_from_its_kinks():
    s, t = torch.tensor([[0.0, 1.0, 3.0]], dtype=torch.float64), logits(1, 3)
    assert torch.autograd.gradcheck(
        lambda x: distill_loss(x, t, objective="tvd", temperature=2.0), (s.requires_grad_(),)
    )


def test_extremes_stay_finite():
    for T in (0.01, 100.0):
        for objective in OBJECTIVES:
            s = (1e4 * torch.randn(2, 5, 3)).requires_grad_()
            loss = distill_loss(
                s, 1e4 * torch.randn(2, 5, 3), torch.zeros(2, 3, dtype=torch.long),
                objective=objective, temperature=T, alpha=0.5,
            )  # fmt: skip
            loss.backward()
            assert loss.isfinite()
            assert bool(s.grad.isfinite().all())


def test_half_gradient_survives_a_mean_over_many_rows():
    s = logits(1, 3, 512, 512, dtype=torch.float32).half().requires_grad_()
    t = logits(1, 3, 512, 512, dtype=torch.float32).half()
    (65536.0 * distill_loss(s, t)).backward()
    wide = s.detach().double().requires_grad_()
    (65536.0 * distill_loss(wide, t.double())).backward()
    torch.testing.assert_close(s.grad.double(), wide.grad, rtol=2e-3, atol=1e-5)


# ------------------------------------------------------------- upsampled and linear forms


@pytest.mark.parametrize(("height", "target"), [(2, 10), (2, 22), (2, 26), (3, 15)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_is_ruled_out_only_where_its_cell_counts(height, target, dtype):
    """At these sizes rounding leaves 1e-16 of a weight that is 0."""
    torch.manual_seed(0)
    student, teacher = (torch.randn(1, 4, height, 3, dtype=dtype) for _ in range(2))
    teacher[:, 1, height // 2] = -math.inf
    loss = upsampled_distill_loss(student, teacher, (target, 5), objective="mse")
    s, t = (
        F.interpolate(x.clamp(min=-10), (target, 5), mode="bilinear") for x in (student, teacher)
    )
    squares = (s - t).square()
    row = ((torch.arange(target) + 0.5) * height / target - 0.5).clamp(0, height - 1)
    squares[:, 1, (row - height // 2).abs() < 1 - 1e-9] = 0
    assert loss.item() == pytest.approx(squares.sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("objective", ["forward_kl", "dkd", "cwd"])
def test_upsampled_is_interpolate_then_loss(align_corners, objective):
    s, t = logits(2, 5, 3, 4).requires_grad_(), logits(2, 5, 6, 5)
    labels = torch.randint(0, 5, (2, 9, 13))
    mask = torch.rand(2, 9, 13) > 0.3
    call = {"objective": objective, "alpha": 0.5, "temperature": 2.0, "mask": mask}
    ours, agreed = upsampled_distill_loss(
        s, t, (9, 13), labels, align_corners=align_corners, return_agreement=True, **call
    )
    wide = [F.interpolate(x, (9, 13), mode="bilinear", align_corners=align_corners) for x in (s, t)]
    theirs, expected = distill_loss(*wide, labels, return_agreement=True, **call)
    torch.testing.assert_close(ours, theirs)
    assert int(agreed) == int(expected)
    torch.testing.assert_close(torch.autograd.grad(ours, s), torch.autograd.grad(theirs, s))


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_linear_then_loss(reduction, bias):
    leaves = [logits(10, 4), logits(6, 4), logits(6) if bias else None]
    leaves = [x if x is None else x.requires_grad_() for x in leaves]
    teacher = (logits(10, 3), logits(6, 3), logits(6))
    labels = torch.tensor([0, 1, -100, 3, 4, 5, 0, 1, 2, -100])
    call = {"alpha": 0.4, "temperature": 3.0, "reduction": reduction, "weight": torch.rand(10)}
    ours, agreed = linear_distill_loss(
        *leaves, *teacher, labels, chunk_rows=3, return_agreement=True, **call
    )
    theirs, expected = distill_loss(
        F.linear(*leaves), F.linear(*teacher), labels, return_agreement=True, **call
    )
    torch.testing.assert_close(ours, theirs)
    assert int(agreed) == int(expected)
    wanted = [x for x in leaves if x is not None]
    torch.testing.assert_close(
        torch.autograd.grad(2 * ours, wanted), torch.autograd.grad(2 * theirs, wanted)
    )


def test_module_is_the_function():
    s, t, labels = logits(3, 4), logits(3, 4), torch.tensor([0, 1, -100])
    module = DistillLoss("jsd(0.3)", temperature=2.0, alpha=0.5, reduction="sum")
    expected = distill_loss(
        s, t, labels, objective="jsd(0.3)", temperature=2.0, alpha=0.5, reduction="sum"
    )
    assert torch.equal(module(s, t, labels), expected)
    assert "jsd(0.3)" in repr(module)
    with pytest.raises(ValueError, match="unknown objective"):
        DistillLoss("hinton")


# ------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"teacher": torch.zeros(2, 4)}, ValueError, "must be the same"),
        ({"student": torch.zeros(2)}, ValueError, "expected .N, C."),
        ({"student": torch.zeros(2, 1), "teacher": torch.zeros(2, 1)}, ValueError, "C >= 2"),
        ({"student": torch.zeros(0, 3), "teacher": torch.zeros(0, 3)}, ValueError, "empty batch"),
        ({"student": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "dtype"),
        ({"student": [[0.0, 1.0]]}, TypeError, "must be a tensor"),
        ({"teacher": torch.zeros(2, 3, device="meta")}, ValueError, "is on meta"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"temperature": math.inf}, ValueError, "temperature"),
        ({"temperature": math.nan}, ValueError, "temperature"),
        ({"alpha": 1.5}, ValueError, "alpha"),
        ({"alpha": 0.5}, ValueError, "needs labels"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing"),
        ({"reduction": "median"}, ValueError, "unknown reduction"),
        ({"objective": "hinton"}, ValueError, "unknown objective"),
        ({"objective": "jsd(1.0)"}, ValueError, "beta"),
        ({"objective": "jsd(a)"}, ValueError, "numbers"),
        ({"objective": "dkd(1)"}, ValueError, "2 parameters"),
        ({"objective": "dkd(-1, 2)"}, ValueError, "not negative"),
        ({"objective": None}, TypeError, "string"),
        ({"objective": "cwd"}, ValueError, "over their pixels"),
        ({"labels": torch.zeros(2)}, TypeError, "integer"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, ValueError, "labels have shape"),
        ({"labels": torch.tensor([0, 3]), "alpha": 0.5}, ValueError, "label 3"),
        ({"labels": torch.tensor([-1, 0]), "alpha": 0.5}, ValueError, "label -1"),
        ({"mask": torch.ones(2)}, TypeError, "mask must be"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, ValueError, "mask has shape"),
        ({"weight": torch.ones(3)}, ValueError, "weight has shape"),
        ({"weight": torch.tensor([1.0, -1.0])}, ValueError, "not negative"),
        ({"weight": torch.tensor([1.0, math.nan])}, ValueError, "finite"),
        ({"weight": torch.tensor([1, 1])}, TypeError, "floating"),
    ],
)
def test_bad_input_is_a_clear_error(change, error, message):
    call = {"student": torch.zeros(2, 3), "teacher": torch.zeros(2, 3), **change}
    with pytest.raises(error, match=message):
        distill_loss(call.pop("student"), call.pop("teacher"), **call)


def test_bad_input_of_the_other_forms():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="batch and classes"):
        upsampled_distill_loss(x, torch.zeros(2, 4, 4, 4), 8)
    with pytest.raises(ValueError, match="positive"):
        upsampled_distill_loss(x, x, (0, 8))
    with pytest.raises(ValueError, match="labels have shape"):
        upsampled_distill_loss(x, x, 8, torch.zeros(2, 4, 4, dtype=torch.long))
    f, w = torch.zeros(5, 3), torch.zeros(4, 3)
    with pytest.raises(ValueError, match="columns"):
        linear_distill_loss(f, torch.zeros(4, 2), None, f, w, None)
    with pytest.raises(ValueError, match="classes"):
        linear_distill_loss(f, w, None, f, torch.zeros(5, 3), None)
    with pytest.raises(ValueError, match="student_bias"):
        linear_distill_loss(f, w, torch.zeros(3), f, w, None)
    with pytest.raises(TypeError, match="same dtype"):
        linear_distill_loss(f, w.double(), None, f, w, None)
    with pytest.raises(ValueError, match="reduction"):
        linear_distill_loss(f, w, None, f, w, None, reduction="none")
    with pytest.raises(ValueError, match="chunk_rows"):
        linear_distill_loss(f, w, None, f, w, None, chunk_rows=0)


@settings(max_examples=40, deadline=None)
@given(
    classes=st.integers(2, 9),
    positions=st.sampled_from([(), (3,), (2, 3)]),
    objective=st.sampled_from(["forward_kl", "reverse_kl", "jsd", "tvd", "dkd", "mse"]),
    seed=st.integers(0, 2**16),
)
def test_same_logits_have_no_distance(classes, positions, objective, seed):
    x = 4 * torch.randn(3, classes, *positions, generator=torch.Generator().manual_seed(seed))
    loss, agreed = isp_distill.distill_loss(x, x, objective=objective, return_agreement=True)
    assert abs(loss.item()) < 1e-5
    assert int(agreed) == 3 * math.prod(positions)


@pytest.mark.parametrize(("reduction", "size"), [("mean", 700), ("batchmean", 300)])
def test_coarse_float16_logits_keep_finite_gradients(reduction, size):
    """Each low-resolution logit gathers the gradients of many pixels."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, 4, 1, 1, generator=generator) for _ in range(2))
    found = []
    for dtype in (torch.float16, torch.float32):
        leaf = student.to(dtype).requires_grad_()
        loss = isp_distill.upsampled_distill_loss(
            leaf, teacher, size=(size, size), reduction=reduction
        )
        loss = loss if reduction == "mean" else loss / size**2
        found.append(torch.autograd.grad(loss, leaf)[0].float())
    assert bool(found[0].isfinite().all())
    torch.testing.assert_close(*found, rtol=5e-3, atol=5e-3 * found[1].abs().max().item())
