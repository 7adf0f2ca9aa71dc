"""Calls of the distillation losses that every backend's tests draw, and how they are judged."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import torch

from isp_distill import distill_loss, upsampled_distill_loss, use_backend

OBJECTIVES = ["forward_kl", "reverse_kl", "jsd(0.3)", "tvd", "dkd(1, 8)", "mse", "cwd"]
OBJECTIVES += ["binary_kl", "binary_kl(2, 0.1)"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CLASSES = (2, 3, 5, 16, 19, 33, 64, 150, 301)
POSITIONS = ((), (5,), (3, 4), (1, 37), (16, 8), (2, 3, 4))
# The gradient is rounded to its own dtype twice: as stored, and when the upstream factor scales it.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2 * 2.0**-8, torch.float16: 2 * 2.0**-11}


def logits(*shape, dtype=torch.float64, spread=3.0):
    """Normal numbers; float64, for comparisons in it."""
    return spread * torch.randn(shape, dtype=dtype)


def both(backend, call, student, teacher, *rows, device="cpu"):
    """(loss, agreement, gradient) by a backend, and by the reference in float64."""
    results = []
    rows = [row if row is None else row.to(device) for row in rows]
    for name, wide in ((backend, False), ("reference", True)):
        # A leaf with the student's own strides.
        s = student.to(device)
        s = s.double() if wide else s.clone(memory_format=torch.preserve_format)
        s = s.detach().requires_grad_()
        t = teacher.to(device)
        with use_backend(name):
            loss, agreed = call(s, t.double() if wide else t, *rows)
            upstream = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype, device=device)
            upstream = upstream.view_as(loss) if loss.dim() else torch.full_like(loss, 0.75)
            (gradient,) = torch.autograd.grad(loss, s, upstream)
        results.append((loss.detach().double(), int(agreed), gradient.double()))
    return results


def assert_same(results, dtype, objective, T, row_loss=1.0, rounding=ROUNDING, but=None):
    """Equal up to float32: a loss of T^2 KL carries T^2 times the error of a logarithm.

    ``but``: bool ``[N, ...]``, rows whose gradient is not compared.
    """
    (loss, agreed, gradient), (expected, expected_agreed, expected_gradient) = results
    squared = 1.0 if objective in ("tvd", "mse") else T * T
    beta = 9.0 if objective.startswith("dkd") else 1.0
    atol = 1e-6 * beta * squared * row_loss + 1e-6
    if objective.startswith("binary_kl"):  # the errors of a logarithm for each class
        atol += 1e-7 * squared * row_loss * expected_gradient.shape[1]
    torch.testing.assert_close(loss, expected, rtol=3e-5, atol=atol)
    assert agreed == expected_agreed
    # Exponents up to 1e2 / T in float32 carry an error of 2^-24 of themselves.
    scale = expected_gradient.abs().max().item()
    unit = {"tvd": 1 / T, "mse": 1.0}.get(objective, T)
    bound = 4e-5 * (scale + 0.1 * unit * row_loss) + rounding[dtype] * scale
    if dtype == torch.float16:
        bound += 2.0**-24  # its smallest number
    difference = (gradient - expected_gradient).abs()
    if but is not None:
        difference = difference.masked_fill(but.to(difference.device).unsqueeze(1), 0)
    assert difference.max().item() <= bound


def assert_same_call(results, student, teacher, options, rounding=ROUNDING):
    """:func:`assert_same` for a drawn call."""
    objective, T = options["objective"], options["temperature"]
    count = student[:, 0].numel() if options["reduction"] in ("sum", "batchmean") else 1.0
    if objective == "cwd":
        count = student.shape[0] * student.shape[1] if count > 1 else 1.0
    kinks = tied(student, teacher, T) if objective == "tvd" else None
    assert_same(results, student.dtype, objective, T, 2 * count, rounding, kinks)


def tied(student, teacher, T):
    """Rows in which a class is all but equally likely to both: a kink of the total variation.

    Its gradient has the sign of the difference, which float32 cannot tell from float64's there.
    Classes that are equal to the last bit have the sign 0 in both.
    """
    q, p = (x.double().div(T).softmax(1) for x in (student, teacher))
    close = ((q - p).abs() <= 1e-6 * q) & (student.double() != teacher.double())
    return close.any(1)


@st.composite
def calls(draw, classes=CLASSES, positions=POSITIONS, batches=4):
    """Student, teacher, (labels, mask, weight), and options of :func:`distill_loss`."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    objective = draw(st.sampled_from(OBJECTIVES))
    classes, positions = draw(st.sampled_from(classes)), draw(st.sampled_from(positions))
    if objective == "cwd" and not positions:
        positions = (6,)
    batch = draw(st.integers(1, batches))
    shape = (batch, classes, *positions)
    spread = draw(st.sampled_from([0.3, 3.0, 12.0]))
    s, t = (spread * torch.randn(shape, generator=generator) for _ in range(2))
    kind = draw(st.sampled_from(["plain", "ruled out", "overwhelming", "equal"]))
    if kind == "ruled out" and objective != "reverse_kl" and classes > 3:
        t[:, classes // 2] = -math.inf
        if objective == "cwd":
            t[:, classes // 2] = 0
            t.flatten(2)[:, :, 0] = -math.inf if math.prod(positions) > 1 else 0
    elif kind == "overwhelming":
        s[:, 0] += 40
        t[:, -1] += 40
    elif kind == "equal":
        t = s.clone()
    s, t = s.to(draw(st.sampled_from(DTYPES))), t.to(draw(st.sampled_from(DTYPES)))
    s, t = strided(s, draw), strided(t, draw)
    rows = (batch, *positions)
    labels = mask = weight = None
    if draw(st.booleans()):
        labels = torch.randint(0, classes, rows, generator=generator)
        if kind == "ruled out" and objective == "dkd(1, 8)":
            labels[labels == classes // 2] = 0
        labels[torch.rand(rows, generator=generator) < 0.2] = -100
    if draw(st.booleans()):
        mask = torch.rand(rows, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.7]))
    if draw(st.booleans()):
        weight = torch.rand(batch, generator=generator)
    alpha = draw(st.sampled_from([1.0, 0.6, 0.0])) if labels is not None else 1.0
    reduction = draw(st.sampled_from(["mean", "sum", "batchmean", "none"]))
    if objective == "cwd" and alpha != 1 and reduction == "none":
        reduction = "mean"
    options = {
        "objective": objective,
        "temperature": draw(st.sampled_from([0.5, 1.0, 4.0, 30.0])),
        "alpha": alpha,
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "reduction": reduction,
    }
    return s, t, (labels, mask, weight), options


def strided(x, draw):
    """The same values under other strides: classes last, every second element, a slice, turned."""
    how = draw(st.sampled_from(["contiguous", "classes last", "gaps", "slice", "turned"]))
    if how == "classes last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if how == "gaps":
        return torch.stack([x, x], -1)[..., 0]
    if how == "slice":
        return torch.cat([x, x], 1)[:, : x.shape[1]]
    if how == "turned":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    return x


def assert_nan_is_kept(
    backend, objective, classes, positions=(), device="cpu", size=None, values=(math.nan, math.inf)
):
    """Loss and gradient are NaN where the reference's are, and nowhere else.

    A sample for each way in which one logit of student or teacher is NaN or infinite, one without,
    and one that is NaN outside the mask. ``objective`` may be "none": cross entropy alone.
    ``size``: of upsampled logits.
    """
    if objective.startswith("binary_kl"):
        values = (math.nan,)  # an infinite logit of the student has a gradient, q - p
    wrong = list(itertools.product((0, 1), values, (0, classes - 1)))
    batch = len(wrong) + 2
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn((2, batch, classes, *positions), generator=generator)
    for sample, (who, value, at) in enumerate(wrong):
        if objective == "jsd(0.3)" and (who, value) == (1, math.inf):
            continue  # infinite in the kernels, NaN in the reference
        logits[who, sample, at].view(-1)[-1] = value
    logits[:, -1, 1] = math.nan
    rows = (batch, *(positions if size is None else size))
    labels = torch.randint(1, classes - 1, rows, generator=generator).to(device)
    mask = torch.ones(rows, dtype=torch.bool, device=device)
    mask[-1] = False
    options = {"objective": "forward_kl" if objective == "none" else objective, "mask": mask}
    for alpha in {"none": [0.0], "cwd": [1.0]}.get(objective, [1.0, 0.5]):
        found = []
        for name in (backend, "reference"):
            s, t = logits.to(device)
            s.requires_grad_()
            options |= {"alpha": alpha, "temperature": 2.0}
            with use_backend(name):
                if size is None:
                    loss = distill_loss(s, t, labels, reduction="none", **options)
                else:
                    loss = upsampled_distill_loss(s, t, size, labels, reduction="sum", **options)
            (gradient,) = torch.autograd.grad(loss.sum(), s)
            found.append((loss.detach(), gradient))
        (loss, gradient), (expected, expected_gradient) = found
        assert torch.equal(loss.isfinite(), expected.isfinite())
        assert torch.equal(gradient.isnan(), expected_gradient.isnan())
        of_sample = gradient.isfinite().flatten(1).all(1)
        assert not bool(of_sample[: batch // 2 - 1].any())  # the student's
        assert bool(of_sample[-2:].all())
