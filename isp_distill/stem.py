"""``RawStem``: a network's first layer on the sensor's mosaic; ``rawify``: an RGB model made RAW.

A rawified model starts as exactly the RGB model on a superpixel-demosaiced image: red weights on R,
half the green ones on Gr and Gb each, blue on B, the model's mean and std folded in. What the
camera's file knows (levels, pattern, white balance, colour matrix) reaches the stem beside each
batch, through :class:`RawModel`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from isp_distill.half_precision import explain_half_precision
from isp_distill.isp import ISP
from isp_distill.module_settings import RecordedModule
from isp_distill.ops.raw_conv import quadruple_padding, raw_conv
from isp_distill.trained_view import StudentModule

GRIDS = ("packed", "sensor")


class RawStem(RecordedModule):
    """A convolution on the raw mosaic, with the few numbers that stand for the ISP.

    The mosaic's camera comes from :class:`RawModel`, or from :meth:`calibrate`; without either the
    values mean nothing, and a call is refused. What the stem computes with is part of its state
    dict: loading the weights of a stem that computes otherwise is an error.

    Args:
        out_channels: number of features.
        kernel_size: on the packed grid (one step is one 2x2 period): a number, or two equal ones.
        stride: on the packed grid, likewise.
        padding: a number, (vertical, horizontal), (left, right, top, bottom), or "same"
            (TensorFlow's: as much as needed, the odd one right and below).
        bias: whether the convolution has one.
        curve: the per-pixel curve, see :func:`isp_distill.raw_conv`.
        white_balance: apply each sample's white balance and exposure as gains.
        colour_matrix: apply each sample's camera to sRGB matrix.
        learn_camera: make ``gain`` ([4]), ``mix`` ([4, 4]) and ``gamma`` trainable.
        activation: epilogue, see :func:`isp_distill.raw_conv`.
        clip: clamp normalised values to [0, 1].

    Attributes:
        calibrated: whether the module keeps a camera of its own.
        in_channels: 4, as in ``torch.nn.Conv2d`` what the weight convolves: the planes R, Gr, Gb, B
            that one mosaic is packed into on the way. What goes in is the mosaic, ``[N, H, W]``.
        kernel_size: (vertical, horizontal), as in ``torch.nn.Conv2d``; so are ``stride``,
            ``dilation``, ``groups``, ``transposed`` and ``output_padding``. There is no
            ``padding_mode``: the border holds ``padding_value``, the colour of the mean.
        padding: "same"; or (vertical, horizontal), as in ``torch.nn.Conv2d``; or (left, right, top,
            bottom) where opposite sides differ.

    Raises:
        ValueError: for an unknown padding, or a kernel or stride of unequal sides.
    """

    # True of every RawStem, for whatever reads them of a convolution.
    in_channels = 4
    dilation = (1, 1)
    groups = 1
    transposed = False
    output_padding = (0, 0)
    calibrated: bool = False

    weight: nn.Parameter
    bias: nn.Parameter | None
    padding_value: Tensor
    black: Tensor
    white: Tensor
    pattern: Tensor
    balance: Tensor
    ccm: Tensor

    def __init__(
        self,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        bias: bool = True,
        *,
        curve: str = "linear",
        white_balance: bool = True,
        colour_matrix: bool = False,
        learn_camera: bool = False,
        activation: str = "none",
        clip: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(padding, str) and padding != "same":
            raise ValueError(f'padding {padding!r}: the only named padding is "same"')
        self.out_channels = out_channels
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.stride = _pair("stride", stride)
        self.curve, self.activation, self.clip = curve, activation, clip
        self.edges = padding if isinstance(padding, str) else quadruple_padding(padding)
        self.white_balance, self.colour_matrix = white_balance, colour_matrix
        self.learn_camera = learn_camera
        # A convolution's own start (Kaiming) on the packed planes.
        start = nn.Conv2d(4, out_channels, self.kernel_size, self.stride, bias=bias)
        self.weight = nn.Parameter(start.weight.detach().clone())
        self.bias = None if start.bias is None else nn.Parameter(start.bias.detach().clone())
        self.gain = nn.Parameter(torch.ones(4), requires_grad=learn_camera)
        self.mix = nn.Parameter(torch.eye(4), requires_grad=learn_camera)
        self.gamma = nn.Parameter(
            torch.tensor(1 / 2.2), requires_grad=learn_camera and curve == "gamma"
        )
        self.register_buffer("padding_value", torch.zeros(4))
        # The camera that serves where no other is given with the batch; see ``calibrate``.
        names = ("black", "white", "pattern", "balance", "ccm")
        for name, value in zip(names, _no_camera(), strict=True):
            self.register_buffer(name, value)
        self.calibrated = False
        # Set by RawModel for the length of one call.
        self._camera: ISP | None = None
        self._mosaic: Tensor | None = None

    @property
    def padding(self) -> str | tuple[int, ...]:
        """See the class."""
        if isinstance(self.edges, str):
            return self.edges
        left, right, top, bottom = self.edges
        return (top, left) if (left, top) == (right, bottom) else self.edges

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return (
            f"4, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, curve={self.curve}, white_balance={self.white_balance}, "
            f"colour_matrix={self.colour_matrix}, learn_camera={self.learn_camera}"
        )

    def settings(self) -> dict[str, Any]:
        """What the stem computes with, beside its weights."""
        return {
            "stride": self.stride[0],
            "padding": self.edges if isinstance(self.edges, str) else list(self.edges),
            "curve": self.curve,
            "white_balance": self.white_balance,
            "colour_matrix": self.colour_matrix,
            # Whether the numbers are trained is the caller's choice; whether ``mix`` counts is not.
            "mix": self.colour_matrix or self.learn_camera,
            "activation": self.activation,
            "clip": self.clip,
        }

    def notes(self) -> dict[str, Any]:
        """Whether the camera in the buffers is one that was kept."""
        return {"calibrated": self.calibrated}

    def take_notes(self, notes: dict[str, Any]) -> None:
        """Take over whether what is loaded was calibrated."""
        self.calibrated = bool(notes.get("calibrated", False))

    def loads_without_record(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Say what nobody can check: these weights may have been trained with other settings."""
        if prefix + "weight" not in state_dict:
            return
        # A camera that was kept differs from what a new stem holds.
        self.calibrated = any(
            not torch.equal(buffer.cpu(), new)
            for buffer, new in zip(
                (self.black, self.white, self.pattern, self.balance, self.ccm),
                _no_camera(),
                strict=True,
            )
            if not buffer.is_meta
        )
        warnings.warn(
            f"{prefix or 'the state dict: '}the weights do not say what they were trained with (of "
            f"version 0.1?); they are taken for those of RawStem({self.extra_repr()})",
            stacklevel=2,
        )

    @torch.no_grad()
    def calibrate(self, isp: ISP) -> None:
        """Keep one camera's settings in the module, for calls that bring none (and for export).

        Raises:
            ValueError: if ``isp`` holds more than one camera.
        """
        one = isp.batched(1)
        self.black.copy_(cast(Tensor, one.black)[0])
        self.white.copy_(cast(Tensor, one.white)[0])
        self.pattern.copy_(cast(Tensor, one.pattern)[0])
        self.balance.copy_(one.gain(1)[0])
        self.ccm.copy_(cast(Tensor, one.ccm)[0])
        self.calibrated = True

    def camera_parameters(self) -> list[nn.Parameter]:
        """The few numbers that stand for the ISP (gain, mix, gamma), where they are trainable."""
        return [p for p in (self.gain, self.mix, self.gamma) if p.requires_grad]

    def forward(self, mosaic: Tensor) -> Tensor:
        """``[N, H, W]`` mosaics to ``[N, C, h, w]`` features.

        Raises:
            ValueError: if there is neither a camera with the call nor one that was kept.
        """
        mosaic = mosaic if self._mosaic is None else self._mosaic
        # A flag of Python's, for a GPU's buffers cannot be looked at without waiting for it.
        if self._camera is None and not self.calibrated and not mosaic.is_meta:
            raise ValueError(
                "the mosaic came without its camera (levels, pattern, white balance), and the "
                "model was never calibrated: call it with isp=ISP.from_raw(raw), or keep one "
                "camera with calibrate(isp)"
            )
        batch = mosaic.shape[0]
        if self._camera is None:
            black, white, pattern = self.black, self.white, self.pattern.expand(batch)
            gain, ccm = self.balance.expand(batch, 4), self.ccm.expand(batch, 3, 3)
        else:
            camera = self._camera.batched(batch, mosaic.device)
            black, white = cast(Tensor, camera.black), cast(Tensor, camera.white)
            pattern, ccm = cast(Tensor, camera.pattern), cast(Tensor, camera.ccm)
            gain = camera.gain(batch, mosaic.device)
        gain = gain * self.gain if self.white_balance else self.gain.expand(batch, 4)
        mix: Tensor | None = None
        if self.colour_matrix:
            mix = self.mix @ planes_matrix(ccm)
        elif self.learn_camera:
            mix = self.mix.expand(batch, 4, 4)
        height, width = mosaic.shape[-2] // 2, mosaic.shape[-1] // 2
        return raw_conv(
            mosaic,
            self.weight,
            self.bias,
            black=black,
            white=white,
            pattern=pattern,
            gain=gain,
            stride=self.stride[0],
            padding=self._edges(height, width),
            padding_value=self.padding_value,
            clip=self.clip,
            mix=mix,
            curve=self.curve,
            gamma=self.gamma if self.curve == "gamma" else None,
            activation=self.activation,
        )

    def _edges(self, height: int, width: int) -> tuple[int, int, int, int]:
        if not isinstance(self.edges, str):
            return self.edges
        top, bottom = _same_padding(height, self.kernel_size[0], self.stride[0])
        left, right = _same_padding(width, self.kernel_size[1], self.stride[1])
        return left, right, top, bottom


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or both[0] != both[1]:
        raise ValueError(f"{name} {value!r}: expected a number, or two equal ones")
    return both[0], both[1]


def _no_camera() -> tuple[Tensor, ...]:
    """What the buffers black, white, pattern, balance and ccm hold before :meth:`calibrate`."""
    return (
        torch.zeros(4), torch.tensor(65535.0), torch.tensor(0), torch.ones(4), torch.eye(3)
    )  # fmt: skip


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def planes_matrix(ccm: Tensor) -> Tensor:
    """A 3x3 colour matrix as one over the planes R, Gr, Gb, B: ``[N, 3, 3]`` to ``[N, 4, 4]``.

    R and B take half of each green; Gr and Gb each stand for green in their own row.
    """
    columns = [ccm[:, :, 0], ccm[:, :, 1] / 2, ccm[:, :, 1] / 2, ccm[:, :, 2]]
    full = torch.stack(columns, -1)  # [N, 3, 4]
    red, green, blue = full.unbind(1)
    own = ccm[:, 1, 1]
    zero = torch.zeros_like(own)
    green_r = torch.stack([green[:, 0], own, zero, green[:, 3]], -1)
    green_b = torch.stack([green[:, 0], zero, own, green[:, 3]], -1)
    return torch.stack([red, green_r, green_b, blue], 1)


class RawModel(StudentModule):
    """A model that starts with a :class:`RawStem`, called with the mosaic and its camera.

    Many models look at their input's shape before their first layer does (patch embeddings check
    it, segmentation heads return to it). So the model is called on a stand-in of the picture's
    shape, which holds no memory, and its RawStem reads the mosaic instead.

    Args:
        model: any module with exactly one RawStem in it, applied to the model's input itself.
        grid: "packed" or "sensor": the picture that an H x W mosaic stands for is H/2 x W/2 or
            H x W.

    Raises:
        ValueError: if there is no RawStem, or more than one.
    """

    def __init__(self, model: nn.Module, grid: str = "packed") -> None:
        super().__init__()
        if grid not in GRIDS:
            raise ValueError(f"unknown grid {grid!r}: expected {' or '.join(GRIDS)}")
        self.model, self.grid = model, grid
        if len([m for m in model.modules() if isinstance(m, RawStem)]) != 1:
            raise ValueError(
                f"{type(model).__name__} must hold exactly one RawStem: make it with rawify(model)"
            )

    def settings(self) -> dict[str, Any]:
        """What picture a mosaic stands for."""
        return {"grid": self.grid}

    @property
    def stem(self) -> RawStem:
        """The model's RawStem."""
        return next(m for m in self.model.modules() if isinstance(m, RawStem))

    def calibrate(self, isp: ISP) -> None:
        """Keep one camera's settings, for calls that bring none: see :meth:`RawStem.calibrate`."""
        self.stem.calibrate(isp)

    def forward(self, mosaic: Tensor, isp: ISP | None = None) -> Any:
        """What the model makes of ``[N, H, W]`` mosaics, with each sample's camera in ``isp``.

        Raises:
            ValueError: for mosaics of another size than :attr:`view`'s, or if there is neither a
                camera in ``isp`` nor one that was kept.
        """
        self.check_size(mosaic)
        stem = self.stem
        height, width = mosaic.shape[-2:]
        if self.grid == "packed":
            height, width = height // 2, width // 2
        stand_in = torch.zeros((), dtype=stem.weight.dtype, device=mosaic.device)
        stem._camera, stem._mosaic = isp, mosaic
        try:
            return self.model(stand_in.expand(mosaic.shape[0], 3, height, width))
        except RuntimeError as error:
            explain_half_precision(self, error)
            raise
        finally:
            stem._camera = stem._mosaic = None


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
) -> RawModel:
    """A copy of an RGB model that takes camera mosaics, with the RGB model's weights.

    Its first 3-channel convolution becomes a :class:`RawStem`. Before any training the copy equals
    the RGB model on the superpixel-demosaiced image ``(image - mean) / std``, where the image is
    linear (``curve="linear"``) or carries ``x ** (1 / 2.2)`` (``curve="gamma"``, taken before Gr
    and Gb are averaged).

    Args:
        model: any torchvision, timm or own model; it is not changed.
        mean: the mean that the RGB model's input had subtracted, a number or ``[3]``; ImageNet's.
        std: the standard deviation that it was divided by; ImageNet's.
        grid: "packed": a 2H x 2W mosaic stands for an H x W image; "sensor": an H x W mosaic stands
            for an H x W image (nearest-upsampled), the kernel folded to half the stride.
        curve: "linear", "sqrt", "log" or "gamma", see :func:`isp_distill.raw_conv`.
        white_balance: apply each sample's white balance and exposure.
        colour_matrix: apply each sample's camera to sRGB matrix.
        learn_camera: make gain, mix and gamma trainable.

    Raises:
        ValueError: if no 3-channel convolution is found, it cannot be taken over (dilation, groups,
            a kernel that is not square, unequal strides, unknown padding), or ``grid="sensor"``
            meets an odd stride.
    """
    if grid not in GRIDS:
        raise ValueError(f"unknown grid {grid!r}: expected {' or '.join(GRIDS)}")
    model = copy.deepcopy(model)
    name, conv = _first_convolution(model)
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    if (
        conv.kernel_size != (kernel, kernel)
        or conv.stride != (stride, stride)
        or conv.dilation != (1, 1)
        or conv.groups != 1
    ):
        raise ValueError(f"rawify cannot take over {name}: {conv}")
    padding = _padding_of(name, conv)
    shift = torch.as_tensor(mean, dtype=torch.float32).reshape(-1).expand(3)
    scale = torch.as_tensor(std, dtype=torch.float32).reshape(-1).expand(3)
    weight = conv.weight.detach().float().cpu() / scale[:, None, None]
    offset = -(weight * shift[:, None, None]).sum((1, 2, 3))
    if conv.bias is not None:
        offset = offset + conv.bias.detach().float().cpu()
    if grid == "sensor":
        weight, stride, padding = _fold_to_packed(weight, stride, padding)
    red, green, blue = weight.unbind(1)
    stem = RawStem(
        conv.out_channels,
        weight.shape[-1],
        stride,
        padding,
        curve=curve,
        white_balance=white_balance,
        colour_matrix=colour_matrix,
        learn_camera=learn_camera,
    )
    with torch.no_grad():
        stem.weight.copy_(torch.stack([red, green / 2, green / 2, blue], 1))
        cast(nn.Parameter, stem.bias).copy_(offset)
        # The RGB model was padded with zeros after (x - mean) / std: with the mean's colour.
        stem.padding_value.copy_(shift[[0, 1, 1, 2]])
    stem.to(conv.weight.device)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, stem)
    return RawModel(model, grid)


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != 3 or not name:
                break
            return name, module
    raise ValueError(
        f"{type(model).__name__}'s first convolution does not take 3 channels: rawify needs an RGB "
        "model; build others on isp_distill.RawStem"
    )


def _padding_of(name: str, conv: nn.Conv2d) -> str | tuple[int, int, int, int]:
    """What the convolution pads, found in its attributes and confirmed by running it."""
    candidates: list[str | tuple[int, int, int, int]] = []
    static = getattr(conv, "static_padding", None)
    if isinstance(static, nn.ZeroPad2d):
        left, right, top, bottom = (int(p) for p in static.padding)
        candidates.append((left, right, top, bottom))
    if isinstance(conv.padding, str):
        span = conv.kernel_size[0] - 1
        edges = (0, 0) if conv.padding == "valid" else (span // 2, span - span // 2)
        candidates.append((*edges, *edges))
    else:
        vertical, horizontal = conv.padding
        candidates.append((horizontal, horizontal, vertical, vertical))
    candidates.append("same")
    device, dtype = conv.weight.device, conv.weight.dtype
    probes = [torch.randn(1, 3, side, side, device=device, dtype=dtype) for side in (64, 62, 224)]
    with torch.no_grad():
        for padding in candidates:
            if all(_agrees(conv, padding, probe) for probe in probes):
                return padding
    raise ValueError(f"rawify cannot tell how {name} pads its input: {conv}")


def _agrees(conv: nn.Conv2d, padding: str | tuple[int, int, int, int], image: Tensor) -> bool:
    edges = padding
    if isinstance(edges, str):
        top = _same_padding(image.shape[2], conv.kernel_size[0], conv.stride[0])
        left = _same_padding(image.shape[3], conv.kernel_size[1], conv.stride[1])
        edges = (*left, *top)
    padded = nn.functional.pad(image, edges)
    expected = nn.functional.conv2d(padded, conv.weight, conv.bias, conv.stride)
    actual = conv(image)
    return actual.shape == expected.shape and bool(torch.allclose(actual, expected, atol=1e-4))


def _fold_to_packed(
    weight: Tensor, stride: int, padding: str | tuple[int, int, int, int]
) -> tuple[Tensor, int, tuple[int, int, int, int]]:
    """The kernel on the packed grid that equals one on the nearest-upsampled packed image.

    Image column ``o * stride - pad + tap`` lies in period ``o * stride / 2 + (tap - pad) // 2``:
    the taps that fall into one period are summed.
    """
    kernel = weight.shape[-1]
    if stride % 2:
        raise ValueError(f'grid="sensor" needs an even stride, the convolution has {stride}')
    if isinstance(padding, str):
        # With the sides a multiple of the stride, "same" is a fixed padding.
        low, high = _same_padding(stride * 8, kernel, stride)
        padding = (low, high, low, high)
    left, right, top, bottom = padding

    def fold(w: Tensor, dim: int, before: int, after: int) -> tuple[Tensor, int, int]:
        first = (0 - before) // 2
        taps = (kernel - 1 - before) // 2 - first + 1
        shape = list(w.shape)
        shape[dim] = taps
        folded = torch.zeros(shape)
        period = torch.tensor([(tap - before) // 2 - first for tap in range(kernel)])
        folded.index_add_(dim, period, w)
        return folded, -first, (before + after - kernel) // 2 + taps + first

    weight, low_y, high_y = fold(weight, 2, top, bottom)
    weight, low_x, high_x = fold(weight, 3, left, right)
    return weight, stride // 2, (low_x, high_x, low_y, high_y)
