"""The random numbers against the published known answers and a scalar rewrite in Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isp_distill.ops import philox

WORD = st.integers(0, 2**32 - 1)


def words(counter, seed):
    result = philox.philox(tuple(torch.tensor(c, dtype=torch.int64) for c in counter), seed)
    return tuple(int(word) for word in result)


def scalar_philox(counter, seed):
    """Salmon et al. 2011, section 3.2, in Python's unbounded integers."""
    c, k = list(counter), [seed % 2**32, seed // 2**32]
    for _ in range(10):
        left, right = divmod(0xD2511F53 * c[0], 2**32), divmod(0xCD9E8D57 * c[2], 2**32)
        c = [right[0] ^ c[1] ^ k[0], right[1], left[0] ^ c[3] ^ k[1], left[1]]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


# Random123's kat_vectors, philox4x32 with 10 rounds.
@pytest.mark.parametrize(
    ("counter", "seed", "expected"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, seed, expected):
    assert words(counter, seed) == expected
    assert scalar_philox(counter, seed) == expected


@given(st.tuples(WORD, WORD, WORD, WORD), st.integers(0, 2**64 - 1))
def test_equals_unbounded_integers(counter, seed):
    assert words(counter, seed) == scalar_philox(counter, seed)


@given(WORD)
def test_uniform_is_exact_and_below_one(word):
    value = philox.uniform(torch.tensor(word))
    assert value.dtype == torch.float32
    assert 0 <= float(value) < 1
    assert float(value) == (word // 256) / 2**24


@given(WORD, WORD)
def test_normal_pair_is_box_muller_and_finite(a, b):
    first, second = philox.normal_pair(torch.tensor(a), torch.tensor(b), torch.float64)
    radius = math.sqrt(-2 * math.log(1 - (a // 256) / 2**24))
    angle = 2 * math.pi * (b // 256) / 2**24
    assert float(first) == pytest.approx(radius * math.cos(angle), abs=1e-12)
    assert float(second) == pytest.approx(radius * math.sin(angle), abs=1e-12)
    assert math.isfinite(float(first))
    assert abs(float(first)) < 5.8  # sqrt(-2 ln 2^-24)


def test_sensor_noise_layout():
    """Any site can be drawn alone, from its period's number and its sample's."""
    seed, (batch, height, width) = 0x123456789ABCDEF0, (2, 4, 6)
    noise = philox.sensor_noise(batch, height, width, seed, torch.device("cpu"))
    for n in range(batch):
        for y in range(height):
            for x in range(width):
                period = (y // 2) * (width // 2) + x // 2
                drawn = scalar_philox((period, n, philox.STREAM_NOISE, 0), seed)
                a, b = drawn[:2] if y % 2 == 0 else drawn[2:]
                pair = philox.normal_pair(torch.tensor(a), torch.tensor(b))
                assert float(noise[n, y, x]) == pytest.approx(float(pair[x % 2]), abs=1e-6)


def test_camera_words_layout():
    drawn = philox.camera_words(3, 77, torch.device("cpu"))
    for n in range(3):
        expected = [
            word for b in range(3) for word in scalar_philox((b, n, philox.STREAM_CAMERA, 0), 77)
        ]
        assert drawn[n].tolist() == expected


def test_sensor_noise_is_standard_normal_and_white():
    noise = philox.sensor_noise(1, 512, 512, 5, torch.device("cpu")).double()[0]
    count = noise.numel()
    # Each bound is five standard errors of the statistic under N(0, 1).
    assert abs(float(noise.mean())) < 5 / math.sqrt(count)
    assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / count)
    assert abs(float((noise**3).mean())) < 5 * math.sqrt(15 / count)
    assert abs(float((noise**4).mean()) - 3) < 5 * math.sqrt(96 / count)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0)):
        product = noise[dy:, dx:] * noise[: 512 - dy, : 512 - dx]
        assert abs(float(product.mean())) < 5 / math.sqrt(product.numel())


def test_samples_and_seeds_differ():
    device = torch.device("cpu")
    noise = philox.sensor_noise(2, 16, 16, 1, device)
    assert torch.equal(noise, philox.sensor_noise(2, 16, 16, 1, device))
    assert torch.equal(noise[:1], philox.sensor_noise(1, 16, 16, 1, device))
    assert not torch.equal(noise[0], noise[1])
    # The key is all 64 bits of the seed.
    assert not torch.equal(noise, philox.sensor_noise(2, 16, 16, 1 + 2**32, device))
