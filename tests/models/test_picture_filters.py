"""Students that begin with the picture of a demosaicing ISP."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from isp_distill import ISP, RawStem, load, rawify, render, save
from isp_distill.models.picture_filters import begin_demosaiced, picture_filters
from isp_distill.ops import reference
from isp_distill.raw.cfa import PATTERNS, pattern_codes

METHODS = ("bilinear", "malvar")


def scene(side: int) -> torch.Tensor:
    """A smooth picture, linear, ``[1, 3, side, side]`` float64, away from black and white."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 6, generator=draw, dtype=torch.float64)
    return 0.2 + 0.6 * functional.interpolate(coarse, side, mode="bicubic").clamp(0, 1)


def mosaic_of(picture: torch.Tensor, pattern: str) -> torch.Tensor:
    """Each photosite's colour alone, ``[1, H, W]``, 0 to 1000."""
    red, green, blue = (reference.pack(one[:, 0], pattern_codes(pattern, 1, torch.device("cpu")))
                        for one in picture.split(1, 1))  # fmt: skip
    planes = torch.stack([red[:, 0], green[:, 1], green[:, 2], blue[:, 3]], 1)
    return 1000 * reference.unpack(planes, pattern_codes(pattern, 1, torch.device("cpu")))


@pytest.mark.parametrize("method", METHODS)
def test_taps_add_up(method):
    filters = picture_filters(method)
    own = torch.tensor([[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(filters.sum((2, 3)), own)
    # Over the four patterns no side is favoured.
    torch.testing.assert_close(filters, filters.flip(2, 3))


def test_the_noise_is_as_said():
    power = picture_filters("malvar").square().sum((1, 2, 3))
    torch.testing.assert_close(power.float(), torch.tensor([0.22, 0.14, 0.22]), atol=0.015, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_over_patterns_is_the_demosaiced_picture(method):
    """Without a curve all is linear: the four patterns' planes by the filters, and the ISP's."""
    side = 48
    draw = torch.Generator().manual_seed(1)
    planes = torch.rand(1, 4, side, side, generator=draw, dtype=torch.float64)
    filtered = functional.conv2d(planes, picture_filters(method))
    expected = torch.zeros(1, 3, side, side, dtype=torch.float64)
    for pattern in PATTERNS:
        code = pattern_codes(pattern, 1, torch.device("cpu"))
        rgb = reference.demosaic(reference.unpack(planes, code), code, method)
        expected += functional.interpolate(
            rgb, scale_factor=0.5, mode="bilinear", align_corners=False, antialias=True
        ) / 4  # fmt: skip
    # Malvar's farthest taps were moved to the middle.
    atol = 1e-12 if method == "bilinear" else 0.04
    inner = slice(3, -3)
    torch.testing.assert_close(
        filtered[..., 2:-2, 2:-2], expected[..., inner, inner], atol=atol, rtol=0
    )
    if method == "malvar":
        superpixel = torch.stack([planes[:, 0], planes[:, 1:3].mean(1), planes[:, 3]], 1)
        far = (superpixel - expected)[..., inner, inner].abs().mean()
        assert (filtered[..., 2:-2, 2:-2] - expected[..., inner, inner]).abs().mean() < far / 20


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, 1), (1, 1, 0), (4, 4, 0), (7, 2, 3)]
)
def test_the_kernel_is_the_convolution_of_the_filtered_planes(method, kernel, stride, padding):
    torch.manual_seed(2)
    stem = RawStem(5, kernel, stride, padding).double()
    with torch.no_grad():  # as rawify makes them: both greens have half of green's weights
        stem.weight[:, 2] = stem.weight[:, 1]
    weight = torch.stack([stem.weight[:, 0], 2 * stem.weight[:, 1], stem.weight[:, 3]], 1).detach()
    stem.calibrate(ISP(black=0.0, white=1000.0, pattern="GRBG"))
    mosaic = 1000 * torch.rand(2, 48, 64, dtype=torch.float64)
    begin_demosaiced(stem, method)
    planes = reference.pack(mosaic / 1000, pattern_codes("GRBG", 2, torch.device("cpu")))
    picture = functional.conv2d(planes, picture_filters(method), padding=1)
    expected = functional.conv2d(picture, weight, stem.bias, stride, padding)
    found = stem(mosaic)
    assert stem.kernel_size == (kernel + 2,) * 2
    assert found.shape == expected.shape
    # Beyond the border the one holds planes of the mean's colour, the other a picture of it.
    inner = slice(3, -3)
    torch.testing.assert_close(found[..., inner, inner], expected[..., inner, inner])


@pytest.mark.parametrize("size", [64, 96])
def test_same_padding_stays_in_place(size):
    torch.manual_seed(3)
    stem = RawStem(4, 3, 2, "same").double()
    with torch.no_grad():
        stem.weight[:, 2] = stem.weight[:, 1]
    stem.calibrate(ISP(black=0.0, white=1000.0))
    flat = torch.full((1, size, size), 400.0, dtype=torch.float64)
    flat[:, size // 2 :] = 700.0
    before = stem(flat)
    begin_demosaiced(stem, "bilinear")
    after = stem(flat)
    assert after.shape == before.shape
    # The edge between the two lies in the same row; away from it nothing changes.
    rows = (after - before).abs()[..., 2:-2].amax((0, 1, 3))[2:-2] > 1e-9
    edge = size // 8 - 2
    assert rows[edge - 1 : edge + 2].any()
    assert not rows[: edge - 1].any()
    assert not rows[edge + 2 :].any()


def test_a_student_is_nearer_to_the_picture():
    """Of the same scene by all four patterns: a student that begins demosaiced says more alike."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 8, 3, 2, 1)).eval()
    settings = {"mean": 0.5, "std": 0.25, "curve": "gamma", "size": 64}
    students = {name: rawify(model, demosaic=name, **settings) for name in ("superpixel", *METHODS)}
    picture, far = scene(128), dict.fromkeys(students, 0.0)
    with torch.no_grad():
        for pattern in PATTERNS:
            mosaic = mosaic_of(picture, pattern).round().to(torch.int32)
            mosaic = mosaic + torch.randint(-40, 41, mosaic.shape, dtype=torch.int32)
            isp = ISP(black=0, white=1000, pattern=pattern, tone="gamma")
            expected = model((render(mosaic, isp, size=64) - 0.5) / 0.25)
            for name, student in students.items():
                off = (student(mosaic, isp) - expected)[..., 2:-2, 2:-2]
                far[name] += float(off.square().mean())
    assert far["malvar"] < far["superpixel"] / 3
    assert far["bilinear"] < far["superpixel"] / 3


def test_a_model_that_makes_its_picture_begins_so_too():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x):
            return self.layer(x.mean((2, 3)))

    student = rawify(Pooled(), demosaic="malvar", size=32)
    assert student.takeover.form == "picture"
    assert student.stem.weight.shape == (3, 4, 3, 3)
    mosaic = torch.randint(100, 900, (2, 64, 64), dtype=torch.int32)
    assert student(mosaic, ISP(black=0, white=1000)).shape == (2, 4)


def test_what_does_not_go_together_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(ValueError, match="unknown demosaic 'ahd': expected superpixel"):
        rawify(model, demosaic="ahd")
    with pytest.raises(ValueError, match='goes with grid="packed"'):
        rawify(model, demosaic="malvar", grid="sensor")
    with pytest.raises(ValueError, match="needs a Bayer filter"):
        rawify(model, demosaic="malvar", colour_filter="RGIrB")
    stem = RawStem(4, 1, 2, "same")
    with pytest.raises(ValueError, match='"same" padding of a kernel of 1'):
        begin_demosaiced(stem, "malvar")


def test_a_saved_student_is_made_again(tmp_path):
    timm = pytest.importorskip("timm", reason="a model that can be made again by its name")
    model = timm.create_model("resnet10t", num_classes=5).eval()
    student = rawify(model, demosaic="malvar", curve="gamma", size=64).eval()
    save(student, tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert again.made["demosaic"] == "malvar"
    mosaic = torch.randint(100, 900, (1, 128, 128), dtype=torch.int32)
    isp = ISP(black=0, white=1000)
    assert torch.equal(student(mosaic, isp), again(mosaic, isp))


@pytest.mark.parametrize("demosaic", ["superpixel", "malvar"])
def test_kernels_larger_than_a_small_picture(demosaic):
    model = nn.Sequential(nn.Conv2d(3, 2, 64, 64))
    student = rawify(model, size=256, demosaic=demosaic)
    mosaic = torch.randint(100, 900, (1, 512, 512), dtype=torch.int32)
    assert student.takeover.form == "stem"
    assert student(mosaic, ISP(black=0, white=1000)).shape == (1, 2, 4, 4)
