"""The Triton kernels of the feature loss against the reference in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "cases"))

import feature_cases
from feature_cases import NORMALISATIONS, OBJECTIVES, assert_nan_is_kept, assert_same, calls

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter cuts bfloat16 off instead of rounding it, which is half as much again.
ROUNDING = {**feature_cases.ROUNDING}
if DEVICE == "cpu":
    ROUNDING[torch.bfloat16] *= 1.5

# numpy warns of 0 divided by 0 where the kernels select another value.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def both(student, teacher, rows, options):
    return feature_cases.both("triton", student, teacher, rows, options, device=DEVICE)


# Of few rows: the interpreter runs a program after the other.
@settings(max_examples=60, deadline=None)
@given(drawn=calls(positions=((), (5,), (3, 4), (1, 37)), batches=3))
def test_kernels_are_the_reference(drawn):
    student, teacher, rows, options = drawn
    results = both(student, teacher, rows, options)
    assert_same(results, student, rows, options, ROUNDING)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("objective", ["cosine", "mse", "cosine_smooth_l1"])
@pytest.mark.parametrize("shape", [(2, 5000), (1, 3, 4100), (1, 300, 2, 9)])
def test_rows_too_long_to_be_held(shape, objective, normalise):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (1 + torch.randn(shape, generator=generator) for _ in range(2))
    width = shape[-1] if len(shape) == 3 else shape[1]
    rows = {} if normalise != "teacher" else feature_cases.statistics_of(width, generator)
    options = {"objective": objective, "normalise": normalise}
    assert_same(both(student, teacher, rows, options), student, rows, options)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES[:5:2])
def test_nan_and_infinite_features_are_seen(objective, normalise):
    for width, positions in ((5, ()), (67, (3,)), (33, (4, 5)), (300, (1, 2))):
        assert_nan_is_kept("triton", objective, normalise, width, positions, DEVICE)
