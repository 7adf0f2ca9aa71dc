"""The CUDA kernels of ``upsampled_distill_loss``, on the CPU, against the reference in float64."""

from __future__ import annotations

import functools
import itertools
import math

import distill_cases
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from distill_cases import DTYPES, assert_nan_is_kept, assert_same, strided
from distill_upsampled_host_backend import operator
from distill_upsampled_host_backend import plan as host_plan
from hypothesis import assume, given, settings

from isp_distill import upsampled_distill_loss, use_backend
from isp_distill.ops.distill_loss.cuda import CudaKernels, refuses
from isp_distill.ops.distill_loss.options import checked_options
from isp_distill.ops.distill_loss.request import Call

both = functools.partial(distill_cases.both, "cuda")
OBJECTIVES = ["forward_kl", "reverse_kl", "jsd(0.3)", "mse"]


@st.composite
def upsampled_calls(draw):
    """Maps, size, (labels, mask, weight), and options of :func:`upsampled_distill_loss`."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    objective, classes = draw(st.sampled_from(OBJECTIVES)), draw(st.sampled_from([2, 5, 16, 37]))
    batch, cells = draw(st.integers(1, 2)), st.integers(1, 9)
    size = (draw(st.integers(1, 30)), draw(st.integers(1, 40)))
    maps = []
    for _ in range(2):
        shape = (batch, classes, draw(cells), draw(cells))
        x = 3 * torch.randn(shape, generator=generator)
        if draw(st.booleans()):
            x[:, 0] += 40
        maps.append(x)
    if objective != "reverse_kl" and classes > 3 and draw(st.booleans()):
        maps[1][:, classes // 2] = -math.inf
    s, t = (strided(x.to(draw(st.sampled_from(DTYPES))), draw) for x in maps)
    labels = mask = weight = None
    if draw(st.booleans()):
        labels = torch.randint(0, classes, (batch, *size), generator=generator)
        labels[torch.rand(batch, *size, generator=generator) < 0.2] = -100
    if draw(st.booleans()):
        share = draw(st.sampled_from([0.0, 0.1, 0.7]))
        mask = torch.rand(batch, *size, generator=generator) < share
    if draw(st.booleans()):
        weight = torch.rand(batch, generator=generator)
    options = {
        "objective": objective,
        "temperature": draw(st.sampled_from([0.5, 1.0, 4.0, 30.0])),
        "alpha": draw(st.sampled_from([1.0, 0.6, 0.0])) if labels is not None else 1.0,
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "reduction": draw(st.sampled_from(["mean", "sum", "batchmean"])),
        "align_corners": draw(st.booleans()),
    }
    return s, t, size, (labels, mask, weight), options


def near_ties(s, t, size, align_corners):
    """Pixels in which a map's two best logits are closer than float32 can tell apart."""
    close = torch.zeros((), dtype=torch.bool)
    for logits in (s, t):
        wide = logits.double().clamp(min=-1e38)
        wide = F.interpolate(wide, size, mode="bilinear", align_corners=align_corners)
        best = wide.topk(2, 1).values
        close = close | (best[:, 0] - best[:, 1] < 1e-5)
    return int(close.sum())


@settings(max_examples=150)
@given(drawn=upsampled_calls())
def test_kernels_are_the_reference(drawn):
    s, t, size, rows, options = drawn
    assume(objection(s.shape[2:], t.shape[2:], size) is None)
    results = both(
        lambda a, b, c, m, w: upsampled_distill_loss(
            a, b, size, c, mask=m, weight=w, return_agreement=True, **options
        ),
        s,
        t,
        *rows,
    )
    (loss, agreed, gradient), expected = results
    assert abs(agreed - expected[1]) <= near_ties(s, t, size, options["align_corners"])
    results[0] = (loss, expected[1], gradient)
    # A cell's gradient is a sum over the pixels around it.
    around = math.prod(2 * pixels / n + 2 for pixels, n in zip(size, s.shape[2:], strict=True))
    per_row = 2.0 if options["reduction"] == "mean" else 2.0 * around
    assert_same(results, s.dtype, options["objective"], options["temperature"], per_row)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_over_more_than_one_block_of_everything(objective, alpha):
    """Tiles, strips, bands, and more classes than fit at a time; of maps that differ."""
    torch.manual_seed(1)
    s, t = 3 * torch.randn(2, 70, 5, 45), 3 * torch.randn(2, 70, 3, 70)
    s, t = s.to(torch.bfloat16), t.to(torch.float16)
    size = (11, 270)
    labels = torch.randint(0, 70, (2, *size))
    operator.taken.clear()
    results = both(
        lambda a, b: upsampled_distill_loss(
            a, b, size, labels, objective=objective, temperature=2.0, alpha=alpha,
            return_agreement=True,
        ),
        s, t,
    )  # fmt: skip
    assert_same(results, s.dtype, objective, 2.0, 2.0)
    ((pixel_blocks, cell_blocks),) = operator.taken
    assert pixel_blocks >= 2 * 3 * 2
    assert cell_blocks >= 2 * 2 * 2


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_any_order_of_the_threads_gives_the_same_bits(objective):
    torch.manual_seed(2)
    s, t = torch.randn(1, 20, 6, 7), torch.randn(1, 20, 6, 7)
    labels = torch.randint(0, 20, (1, 24, 28))
    found = []
    for seed in range(4):
        operator.seed = 1000 * seed
        leaf = s.clone().requires_grad_()
        with use_backend("cuda"):
            loss = upsampled_distill_loss(leaf, t, (24, 28), labels, objective=objective, alpha=0.5)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_loss_for_each_pixel(alpha):
    torch.manual_seed(3)
    s, t = torch.randn(2, 5, 2, 3), torch.randn(2, 5, 3, 2)
    labels = torch.randint(0, 5, (2, 9, 8))
    found = []
    for backend in ("cuda", "reference"):
        with use_backend(backend):
            found.append(
                upsampled_distill_loss(s, t, (9, 8), labels, alpha=alpha, reduction="none")
            )
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_ruled_out_classes_are_the_limit():
    """-inf in either map, where pixels have none, a little and all of their weight from it."""
    torch.manual_seed(4)
    s, t = torch.randn(1, 6, 3, 4), torch.randn(1, 6, 3, 4)
    t[0, 2, 1, 2] = t[0, 5] = -math.inf
    labels = torch.zeros(1, 12, 17, dtype=torch.int64)
    for objective, alpha in itertools.product(("forward_kl", "jsd(0.3)", "mse"), (1.0, 0.5)):
        results = both(
            lambda a, b, o=objective, x=alpha: upsampled_distill_loss(
                a, b, (12, 17), labels, objective=o, alpha=x, return_agreement=True,
            ),
            s, t,
        )  # fmt: skip
        assert_same(results, s.dtype, objective, 1.0, 2.0)
    with use_backend("cuda"):
        loss = upsampled_distill_loss(s, t, (12, 17), objective="reverse_kl")
    assert float(loss) == math.inf


def test_masked_pixels_are_not_looked_at():
    s, t = torch.randn(1, 7, 4, 4), torch.randn(1, 7, 4, 4)
    s[..., 3], t[..., 3] = math.nan, math.inf
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    mask[..., 5:] = False  # the pixels that the last column reaches
    for objective in OBJECTIVES:
        x = s.clone().requires_grad_()
        with use_backend("cuda"):
            loss = upsampled_distill_loss(x, t, 8, objective=objective, mask=mask)
        loss.backward()
        assert loss.isfinite()
        assert bool(x.grad.isfinite().all())
        assert bool((x.grad[..., 3] == 0).all())


@pytest.mark.parametrize("objective", [*OBJECTIVES, "none"])
def test_nan_and_infinite_logits_are_seen(objective):
    assert_nan_is_kept("cuda", objective, 5, (3, 3), size=(7, 8))
    assert_nan_is_kept("cuda", objective, 40, (2, 3), size=(5, 6))


def test_a_label_that_is_no_class_is_not_looked_up():
    """On a GPU nothing checks labels first: their pixels' cells become NaN, and no others."""
    torch.manual_seed(5)
    s, t = torch.randn(1, 6, 4, 4), torch.randn(1, 6, 4, 4)
    for label in (-1, 6, 2**32, 2**40, -(2**62)):
        labels = torch.ones(1, 16, 16, dtype=torch.int64)
        labels[0, 15, 15] = label
        options = checked_options("forward_kl", 1.0, 0.5, -100, 0.1, "none")
        gradient, factors = torch.empty_like(s), torch.tensor([0.5, 0.5], dtype=torch.float64)
        call = Call((labels, None, None), factors, options, gradient, 1.0)
        loss, _ = CudaKernels().upsampled(s, t, (16, 16), False, call)
        wrong = torch.zeros_like(loss, dtype=torch.bool)
        wrong[0, 15, 15] = True
        assert torch.equal(loss.isnan(), wrong)
        wrong = torch.zeros_like(gradient, dtype=torch.bool)
        wrong[..., 3, 3] = True
        assert torch.equal(gradient.isnan(), wrong)


def test_first_of_equal_logits_is_the_choice():
    s, t = torch.zeros(1, 40, 3, 3), torch.zeros(1, 40, 3, 3)
    t[:, 2:] = 1.0
    s[..., 0] = 0.0
    s[:, 2, :, 1:] = s[:, 4, :, 1:] = 1.0
    with use_backend("cuda"):
        _, agreed = upsampled_distill_loss(s, t, 3, return_agreement=True)
    assert int(agreed) == 6


def plan(student, teacher, size, dtype=0, classes=150, align_corners=False):
    """How a call of such maps (a number of ``DTYPES``) would be shared out; nothing runs."""

    def logits(h, w):
        return (16, dtype, h * w, classes * h * w, w, 1)

    call = dict.fromkeys(("labels", "mask", "weight", "factors", "row_losses", "ignore_index"), 0)
    call |= dict.fromkeys(("temperature", "beta", "smoothing", "gradient_scale"), 1.0)
    call |= {"student": logits(*student), "teacher": logits(*teacher), "gradient": logits(*student)}
    call |= {"sizes": (1, classes, *size), "size": size, "student_size": student}
    call |= {"teacher_size": teacher, "align_corners": align_corners, "cross_entropy": True}
    return host_plan(call, 1)


def objection(student, teacher, size):
    call = {"student": torch.float32, "teacher": torch.float32, "form": "upsampled"}
    return refuses(**call, objective="forward_kl", sizes=(student, teacher, size))


@settings(max_examples=300)
@given(
    wide=st.tuples(*[st.sampled_from([1, 2, 3, 7, 16, 64, 65, 200, 1000, 4000, 20000])] * 3),
    high=st.tuples(*[st.integers(1, 5000)] * 3),
    dtype=st.integers(0, 2),
    classes=st.sampled_from([2, 19, 150, 30000]),
    align_corners=st.booleans(),
)
def test_whatever_is_not_refused_fits(wide, high, dtype, classes, align_corners):
    student, teacher, size = zip(high, wide, strict=True)
    if objection(student, teacher, size) is None:
        found = plan(student, teacher, size, dtype, classes, align_corners)
        assert found is not None
        assert max(found["pixels"][-1], found["cells"][-1]) <= 48 << 10


@pytest.mark.parametrize("align_corners", [False, True])
def test_what_is_refused(align_corners):
    for student, teacher, size, reason in (
        ((4, 4), (4, 4), (4, 2049), "size at most 512 times"),
        ((4, 1), (4, 65), (4, 100), "teacher's map at most 64 times"),
        ((4, 500), (4, 4), (4, 100), "one of 500 columns is brought to 100"),
        ((4, 4), (4, 500), (4, 100), "one of 500 columns is brought to 100"),
        ((40000, 4), (4, 4), (40000, 4), "overflows 32 bits"),
    ):
        assert reason in str(objection(student, teacher, size))
        # Up to there it fits.
    for student, teacher, size in (
        ((4, 4), (4, 4), (4, 2048)),
        ((4, 1), (4, 64), (4, 100)),
        ((4, 400), (4, 4), (4, 100)),
        ((4, 400), (4, 400), (4, 100)),
        ((4, 4), (4, 256), (4, 64)),
    ):
        assert objection(student, teacher, size) is None
        assert plan(student, teacher, size, align_corners=align_corners) is not None
    call = {"student": torch.float32, "teacher": torch.float64, "form": "upsampled"}
    call |= {"objective": "forward_kl", "sizes": ((4, 4), (4, 4), (8, 8))}
    assert "float64" in str(refuses(**call))
    call |= {"teacher": torch.float16}
    assert refuses(**call) is None
    assert "dkd" in str(refuses(**(call | {"objective": "dkd"})))


def test_common_maps_leave_few_threads_without_work():
    for classes, side, size in ((150, 128, 512), (19, 128, 512), (21, 65, 513), (150, 129, 513)):
        found = plan((side, side), (side, side), (size, size), 1, classes)
        width = found["pixels"][0]
        assert math.ceil(size / width) * width <= 1.15 * size
        cells, _, lanes, threads, _ = found["cells"]
        spent = math.ceil(side / cells) * math.ceil(classes / lanes / 4) * threads * 4
        assert spent <= 1.35 * side * classes
