"""Drawn calls of every CPU kernel, between guard pages, against the reference in float64."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distill_cases
import raw_conv_cases
import render_cases
import torch
import unprocess_cases
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from isp_distill import distill_loss, expose, raw_conv, render, unprocess, use_backend
from isp_distill.backends import cpu_library

from .guard_pages import guarded, guarded_outputs


def _same_nan(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    wrong = (actual.isnan() != expected.isnan()).sum()
    assert wrong == 0, f"{name}: NaN in other places than the reference ({int(wrong)} of them)"


@st.composite
def _raw_conv(draw: Any) -> Any:
    poison = draw(st.sampled_from((None, None, "mosaic", "gain", "mix", "gamma")))
    return draw(raw_conv_cases.cases(40)), poison, draw(st.booleans())


def _poisoned(values: torch.Tensor, seed_: int) -> torch.Tensor:
    place = seed_ % values.numel()
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[place] = True
    return values.masked_fill(mask.view(values.shape), math.nan)


def _check_raw_conv(drawn: Any) -> None:
    case, poison, at_end = drawn
    if poison == "mosaic" and not case.dtype.is_floating_point:
        poison = None
    if poison is None:
        reference, gradients = raw_conv_cases.forward_and_gradients(case, "reference")
    mosaic, parameters, arguments = case.inputs()
    if poison == "mosaic":
        mosaic = _poisoned(mosaic, case.seed)
    elif poison in parameters:
        parameters[poison] = _poisoned(parameters[poison], case.seed)
    results = []
    for backend in ("cpu", "reference"):
        leaves = {k: guarded(p, at_end).requires_grad_() for k, p in parameters.items()}
        with use_backend(backend):
            out = raw_conv(guarded(mosaic, at_end), **leaves, **arguments)
        generator = torch.Generator().manual_seed(7)
        upstream = torch.randn(out.shape, generator=generator).to(out.dtype)
        if case.channels_last:
            upstream = upstream.contiguous(memory_format=torch.channels_last)
        own = torch.autograd.grad(out, list(leaves.values()), guarded(upstream, at_end))
        results.append((out.detach(), dict(zip(leaves, own, strict=True))))
    (out, own), (expected, wanted) = results
    _same_nan(out, expected, "output")
    if poison is not None:
        # A NaN that no output reads is no part of a gradient, but 0 times NaN is one in torch.
        for name in own if bool(expected.isnan().any()) else ():
            _same_nan(own[name], wanted[name], f"gradient of {name}")
        return
    rounding = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[case.out_dtype]
    raw_conv_cases.assert_close(out, reference, rounding, "output")
    for name, gradient in own.items():
        raw_conv_cases.assert_close(gradient, gradients[name], 1e-3, name)


def _check_distill(drawn: Any) -> None:
    (student, teacher, rows, options), at_end = drawn
    results = distill_cases.both(
        "cpu",
        lambda a, b, c, m, w: distill_loss(
            a, b, c, mask=m, weight=w, return_agreement=True, **options
        ),
        guarded(student, at_end),
        guarded(teacher, at_end),
        *(row if row is None else guarded(row, at_end) for row in rows),
    )
    (loss, _, _), (expected, _, _) = results
    _same_nan(loss, expected, "loss")
    if bool(expected.isnan().any()):
        # Of a teacher that rules out all that the mask leaves, nothing can be said.
        return
    distill_cases.assert_same_call(results, student, teacher, options)


def _check_render(drawn: Any) -> None:
    (mosaic, isp, options), at_end = drawn
    with use_backend("cpu"):
        picture = render(guarded(mosaic, at_end), isp, **options)
    with use_backend("reference"):
        expected = render(mosaic, isp, **{**options, "dtype": torch.float64})
    render_cases.assert_same(picture, expected, isp, 0.2 if "std" in options else 1.0)


def _check_unprocess(drawn: Any) -> None:
    case, at_end = drawn
    picture = case.picture()
    arguments = {"bits": case.bits, "noise": case.noise, **case.levels}
    with use_backend("reference"):
        expected, _ = unprocess(picture, **arguments)
    with use_backend("cpu"):
        found, _ = unprocess(guarded(picture, at_end), **arguments)
    assert torch.equal(found, expected)


def _check_expose(drawn: Any) -> None:
    (case, dtype), at_end = drawn
    mosaic = case.mosaic(dtype)
    factors = torch.linspace(case.factor, 2 * case.factor, case.batch)
    arguments = {"white": 2.0**case.bits - 1, **case.levels}
    noise = case.noise or unprocess_cases.NoiseModel(0.0, 0.0)
    with use_backend("reference"):
        expected = expose(mosaic, factors, noise, **arguments)
    with use_backend("cpu"):
        found = expose(guarded(mosaic, at_end), guarded(factors, at_end), noise, **arguments)
    assert torch.equal(found, expected)


_SMALL = unprocess_cases.cases(widest=80, highest=12)
PROPERTIES: list[tuple[str, Any, Callable[[Any], None]]] = [
    ("raw_conv", _raw_conv(), _check_raw_conv),
    ("distill_loss", st.tuples(distill_cases.calls(), st.booleans()), _check_distill),
    ("render", st.tuples(render_cases.calls(), st.booleans()), _check_render),
    ("unprocess", st.tuples(_SMALL, st.booleans()), _check_unprocess),
    (
        "expose",
        st.tuples(st.tuples(_SMALL, st.sampled_from(unprocess_cases.MOSAICS)), st.booleans()),
        _check_expose,
    ),
]
#: Calls of one property that one number stands for.
CALLS = 20


def attempt(number: int, folder: Path) -> None:
    """``CALLS`` calls of one operation on one instruction set, all decided by the number."""
    _, strategy, check = PROPERTIES[number % len(PROPERTIES)]
    sets = cpu_library.instruction_sets()
    os.environ["ISP_DISTILL_CPU"] = sets[number // len(PROPERTIES) % len(sets)]

    @seed(number)
    @settings(
        max_examples=CALLS,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        derandomize=False,
    )
    @given(strategy)
    def property_(drawn: Any) -> None:
        check(drawn)

    with guarded_outputs():
        property_()
