"""``render`` step by step, against arithmetic written out for one pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from isp_distill.backends.choice import use_backend
from isp_distill.isp.camera import DEMOSAICS, ISP, TONES
from isp_distill.ops import reference
from isp_distill.ops.render.call import output_size, render
from isp_distill.raw.cfa import PATTERNS

CCM = ((1.62, -0.48, -0.14), (-0.21, 1.49, -0.28), (0.02, -0.51, 1.49))
CAMERA = ISP(
    black=(64.0, 60.0, 70.0, 66.0),
    white=1023.0,
    pattern="GRBG",
    white_balance=(1.9, 1.0, 1.5),
    ccm=CCM,
    exposure=0.8,
)


@pytest.fixture(autouse=True)
def on_the_reference():
    with use_backend("reference"):
        yield


def mosaics(batch=1, height=16, width=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1100, (batch, height, width), generator=generator).to(torch.uint16)


# ------------------------------------------------------------------- the steps


def display(value, tone):
    """One value's tone curve in Python floats."""
    value = min(max(value, 0.0), 1.0)
    if tone == "srgb":
        return 12.92 * value if value < 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
    if tone == "gamma":
        return max(value, 1e-8) ** (1 / 2.2)
    if tone == "smoothstep":
        g = max(value, 1e-8) ** (1 / 2.2)
        return g * g * (3 - 2 * g)
    if tone == "log":
        return math.log(1 + 5000 * value) / math.log(5001)
    return value


@pytest.mark.parametrize("tone", TONES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_superpixel_by_hand(pattern, tone):
    """Every step of one period in scalar arithmetic, with four unequal blacks."""
    mosaic = mosaics()
    isp = CAMERA.replace(demosaic="superpixel", tone=tone, pattern=pattern)
    picture = render(mosaic, isp, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1), dtype=torch.float64)
    assert picture.shape == (1, 3, 8, 10)
    black = dict(zip(("R", "Gr", "Gb", "B"), (64.0, 60.0, 70.0, 66.0), strict=True))
    gain = {"R": 1.9 * 0.8, "Gr": 0.8, "Gb": 0.8, "B": 1.5 * 0.8}
    for y in range(8):
        for x in range(10):
            value = {}
            for site, letter in enumerate(pattern):
                row = pattern[:2] if site < 2 else pattern[2:]
                name = letter if letter != "G" else ("Gr" if "R" in row else "Gb")
                level = float(mosaic[0, 2 * y + site // 2, 2 * x + site % 2].int())
                scaled = (level - black[name]) / (1023 - black[name]) * gain[name]
                value[name] = min(max(scaled, 0.0), 1.0)
            camera = (value["R"], (value["Gr"] + value["Gb"]) / 2, value["B"])
            for c in range(3):
                linear = sum(CCM[c][k] * camera[k] for k in range(3))
                expected = (display(linear, tone) - (0.4, 0.5, 0.6)[c]) / (0.2, 0.3, 0.1)[c]
                # Settings are float32 whatever the result's dtype is.
                assert float(picture[0, c, y, x]) == pytest.approx(expected, abs=2e-5)


def test_srgb_curve_is_continuous_and_inverts_the_standard():
    x = torch.linspace(0, 1, 4001, dtype=torch.float64)
    encoded = reference.tone_curve(x, "srgb")
    decoded = torch.where(
        encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055).clamp(min=0) ** 2.4
    )
    torch.testing.assert_close(decoded, x, atol=1e-6, rtol=0)
    assert bool((encoded.diff() > 0).all())
    assert float(encoded[-1]) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("tone", TONES)
@pytest.mark.parametrize("demosaic", DEMOSAICS)
def test_white_stays_white_and_black_black(demosaic, tone):
    for level, expected in ((1023, 1.0), (0, 0.0)):
        mosaic = torch.full((1, 8, 8), level).to(torch.uint16)
        isp = CAMERA.replace(demosaic=demosaic, tone=tone, exposure=1.0)
        picture = render(mosaic, isp)
        # gamma's floor of 1e-8 is 2e-4 on display
        torch.testing.assert_close(picture, torch.full_like(picture, expected), atol=3e-4, rtol=0)


# ------------------------------------------------------------------- orientation, crop, size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_against_exif(orientation):
    """EXIF says which side of the scene the stored first row and first column are."""
    first_row, first_column = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    upright = np.arange(6.0).reshape(2, 3)
    stored = upright if first_row in ("top", "bottom") else upright.T
    stored = stored[::-1] if first_row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if first_column in ("bottom", "right") else stored
    turned = reference.orient(torch.from_numpy(stored.copy()), orientation)
    np.testing.assert_array_equal(turned.numpy(), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_against_pillow(orientation):
    image = pytest.importorskip("PIL.Image", reason="a peer")
    ops = pytest.importorskip("PIL.ImageOps", reason="a peer")
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = image.fromarray(stored)
    picture.getexif()[0x0112] = orientation
    expected = np.asarray(ops.exif_transpose(picture))
    turned = reference.orient(torch.from_numpy(stored), orientation)
    np.testing.assert_array_equal(turned.numpy(), expected)


@pytest.mark.parametrize("demosaic", DEMOSAICS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_render_turns_after_the_crop(demosaic, orientation):
    isp = CAMERA.replace(demosaic=demosaic)
    lying = render(mosaics(), isp, crop=(2, 4, 10, 8))
    turned = render(mosaics(), isp.replace(orientation=orientation), crop=(2, 4, 10, 8))
    torch.testing.assert_close(turned, reference.orient(lying, orientation))


@given(
    st.sampled_from(DEMOSAICS),
    st.integers(0, 7),
    st.integers(0, 9),
    st.integers(1, 8),
    st.integers(1, 10),
)
def test_crop_is_a_cut_of_the_whole(demosaic, top, left, height, width):
    step = 2 if demosaic == "superpixel" else 1
    box = [step * v for v in (top, left, height, width)]
    box[2], box[3] = min(box[2], 16 - box[0]), min(box[3], 20 - box[1])
    if min(box[2:]) < 1:
        return
    isp = CAMERA.replace(demosaic=demosaic)
    whole = render(mosaics(), isp)
    top, left, height, width = (v // step for v in box)
    cut = whole[:, :, top : top + height, left : left + width]
    torch.testing.assert_close(render(mosaics(), isp, crop=box), cut)


def test_output_size():
    assert output_size(None, 30, 40) == (30, 40)
    assert output_size(15, 30, 40) == (15, 20)
    assert output_size(15, 40, 30) == (20, 15)
    assert output_size((7, 9), 30, 40) == (7, 9)
    assert output_size(1, 1000, 10) == (100, 1)
    for bad in (0, -3, (0, 4), (4,), (1, 2, 3)):
        with pytest.raises(ValueError, match="at least 1"):
            output_size(bad, 30, 40)


def test_size_follows_the_turned_picture():
    isp = CAMERA.replace(orientation=6)
    assert render(mosaics(), isp, size=8).shape == (1, 3, 10, 8)
    assert render(mosaics(), isp, size=(8, 12)).shape == (1, 3, 8, 12)
    assert render(mosaics(), isp.replace(demosaic="superpixel")).shape == (1, 3, 10, 8)


def triangle(source: int, target: int) -> np.ndarray:
    """Antialiased bilinear weights [target, source]: a triangle as wide as the reduction."""
    scale = source / target
    width = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source)[None] + 0.5 - centres[:, None]) / width
    weights = np.maximum(0.0, 1 - distance)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(5, 7), (16, 20), (3, 20), (24, 31)])
def test_resize_is_the_triangle_filter(size):
    whole = render(mosaics(), CAMERA, dtype=torch.float64)[0].numpy()
    small = render(mosaics(), CAMERA, dtype=torch.float64, size=size)[0].numpy()
    expected = triangle(16, size[0]) @ whole @ triangle(20, size[1]).T
    np.testing.assert_allclose(small, expected, atol=1e-9)


def test_resize_in_linear_light():
    """Linear light is resized before the clip and the curve; display values after."""
    isp = CAMERA.replace(demosaic="superpixel")
    planes = reference.pack(mosaics().double(), torch.tensor([1]))
    settings = isp.batched(1)
    x = reference.normalise(
        planes, settings.black.double(), settings.white.double(), isp.gain(1).double(), True
    )
    camera = torch.stack([x[:, 0], (x[:, 1] + x[:, 2]) / 2, x[:, 3]], 1)
    linear = torch.einsum("ij,njhw->nihw", torch.tensor(CCM).double(), camera)[0].numpy()
    vertical, horizontal = triangle(8, 3), triangle(10, 4)
    curve = np.vectorize(lambda v: display(v, "srgb"))
    expected = {
        "linear": curve(vertical @ linear @ horizontal.T),
        "display": vertical @ curve(linear) @ horizontal.T,
    }
    for where, values in expected.items():
        picture = render(mosaics(), isp, size=(3, 4), resize_in=where, dtype=torch.float64)
        np.testing.assert_allclose(picture[0].numpy(), values, atol=1e-6)
    assert np.abs(expected["linear"] - expected["display"]).max() > 0.02
    same = [render(mosaics(), isp, resize_in=where) for where in expected]
    assert torch.equal(*same)  # nothing to resize, no difference


# ------------------------------------------------------------------- the result's form


def test_mean_and_std():
    plain = render(mosaics(), CAMERA)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (plain - mean[:, None, None]) / std[:, None, None]
    for m, s in ((mean, std), (mean.tolist(), tuple(std.tolist()))):
        torch.testing.assert_close(render(mosaics(), CAMERA, mean=m, std=s), expected)
    torch.testing.assert_close(render(mosaics(), CAMERA, mean=0.5, std=0.25), (plain - 0.5) * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_result_dtype_and_layout(dtype, layout):
    picture = render(mosaics(2), CAMERA, size=6, dtype=dtype, memory_format=layout)
    assert picture.dtype == dtype
    assert picture.is_contiguous(memory_format=layout)
    exact = render(mosaics(2), CAMERA, size=6, dtype=torch.float64)
    tolerance = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, 2e-6)
    torch.testing.assert_close(picture.double(), exact, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.int32, torch.float16, torch.float32, torch.float64]
)
def test_mosaic_dtypes_agree(dtype):
    mosaic = (mosaics().int() % 256).to(torch.uint16)
    isp = CAMERA.replace(white=255.0)
    assert torch.equal(render(mosaic.to(dtype), isp), render(mosaic, isp))
    assert torch.equal(render(mosaic.to(dtype)[:, None], isp), render(mosaic, isp))


def test_strided_mosaic():
    wide = mosaics(3, 16, 40)
    assert torch.equal(
        render(wide[::2, :, 4:24], CAMERA), render(wide[::2, :, 4:24].clone(), CAMERA)
    )


@given(
    st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=4),
    st.sampled_from(DEMOSAICS),
    st.sampled_from(["display", "linear"]),
    st.integers(0, 2**31),
)
def test_a_mixed_batch_equals_each_alone(patterns, demosaic, resize_in, seed):
    generator = torch.Generator().manual_seed(seed)
    n = len(patterns)
    mixed = ISP(
        black=torch.rand(n, 4, generator=generator) * 100,
        white=900 + torch.rand(n, generator=generator) * 100,
        pattern=patterns,
        white_balance=0.5 + 2 * torch.rand(n, 3, generator=generator),
        ccm=torch.eye(3) + 0.3 * torch.randn(n, 3, 3, generator=generator),
        exposure=0.5 + torch.rand(n, generator=generator),
        demosaic=demosaic,
    )
    mosaic = mosaics(n, seed=seed)
    together = render(mosaic, mixed, size=(5, 6), resize_in=resize_in)
    settings = mixed.batched(n)
    for i in range(n):
        alone = mixed.replace(
            **{
                name: getattr(settings, name)[i : i + 1]
                for name in ("black", "white", "pattern", "white_balance", "ccm", "exposure")
            }
        )
        picture = render(mosaic[i : i + 1], alone, size=(5, 6), resize_in=resize_in)
        torch.testing.assert_close(together[i : i + 1], picture, atol=1e-5, rtol=1e-5)


def test_nan_stays_in_its_sample_and_its_neighbourhood():
    mosaic = mosaics(2).float()
    clean = render(mosaic, CAMERA)
    mosaic[0, 8, 10] = math.nan
    picture = render(mosaic, CAMERA)
    assert bool(picture[0, :, 8, 10].isnan().all())
    assert torch.equal(picture[1], clean[1])
    touched = F.pad(torch.ones(1, 5, 5), (8, 7, 6, 5))[0].bool()  # Malvar reaches two pixels
    assert torch.equal(picture[0][:, ~touched], clean[0][:, ~touched])


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize_in": "gamma"}, "unknown resize_in 'gamma'"),
        ({"crop": (0, 0, 4)}, "expected"),
        ({"crop": (-2, 0, 4, 4)}, "starts outside"),
        ({"crop": (0, 0, 0, 4)}, "empty"),
        ({"crop": (8, 0, 10, 4)}, "beyond the mosaic of 16 x 20"),
        ({"size": 0}, "at least 1"),
        ({"size": (4, 0)}, "at least 1"),
        ({"mean": (0.1, 0.2)}, r"mean has shape \[2\]"),
        ({"std": 0.0}, "std must be positive"),
        ({"std": torch.ones(4)}, r"std has shape \[4\]"),
    ],
)
def test_wrong_values(settings, message):
    with pytest.raises(ValueError, match=message):
        render(mosaics(), CAMERA, **settings)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="ISP, not dict"):
        render(mosaics(), {})
    with pytest.raises(TypeError, match="floating-point"):
        render(mosaics(), CAMERA, dtype=torch.uint8)
    with pytest.raises(ValueError, match="crop it"):
        render(torch.zeros(1, 15, 20), CAMERA)
    with pytest.raises(ValueError, match="even numbers"):
        render(mosaics(), CAMERA.replace(demosaic="superpixel"), crop=(1, 0, 4, 4))
    with pytest.raises(ValueError, match="2 CFA patterns for a batch of 3"):
        render(mosaics(3), CAMERA.replace(pattern=["RGGB", "BGGR"]))
    with pytest.raises(ValueError, match="black has shape"):
        render(mosaics(2), CAMERA.replace(black=torch.zeros(3, 4)))
    for black, white in ((64, 64), ((0, 0, 0, 900), 800), (0, math.inf), (math.nan, 5)):
        with pytest.raises(ValueError, match="must be below white"):
            render(mosaics(), CAMERA.replace(black=black, white=white))
    with pytest.raises(ValueError, match="below white"):
        render(mosaics(2), CAMERA.replace(white=torch.tensor([1023.0, 40.0])))
    for field, bad in (("demosaic", "ahd"), ("tone", "aces"), ("orientation", 9)):
        with pytest.raises(ValueError, match=str(bad)):
            ISP(**{field: bad})
