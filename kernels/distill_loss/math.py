"""The arithmetic of the distillation loss on tiles ``[rows, classes]``, for every objective.

A row is one position of one sample. The other files of ``distill_*`` differ in how a tile comes
about: the whole class axis at once (``distill_held``), a chunk at a time (``distill_streamed``),
or interpolated from a lower resolution (``distill_upsampled``). Each formula is written here, once:

1. ``observe`` takes a further chunk into running sums, *lane by lane*: a lane is one element of the
   tile and sees every ``BLOCK_CLASSES``-th class. Nothing is exchanged between threads in a loop.
2. ``combine`` reduces the lanes to a row. Where the whole axis is one tile, each lane has seen one
   class, so this alone gives the sums (``FRESH``).
3. ``compare`` is summed over the classes once more for jsd and tvd, which need both normalised
   distributions at each class.
4. ``settle`` turns a row's sums into its loss and into four coefficients of its gradient.
5. ``gradient`` is elementwise from the logits and these coefficients.

Exponents and logarithms are to the base 2, ``k = log2(e) / T``. Exponents are taken of differences
to a maximum, ``(x - top) * k``: ``x * k`` alone would lose its last bits where logits are large.
A class that is not there is -inf in both logits; one that the teacher rules out, in the teacher's.

A NaN among a row's logits is passed over by the maxima and makes a sum of exponentials NaN, and
with it the loss and all the row's gradient. What weighs nothing is so told by ``== 0``: ``> 0``
would take NaN for nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
# A maximum of nothing: below every logit, and finite, so that differences of two are numbers.
NO_LOGIT = tl.constexpr(-1e30)
INFINITY = tl.constexpr(float("inf"))
NO_INDEX = tl.constexpr(2147483647)


@triton.jit
def _grow(top, x, k):
    """What a value does to a running maximum: whether it leads, the exponent between the two."""
    distance = (x - top) * k
    return distance > 0, tl.abs(distance)


@triton.jit
def observe(
    s, t, top_s, sum_s, top_t, sum_t, mixed, k, parameter0, parameter1, OBJECTIVE: tl.constexpr
):  # fmt: skip
    """Take one more logit of student and teacher into each lane's state.

    ``sum_s`` and ``sum_t`` are of exponentials relative to the maxima so far. ``mixed`` is, for
    forward_kl and dkd, the teacher's exponentials times the difference of exponents (teacher's
    less student's); for reverse_kl the mirror image; for mse the squared differences; for binary_kl
    its value, in base 2.
    """
    leads_s, far_s = _grow(top_s, s, k)
    leads_t, far_t = _grow(top_t, t, k)
    if OBJECTIVE == "mse":
        mixed += squared_difference(s, t)
    elif OBJECTIVE == "binary_kl":
        mixed += binary(s, t, k, parameter0, parameter1)[0]
    elif OBJECTIVE != "none":
        # One exponential serves both cases: it scales the old sum, or it is the new term.
        exp_s, exp_t = tl.exp2(-far_s), tl.exp2(-far_t)
        keep_s, new_s = tl.where(leads_s, exp_s, 1.0), tl.where(leads_s, 1.0, exp_s)
        keep_t, new_t = tl.where(leads_t, exp_t, 1.0), tl.where(leads_t, 1.0, exp_t)
        # By how much the maxima rise, and the exponents of the new terms below them.
        rise_s, rise_t = tl.where(leads_s, far_s, 0.0), tl.where(leads_t, far_t, 0.0)
        y_s, y_t = tl.where(leads_s, 0.0, -far_s), tl.where(leads_t, 0.0, -far_t)
        if OBJECTIVE == "forward_kl" or OBJECTIVE == "dkd":
            risen = tl.where(sum_t > 0, (rise_s - rise_t) * sum_t, 0.0)
            mixed = keep_t * (mixed + risen) + tl.where(new_t > 0, new_t * (y_t - y_s), 0.0)
        elif OBJECTIVE == "reverse_kl":
            risen = tl.where(sum_s > 0, (rise_t - rise_s) * sum_s, 0.0)
            # Infinite where the teacher rules out a class, unless that class weighs nothing here.
            mixed = tl.where(keep_s > 0, keep_s * (mixed + risen), 0.0)
            mixed += tl.where(new_s > 0, new_s * (y_s - y_t), 0.0)
        sum_s, sum_t = sum_s * keep_s + new_s, sum_t * keep_t + new_t
    return tl.where(leads_s, s, top_s), sum_s, tl.where(leads_t, t, top_t), sum_t, mixed


@triton.jit
def observe_label(s, top, total, plain, seen, SMOOTHED: tl.constexpr):
    """The same for cross entropy (temperature 1), *before* ``observe`` moves the maximum ``top``.

    ``total`` sums exponentials; ``plain`` sums ``s - top`` of the ``seen`` classes of the lane.
    """
    leads, far = _grow(top, s, LOG2E)
    exp = tl.exp2(-far)
    total = total * tl.where(leads, exp, 1.0) + tl.where(leads, 1.0, exp)
    if SMOOTHED:
        rise = tl.where(seen > 0, tl.where(leads, s - top, 0.0), 0.0)
        below = tl.where(leads, 0.0, s - top)
        plain += tl.where(s > -INFINITY, below - rise * seen, 0.0)
    return total, plain


@triton.jit
def _difference(s, t):
    return tl.where(t <= NO_LOGIT, 0.0, s - t)


@triton.jit
def squared_difference(s, t):
    """mse of one class; one that the teacher rules out counts nothing."""
    difference = _difference(s, t)
    return difference * difference


@triton.jit
def binary(s, t, k, gamma, floor):
    """binary_kl of one class in base 2, and the weighted q - p.

    Mirrored where the teacher says yes, so that p is the smaller of its two probabilities and no
    difference cancels: with x and y the exponents, log2((1 + 2^x) / (1 + 2^y)) - p (x - y). A class
    that is not there, -inf in both, counts nothing.
    """
    a, b = s * k, t * k
    yes = b > 0
    x, y = tl.where(yes, -a, a), -tl.abs(b)
    ex, ey = tl.exp2(-tl.abs(a)), tl.exp2(y)
    over_x, over_y = 1 / (1 + ex), 1 / (1 + ey)
    q, p = tl.where(x > 0, over_x, ex * over_x), ey * over_y
    value = tl.where(x < 0, 0.0, x) + tl.log2((1 + ex) * over_y)
    value -= tl.where(p == 0, 0.0, p * (x - y))
    confidence = tl.where(yes, over_y, p)
    # gamma = 0 weighs nothing less, a confidence of 0 neither.
    power = tl.log2(tl.where(confidence < floor, floor, confidence))
    weight = tl.exp2(tl.where(gamma == 0, 0.0, gamma * power))
    return weight * value, weight * tl.where(yes, p - q, q - p)


@triton.jit
def choose(top, index):
    """The maximum over the lanes of each row, and its first class."""
    best = tl.max(top, 1)
    return best, tl.min(tl.where(top == best[:, None], index, NO_INDEX), 1)


@triton.jit
def combine(
    top_s, sum_s, top_t, sum_t, mixed, best_s, best_t, k, parameter0, parameter1,
    OBJECTIVE: tl.constexpr, FRESH: tl.constexpr,
):  # fmt: skip
    """Sums over the lanes of each row, relative to the row's maxima ``best_s`` and ``best_t``.

    ``FRESH``: each lane has seen the one logit in ``top_s`` and ``top_t``, and has no sums yet.
    """
    y_s, y_t = (top_s - best_s[:, None]) * k, (top_t - best_t[:, None]) * k
    scale_s, scale_t = tl.exp2(y_s), tl.exp2(y_t)
    part_s, part_t = scale_s, scale_t
    if not FRESH:
        part_s, part_t = part_s * sum_s, part_t * sum_t
    part = part_s * 0.0
    if OBJECTIVE == "forward_kl" or OBJECTIVE == "dkd":
        part = tl.where(part_t > 0, part_t * (y_t - y_s), 0.0)
        if not FRESH:
            part += scale_t * mixed
    elif OBJECTIVE == "reverse_kl":
        part = tl.where(part_s > 0, part_s * (y_s - y_t), 0.0)
        if not FRESH:
            part += tl.where(scale_s > 0, scale_s * mixed, 0.0)
    elif OBJECTIVE == "mse":
        part = squared_difference(top_s, top_t) if FRESH else mixed
    elif OBJECTIVE == "binary_kl":
        part = binary(top_s, top_t, k, parameter0, parameter1)[0] if FRESH else mixed
    return tl.sum(part_s, 1), tl.sum(part_t, 1), tl.sum(part, 1)


@triton.jit
def combine_label(
    top, total, plain, seen, best, SMOOTHED: tl.constexpr, FRESH: tl.constexpr
):  # fmt: skip
    """Cross entropy's two sums over the lanes of each row."""
    scale = tl.exp2((top - best[:, None]) * LOG2E)
    if FRESH:
        below = tl.where(top > -INFINITY, top - best[:, None], 0.0)
    else:
        scale *= total
        below = tl.where(seen > 0, plain + (top - best[:, None]) * seen, 0.0)
    sum_plain = best * 0.0
    if SMOOTHED:
        sum_plain = tl.sum(below, 1)
    return tl.sum(scale, 1), sum_plain


@triton.jit
def _jsd_terms(s, t, top_s, top_t, log_sum_s, log_sum_t, k, beta):
    """q, p, log2(m / q) and log2(p / m) of the mixture ``m = beta p + (1 - beta) q``.

    With ``x = log2(p / q)``, ``m / q = beta 2^x + 1 - beta``, taken from the larger of p and q.
    """
    log_q, log_p = (s - top_s) * k - log_sum_s, (t - top_t) * k - log_sum_t
    x = log_p - log_q
    small = tl.exp2(-tl.abs(x))
    over_larger = tl.log2(tl.where(x > 0, beta + (1 - beta) * small, beta * small + (1 - beta)))
    m_over_q = over_larger + tl.where(x > 0, x, 0.0)
    p_over_m = tl.where(x > 0, 0.0, x) - over_larger
    return tl.exp2(log_q), tl.exp2(log_p), m_over_q, p_over_m


@triton.jit
def compare(s, t, top_s, top_t, sum_s, sum_t, k, beta, OBJECTIVE: tl.constexpr):
    """Two terms of each class, to be summed: for jsd, KL(p || m) and KL(q || m) in base 2; for tvd,
    ``|p - q|`` and ``q sign(q - p)``. The tops and sums are the row's, ``[rows, 1]``."""
    if OBJECTIVE == "jsd":
        q, p, m_over_q, p_over_m = _jsd_terms(
            s, t, top_s, top_t, tl.log2(sum_s), tl.log2(sum_t), k, beta
        )
        return tl.where(p == 0, 0.0, p * p_over_m), tl.where(q == 0, 0.0, -q * m_over_q)
    else:
        q, p = tl.exp2((s - top_s) * k) / sum_s, tl.exp2((t - top_t) * k) / sum_t
        return tl.abs(p - q), tl.where(q > p, q, tl.where(q < p, -q, 0.0))


@triton.jit
def _finite(x):
    """A distance, or NaN where it is infinite upwards, as the sums over all classes have it."""
    return tl.where(x == INFINITY, x - x, x)


@triton.jit
def _log2_one_plus(a):
    """log2(2^a + 1)."""
    return tl.maximum(a, 0.0) + tl.log2(1.0 + tl.exp2(-tl.abs(a)))


@triton.jit
def settle(
    sum_s, sum_t, mixed, first, second, target_s, target_t, weight, T, parameter0, parameter1,
    gradient_scale, OBJECTIVE: tl.constexpr,
):  # fmt: skip
    """A row's objective times its weight, and the coefficients a, b, c, d of its gradient.

    ``first`` and ``second`` are the sums of ``compare``; ``target_s`` and ``target_t`` dkd's
    exponents of the target class relative to the maximum of the others.
    """
    # Logarithms of ratios, not differences of logarithms: T^2 may be large and the loss small.
    out = weight * gradient_scale
    scale = (weight * 0.0 + T) * T * LN2
    value, a, b, c, d = weight * 0.0, weight * 0.0, weight * 0.0, weight * 0.0, weight * 0.0
    if OBJECTIVE == "forward_kl":
        value = scale * (mixed / sum_t + tl.log2(sum_s / sum_t))
        a, b = T * out / sum_s, T * out / sum_t
    elif OBJECTIVE == "reverse_kl":
        value = scale * (mixed / sum_s + tl.log2(sum_t / sum_s))
        a, b = out * T * LN2 / sum_s, mixed / sum_s + 0.0 * sum_t
    elif OBJECTIVE == "jsd":
        value = scale * (parameter0 * first + (1 - parameter0) * second)
        a, b = out * T * LN2 * (1 - parameter0), second
        c, d = tl.log2(sum_s), tl.log2(sum_t)
    elif OBJECTIVE == "tvd":
        value = 0.5 * first
        a, b, c, d = 1 / sum_s, 1 / sum_t, 0.5 / T * out, second
    elif OBJECTIVE == "mse":
        value, a = mixed, 2 * out
    elif OBJECTIVE == "binary_kl":
        value, a = scale * mixed, T * out
    elif OBJECTIVE == "dkd":
        odds_s, odds_t = _finite(target_s) - tl.log2(sum_s), _finite(target_t) - tl.log2(sum_t)
        not_s, not_t = -_log2_one_plus(odds_s), -_log2_one_plus(odds_t)
        at_s, at_t = -_log2_one_plus(-odds_s), -_log2_one_plus(-odds_t)
        p_at, p_not = tl.exp2(at_t), tl.exp2(not_t)
        binary = tl.where(p_at == 0, 0.0, p_at * (at_t - at_s))
        binary += tl.where(p_not == 0, 0.0, p_not * (not_t - not_s))
        rest = mixed / sum_t + tl.log2(sum_s / sum_t)
        value = scale * (parameter0 * binary + parameter1 * rest)
        c = parameter0 * T * out * (tl.exp2(at_s) - p_at)
        a, b = (parameter1 * T * out - c) / sum_s, parameter1 * T * out / sum_t
    return weight * value, a, b, c, d


@triton.jit
def settle_label(total, plain, at_label, weight, smoothing, classes, SMOOTHED: tl.constexpr):
    """A row's cross entropy times its weight; ``at_label``: the label's logit less the maximum."""
    log_sum = tl.log2(total) * LN2
    entropy = log_sum - at_label
    if SMOOTHED:
        entropy = (1 - smoothing) * entropy + smoothing * (log_sum - plain / classes)
    return weight * entropy


@triton.jit
def gradient(
    s, t, at_target, top_s, top_t, a, b, c, d, k, parameter0, parameter1, OBJECTIVE: tl.constexpr
):  # fmt: skip
    """The objective's derivative by the student's logit of each class; see ``settle``."""
    if OBJECTIVE == "forward_kl" or OBJECTIVE == "dkd":
        result = a * tl.exp2((s - top_s) * k) - b * tl.exp2((t - top_t) * k)
        if OBJECTIVE == "dkd":
            result = tl.where(at_target, c, result)
    elif OBJECTIVE == "reverse_kl":
        y_s, y_t = (s - top_s) * k, (t - top_t) * k
        q = tl.exp2(y_s)
        result = a * tl.where(q == 0, 0.0, q * (y_s - y_t - b))
    elif OBJECTIVE == "jsd":
        q, _p, m_over_q, _p_over_m = _jsd_terms(s, t, top_s, top_t, c, d, k, parameter0)
        result = a * tl.where(q == 0, 0.0, q * (-m_over_q - b))
    elif OBJECTIVE == "tvd":
        q, p = a * tl.exp2((s - top_s) * k), b * tl.exp2((t - top_t) * k)
        sign = tl.where(q > p, 1.0, tl.where(q < p, -1.0, 0.0))
        result = c * q * (sign - d)
    elif OBJECTIVE == "mse":
        result = a * _difference(s, t)
    elif OBJECTIVE == "binary_kl":
        result = a * binary(s, t, k, parameter0, parameter1)[1]
    else:
        result = s * 0.0
    return result


@triton.jit
def gradient_label(
    s, at_label, top, scale, weight, smoothing, classes, SMOOTHED: tl.constexpr
):  # fmt: skip
    """Cross entropy's derivative; ``weight`` holds the gradient's scale too, and ``scale`` is it
    divided by the sum of exponentials."""
    result = scale * tl.exp2((s - top) * LOG2E)
    if SMOOTHED:
        result -= weight * smoothing / classes
        return result - tl.where(at_label, weight * (1 - smoothing), 0.0)
    else:
        return result - tl.where(at_label, weight, 0.0)
