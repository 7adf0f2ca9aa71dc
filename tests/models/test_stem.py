"""rawify starts as exactly the RGB model on a superpixel-demosaiced linear image."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import isp_distill
from isp_distill.isp.camera import ISP
from isp_distill.isp.matrices import planes_matrix
from isp_distill.models.raw_model import RawModel
from isp_distill.models.rawify import rawify
from isp_distill.models.stem import RawStem

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class StaticSameConv2d(nn.Conv2d):
    """As EfficientNet ports do it: a zero padding of its own, right and below only."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride)


MODELS = {
    "resnet 7x7 s2": lambda: torchvision.models.resnet18(),
    "efficientnet 3x3 s2": lambda: timm.create_model("efficientnet_lite0"),
    "efficientnet same (dynamic)": lambda: timm.create_model("tf_efficientnet_lite0"),
    "efficientnet same (static)": lambda: nn.Sequential(
        StaticSameConv2d(3, 16, 3, 2, bias=False), nn.ReLU(), nn.Conv2d(16, 8, 3)
    ),
    "convnext 4x4 s4": lambda: timm.create_model("convnext_atto"),
    "vit 16x16 s16": lambda: timm.create_model("vit_tiny_patch16_224", img_size=64),
}


def superpixel(mosaic, pattern):
    """Independent of the library: pick the sites of each colour by name."""
    image = []
    for m, name in zip(mosaic.double(), pattern, strict=True):
        sites = {}
        for index, colour in enumerate(name):
            sites.setdefault(colour, []).append(m[index // 2 :: 2, index % 2 :: 2])
        image.append(torch.stack([torch.stack(sites[c]).mean(0) for c in "RGB"]))
    return torch.stack(image)


def normalised(image):
    return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("grid", ["packed", "sensor"])
def test_rawified_model_equals_the_rgb_model(name, grid):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    side = 128 if grid == "packed" else 64
    mosaic = torch.randint(500, 16000, (4, side, side))
    pattern = ["RGGB", "GRBG", "GBRG", "BGGR"]
    balance = torch.tensor([[2.0, 1.0, 1.5]] * 4)
    isp = ISP(black=500, white=40000, pattern=pattern, white_balance=balance)
    student = rawify(model, mean=MEAN, std=STD, grid=grid).eval()
    image = (superpixel(mosaic, pattern) - 500) / (40000 - 500)
    image = (image * balance[:, :, None, None]).float()
    if grid == "sensor":
        image = F.interpolate(image, scale_factor=2, mode="nearest")
    with torch.no_grad():
        expected = model(normalised(image))
        actual = student(mosaic.to(torch.uint16), isp)
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-3)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), f"rawify changed the teacher's {key}"


def test_a_calibrated_student_needs_no_camera():
    student = rawify(torchvision.models.resnet18().eval()).eval()
    isp = ISP(black=[10, 20, 30, 40], white=4095, pattern="GBRG", white_balance=(2, 1, 1.5))
    mosaic = torch.randint(0, 4096, (2, 64, 64), dtype=torch.int32).to(torch.uint16)
    with torch.no_grad():
        given = student(mosaic, isp)
        student.calibrate(isp)
        torch.testing.assert_close(student(mosaic), given)


def test_colour_matrix_in_the_stem_is_that_of_the_isp():
    ccm = torch.tensor([[[1.6, -0.4, -0.2], [-0.2, 1.5, -0.3], [0.1, -0.5, 1.4]]])
    colour = torch.rand(3)
    planes = colour[[0, 1, 1, 2]]
    expected = (ccm[0] @ colour)[[0, 1, 1, 2]]
    torch.testing.assert_close(planes_matrix(ccm)[0] @ planes, expected)


def test_camera_numbers_learn():
    stem = RawStem(8, 3, 2, 1, curve="gamma", colour_matrix=True, learn_camera=True)
    stem.calibrate(ISP())
    mosaic = torch.randint(0, 65535, (1, 16, 16), dtype=torch.int32)
    stem(mosaic).square().sum().backward()
    assert len(stem.camera_parameters()) == 3
    for parameter in stem.camera_parameters():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


def test_state_dict_round_trip():
    student = rawify(torchvision.models.resnet18())
    other = rawify(torchvision.models.resnet18())
    other.load_state_dict(student.state_dict())
    for a, b in zip(student.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 3)), "3 channels"),
        (lambda: nn.Sequential(nn.Linear(3, 8)), "3 channels"),
    ],
)
def test_models_that_cannot_be_rawified(build, message):
    with pytest.raises(ValueError, match=message):
        rawify(build())


def test_sensor_grid_needs_an_even_stride():
    with pytest.raises(ValueError, match="even stride"):
        rawify(nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1)), grid="sensor")
    with pytest.raises(ValueError, match="unknown grid"):
        rawify(nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1)), grid="mosaic")


def test_raw_model_wants_exactly_one_stem():
    with pytest.raises(ValueError, match="exactly one RawStem"):
        RawModel(nn.Linear(2, 2))
    assert isp_distill.RawStem is RawStem
