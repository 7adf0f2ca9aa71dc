"""Calls of the feature loss that every backend's tests draw, and how they are judged."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import torch
from distill_cases import strided

from isp_distill import feature_loss, use_backend

OBJECTIVES = ["cosine", "mse", "smooth_l1", "smooth_l1(0.3)", "cosine_smooth_l1",
              "cosine_smooth_l1(0.5, 2, 0.1)"]  # fmt: skip
NORMALISATIONS = ["none", "l2", "layer", "teacher"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = (1, 2, 3, 8, 16, 19, 33, 64, 150, 300)
#: Token numbers, and heights and widths of maps; () is an embedding.
POSITIONS = ((), (5,), (1,), (37,), (3, 4), (1, 37), (16, 8))
# The gradient is rounded to its own dtype twice: as stored, and when the upstream factor scales it.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2 * 2.0**-8, torch.float16: 2 * 2.0**-11}


def shape_of(batch, width, positions):
    """``[N, D]``, ``[N, L, D]`` or ``[N, D, H, W]``."""
    return (batch, *positions, width) if len(positions) == 1 else (batch, width, *positions)


def statistics_of(width, generator=None):
    """A mean and a standard deviation for each channel."""
    return {
        "mean": torch.randn(width, generator=generator),
        "std": 0.5 + torch.rand(width, generator=generator),
    }


def both(backend, student, teacher, rows, options, device="cpu"):
    """(loss, mean cosine, gradient) by a backend, and by the reference in float64."""
    results = []
    tensors = {k: v if v is None else v.to(device) for k, v in rows.items()}
    for name, wide in ((backend, False), ("reference", True)):
        # A leaf with the student's own strides.
        s = student.to(device)
        s = s.double() if wide else s.clone(memory_format=torch.preserve_format)
        s = s.detach().requires_grad_()
        t = teacher.to(device)
        with use_backend(name):
            loss, similarity = feature_loss(
                s, t.double() if wide else t, return_similarity=True, **tensors, **options
            )
            upstream = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype, device=device)
            upstream = upstream.view_as(loss) if loss.dim() else torch.full_like(loss, 0.75)
            (gradient,) = torch.autograd.grad(loss, s, upstream)
        results.append((loss.detach().double(), similarity.double(), gradient.double()))
    return results


def assert_same(results, student, rows, options, rounding=ROUNDING):
    """Equal up to float32, for a call's arguments.

    The gradient of a cosine is the small difference of two terms of 1 / |s| each, which float32
    cannot tell better than to its last bits.
    """
    (loss, similarity, gradient), (expected, expected_similarity, expected_gradient) = results
    vectors = student.double() if student.dim() == 3 else student.double().movedim(1, -1)
    if options.get("normalise") == "layer":
        vectors = vectors - vectors.mean(-1, keepdim=True)
    if options.get("normalise") == "teacher":
        vectors = (vectors - rows["mean"]) / rows["std"]
    lengths = vectors.norm(dim=-1)
    added = 1.0 if options.get("reduction", "mean") in ("mean", "none") else lengths.numel()
    torch.testing.assert_close(loss, expected, rtol=3e-5, atol=3e-6 * added)
    torch.testing.assert_close(similarity, expected_similarity, rtol=3e-5, atol=3e-6)
    scale = expected_gradient.abs().max().item()
    shortest = min([1.0, *lengths[lengths > 0].flatten().tolist()])
    even = options.get("reduction", "mean") == "mean" and not {"mask", "weight"} & {
        name for name, value in rows.items() if value is not None
    }
    unit = 1 / shortest / (lengths.numel() if even else 1)
    bound = (4e-5 + rounding[student.dtype]) * scale + 4e-6 * unit
    if student.dtype == torch.float16:
        bound += 2.0**-24  # its smallest number
    assert (gradient - expected_gradient).abs().max().item() <= bound


@st.composite
def calls(draw, widths=WIDTHS, positions=POSITIONS, batches=4):
    """Student, teacher, tensors of rows and channels, and options of :func:`feature_loss`."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    width, positions = draw(st.sampled_from(widths)), draw(st.sampled_from(positions))
    batch = draw(st.integers(1, batches))
    shape = shape_of(batch, width, positions)
    spread, shift = draw(st.sampled_from([0.3, 3.0])), draw(st.sampled_from([0.0, 2.0]))
    s, t = (shift + spread * torch.randn(shape, generator=generator) for _ in range(2))
    if draw(st.booleans()):
        t = s + 0.1 * t  # a student that has learnt
    normalise = draw(st.sampled_from(NORMALISATIONS))
    if normalise == "layer" and width < 8:
        normalise = "l2"  # a variance of two numbers that all but agree is all rounding
    if draw(st.booleans()) and normalise not in ("layer", "teacher"):
        s[0] = 0.0
        t[-1] = 0.0
    s, t = s.to(draw(st.sampled_from(DTYPES))), t.to(draw(st.sampled_from(DTYPES)))
    s, t = strided(s, draw), strided(t, draw)
    of_rows = (batch, *positions)
    rows = {"mask": None, "weight": None}
    if draw(st.booleans()):
        share = draw(st.sampled_from([0.0, 0.1, 0.7]))
        rows["mask"] = torch.rand(of_rows, generator=generator) < share
    if draw(st.booleans()):
        of_weight = draw(st.sampled_from([(batch,), of_rows]))
        rows["weight"] = torch.rand(of_weight, generator=generator)
    if normalise == "teacher":
        rows |= statistics_of(width, generator)
    options = {
        "objective": draw(st.sampled_from(OBJECTIVES)),
        "normalise": normalise,
        "reduction": draw(st.sampled_from(["mean", "sum", "batchmean", "none"])),
    }
    return s, t, rows, options


def assert_nan_is_kept(backend, objective, normalise, width, positions=(), device="cpu"):
    """Loss and gradient are NaN or infinite where the reference's are, and nowhere else.

    A sample for each way in which one element of student or teacher is NaN or infinite, one
    without, and one that is NaN outside the mask.
    """
    wrong = [(who, value) for who in (0, 1) for value in (math.nan, math.inf)]
    batch = len(wrong) + 2
    generator = torch.Generator().manual_seed(width)
    features = torch.randn((2, *shape_of(batch, width, positions)), generator=generator)
    for sample, (who, value) in enumerate(wrong):
        features[who, sample].view(-1)[-1] = value
    features[:, -1] = math.nan
    mask = torch.ones((batch, *positions), dtype=torch.bool, device=device)
    mask[-1] = False
    statistics = statistics_of(width, generator) if normalise == "teacher" else {}
    statistics = {k: v.to(device) for k, v in statistics.items()}
    found = []
    for name in (backend, "reference"):
        s, t = features.to(device)
        s.requires_grad_()
        with use_backend(name):
            loss = feature_loss(
                s, t, objective=objective, normalise=normalise, mask=mask, reduction="none",
                **statistics,
            )  # fmt: skip
        (gradient,) = torch.autograd.grad(loss.sum(), s)
        found.append((loss.detach(), gradient))
    (loss, gradient), (expected, expected_gradient) = found
    assert torch.equal(loss.isfinite(), expected.isfinite())
    assert torch.equal(gradient.isnan(), expected_gradient.isnan())
    of_sample = loss.isfinite().flatten(1).all(1) if loss.dim() > 1 else loss.isfinite()
    assert not bool(of_sample[: len(wrong)].any())
    assert bool(of_sample[-2:].all())
    assert bool((gradient[-1] == 0).all())
