"""A pair of neighbours of a mosaic's row, as float32: how every kernel reads a sensor.

Codes of 8, 16 and 32 bits come two at a time where the mosaic's layout allows (``PAIRS``). Packed
ones are unpacked in registers: a pair lies in three or four bytes of its group, which neighbouring
threads share in the cache. Where each bit lies: ``isp_distill/raw/packings.py``. A companding
sensor's codes are then looked up (``LINEARISE``); a table of 12 bits is 16 KB, and stays in L1.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def halves(pair, ELEMENT: tl.constexpr):
    """Two neighbours in a row, float32, from the integer of twice their width."""
    if ELEMENT == "uint8":
        return (pair & 0xFF).to(tl.float32), ((pair >> 8) & 0xFF).to(tl.float32)
    elif ELEMENT == "uint16":
        return (pair & 0xFFFF).to(tl.float32), ((pair >> 16) & 0xFFFF).to(tl.float32)
    elif ELEMENT == "int16":
        return ((pair << 16) >> 16).to(tl.float32), (pair >> 16).to(tl.float32)
    elif ELEMENT == "float16":
        low = (pair & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
        high = ((pair >> 16) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
        return low.to(tl.float32), high.to(tl.float32)
    elif ELEMENT == "int32":
        return pair.to(tl.int32).to(tl.float32), (pair >> 32).to(tl.int32).to(tl.float32)
    else:
        low = pair.to(tl.int32).to(tl.float32, bitcast=True)
        return low, (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _element(at, mask):
    if mask is None:
        return tl.load(at)
    else:
        return tl.load(at, mask=mask, other=0)


@triton.jit
def _byte(at, mask):
    return _element(at, mask).to(tl.int32)


@triton.jit
def _unpacked(row_ptr, pair, mask, ELEMENT: tl.constexpr):
    """The two codes of a pair, int32, of packed bytes."""
    if (ELEMENT == "mipi10") or (ELEMENT == "mipi14"):
        # The second pair of a group of four, or the first.
        second = pair & 1
        group = row_ptr + (pair >> 1) * (5 if ELEMENT == "mipi10" else 7)
        first_high = _byte(group + 2 * second, mask)
        other_high = _byte(group + 2 * second + 1, mask)
        if ELEMENT == "mipi10":
            low = _byte(group + 4, mask) >> (4 * second)
            return first_high << 2 | (low & 3), other_high << 2 | ((low >> 2) & 3)
        else:
            low = _byte(group + 4 + second, mask) | _byte(group + 5 + second, mask) << 8
            low = low >> (4 * second)
            return first_high << 6 | (low & 63), other_high << 6 | ((low >> 6) & 63)
    else:
        # Twenty bits begin in the middle of every other byte; 24 are three bytes.
        at = row_ptr + ((5 * pair) >> 1 if ELEMENT == "pfnc10p" else 3 * pair)
        b0, b1, b2 = _byte(at, mask), _byte(at + 1, mask), _byte(at + 2, mask)
        if ELEMENT == "mipi12":
            return b0 << 4 | (b2 & 15), b1 << 4 | b2 >> 4
        elif ELEMENT == "gige12packed":
            return b0 << 4 | (b1 & 15), b2 << 4 | b1 >> 4
        elif ELEMENT == "pfnc12p":
            return b0 | (b1 & 15) << 8, b1 >> 4 | b2 << 4
        else:
            bits = (b0 | b1 << 8 | b2 << 16) >> (4 * (pair & 1))
            return bits & 1023, (bits >> 10) & 1023


@triton.jit
def _linear(code, table, last_code):
    """The table's entry, those beyond its ends held; ``code``: float32, which has every code."""
    held = tl.minimum(tl.maximum(code, 0.0), last_code * 1.0)
    return tl.load(table + held.to(tl.int32))


@triton.jit
def load_pair(
    row_ptr, pair, mask, table, last_code,
    PAIRS: tl.constexpr, ELEMENT: tl.constexpr, LINEARISE: tl.constexpr,
):  # fmt: skip
    """The sensor's values in the even and the odd column of a pair, float32.

    ``row_ptr`` counts pairs where ``PAIRS``, else elements, of packed ones bytes. ``mask``: which
    are read, or None for all; the others are code 0. ``table``: the sample's linear values, and
    ``last_code`` its last one. ``ELEMENT``: the mosaic's type, or how it is packed.
    """
    if PAIRS:
        even, odd = halves(_element(row_ptr + pair, mask), ELEMENT)
    elif (
        (ELEMENT == "mipi10") or (ELEMENT == "mipi12") or (ELEMENT == "mipi14")
        or (ELEMENT == "pfnc10p") or (ELEMENT == "pfnc12p") or (ELEMENT == "gige12packed")
    ):  # fmt: skip
        first, second = _unpacked(row_ptr, pair, mask, ELEMENT)
        even, odd = first.to(tl.float32), second.to(tl.float32)
    else:
        even = _element(row_ptr + 2 * pair, mask).to(tl.float32)
        odd = _element(row_ptr + 2 * pair + 1, mask).to(tl.float32)
    if LINEARISE:
        even, odd = _linear(even, table, last_code), _linear(odd, table, last_code)
    return even, odd
