"""Maps whose grids differ: the CPU kernel against the reference in float64."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from distill_cases import strided
from feature_cases import DTYPES, NORMALISATIONS, OBJECTIVES, ROUNDING, both, statistics_of
from hypothesis import given, settings

from isp_distill import feature_loss, use_backend
from isp_distill.backends import cpu_library

pytestmark = pytest.mark.skipif(
    cpu_library.missing() is not None, reason=str(cpu_library.missing())
)
SETS = cpu_library.instruction_sets() if cpu_library.missing() is None else []
SIDES = (1, 2, 3, 5, 8, 14, 16, 17, 33, 40)


@st.composite
def calls(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    width, batch = draw(st.sampled_from([1, 3, 16, 33, 150])), draw(st.integers(1, 3))
    grids = [(draw(st.sampled_from(SIDES)), draw(st.sampled_from(SIDES))) for _ in range(3)]
    if draw(st.booleans()):
        grids[1] = grids[2]  # the teacher's own
    s, t = (
        draw(st.sampled_from([0.0, 1.0])) + torch.randn(batch, width, *grid, generator=generator)
        for grid in grids[:2]
    )
    normalise = draw(st.sampled_from(NORMALISATIONS))
    if normalise == "layer" and width < 16:
        normalise = "none"
    rows = {"mask": None, "weight": None}
    if draw(st.booleans()):
        share = draw(st.sampled_from([0.0, 0.1, 0.7]))
        rows["mask"] = torch.rand(batch, *grids[2], generator=generator) < share
    if draw(st.booleans()):
        of_weight = draw(st.sampled_from([(batch,), (batch, *grids[2])]))
        rows["weight"] = torch.rand(of_weight, generator=generator)
    if normalise == "teacher":
        rows |= statistics_of(width, generator)
    options = {
        "objective": draw(st.sampled_from(OBJECTIVES)),
        "normalise": normalise,
        "reduction": draw(st.sampled_from(["mean", "sum", "batchmean", "none"])),
        "size": grids[2],
    }
    s = strided(s.to(draw(st.sampled_from(DTYPES))), draw)
    t = strided(t.to(draw(st.sampled_from(DTYPES))), draw)
    return s, t, rows, options


def assert_same(results, student, rows, options):
    """Equal up to float32, in units of the terms that are summed.

    A row of resampled features may be far shorter than the features it is made of, and its cosine's
    gradient is divided by that length: bounds are of what the shortest row could give.
    """
    (loss, similarity, gradient), (expected, expected_similarity, expected_gradient) = results
    wide = F.interpolate(student.double(), options["size"], mode="bilinear").movedim(1, -1)
    if options["normalise"] == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    if options["normalise"] == "teacher":
        wide = (wide - rows["mean"]) / rows["std"]
    lengths = wide.norm(dim=-1)
    shortest = max(min(1.0, lengths.min().item()), 1e-3)
    rows_of = lengths.numel()
    added = 1.0 if options["reduction"] in ("mean", "none") else rows_of
    torch.testing.assert_close(loss, expected, rtol=5e-5, atol=5e-6 * added / shortest)
    torch.testing.assert_close(similarity, expected_similarity, rtol=5e-5, atol=5e-6 / shortest)
    scale = expected_gradient.abs().max().item()
    finer = max(1.0, math.prod(options["size"]) / math.prod(student.shape[2:]))
    bound = (5e-5 + ROUNDING[student.dtype]) * scale + 8e-6 * finer / shortest**2
    if student.dtype == torch.float16:
        bound += 2.0**-24
    assert (gradient - expected_gradient).abs().max().item() <= bound


@settings(max_examples=200, deadline=None)
@given(drawn=calls(), name=st.sampled_from(SETS or ["generic"]))
def test_the_kernel_is_the_reference(drawn, name):
    student, teacher, rows, options = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISP_DISTILL_CPU", name)
        results = both("cpu", student, teacher, rows, options)
    assert_same(results, student, rows, options)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    ("of_student", "of_teacher", "size"),
    [
        ((2, 256, 32, 32), (2, 256, 64, 64), 64),
        ((2, 300, 16, 16), (2, 300, 14, 14), 14),
        ((1, 768, 16, 16), (1, 768, 37, 37), 37),
        ((1, 8, 70, 90), (1, 8, 3, 300), (40, 600)),
        ((1, 2048, 7, 7), (1, 2048, 1, 1), 1),
        # Several strips a row, and an odd number of rows in a band.
        ((1, 5, 2, 700), (1, 5, 3, 900), (4, 1500)),
        ((1, 3000, 5, 9), (1, 3000, 5, 9), (7, 40)),
        ((2, 400, 33, 20), (2, 400, 50, 150), (50, 150)),
    ],
)
def test_grids_of_real_models(monkeypatch, name, of_student, of_teacher, size):
    monkeypatch.setenv("ISP_DISTILL_CPU", name)
    generator = torch.Generator().manual_seed(1)
    student, teacher = (
        torch.randn(shape, generator=generator) for shape in (of_student, of_teacher)
    )
    grid = (size, size) if isinstance(size, int) else size
    for objective, normalise in (("cosine_smooth_l1", "none"), ("mse", "layer"), ("mse", "l2")):
        options = {
            "objective": objective,
            "normalise": normalise,
            "reduction": "mean",
            "size": grid,
        }
        assert_same(both("cpu", student, teacher, {}, options), student, {}, options)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("size", [(9, 40), (5, 4)])
def test_what_is_not_finite_stays_where_it_is(monkeypatch, name, value, size):
    """A NaN reaches the positions that are made of it, and no others; outside the mask none."""
    monkeypatch.setenv("ISP_DISTILL_CPU", name)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 6, 20, generator=generator) for _ in range(2))
    student[0, 3, 2, 7] = value
    student.requires_grad_()
    found = []
    for backend in ("cpu", "reference"):
        of = {"objective": "mse", "size": size}
        with use_backend(backend):
            with torch.no_grad():
                loss = feature_loss(student, teacher, reduction="none", **of)
            (gradient,) = torch.autograd.grad(feature_loss(student, teacher, **of), student)
        found.append((loss, gradient))
    (loss, gradient), (expected, expected_gradient) = found
    near = F.interpolate(student.detach().isfinite().float(), size, mode="bilinear").amin(1) > 0.999
    assert bool(loss[near].isfinite().all())
    assert bool((~loss.isfinite() | expected.isfinite()).all())  # only where the reference's is not
    assert not bool(loss[0].isfinite().all())
    assert bool((gradient.isfinite() | ~expected_gradient.isfinite()).all())
    with use_backend("cpu"):
        masked = feature_loss(student, teacher, objective="mse", size=size, mask=near)
    (gradient,) = torch.autograd.grad(masked, student)
    assert bool(masked.isfinite())
    assert bool(gradient.isfinite().all())


def test_one_thread_and_two_say_the_same():
    student, teacher = torch.randn(3, 32, 9, 9, requires_grad=True), torch.randn(3, 32, 20, 20)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            loss = feature_loss(student, teacher, objective="cosine", size=20)
            results.append((loss.detach(), *torch.autograd.grad(loss, student)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
@pytest.mark.parametrize("tokens", [False, True])
def test_a_coarse_student_in_float16_keeps_finite_gradients(reduction, tokens):
    """Each of its elements gathers the gradients of many rows."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 64, 2, 2, generator=generator) for _ in range(2))
    if tokens:
        student = student.to(memory_format=torch.channels_last)
    found = []
    for dtype in (torch.float16, torch.float32):
        leaf = student.to(dtype).requires_grad_()
        loss = feature_loss(leaf, teacher, objective="mse", size=300, reduction=reduction)
        found.append(torch.autograd.grad(loss, leaf)[0].float())
    assert bool(found[0].isfinite().all())
    torch.testing.assert_close(*found, rtol=5e-3, atol=5e-3 * found[1].abs().max().item())
