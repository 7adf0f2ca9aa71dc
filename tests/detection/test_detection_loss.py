"""The loss of two detectors is its definition, written down a second time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isp_distill.detection import DetectionLoss, Heads
from isp_distill.detection.assignment import assigned


def heads_output(heads, pictures, places, seed):
    drawn = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(pictures, places, heads.logits, generator=drawn)
    corners = torch.rand(pictures, places, 2, generator=drawn)
    sides = 0.05 + 0.5 * torch.rand(pictures, places, 2, generator=drawn)
    return torch.cat([logits, corners, corners + sides], -1)


def binary_kl(s, t, temperature):
    p, q = (t / temperature).sigmoid(), (s / temperature).sigmoid()
    return temperature**2 * (
        p * (p.log() - q.log()) + (1 - p) * ((1 - p).log() - (1 - q).log())
    )  # fmt: skip


def giou_apart(a, b):
    low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
    shared = (high - low).clamp(min=0).prod()
    whole = sum((x[2:] - x[:2]).prod() for x in (a, b)) - shared
    hull = (torch.maximum(a[2:], b[2:]) - torch.minimum(a[:2], b[:2])).prod()
    return 1 - shared / whole + (hull - whole) / hull


def smooth_l1_apart(a, b):
    away = (a - b).abs() / (b[2:] - b[:2]).repeat(2)
    return torch.where(away < 0.1, away**2 / 0.2, away - 0.05).sum()


def by_hand(heads, student, teacher, temperature, apart, box_weight):
    """Place by place, in float64."""
    classes = boxes = whole = 0.0
    for s, t in zip(student.double().flatten(0, 1), teacher.double().flatten(0, 1), strict=True):
        s_logits, t_logits = s[: heads.logits], t[: heads.logits]
        if heads.softmax:
            scores = t_logits.softmax(0)
            seen = [p for i, p in enumerate(scores) if i != heads.background]
            sure = max(seen)
            p = (t_logits / temperature).softmax(0)
            q = (s_logits / temperature).softmax(0)
            kl = temperature**2 * (p * (p.log() - q.log())).sum()
            classes += max(sure, 0.05) * kl
        else:
            scores = t_logits.sigmoid()
            best = scores[: heads.classes].max()
            sure = (best * scores[-1]).sqrt() if heads.quality else best
            # An element's weight is the probability at the loss's temperature.
            weight = (t_logits / temperature).sigmoid().clamp(min=0.05)
            classes += (weight * binary_kl(s_logits, t_logits, temperature)).sum()
        boxes += sure * apart(s[heads.logits :], t[heads.logits :])
        whole += sure
    whole = max(whole, 1.0)
    return (classes + box_weight * boxes) / whole


HEADS = [
    Heads(1),
    Heads(3),
    Heads(4, quality=True),
    Heads(4, softmax=True, background=0),
    Heads(4, softmax=True, background=-1),
]


@given(
    heads=st.sampled_from(HEADS),
    pictures=st.integers(1, 3),
    places=st.integers(1, 9),
    temperature=st.sampled_from([1.0, 2.0]),
    box_objective=st.sampled_from(["giou", "smooth_l1"]),
    box_weight=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 99),
)
def test_the_loss_is_its_definition(
    heads, pictures, places, temperature, box_objective, box_weight, seed
):
    student = heads_output(heads, pictures, places, seed).requires_grad_()
    teacher = heads_output(heads, pictures, places, seed + 1000)
    loss = DetectionLoss(
        heads, temperature=temperature, box_objective=box_objective, box_weight=box_weight
    )
    value, agreed = loss(student, teacher)
    apart = giou_apart if box_objective == "giou" else smooth_l1_apart
    expected = by_hand(heads, student.detach(), teacher, temperature, apart, box_weight)
    torch.testing.assert_close(value.double(), torch.as_tensor(expected), atol=1e-4, rtol=1e-4)
    value.backward()
    assert bool(student.grad.isfinite().all())
    best = [x[..., : heads.logits].argmax(-1) for x in (student, teacher)]
    if heads.logits == 1:  # then whether there is anything
        best = [x[..., 0] > 0 for x in (student, teacher)]
    assert int(agreed) == int((best[0] == best[1]).sum())
    assert loss.positions(teacher) == pictures * places


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_equal_heads_cost_nothing(heads):
    teacher = heads_output(heads, 2, 20, 3)
    student = teacher.clone().requires_grad_()
    value, agreed = DetectionLoss(heads)(student, teacher)
    value.backward()
    assert float(value.detach()) < 1e-5
    assert int(agreed) == 40
    assert float(student.grad[..., : heads.logits].abs().max()) < 1e-6


def test_pictures_of_nothing_give_no_large_number():
    heads = Heads(3)
    teacher = heads_output(heads, 1, 10, 0)
    teacher[..., :3] = -30.0
    student = heads_output(heads, 1, 10, 1)
    student[..., :3] = -6.0
    value, _ = DetectionLoss(heads)(student, teacher)
    assert 0 < float(value.detach()) < 0.1


def test_queries_are_paired_whatever_their_order():
    heads = Heads(3, ordered=False, nms=None)
    teacher = heads_output(heads, 2, 12, 0)
    student = teacher[:, torch.randperm(12, generator=torch.Generator().manual_seed(1))]
    value, agreed = DetectionLoss(heads)(student, teacher)
    assert float(value.detach()) < 1e-5
    assert int(agreed) == 24
    ours, theirs = assigned(student, teacher[:, :5], heads)
    assert ours.shape == theirs.shape == (2, 5)
    assert float(DetectionLoss(heads)(student, teacher[:, :5])[0]) < 1e-5
    assert float(DetectionLoss(Heads(3, nms=None))(student, teacher)[0]) > 1


def test_masks_and_weights_leave_places_out():
    heads = Heads(3)
    student, teacher = heads_output(heads, 2, 6, 0), heads_output(heads, 2, 6, 1)
    loss = DetectionLoss(heads)
    first, _ = loss(student[:1], teacher[:1])
    weighed, _ = loss(student, teacher, weight=torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(weighed, first)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[1, 2:] = True
    masked, _ = loss(student, teacher, mask=mask)
    torch.testing.assert_close(masked, loss(student[1:, 2:], teacher[1:, 2:])[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"box_objective": "iou"}, "unknown box_objective 'iou': expected giou or smooth_l1"),
        ({"objective": "cwd"}, "objective 'cwd' is of maps or of labels"),
        ({"objective": "none"}, "unknown objective 'none'"),
    ],
)
def test_what_is_no_loss_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        DetectionLoss(Heads(3), **options)


def test_heads_that_cannot_be_compared_are_refused():
    loss = DetectionLoss(Heads(3))
    teacher = heads_output(Heads(3), 1, 8, 0)
    with pytest.raises(ValueError, match="looks at 6 places, the teacher at 8"):
        loss(teacher[:, :6], teacher)
    with pytest.raises(ValueError, match=r"the student's heads must be .* got \[1, 8, 6\]"):
        loss(teacher[..., :6], teacher)
    with pytest.raises(ValueError, match="the student's heads are not finite"):
        DetectionLoss(Heads(3, ordered=False))(teacher * math.nan, teacher)
