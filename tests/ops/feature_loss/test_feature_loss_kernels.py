"""The CPU kernels against the reference in float64, on every instruction set of this processor."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from feature_cases import (
    NORMALISATIONS,
    OBJECTIVES,
    assert_nan_is_kept,
    assert_same,
    both,
    calls,
    statistics_of,
)
from hypothesis import given, settings

from isp_distill import BackendError, feature_loss, use_backend
from isp_distill.backends import cpu_library

pytestmark = pytest.mark.skipif(
    cpu_library.missing() is not None, reason=str(cpu_library.missing())
)
SETS = cpu_library.instruction_sets() if cpu_library.missing() is None else []


@pytest.fixture(params=SETS)
def instruction_set(request, monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_CPU", request.param)
    return request.param


@settings(max_examples=200, deadline=None)
@given(drawn=calls(), name=st.sampled_from(SETS or ["generic"]))
def test_kernels_are_the_reference(drawn, name):
    student, teacher, rows, options = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISP_DISTILL_CPU", name)
        results = both("cpu", student, teacher, rows, options)
    assert_same(results, student, rows, options)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES[::2])
@pytest.mark.parametrize("shape", [(9, 7, 768), (2, 256, 17, 40), (3, 20_000), (2, 2048, 7, 7)])
def test_shapes_of_real_models(instruction_set, shape, objective, normalise):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
    width = shape[-1] if len(shape) == 3 else shape[1]
    rows = statistics_of(width, generator) if normalise == "teacher" else {}
    options = {"objective": objective, "normalise": normalise}
    assert_same(both("cpu", student, teacher, rows, options), student, rows, options)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nan_and_infinite_features_are_seen(instruction_set, objective, normalise):
    for width, positions in ((5, ()), (67, ()), (64, (3,)), (33, (4, 5)), (16, (1, 40))):
        assert_nan_is_kept("cpu", objective, normalise, width, positions)


def test_large_means_do_not_drown_the_differences(instruction_set):
    """Features about 1000 from 0: layer norm and the teacher's statistics take that away first."""
    generator = torch.Generator().manual_seed(2)
    student, teacher = (1000 + torch.randn(6, 96, generator=generator) for _ in range(2))
    statistics = {"mean": torch.full((96,), 1000.0), "std": torch.ones(96)}
    for normalise, rows in (("layer", {}), ("teacher", statistics)):
        options = {"objective": "cosine_smooth_l1", "normalise": normalise}
        results = both("cpu", student, teacher, rows, options)
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-3, atol=2e-6)


def test_result_does_not_depend_on_the_threads():
    torch.manual_seed(5)
    before = torch.get_num_threads()
    tokens, maps = torch.randn(2, 4, 300, 96), torch.randn(2, 3, 70, 40, 50)
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            x, y = tokens[0].clone().requires_grad_(), maps[0].clone().requires_grad_()
            with use_backend("cpu"):
                a, b = feature_loss(x, tokens[1], objective="cosine", return_similarity=True)
                c = feature_loss(y, maps[1], objective="smooth_l1", normalise="layer")
                (a + c).backward()
            found.append((a.detach(), b, c.detach(), x.grad, y.grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


def test_float64_goes_to_the_reference_and_is_refused_by_name():
    s, t = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3)
    assert feature_loss(s, t, objective="mse").dtype == torch.float64
    with use_backend("cpu"), pytest.raises(BackendError, match="compute in float32"):
        feature_loss(s, t, objective="mse")
