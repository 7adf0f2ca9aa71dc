"""rawify finds every reader of the model's input, and is held against the RGB model."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import isp_distill
import isp_distill.models.rawify
from isp_distill import ISP, export, rawify
from isp_distill.data.views import View
from isp_distill.exports.lowering import AnyCamera, OneCamera
from isp_distill.models.raw_model import RawModel
from isp_distill.models.rawify import relative_difference
from isp_distill.models.readers import readers_of
from isp_distill.models.stem import RawStem
from isp_distill.training.models import parameter_groups

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATTERN = ["GRBG", "BGGR"]
CAMERA = ISP(black=500, white=16383, pattern=PATTERN, white_balance=(1.9, 1.0, 1.4))


@torch.no_grad()
def randomised(model, side=32):
    """No parameter is zero, and batch norms have random statistics, but near a picture's.

    With a mean of 0 and a variance of 1 the signal dies out in a deep network.
    """
    for value in model.parameters():
        if value.abs().max() < 1e-3:
            value.normal_(0, 0.05)
    norms = [m for m in model.eval().modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        model(torch.randn(2, 3, side, side))
    for norm in norms:
        norm.eval().momentum = 0.1
        deviation = norm.running_var.sqrt()
        norm.running_mean += 0.3 * deviation * torch.randn_like(deviation)
        norm.running_var *= 0.5 + torch.rand_like(deviation)
    return model


def pair(side, grid="packed"):
    """Mosaics of two patterns, and the normalised picture of them."""
    side = 2 * side if grid == "packed" else side
    mosaic = torch.randint(600, 8500, (2, side, side))
    image = []
    for one, pattern in zip(mosaic.double(), PATTERN, strict=True):
        sites = {colour: [] for colour in "RGB"}
        for index, colour in enumerate(pattern):
            sites[colour].append(one[index // 2 :: 2, index % 2 :: 2])
        image.append(torch.stack([torch.stack(sites[colour]).mean(0) for colour in "RGB"]))
    image = torch.stack(image)
    gain, mean, std = (torch.tensor(v)[:, None, None] for v in ((1.9, 1.0, 1.4), MEAN, STD))
    image = ((image - 500) / (16383 - 500) * gain - mean) / std
    if grid == "sensor":
        image = F.interpolate(image, scale_factor=2, mode="nearest")
    return mosaic.to(torch.int32), image.float()


@torch.no_grad()
def error(model, student, side, grid="packed"):
    mosaic, image = pair(side, grid)
    return relative_difference(student.eval()(mosaic, CAMERA), model(image))


# Of every way in which a first layer is built: name, side, and what becomes of it.
SAMPLE = [
    ("repvgg_a0", 64, "stems"),
    ("mobileone_s0", 64, "stems"),
    ("fastvit_t8", 64, "stems"),
    ("crossvit_9_240", 240, "picture"),
    ("tresnet_m", 64, "picture"),
    ("naflexvit_base_patch16_gap", 64, "picture"),
    ("tnt_s_patch16_224", 224, "picture"),
    ("nf_resnet26", 64, "stem"),
    ("test_nfnet", 64, "stem"),
    ("resnetv2_50x1_bit", 64, "stem"),
    ("tf_mobilenetv3_small_minimal_100", 64, "stem"),
    ("mobilenetv4_conv_small_035", 64, "stem"),
    ("lcnet_035", 64, "stem"),
    ("repghostnet_050", 64, "stem"),
    ("resnet10t", 64, "stem"),
    ("convnext_atto", 64, "stem"),
    ("test_vit", 160, "stem"),
    ("levit_128s", 224, "stem"),
    ("efficientformerv2_s0", 224, "stem"),
    ("regnetx_002", 64, "stem"),
    ("starnet_s050", 64, "stem"),
    ("ghostnet_050", 64, "stem"),
    ("torchvision squeezenet1_1", 64, "stem"),
    ("torchvision shufflenet_v2_x0_5", 64, "stem"),
    ("torchvision lraspp_mobilenet_v3_large", 64, "stem"),
]


@pytest.mark.parametrize(("name", "side", "form"), SAMPLE, ids=[name for name, *_ in SAMPLE])
def test_families_are_exact(name, side, form):
    torch.manual_seed(0)
    if name.startswith("torchvision"):
        whole = {"weights_backbone": None} if "lraspp" in name else {}
        model = torchvision.models.get_model(name.split()[1], weights=None, **whole)
    else:
        smaller = {"depth": 2} if name.startswith(("tnt", "naflex")) else {}
        model = timm.create_model(name, pretrained=False, **smaller)
    student = rawify(randomised(model, side), size=side)
    assert student.takeover.form == form
    assert error(model, student, side) < 1e-3


class Parallel(nn.Module):
    """RepVGG's first block: a 3x3 and a 1x1 convolution on one input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.Conv2d(3, 8, 1, 2)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.head((self.norm(self.a(x)) + self.b(x)).relu()).mean((2, 3))


class Both(nn.Module):
    """A convolution, and a second reader of another kind."""

    def __init__(self, other):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, 1, 1), other

    def forward(self, x):
        return self.conv(x) + self.other(x)


class Step(nn.Module):
    """A function before a convolution."""

    def __init__(self, step, *conv):
        super().__init__()
        self.step, self.conv = step, nn.Conv2d(*(conv or (3, 4, 3, 2, 1)))

    def forward(self, x):
        return self.conv(self.step(x))


class Twice(nn.Module):
    """One convolution on the picture and on a smaller one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x):
        return self.conv(x).mean() + self.conv(F.avg_pool2d(x, 2))


class Scaled(nn.Conv2d):
    """A convolution that does more than convolve."""

    def forward(self, x):
        return super().forward(x) * 2 + x.mean()


# What reads the input, and whether the stem stays in the convolution's place.
READERS = {
    "batch norm": (lambda: Both(nn.BatchNorm2d(3)), "picture"),
    "identity": (lambda: Both(nn.Identity()), "picture"),
    "pooling": (lambda: Both(nn.AvgPool2d(3, 1, 1)), "picture"),
    "channels swapped": (lambda: Step(lambda x: x[:, [2, 1, 0]]), "picture"),
    "turned": (lambda: Step(lambda x: x.transpose(2, 3)), "picture"),
    "cropped": (lambda: Step(lambda x: x[:, :, 2:-2, 2:-2]), "picture"),
    "padded": (lambda: Step(lambda x: F.pad(x, (1, 2, 1, 2))), "picture"),
    "changed in place": (lambda: Step(lambda x: x.mul_(2)), "picture"),
    "through numpy": (lambda: Step(lambda x: torch.from_numpy(x.numpy() * 2)), "picture"),
    "channels last": (lambda: Step(lambda x: x.to(memory_format=torch.channels_last)), "stem"),
    "copied": (lambda: Step(lambda x: x.clone().view(x.shape)), "stem"),
    "shape only": (lambda: Step(lambda x: (torch.zeros_like(x), x.detach())[1]), "stem"),
    "twice": (Twice, "picture"),
    "does more": (lambda: nn.Sequential(Scaled(3, 4, 3, 2, 1)), "picture"),
    "two sizes of stride": (lambda: Step(lambda x: x, 3, 4, 3, (2, 4)), "picture"),
    "dilated": (lambda: Step(lambda x: x, 3, 4, 3, 2, 2, 2), "picture"),
    "grouped": (lambda: Step(lambda x: x, 3, 6, 3, 2, 1, 1, 3), "picture"),
    "reflected": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect")),
        "picture",
    ),
    "rectangular": (lambda: Step(lambda x: x, 3, 4, (3, 5), 2), "picture"),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, 2))),
        "stem",
    ),
    "scripted": (
        lambda: nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 3, 2)), nn.ReLU()),
        "picture",
    ),
    "a convolution alone": (lambda: nn.Conv2d(3, 4, 3, 2, 1), "stem"),
}


@pytest.mark.parametrize("grid", ["packed", "sensor"])
@pytest.mark.parametrize("name", READERS)
def test_every_reader_is_found(name, grid):
    torch.manual_seed(0)
    build, form = READERS[name]
    model = randomised(build())
    if grid == "sensor" and name == "identity":
        model.conv = nn.Conv2d(3, 3, 5, 1, 2)  # the stride is odd, and no stem is asked of it
    student = rawify(model, grid=grid)
    assert student.takeover.form == form, student.takeover
    assert bool(student.takeover.readers) == (name != "through numpy")
    assert bool(student.takeover.reason) == (form == "picture")
    if name != "changed in place":  # the model changes what it is given
        assert error(model, student, 20, grid) < 1e-5


def test_readers_are_named():
    found, _ = readers_of(Both(nn.BatchNorm2d(3)).eval(), torch.rand(1, 3, 8, 8))
    assert [str(reader).split(":")[0] for reader in found] == [
        "conv (Conv2d)",
        "other (BatchNorm2d)",
    ]
    assert "other (BatchNorm2d)" in rawify(Both(nn.BatchNorm2d(3))).takeover.reason


def test_the_promise_is_checked(monkeypatch):
    model = Parallel()
    monkeypatch.setattr(RawStem, "_edges", lambda *_: (0, 2, 0, 2))
    # The stems pad wrongly, the picture's stem as well.
    with pytest.raises(ValueError, match=r"cannot make Parallel equal.*input is read by a \(Conv"):
        rawify(model)


def test_a_reader_that_is_not_seen_is_still_found_out(monkeypatch):
    whole = isp_distill.models.rawify.readers_of

    def first_only(model, picture):
        found, output = whole(model, picture)
        return found[:1], output

    monkeypatch.setattr(isp_distill.models.rawify, "readers_of", first_only)
    torch.manual_seed(0)
    model = randomised(Parallel())
    student = rawify(model)
    assert student.takeover.form == "picture"
    assert "differ by" in student.takeover.reason
    assert error(model, student, 20) < 1e-5


def test_nothing_is_disturbed():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    student = rawify(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in [*model.modules(), *student.modules()])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.model.modules())
    assert student.model[1].num_batches_tracked == 0
    assert not any(module.training for module in rawify(model.eval()).modules())


def test_models_that_resize_some_sizes_say_so():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 4, 4)

        def forward(self, x):
            return self.conv(F.pad(x, (0, -x.shape[3] % 4)) if x.shape[3] % 4 else x)

    model = Padded()
    student = rawify(model)
    assert student.takeover.form == "stem"
    with pytest.raises(ValueError, match=r"\[6, 8\] pixels out of \[6, 6\].*picture=True"):
        student(torch.zeros(1, 12, 12, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"\[6, 8\] pixels out of \[6, 6\]"):
        OneCamera(student, View(12), CAMERA.replace(pattern=0))(torch.zeros(1, 12, 12))
    assert error(model, rawify(model, picture=True), 6) < 1e-5


def test_several_stems_are_one_camera(tmp_path):
    torch.manual_seed(0)
    student = rawify(randomised(Parallel()), curve="gamma", colour_matrix=True)
    first, second = student.stems
    others = [copy.deepcopy(student), pickle.loads(pickle.dumps(student)), student.to("cpu")]
    others.append(rawify(Parallel(), curve="gamma", colour_matrix=True))
    others[-1].load_state_dict(student.state_dict(), assign=True)
    for other in others:
        a, b = other.stems
        assert (a.gain is b.gain, a.mix is b.mix, a.gamma is b.gamma) == (True, True, True)
    student.calibrate(CAMERA.replace(pattern="BGGR"))
    assert int(first.pattern) == int(second.pattern) == 3
    for trainable in ("all", "stem"):
        camera, *rest = parameter_groups(student, trainable, 1e-3, 1e-2, 0.05)
        assert [id(p) for p in camera["params"]] == [id(p) for p in first.camera_parameters()]
        assert not {id(p) for p in camera["params"]} & {id(p) for g in rest for p in g["params"]}
    mosaic, _ = pair(16)
    student.train()(mosaic, CAMERA).square().sum().backward()
    assert first.gain.grad.abs().sum() > 0
    assert first.weight.grad.abs().sum() > 0
    assert second.weight.grad.abs().sum() > 0
    with torch.no_grad():
        first.gain.mul_(1.2)
    assert export(student, tmp_path / "student.pt2", isp=CAMERA.replace(pattern="RGGB"), crop=32)


@pytest.mark.parametrize("build", [Parallel, lambda: Both(nn.AvgPool2d(3, 1, 1))])
@pytest.mark.parametrize("grid", ["packed", "sensor"])
def test_students_in_standard_operators(build, grid):
    torch.manual_seed(0)
    student = rawify(randomised(build()), curve="gamma", grid=grid).eval()
    mosaic, _ = pair(12)
    camera = CAMERA.replace(pattern="GBRG")
    expected = student(mosaic, camera)
    with torch.no_grad():
        one = OneCamera(copy.deepcopy(student), View(24), camera)(mosaic)
        lowered = AnyCamera(copy.deepcopy(student), View(24), None)
        inputs = isp_distill.camera_inputs(camera, 2)
        other = lowered(mosaic, *(torch.from_numpy(value) for value in inputs.values()))
    torch.testing.assert_close(one, expected.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other, expected.detach(), atol=1e-4, rtol=1e-4)


def test_one_module_in_two_places():
    shared = nn.Conv2d(3, 4, 3, 2)

    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.name, self.body = shared, nn.Sequential(shared, nn.ReLU())

        def forward(self, x):
            return self.body(x)

    model = Aliased()
    student = rawify(model)
    assert student.takeover.form == "stem"
    assert student.model.name is student.model.body[0] is student.stem
    assert error(model, student, 16) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    model = randomised(Parallel()).to(dtype)
    student = rawify(model)
    assert student.takeover.form == "stems"
    mosaic, image = pair(16)
    assert student.eval()(mosaic, CAMERA).dtype == dtype
    limit = 1e-6 if dtype == torch.float64 else 0.05
    assert relative_difference(student(mosaic, CAMERA), model(image.to(dtype))) < limit


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (lambda: nn.Conv2d(3, 4, 3), {"size": (64, 64, 3)}, "expected a side or"),
        (lambda: nn.Conv2d(3, 4, 3), {"size": 0}, "expected a side or"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4)),
            {"size": 3},
            "of 3 pixels: Runtime",
        ),
        (lambda: Step(torch.zeros_like), {}, "nothing in Step reads"),
        (lambda: Step(lambda x: x * torch.nan), {}, "output holds NaN"),
        (lambda: nn.Conv2d(3, 4, 3, device="meta"), {}, "meta device"),
    ],
)
def test_models_that_are_refused(build, settings, message):
    with pytest.raises(ValueError, match=message):
        rawify(build(), **settings)


def test_stems_of_several_cameras_are_refused():
    stems = [RawStem(4, 3), RawStem(4, 3)]
    with pytest.raises(ValueError, match="several of one camera"):
        RawModel(nn.ModuleList(stems))
