"""How far two pictures of one scene lie apart, by the phases of their gradients.

A camera's curve, its contrast and its sharpening change how strong an edge is, not where it lies.
So the gradients are divided by the strength of their surroundings, and of their cross spectrum only
the phases count. High frequencies are noise and JPEG: a Gaussian weighs them down, which makes the
peak a Gaussian too, whose top three samples give it to a few hundredths of a pixel.

(scikit-image's ``phase_cross_correlation`` has no such weight, says nothing of how much the peak
stands out, and is no requirement of this library.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

# Of the Gaussian over the frequencies, cycles a pixel: the peak is then 1.3 pixels wide.
_BAND = 0.12
# Surroundings whose strength gradients are divided by, pixels a side; odd.
_SURROUNDINGS = 31
# Below this share of the mean strength a place counts as flat: what is there is noise.
_FLAT = 0.1


class Peak(NamedTuple):
    """Where two pictures fit best.

    Attributes:
        down: of the second picture's content against the first's, pixels.
        right: likewise.
        height: 1 where they are the same, near 0 where they have nothing in common.
        prominence: the height in standard deviations of the correlation everywhere else.
    """

    down: float
    right: float
    height: float
    prominence: float


def structure(luma: Array) -> Array:
    """The gradients of a picture as strong in its shadows as in its lights.

    Args:
        luma: float ``[h, w]``, both at least 3.

    Returns:
        complex64 ``[h, w]``: across plus i times down; zeros where nothing is seen.
    """
    values = luma.astype(np.float32)
    gradient = np.zeros(values.shape, np.complex64)
    gradient[:, 1:-1] += values[:, 2:] - values[:, :-2]
    gradient[1:-1] += 1j * (values[2:] - values[:-2])
    power = gradient.real**2 + gradient.imag**2
    around = _mean_around(_mean_around(power, 0), 1)
    floor = _FLAT**2 * float(power.mean())
    if floor == 0:
        return np.zeros(values.shape, np.complex64)
    normalised: Array = (gradient / np.sqrt(np.maximum(around, 0) + floor)).astype(np.complex64)
    return normalised


def _mean_around(values: Array, axis: int) -> Array:
    """The mean of each value's surroundings along an axis, as far as they are in the picture."""
    side = values.shape[axis]
    sums = np.cumsum(np.moveaxis(values, axis, 0), axis=0, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(sums[:1]), sums])
    first = np.maximum(np.arange(side) - _SURROUNDINGS // 2, 0)
    last = np.minimum(np.arange(side) + _SURROUNDINGS // 2 + 1, side)
    count = (last - first).reshape(-1, 1)
    return np.moveaxis((sums[last] - sums[first]) / count, 0, axis)


def faded(field: Array) -> Array:
    """A field that ends in zeros on all sides, so that its borders are no edges."""
    rows, columns = (np.hanning(side + 2)[1:-1].astype(np.float32) for side in field.shape)
    weighted: Array = field * rows[:, None] * columns
    return weighted


def correlate(first: Array, second: Array, reach: float | None = None) -> Peak:
    """By how much the second field lies down and to the right of the first.

    Args:
        first: from :func:`structure`, of any size.
        second: likewise; sizes may differ, their top left corners are laid on one another.
        reach: look no farther than so many pixels; None looks everywhere.
    """
    sides = [
        _good(max(a, b) if reach is not None else a + b)
        for a, b in zip(first.shape, second.shape, strict=True)
    ]
    spectrum = np.conj(np.fft.fft2(first, sides)) * np.fft.fft2(second, sides)
    strength = np.abs(spectrum)
    most = float(strength.max(initial=0.0))
    if most == 0:
        return Peak(0.0, 0.0, 0.0, 0.0)
    rows, columns = (np.fft.fftfreq(side).astype(np.float32) for side in sides)
    weight = np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * _BAND**2))
    phases = weight * spectrum / np.maximum(strength, 1e-9 * most)
    field = np.fft.ifft2(phases).real / float(weight.mean())
    searched = field
    if reach is not None:
        near = [np.abs(np.fft.fftfreq(side, 1 / side)) <= max(1.0, reach) for side in sides]
        searched = np.where(near[0][:, None] & near[1], field, -np.inf)
    top = [int(place) for place in np.unravel_index(int(searched.argmax()), field.shape)]
    offsets = []
    for axis, side in enumerate(sides):
        places = [list(top), list(top), list(top)]
        places[0][axis] = (top[axis] - 1) % side
        places[2][axis] = (top[axis] + 1) % side
        before, at, after = (max(float(field[tuple(p)]), 1e-6) for p in places)
        place = (top[axis] + side // 2) % side - side // 2
        offsets.append(place + _vertex(before, at, after))
    height = float(field[tuple(top)])
    return Peak(offsets[0], offsets[1], height, height / max(float(field.std()), 1e-12))


def _vertex(before: float, at: float, after: float) -> float:
    """Where between its neighbours a Gaussian has its top, -0.5 to 0.5 from the middle."""
    low, middle, high = np.log((before, at, after))
    curvature = low - 2 * middle + high
    return 0.0 if curvature >= 0 else float(np.clip((low - high) / (2 * curvature), -0.5, 0.5))


def _good(side: int) -> int:
    """The next length that is quickly transformed: of factors 2, 3 and 5."""
    while True:
        rest = side
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return side
        side += 1
