"""Packings: against a reader that takes a bit at a time, written from their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isp_distill.raw.packings import PACKINGS, pack_rows, row_bytes, unpack_rows

# Of each packing, where bit b (0 the least significant) of pixel p lies in its group of bytes:
# (byte, bit). Written out from the definitions: MIPI CSI-2, GenICam PFNC, GigE Vision.
PLACES = {
    "mipi10": lambda p, b: (p, b - 2) if b >= 2 else (4, 2 * p + b),
    "mipi12": lambda p, b: (p, b - 4) if b >= 4 else (2, 4 * p + b),
    "mipi14": lambda p, b: (p, b - 6) if b >= 6 else (4 + (6 * p + b) // 8, (6 * p + b) % 8),
    "pfnc10p": lambda p, b: ((10 * p + b) // 8, (10 * p + b) % 8),
    "pfnc12p": lambda p, b: ((12 * p + b) // 8, (12 * p + b) % 8),
    "gige12packed": lambda p, b: (2 * p, b - 4) if b >= 4 else (1, 4 * p + b),
    "uint8": lambda p, b: (0, b),
    "uint16": lambda p, b: (b // 8, b % 8),
}

#: One group of each, worked out by hand on paper.
BY_HAND = {
    # 0b1000000001, 0b0100000010, 0b0010000011, 0b0001000100
    "mipi10": ([513, 258, 131, 68], [0x80, 0x40, 0x20, 0x11, 0b00_11_10_01]),
    "mipi12": ([0xABC, 0xDEF], [0xAB, 0xDE, 0xFC]),
    # low sixes 1, 2, 3, 4: 000001 | 000010 << 6 | 000011 << 12 | 000100 << 18 = 0x103081
    "mipi14": ([0x41, 0x82, 0xC3, 0x104], [1, 2, 3, 4, 0x81, 0x30, 0x10]),
    # 1 | 2 << 10 | 3 << 20 | 4 << 30 = 0x0100300801
    "pfnc10p": ([1, 2, 3, 4], [0x01, 0x08, 0x30, 0x00, 0x01]),
    "pfnc12p": ([0xABC, 0xDEF], [0xBC, 0xFA, 0xDE]),
    "gige12packed": ([0xABC, 0xDEF], [0xAB, 0xFC, 0xDE]),
    "uint8": ([200], [200]),
    "uint16": ([0x1234], [0x34, 0x12]),
}


def bit_at_a_time(row, width, packing):
    group = PACKINGS[packing]
    codes = []
    for x in range(width):
        start, pixel = x // group.pixels * group.bytes, x % group.pixels
        code = 0
        for bit in range(group.bits):
            byte, place = PLACES[packing](pixel, bit)
            code |= (int(row[start + byte]) >> place & 1) << bit
        codes.append(code)
    return codes


@pytest.mark.parametrize("packing", PACKINGS)
def test_one_group_by_hand(packing):
    codes, packed = BY_HAND[packing]
    assert unpack_rows(np.array(packed, np.uint8), len(codes), packing).tolist() == codes
    assert pack_rows(np.array(codes), packing).tolist() == packed
    assert bit_at_a_time(packed, len(codes), packing) == codes


@given(
    packing=st.sampled_from(sorted(PACKINGS)),
    rows=st.integers(1, 3),
    width=st.integers(1, 23),
    padding=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_any_bytes_are_read_as_one_bit_at_a_time(packing, rows, width, padding, seed):
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (rows, row_bytes(width, packing) + padding), np.uint8)
    found = unpack_rows(data, width, packing)
    assert found.dtype == np.uint16
    assert found.flags.c_contiguous
    assert found.tolist() == [bit_at_a_time(row, width, packing) for row in data]
    assert unpack_rows(pack_rows(found, packing), width, packing).tolist() == found.tolist()


def test_codes_in_the_high_bits_and_the_other_order():
    assert unpack_rows(np.array([0x12, 0x34], np.uint8), 1, "uint16", big_endian=True) == 0x1234
    assert unpack_rows(np.array([0x40, 0xFF], np.uint8), 1, "uint16", shift=6) == 0xFF40 >> 6


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_does_not_fit_is_refused(packing):
    with pytest.raises(ValueError, match="at least"):
        unpack_rows(np.zeros(row_bytes(9, packing) - 1, np.uint8), 9, packing)
    with pytest.raises(ValueError, match="do not fit"):
        pack_rows(np.array([1 << PACKINGS[packing].bits]), packing)
    with pytest.raises(ValueError, match="unknown packing 'mipi11'"):
        row_bytes(8, "mipi11")
