"""The rows that ``render``'s kernels hold while they walk down their columns.

A period has two rows, c and d. The filters reach two rows up and down: a, b above, e, f below. All
six are held, and move up by two from one period to the next, so that each row is loaded once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .demosaic import demosaic_pair
from .mosaic import load_row


@triton.jit
def rows_from(
    sample_ptr, row_stride, table, last_code, row, height, pair, pairs, levels,
    REACH: tl.constexpr, PAIRS: tl.constexpr, ELEMENT: tl.constexpr, LINEARISE: tl.constexpr,
):  # fmt: skip
    """The even row ``row`` and the odd one after it (:func:`load_row`)."""
    even = load_row(
        sample_ptr, row_stride, table, last_code, row, height, pair, pairs, levels[0], levels[1],
        REACH, 0, PAIRS, ELEMENT, LINEARISE,
    )  # fmt: skip
    odd = load_row(
        sample_ptr, row_stride, table, last_code, row + 1, height, pair, pairs, levels[0],
        levels[1],
        REACH, 1, PAIRS, ELEMENT, LINEARISE,
    )  # fmt: skip
    return even, odd


@triton.jit
def rows_up_to(
    sample_ptr, row_stride, table, last_code, row, height, pair, pairs, levels,
    REACH: tl.constexpr, PAIRS: tl.constexpr, ELEMENT: tl.constexpr, LINEARISE: tl.constexpr,
):  # fmt: skip
    """Rows ``row - 2`` to ``row + 1`` of the period at ``row``.

    A row that the method does not reach is only a name.
    """
    c, d = rows_from(
        sample_ptr, row_stride, table, last_code, row, height, pair, pairs, levels,
        REACH, PAIRS, ELEMENT, LINEARISE,
    )  # fmt: skip
    a = c
    b = d
    if REACH > 0:
        b = load_row(
            sample_ptr, row_stride, table, last_code, row - 1, height, pair, pairs, levels[0],
            levels[1],
            REACH, 1, PAIRS, ELEMENT, LINEARISE,
        )  # fmt: skip
    if REACH > 1:
        a = load_row(
            sample_ptr, row_stride, table, last_code, row - 2, height, pair, pairs, levels[0],
            levels[1],
            REACH, 0, PAIRS, ELEMENT, LINEARISE,
        )  # fmt: skip
    return a, b, c, d


@triton.jit
def pixels_of(
    a, b, c, d, e, f, pattern, planes,
    ODD: tl.constexpr, SUPERPIXEL: tl.constexpr, METHOD: tl.constexpr,
):  # fmt: skip
    """The pixels of the period's even or odd row (:func:`demosaic_pair`), or its superpixels."""
    if SUPERPIXEL:
        return demosaic_pair(d, c, c, c, c, pattern, planes, 1, METHOD)
    elif ODD == 0:
        return demosaic_pair(c, b, d, a, e, pattern, planes, 0, METHOD)
    else:
        return demosaic_pair(d, c, e, b, f, pattern, planes, 1, METHOD)
