"""``unprocess`` and ``expose``: what they invert, the statistics of their noise, and the draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isp_distill.backends.choice import use_backend
from isp_distill.isp.camera import ISP
from isp_distill.ops import reference, reference_unprocess
from isp_distill.ops.render.call import render
from isp_distill.ops.unprocess.call import expose, unprocess
from isp_distill.ops.unprocess.noise import NoiseModel
from isp_distill.raw.cfa import PATTERNS, pattern_codes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_the_reference():
    with use_backend("reference"):
        yield


def periods(batch, height, width, low, high, seed=0):
    """Colours that are constant over each 2x2 period, so that superpixel demosaicing is exact."""
    generator = torch.Generator().manual_seed(seed)
    small = low + (high - low) * torch.rand(batch, 3, height // 2, width // 2, generator=generator)
    return small.repeat_interleave(2, -1).repeat_interleave(2, -2)


def waves(height, width):
    y, x = torch.meshgrid(torch.arange(height) * 1.0, torch.arange(width) * 1.0, indexing="ij")
    base = torch.stack([torch.sin(x / 23 + c) * torch.cos(y / 19 + 2 * c) for c in range(3)])
    return (0.45 + 0.1 * base)[None]


# ------------------------------------------------------------------- the way back


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_render_inverts_unprocess_to_within_quantisation(pattern, bits):
    """Half a step of the sensor, carried through the gains, the matrix and the steepest curve."""
    rgb = periods(4, 16, 20, 0.25, 0.75)
    black = 2.0 ** (bits - 5)
    mosaic, isp = unprocess(rgb, pattern=pattern, bits=bits, black=black, seed=3)
    assert mosaic.dtype == torch.uint16
    white = 2.0**bits - 1
    assert float(mosaic.int().max()) < white  # nothing clipped at the sensor
    linear = render(mosaic, isp.replace(demosaic="superpixel", tone="linear"))
    assert float(linear.min()) > 0  # nor in the matrix
    assert float(linear.max()) < 1
    picture = render(mosaic, isp.replace(demosaic="superpixel"), dtype=torch.float64)

    step = 0.5 / (white - black) * isp.gain(4)[:, [0, 1, 3]]  # the two greens round alike
    in_linear = torch.einsum("nij,nj->ni", torch.as_tensor(isp.ccm).abs(), step)
    # d/dx of smoothstep(x^(1/2.2)) is largest at 0.5^2.2-ish; bound it over the pixels that occur.
    grid = torch.linspace(float(linear.min()) * 0.99, 1, 20000, dtype=torch.float64)
    slope = float((reference.tone_curve(grid, "smoothstep").diff() / grid.diff()).max())
    bound = in_linear.double() * slope * 1.01 + 5e-6  # and float32's own rounding
    difference = (picture - rgb[:, :, ::2, ::2]).abs().amax((2, 3))
    assert bool((difference <= bound).all()), (difference / bound).max()
    assert float(difference.max()) < 0.05 * 2.0 ** (10 - bits) + 5e-6


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("demosaic", "tolerance"), [("bilinear", 4e-4), ("malvar", 5e-4)])
def test_render_inverts_unprocess_on_smooth_images(pattern, demosaic, tolerance):
    rgb = waves(48, 64)
    mosaic, isp = unprocess(rgb, pattern=pattern, bits=16, black=1024, seed=11)
    picture = render(mosaic, isp.replace(demosaic=demosaic))
    inside = (picture - rgb)[:, :, 2:-2, 2:-2].abs()
    assert float(inside.max()) < tolerance
    # A mirrored edge has a kink that the picture has not.
    assert float((picture - rgb).abs().max()) < 0.01


def test_uint8_is_the_float_image():
    levels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    as_bytes, _ = unprocess(levels, seed=5)
    as_floats, _ = unprocess(levels.float() / 255, seed=5)
    assert torch.equal(as_bytes, as_floats)


def test_black_and_white():
    for value in (0.0, 1.0):
        rgb = torch.full((3, 3, 4, 4), value)
        mosaic, isp = unprocess(rgb, bits=12, black=(60, 64, 68, 72))
        planes = reference.pack(mosaic.int(), torch.zeros(3, dtype=torch.int64))
        expected = torch.tensor([60, 64, 68, 72]) if value == 0 else torch.tensor([4095] * 4)
        assert torch.equal(planes, expected.view(1, 4, 1, 1).expand_as(planes).int())
        picture = render(mosaic, isp.replace(demosaic="superpixel"))
        torch.testing.assert_close(picture, rgb[:, :, ::2, ::2], atol=1e-5, rtol=0)


@given(st.floats(0.0, 1.0))
def test_the_curve_is_inverted(value):
    x = torch.full((1, 3, 2, 2), value, dtype=torch.float64)
    linear = (0.5 - torch.sin(torch.asin(1 - 2 * x) / 3)).clamp(min=1e-8) ** 2.2
    torch.testing.assert_close(reference.tone_curve(linear, "smoothstep"), x, atol=1e-6, rtol=0)


# ------------------------------------------------------------------- one pixel by hand


def by_hand(rgb, camera, n):
    """Brooks et al. 2019 for one colour, in Python floats: normalised camera R, G, B."""
    linear = [max(0.5 - math.sin(math.asin(1 - 2 * v) / 3), 1e-8) ** 2.2 for v in rgb]
    matrix = camera["rgb_to_camera"][n].double()
    seen = [sum(float(matrix[i, j]) * linear[j] for j in range(3)) for i in range(3)]
    gains = [
        1 / float(camera["red_gain"][n]) / float(camera["rgb_gain"][n]),
        1 / float(camera["rgb_gain"][n]),
        1 / float(camera["blue_gain"][n]) / float(camera["rgb_gain"][n]),
    ]
    mask = (max(sum(seen) / 3 - 0.9, 0) / 0.1) ** 2
    safe = [max(mask + (1 - mask) * g, g) for g in gains]
    return [min(max(v * g, 0), 1) for v, g in zip(seen, safe, strict=True)]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "rgb",
    [(0.2, 0.5, 0.7), (0.998, 0.998, 0.996), (1.0, 1.0, 0.9), (0.0, 1.0, 0.0), (0.05, 0.0, 0.1)],
)
def test_one_colour_by_hand(pattern, rgb):
    image = torch.tensor(rgb).view(1, 3, 1, 1).expand(3, 3, 2, 2)
    mosaic, isp = unprocess(image, pattern=pattern, bits=16, black=0, seed=8)
    camera = reference_unprocess.random_camera(3, 8, CPU)
    for n in range(3):
        expected = by_hand(rgb, camera, n)
        for site, letter in enumerate(pattern):
            found = float(mosaic[n, site // 2, site % 2].int())
            assert found == pytest.approx(expected["RGB".index(letter)] * 65535, abs=1.5)
    torch.testing.assert_close(
        torch.as_tensor(isp.white_balance)[:, 0], camera["red_gain"], atol=0, rtol=0
    )


# ------------------------------------------------------------------- the camera that is drawn


def test_random_camera_is_distributed_as_in_the_paper():
    count = 4000
    camera = {k: v.double() for k, v in reference_unprocess.random_camera(count, 123, CPU).items()}

    def uniform(values, low, high):
        assert low <= float(values.min())
        assert float(values.max()) <= high
        error = 5 * (high - low) / math.sqrt(12 * count)
        assert abs(float(values.mean()) - (low + high) / 2) < error
        # Kolmogorov-Smirnov against the uniform distribution, significance about 1e-6.
        rank = (torch.arange(count) + 0.5) / count
        distance = ((values.sort().values - low) / (high - low) - rank).abs().max()
        assert float(distance) < 2.7 / math.sqrt(count)

    def normal(values, mean, deviation):
        assert abs(float(values.mean()) - mean) < 5 * deviation / math.sqrt(count)
        assert abs(float(values.std()) / deviation - 1) < 5 / math.sqrt(2 * count)

    uniform(camera["red_gain"], 1.9, 2.4)
    uniform(camera["blue_gain"], 1.5, 1.9)
    log_shot = camera["shot"].log()
    uniform(log_shot, math.log(1e-4) - 1e-5, math.log(0.012) + 1e-5)
    normal(camera["read"].log() - 2.18 * log_shot - 1.20, 0.0, 0.26)
    normal(1 / camera["rgb_gain"], 0.8, 0.1)
    matrix = camera["rgb_to_camera"]
    torch.testing.assert_close(matrix.sum(-1), torch.ones(count, 3).double(), atol=1e-6, rtol=0)
    # The draws do not lean on one another.
    draws = torch.stack(
        [camera["red_gain"], camera["blue_gain"], log_shot, 1 / camera["rgb_gain"], matrix[:, 0, 0]]
    )
    correlation = np.corrcoef(draws.numpy()) - np.eye(5)
    assert np.abs(correlation).max() < 5 / math.sqrt(count)


def test_camera_matrices_lie_among_the_four():
    """A convex mix of the four cameras: fit its shares, which are not negative and sum to 1."""
    matrices = reference_unprocess.random_camera(50, 9, CPU)["rgb_to_camera"].double()
    four = (
        torch.tensor(reference_unprocess._XYZ_TO_CAMERA).double()
        @ torch.tensor(reference_unprocess.RGB_TO_XYZ).double()
    )
    for matrix in matrices:
        # matrix = diag(d) sum_k share_k four_k with d unknown: each row is a cone of the four rows.
        rows = [
            np.linalg.lstsq(four[:, i].T.numpy(), matrix[i].numpy(), rcond=None) for i in (0, 1, 2)
        ]
        assert all(
            np.allclose(four[:, i].T.numpy() @ r[0], matrix[i].numpy(), atol=1e-5)
            for i, r in enumerate(rows)
        )


# ------------------------------------------------------------------- noise


@pytest.mark.parametrize("level", [0.0, 0.05, 0.3, 0.8])
@pytest.mark.parametrize(("shot", "read"), [(0.01, 1e-3), (1e-4, 1e-6), (0.0, 4e-4)])
def test_sensor_noise_has_the_mean_and_variance_of_the_model(level, shot, read):
    x = torch.full((2, 256, 256), level, dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    noisy = reference_unprocess.add_sensor_noise(x, shot * ones, read * ones, seed=17)
    count, variance = noisy.numel(), shot * level + read
    assert abs(float(noisy.mean()) - level) < 5 * math.sqrt(variance / count)
    assert abs(float(noisy.var()) / variance - 1) < 5 * math.sqrt(2 / count)
    assert not torch.equal(noisy[0], noisy[1])


def test_unprocess_noise_grows_with_the_signal():
    """Variance against signal, plane by plane, from what the sensor wrote."""
    noise = NoiseModel(shot=4e-3, read=1e-4)
    levels = torch.linspace(0.15, 0.8, 6).view(6, 1, 1, 1).expand(6, 3, 128, 128)
    settings = {"bits": 16, "black": 8192.0, "seed": 21}
    clean, _ = unprocess(levels, **settings)
    noisy, _ = unprocess(levels, noise=noise, **settings)
    pattern = torch.zeros(6, dtype=torch.int64)
    scale = 65535 - 8192
    signal = (reference.pack(clean.double(), pattern) - 8192) / scale
    difference = (reference.pack(noisy.double(), pattern) - 8192) / scale - signal
    count = 64 * 64
    expected = 4e-3 * signal.mean((2, 3)) + 1e-4
    # Five standard errors; black is far below and white far above, so nothing clips.
    assert bool((difference.mean((2, 3)).abs() < 5 * (expected / count).sqrt()).all())
    ratio = difference.var((2, 3)) / expected
    assert bool(((ratio - 1).abs() < 5 * math.sqrt(2 / count)).all())


def test_noise_may_go_below_black_but_not_above_white():
    dark = torch.zeros(1, 3, 64, 64)
    mosaic, isp = unprocess(dark, black=512, noise=NoiseModel(shot=0.0, read=1e-4), seed=2)
    values = mosaic.int()
    below = float((values < 512).float().mean())
    assert 0.4 < below < 0.6  # noise is not folded at black: its mean stays
    bright, _ = unprocess(torch.ones(1, 3, 64, 64), noise=NoiseModel(0.01, 1e-3), seed=2)
    assert int(bright.int().max()) == int(torch.as_tensor(isp.white)[0])


@pytest.mark.parametrize("noise", [None, NoiseModel(), NoiseModel(0.01, 1e-4)])
def test_the_seed_is_everything(noise):
    rgb = periods(1, 8, 8, 0.2, 0.8).expand(3, -1, -1, -1)
    mosaic, _ = unprocess(rgb, noise=noise, seed=4)
    again, _ = unprocess(rgb, noise=noise, seed=4)
    other, _ = unprocess(rgb, noise=noise, seed=5)
    first, _ = unprocess(rgb[:1], noise=noise, seed=4)
    assert torch.equal(mosaic, again)
    assert torch.equal(mosaic[:1], first)
    assert not torch.equal(mosaic, other)
    assert not torch.equal(mosaic[0], mosaic[1])
    assert not torch.equal(mosaic[1], mosaic[2])


# ------------------------------------------------------------------- expose


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_expose_without_noise_scales_above_black(factor, pattern):
    black = torch.tensor([500.0, 520.0, 480.0, 510.0])
    planes = torch.randint(520, 15000, (2, 4, 4, 5)).float()
    codes = pattern_codes(pattern, 2, CPU)
    mosaic = reference.unpack(planes, codes).to(torch.uint16)
    short = expose(mosaic, factor, NoiseModel(0.0, 0.0), black=black, white=16383, pattern=pattern)
    expected = (planes - black.view(1, 4, 1, 1)) * factor + black.view(1, 4, 1, 1)
    found = reference.pack(short.float(), codes)
    torch.testing.assert_close(found, expected, atol=0.51, rtol=0)
    if factor == 1.0:
        assert torch.equal(short, mosaic)


def test_expose_noise_and_brightening():
    noise = NoiseModel(shot=2e-3, read=1e-5)
    mosaic = torch.full((2, 256, 256), 9000).to(torch.uint16)
    black, white = 1024.0, 16383.0
    short = expose(mosaic, [0.1, 0.4], noise, black=black, white=white, seed=6)
    x = (short.double() - black) / (white - black)
    for n, factor in enumerate((0.1, 0.4)):
        signal = factor * (9000 - black) / (white - black)
        variance = 2e-3 * signal + 1e-5 + (1 / (white - black)) ** 2 / 12
        count = 256 * 256
        assert abs(float(x[n].mean()) - signal) < 5 * math.sqrt(variance / count)
        assert abs(float(x[n].var()) / variance - 1) < 5 * math.sqrt(2 / count)
    camera = ISP(black=black, white=white, tone="linear", demosaic="superpixel")
    bright = render(short, camera.replace(exposure=torch.tensor([10.0, 2.5])))
    expected = (9000 - black) / (white - black)
    assert torch.allclose(bright.mean((1, 2, 3)), torch.tensor(expected), atol=2e-3)
    assert torch.equal(short, expose(mosaic, [0.1, 0.4], noise, black=black, white=white, seed=6))


def test_factors_may_be_an_array():
    mosaic = torch.full((2, 8, 8), 500, dtype=torch.int32)
    given = expose(mosaic, np.array([0.5, 0.25]), NoiseModel(0.0, 0.0), black=0.0, white=1000.0)
    assert given[:, 0, 0].tolist() == [250, 125]
    with pytest.raises(ValueError, match="factor must be positive and finite"):
        expose(mosaic, np.array([0.5, -1.0]), NoiseModel(0.0, 0.0), black=0.0, white=1000.0)


def test_noise_model_draws():
    assert NoiseModel(0.01, 1e-4).draw(2, 0)["read"].tolist() == pytest.approx([1e-4] * 2)
    line = NoiseModel(shot=0.003).draw(1, 0)["read"]
    assert float(line) == pytest.approx(math.exp(2.18 * math.log(0.003) + 1.2))
    assert float(NoiseModel(shot=0.0).draw(1, 0)["read"]) == 0
    drawn, camera = NoiseModel().draw(5, 9), reference_unprocess.random_camera(5, 9, CPU)
    assert torch.equal(drawn["shot"], camera["shot"])
    assert len(set(drawn["shot"].tolist())) == 5
    for bad in ({"shot": -1.0}, {"shot": math.nan}, {"shot": 0.1, "read": math.inf}):
        with pytest.raises(ValueError, match="finite and not negative"):
            NoiseModel(**bad)
    with pytest.raises(ValueError, match="without shot"):
        NoiseModel(read=0.1)


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((1, 3, 5, 4), {}, "5 x 4: crop it to even"),
        ((1, 4, 4, 4), {}, r"expected \[N, 3, H, W\]"),
        ((3, 4, 4), {}, r"expected \[N, 3, H, W\]"),
        ((1, 3, 0, 4), {}, r"expected \[N, 3, H, W\]"),
        ((1, 3, 4, 4), {"bits": 7}, "between 8 and 16"),
        ((1, 3, 4, 4), {"bits": 17}, "between 8 and 16"),
        ((1, 3, 4, 4), {"seed": -1}, "seed must be in"),
        ((1, 3, 4, 4), {"seed": 2**64}, "seed must be in"),
        ((1, 3, 4, 4), {"pattern": "RGB"}, "unknown pattern 'RGB'"),
        ((1, 3, 4, 4), {"black": [1.0, 2.0]}, "black has shape"),
        # The default black level of 512 does not fit into 8 bits.
        ((1, 3, 4, 4), {"bits": 8}, r"black 512.0 must be below white 255.0"),
        ((1, 3, 4, 4), {"black": [0.0, 1.0, 2.0, 16383.0]}, "below white 16383"),
    ],
)
def test_unprocess_refuses(shape, settings, message):
    with pytest.raises(ValueError, match=message):
        unprocess(torch.zeros(shape), **settings)


def test_wrong_types():
    with pytest.raises(TypeError, match="float tensor"):
        unprocess(torch.zeros(1, 3, 4, 4, dtype=torch.int32))
    with pytest.raises(TypeError, match="float tensor"):
        unprocess(np.zeros((1, 3, 4, 4)))
    mosaic = torch.zeros(1, 4, 4)
    with pytest.raises(ValueError, match="below white"):
        expose(mosaic, 0.5, NoiseModel(), black=64, white=64)
    for factor in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="factor must be positive"):
            expose(mosaic, factor, NoiseModel(), black=0, white=1)
