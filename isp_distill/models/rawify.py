"""``rawify``: an RGB model made RAW.

A rawified model starts as exactly the RGB model on a superpixel-demosaiced image. Where only
convolutions read the model's input, each becomes a stem on the mosaic: red weights on R, half the
green ones on Gr and Gb each, blue on B, the model's mean and std folded in. Where anything else
reads it (pooling, patches cut out for a linear layer, a second size), one stem of three 1x1 filters
makes the normalised picture, and the model stays as it is. Either way the copy is run against the
RGB model before it is given away.
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isp_distill.isp.camera import ISP
from isp_distill.isp.matrices import planes_matrix
from isp_distill.models.folding import CannotFoldError, Folding
from isp_distill.models.picture_filters import begin_demosaiced, check_demosaic
from isp_distill.models.raw_model import GRIDS, RawModel, Takeover
from isp_distill.models.readers import Reader, readers_of, tensors_in
from isp_distill.models.stem import RawStem, share_camera
from isp_distill.ops import reference
from isp_distill.raw.filters import filter_of

# Sides that models of one fixed size were made for; and small ones first, for all others.
_SIDES = (64, 224, 256, 128, 192, 240, 288, 320, 384, 448, 512, 32, 1024)
# As a share of the largest number in an output: what rounding adds up to in a usual network.
_ROUNDING = 1e-3


def rawify(
    model: nn.Module,
    *,
    mean: float | Sequence[float] = (0.485, 0.456, 0.406),
    std: float | Sequence[float] = (0.229, 0.224, 0.225),
    grid: str = "packed",
    curve: str = "linear",
    white_balance: bool = True,
    colour_matrix: bool = False,
    learn_camera: bool = True,
    picture: bool = False,
    size: int | Sequence[int] | None = None,
    colour_filter: str = "RGGB",
    demosaic: str = "superpixel",
) -> RawModel:
    """A copy of an RGB model that takes camera mosaics, with the RGB model's weights.

    Before any training the copy equals the RGB model on the superpixel-demosaiced image
    ``(image - mean) / std``, where the image is linear (``curve="linear"``) or carries
    ``x ** (1 / 2.2)`` (``curve="gamma"``, taken before Gr and Gb are averaged). Both are run once,
    in eval mode, on a small random mosaic, and a difference beyond rounding is an error.

    A superpixel picture is coarser and noisier than what an ISP makes. With ``demosaic="malvar"``
    the copy then begins near the RGB model on a demosaiced and antialiased picture instead: its
    kernels grow by two taps (models/picture_filters.py). It is the better student to train,
    :func:`isp_distill.train` takes it, and it costs a little more.

    Every module that reads the model's input is found. Where all are convolutions, each becomes a
    :class:`RawStem`; several share one camera (gain, mix and gamma). Else one RawStem makes the
    picture that the unchanged model reads. ``takeover`` of the result says which was done and why.

    Args:
        model: any torchvision, timm or own model that takes ``[N, 3, H, W]``; it is not changed.
        mean: the mean that the RGB model's input had subtracted, a number or ``[3]``; ImageNet's.
        std: the standard deviation that it was divided by; ImageNet's.
        grid: "packed": a 2H x 2W mosaic stands for an H x W image; "sensor": an H x W mosaic stands
            for an H x W image (nearest-upsampled), the kernel folded to half the stride.
        curve: "linear", "sqrt", "log" or "gamma", see :func:`isp_distill.raw_conv`.
        white_balance: apply each sample's white balance and exposure.
        colour_matrix: apply each sample's camera to sRGB matrix.
        learn_camera: make gain, mix and gamma trainable.
        picture: make the picture also where convolutions alone read it: slower, and the model
            stays whole.
        size: of a picture that the model takes, a side or (height, width), pixels; found by trying
            if None.
        colour_filter: of the mosaics, any of its patterns ("mono", "RGIrB"): what each plane's
            weights begin as. Of mono every plane takes its part of red, green and blue, so that
            the copy equals the RGB model on a grey picture; infrared begins at 0. With
            ``colour_matrix`` each sample's own matrix does this, and cameras may be mixed.
        demosaic: of the picture that the copy begins with: "superpixel", "bilinear" or "malvar".

    Raises:
        ValueError: if the model takes no picture of 3 channels, nothing in it reads the picture,
            the copy does not equal it, ``grid="sensor"`` meets an odd stride, or ``demosaic`` does
            not go with the grid or the filter.

    Examples:
        >>> student = isp_distill.rawify(model)
        >>> student.takeover.form
        'stem'
        >>> raw = isp_distill.read_raw("photos/new.dng")
        >>> student(*isp_distill.cut_view(raw, isp_distill.View(64))).shape
        torch.Size([1, 4])
    """
    if grid not in GRIDS:
        raise ValueError(f"unknown grid {grid!r}: expected {' or '.join(GRIDS)}")
    folding = Folding(
        _three(mean), _three(std), grid, curve, white_balance, colour_matrix, learn_camera,
        filter_of(colour_filter),
    )  # fmt: skip
    check_demosaic(demosaic, grid, folding.colour_filter.columns)
    with _undisturbed(model):
        trial = _Trial(model, folding, size)
        reason = "asked for" if picture else _unfused(trial.readers)
        if not reason:
            try:
                student = _with_stems(model, trial.readers, folding)
                reason = trial.fault(student)
            except CannotFoldError as error:
                reason = str(error)
        if reason:
            student = _on_picture(model, folding, trial.dtype, trial.device)
            fault = trial.fault(student)
            if fault:
                raise ValueError(
                    f"rawify cannot make {type(model).__name__} equal on a mosaic: {fault}; its "
                    f"input is read by {'; '.join(map(str, trial.readers))}"
                )
    if demosaic != "superpixel":
        for stem in student.stems:
            begin_demosaiced(stem, demosaic)
    form = "picture" if reason else "stem" if len(student.stems) == 1 else "stems"
    student.takeover = Takeover(form, tuple(map(str, trial.readers)), reason)
    student.made = {
        "mean": folding.mean.tolist(),
        "std": folding.std.tolist(),
        "grid": grid,
        "curve": curve,
        "white_balance": white_balance,
        "colour_matrix": colour_matrix,
        "learn_camera": learn_camera,
        "picture": form == "picture",
        "size": size if size is None or isinstance(size, int) else list(size),
        "demosaic": demosaic,
    }
    return student


def _three(value: float | Sequence[float]) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).reshape(-1).expand(3)


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """No gradients, no autocast, no compilation, and the random numbers as they were."""
    device = _device(model)
    if device.type == "meta":
        raise ValueError("the model is on the meta device: rawify needs its weights")
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


class _Trial:
    """The RGB model's answer to one small random mosaic, and who read the picture of it.

    Copies are run, in eval mode: neither batch norm's statistics nor what a model keeps between
    calls is touched.
    """

    def __init__(
        self, model: nn.Module, folding: Folding, size: int | Sequence[int] | None
    ) -> None:
        self.model, self.folding = model, folding
        self.device = _device(model)
        self.dtype = next(
            (p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32
        )
        fault = ""
        for sides in _sizes(model, size):
            if folding.grid == "sensor" and (sides[0] % 2 or sides[1] % 2):
                continue
            self.mosaic, self.isp = _random_mosaic(sides, folding, self.device)
            self.picture = self._picture().to(self.dtype)
            try:
                watched = copy.deepcopy(model).eval()
                self.readers, self.expected = readers_of(watched, self.picture.clone())
            except Exception as error:  # whatever a model says to a size that is not its own
                fault = fault or f"{type(error).__name__}: {error}"
                continue
            numbers = list(tensors_in(self.expected))
            if numbers and not any(bool(value.isnan().any()) for value in numbers):
                break
            fault = fault or ("its output holds NaN" if numbers else "its output holds no tensor")
        else:
            tried = f"of {size} pixels" if size is not None else "of any usual size (give size=)"
            raise ValueError(
                f"{type(model).__name__} does not take a picture [1, 3, H, W] of 3 channels and "
                f"{tried}: {fault}; build models of other inputs on isp_distill.RawStem"
            )
        if not self.readers and not self.shaken(0.5):
            raise ValueError(f"nothing in {type(model).__name__} reads the picture it is given")

    def _picture(self) -> Tensor:
        """The normalised superpixel image, computed apart from any stem."""
        folding, isp = self.folding, self.isp.batched(1, self.device)
        gain = isp.gain(1, self.device)
        assert isinstance(isp.pattern, Tensor)
        assert isinstance(isp.black, Tensor)
        assert isinstance(isp.white, Tensor)
        planes = reference.pack(self.mosaic.double(), isp.pattern)
        gain = gain if folding.white_balance else torch.ones_like(gain)
        levels = isp.black.double(), isp.white.double()
        planes = reference.normalise(planes, *levels, gain.double(), clip=True)
        if folding.mixes:
            mix = planes_matrix(self.isp.matrix(1).double())[0] if folding.colour_matrix else None
            mix = folding.mix if mix is None else mix
            planes = torch.einsum("ij,njhw->nihw", mix.to(self.device), planes).clamp(0, 1)
        gamma = torch.tensor(1 / 2.2, dtype=torch.float64) if folding.curve == "gamma" else None
        planes = reference.apply_curve(planes, folding.curve, gamma)
        image = torch.einsum("pc,nphw->nchw", folding.spread.to(self.device), planes)
        if folding.grid == "sensor":
            image = nn.functional.interpolate(image, scale_factor=2.0, mode="nearest")
        mean, std = (v.to(self.device)[:, None, None] for v in (folding.mean, folding.std))
        return (image - mean) / std

    def fault(self, student: RawModel) -> str:
        """What is wrong with a student; empty if it equals the RGB model."""
        try:
            actual = copy.deepcopy(student).eval()(self.mosaic, self.isp)
        except Exception as error:  # the model asks a stem for what only its layer had
            return f"the copy cannot be run ({type(error).__name__}: {error})"
        difference = relative_difference(actual, self.expected)
        if difference <= max(_ROUNDING, 4 * torch.finfo(self.dtype).eps):
            return ""
        # Some networks amplify rounding: then they do so with the RGB model's own input as well.
        # The camera's numbers are of float32; a GPU's convolutions may round to TF32.
        least = 1e-4 if self.device.type == "cuda" else torch.finfo(torch.float32).eps
        noise = 8 * max(torch.finfo(self.dtype).eps, least)
        if difference <= 10 * self.shaken(noise):
            return ""
        return f"outputs differ by {difference:.2g} of their largest number"

    def shaken(self, noise: float) -> float:
        """How far the RGB model's output moves when its input is multiplied by noise."""
        # Partly one factor for the whole picture: a mean over pixels would hide the rest.
        drawn = torch.randn_like(self.picture) + torch.randn_like(self.picture[:, :, :1, :1])
        picture = self.picture * (1 + noise * drawn)
        return relative_difference(copy.deepcopy(self.model).eval()(picture), self.expected)


def _sizes(model: nn.Module, size: int | Sequence[int] | None) -> list[tuple[int, int]]:
    """Sides to try: what was asked for; else a small one, what the model declares, and others."""
    if size is not None:
        sides = (size, size) if isinstance(size, int) else tuple(int(s) for s in size)
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(f"size {size!r}: expected a side or (height, width), pixels")
        return [(sides[0], sides[1])]
    declared: list[Any] = []
    for config in ("pretrained_cfg", "default_cfg"):  # timm's
        values = getattr(model, config, None)
        if isinstance(values, dict):
            declared.append((values.get("input_size") or (0,))[-1])
    for owner in (model, getattr(model, "patch_embed", None)):
        for name in ("img_size", "image_size"):
            value = getattr(owner, name, None)
            declared.append(value[-1] if isinstance(value, (tuple, list)) and value else value)
    found = [side for side in declared if isinstance(side, int) and side > 0]
    tried = dict.fromkeys([_SIDES[0], *found, *_SIDES[1:]])
    return [(side, side) for side in tried]


def _random_mosaic(
    sides: tuple[int, int], folding: Folding, device: torch.device
) -> tuple[Tensor, ISP]:
    """A mosaic that stands for a picture of ``sides``, and the camera it is said to be of."""
    draw = torch.Generator().manual_seed(0)
    factor = 2 if folding.grid == "packed" else 1
    mosaic = torch.randint(400, 18000, (1, sides[0] * factor, sides[1] * factor), generator=draw)
    colours = folding.colour_filter
    isp = ISP(
        black=(500, 510, 520, 505), white=16383, pattern=colours.patterns[2],
        white_balance=(1.9, 1.0, 1.4),
        # Planes as they are: infrared counts nothing.
        ccm={3: torch.eye(3), 4: folding.spread.T.float(), 1: None}[colours.columns],
    )  # fmt: skip
    return mosaic.to(torch.int32).to(device), isp


def relative_difference(actual: Any, expected: Any) -> float:
    """The largest difference of two outputs, each tensor by its own largest number.

    Infinite where they are of different shapes, or one is not a number where the other is.
    """
    pairs = [list(tensors_in(value)) for value in (actual, expected)]
    if [value.shape for value in pairs[0]] != [value.shape for value in pairs[1]]:
        return float("inf")
    worst = 0.0
    for a, b in zip(*pairs, strict=True):
        if not b.is_floating_point() or not b.numel():
            continue
        a, b = a.detach().double(), b.detach().double()
        same = (a == b) | (a.isnan() & b.isnan())
        difference = torch.where(same, 0.0, (a - b).abs()).nan_to_num(float("inf"))
        largest = torch.where(b.isfinite(), b.abs(), 0.0).max().clamp(min=1e-12)
        worst = max(worst, float((difference / largest).max()))
    return worst


def _unfused(readers: Sequence[Reader]) -> str:
    """Why stems cannot take every reader's place; empty where they may."""
    if not readers:
        return "its readers are out of torch's sight"
    others = [str(reader) for reader in readers if reader.convolution is None]
    if others:
        return f"no single convolution: {'; '.join(others)}"
    hooked = [r.name for r in readers if r.convolution and _owners_hooks(r.convolution.module)]
    return f"{', '.join(hooked)} has hooks" if hooked else ""


def _owners_hooks(module: nn.Module) -> bool:
    # One of each is the watch's own.
    return len(module._forward_hooks) > 1 or len(module._forward_pre_hooks) > 1


def _with_stems(model: nn.Module, readers: Sequence[Reader], folding: Folding) -> RawModel:
    """Each reading convolution as a stem, in a copy of the model."""
    student = copy.deepcopy(model)
    stems: list[RawStem] = []
    for reader in readers:
        assert reader.convolution is not None
        stem = folding.of_convolution(reader.name or "the model", reader.convolution)
        stem.train(model.get_submodule(reader.name).training)
        stems.append(stem.to(reader.convolution.weight.device))
    share_camera(stems)
    for reader, stem in zip(readers, stems, strict=True):
        student = replaced_module(student, reader.name, stem)
    return _raw_model(student, folding, model.training)


def replaced_module(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """The model with another module under ``name``, and wherever else the old one is registered."""
    old = model.get_submodule(name)
    if old is model:
        return new
    places = [n for n, m in model.named_modules(remove_duplicate=False) if m is old]
    for place in places:
        parent, _, leaf = place.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new)
    return model


def _on_picture(
    model: nn.Module, folding: Folding, dtype: torch.dtype, device: torch.device
) -> RawModel:
    """A stem that makes the normalised picture, before a copy of the model."""
    # Each filter copies one colour.
    weight = torch.eye(3, dtype=torch.float64)[:, :, None, None]
    stem = folding.stem(weight, None, 1, (0, 0, 0, 0), dtype).to(device)
    parts: dict[str, nn.Module] = {"picture": stem, "model": copy.deepcopy(model)}
    if folding.grid == "sensor":
        enlarged = nn.Upsample(scale_factor=2, mode="nearest")
        parts = {"picture": stem, "enlarged": enlarged, "model": parts["model"]}
    for part in parts.values():
        if part is not parts["model"]:
            part.train(model.training)
    whole = nn.Sequential(OrderedDict(parts))
    whole.training = model.training
    return _raw_model(whole, folding, model.training)


def _raw_model(model: nn.Module, folding: Folding, training: bool) -> RawModel:
    student = RawModel(model, folding.grid)
    student.training = training
    return student
