"""What the Triton kernels of ``render`` share about the mosaic: rows of it, normalised.

A kernel's vector runs along the pairs of a row: element i stands for the sensor's columns ``2 i``
and ``2 i + 1``, which come in one load (``PAIRS``). So the place of a value within its 2x2 period,
its site ``2 * (row % 2) + column % 2``, is known where the code is compiled, and the pattern, which
is data, only decides what colour a site has: plane ``site ^ pattern`` (see ``isp_distill/cfa.py``),
one number for a whole program.

Beyond its edges the mosaic is mirrored about its own first and last row and column, which keeps the
parity and so the colour. Rows and columns may therefore be *virtual*, -2 for example; no load needs
a mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..raw_conv.planes import clamped
from ..sensor import load_pair


@triton.jit
def mirrored(index, size):
    """A row or column, perhaps virtual, to one that the mosaic has."""
    period = 2 * (size - 1)
    index = index % period
    index = tl.where(index < 0, index + period, index)  # the remainder has the sign of the index
    return tl.where(index < size, index, period - index)


@triton.jit
def levels_of(black_ptr, scale_ptr, pattern):
    """Black and scale of the four sites; the pointers are the sample's R, Gr, Gb, B."""
    black = (
        tl.load(black_ptr + pattern), tl.load(black_ptr + (1 ^ pattern)),
        tl.load(black_ptr + (2 ^ pattern)), tl.load(black_ptr + (3 ^ pattern)),
    )  # fmt: skip
    scale = (
        tl.load(scale_ptr + pattern), tl.load(scale_ptr + (1 ^ pattern)),
        tl.load(scale_ptr + (2 ^ pattern)), tl.load(scale_ptr + (3 ^ pattern)),
    )  # fmt: skip
    return black, scale


@triton.jit
def normalised(even, odd, black, scale, ODD_ROW: tl.constexpr):
    """``(x - black) * scale``, the highlights clipped at the sensor."""
    return (
        clamped((even - black[2 * ODD_ROW]) * scale[2 * ODD_ROW], True),
        clamped((odd - black[2 * ODD_ROW + 1]) * scale[2 * ODD_ROW + 1], True),
    )


@triton.jit
def load_row(
    sample_ptr, row_stride, table, last_code, row, height, pair, pairs, black, scale,
    REACH: tl.constexpr, ODD_ROW: tl.constexpr, PAIRS: tl.constexpr, ELEMENT: tl.constexpr,
    LINEARISE: tl.constexpr,
):  # fmt: skip
    """Columns ``2 pair - 2`` to ``2 pair + 3`` of a row, normalised; only the middle two of them
    where the demosaicing reads no neighbours (``REACH`` 0).

    ``row`` may be virtual; ``pair`` is one of the mosaic's ``pairs``. ``sample_ptr`` and
    ``row_stride`` count pairs where ``PAIRS``, else elements; ``table`` and ``last_code``: see
    :func:`~isp_distill.kernels.sensor.load_pair`.
    """
    # Rows in int64: a frame may hold more than 2^31 bytes.
    row_ptr = sample_ptr + mirrored(row, height).to(tl.int64) * row_stride
    even, odd = load_pair(row_ptr, pair, None, table, last_code, PAIRS, ELEMENT, LINEARISE)
    if REACH == 0:
        even, odd = normalised(even, odd, black, scale, ODD_ROW)
        return even, odd, even, odd, even, odd
    else:
        # Held inside the row, two of the four neighbours at an edge are their own mirror images
        # already: column -1 is column 1, and column W is column W - 2.
        before, behind = tl.maximum(pair - 1, 0), tl.minimum(pair + 1, pairs - 1)
        left_even, left_odd = load_pair(
            row_ptr, before, None, table, last_code, PAIRS, ELEMENT, LINEARISE
        )
        right_even, right_odd = load_pair(
            row_ptr, behind, None, table, last_code, PAIRS, ELEMENT, LINEARISE
        )
        beyond_left = tl.where(pair == 0, right_even, left_even)  # column -2 is column 2
        beyond_right = tl.where(pair == pairs - 1, left_odd, right_odd)  # column W + 1 is W - 3
        even, odd = normalised(even, odd, black, scale, ODD_ROW)
        beyond_left, left = normalised(beyond_left, left_odd, black, scale, ODD_ROW)
        right, beyond_right = normalised(right_even, beyond_right, black, scale, ODD_ROW)
        return beyond_left, left, even, odd, right, beyond_right
