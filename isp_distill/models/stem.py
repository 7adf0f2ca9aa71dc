"""``RawStem``: a network's first layer, which takes the sensor's mosaic.

What the file says of its camera (levels, pattern, white balance, colour matrix) reaches the stem
beside each batch, through :class:`~isp_distill.models.raw_model.RawModel`. ``rawify`` (rawify.py)
makes both of an RGB model.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from isp_distill.isp.camera import ISP, Values
from isp_distill.isp.curves import batched_curves
from isp_distill.isp.matrices import after_planes, planes_matrix
from isp_distill.models.module_settings import RecordedModule
from isp_distill.ops.raw_conv.arguments import quadruple_padding
from isp_distill.ops.raw_conv.call import raw_conv


class Input:
    """What a stem reads: what it is called with, or, for one call of RawModel, something else."""

    instead: tuple[Tensor, ISP | None, tuple[int, int]] | None = None


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

    Examples:
        >>> stem = isp_distill.RawStem(16, kernel_size=3, stride=2, padding=1)
        >>> stem.calibrate(isp_distill.ISP(black=64, white=1023))
        >>> stem(torch.full((1, 64, 64), 500, dtype=torch.uint16)).shape
        torch.Size([1, 16, 16, 16])
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
    linearise: Tensor | None

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
        # Only of a companding sensor, float32 [1, L]; so other state dicts are without it.
        self.register_buffer("linearise", None)
        self.calibrated = False
        #: How the bytes lie that the kept camera gives, and the pixels of its rows; or None.
        self.packing: str | None = None
        self.width: int | None = None
        self._input = Input()

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
        """Whether the camera in the buffers is one that was kept, and how it packs its codes."""
        packed = {} if self.packing is None else {"packing": self.packing, "width": self.width}
        return {"calibrated": self.calibrated, **packed}

    def take_notes(self, notes: dict[str, Any]) -> None:
        """Take over whether what is loaded was calibrated."""
        self.calibrated = bool(notes.get("calibrated", False))
        self.packing, self.width = notes.get("packing"), notes.get("width")

    def loads_without_record(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Say what nobody can check: these weights may have been trained with other settings."""
        if prefix + "weight" not in state_dict:
            return
        # A camera that was kept differs from what a new stem holds.
        self.calibrated = any(
            buffer.shape != new.shape or not torch.equal(buffer.cpu(), new)
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

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *others: Any, **named: Any
    ) -> None:
        # A camera that was kept may be of a filter whose matrix has another count of columns.
        saved = state_dict.get(prefix + "ccm")
        if isinstance(saved, Tensor) and saved.dim() == 2 and saved.shape[1] in (1, 3, 4):
            self.ccm = self.ccm.new_zeros(3, saved.shape[1])
        curve = state_dict.get(prefix + "linearise")
        known = isinstance(curve, Tensor) and curve.dim() == 2
        self.linearise = self.white.new_zeros(curve.shape) if known else None
        super()._load_from_state_dict(state_dict, prefix, *others, **named)

    @torch.no_grad()
    def calibrate(self, isp: ISP) -> None:
        """Keep one camera's settings in the module, for calls that bring none.

        What its codes mean (``linearise``) is kept too, and how it packs them: calls with bytes,
        uint8, then read them so.

        Raises:
            ValueError: if ``isp`` holds more than one camera, or no colour matrix where the stem
                applies it.
        """
        one = isp.batched(1)
        self.black.copy_(cast(Tensor, one.black)[0])
        self.white.copy_(cast(Tensor, one.white)[0])
        self.pattern.copy_(cast(Tensor, one.pattern)[0])
        self.balance.copy_(one.gain(1)[0])
        # Another filter's matrix has another count of columns.
        matrix = isp.matrix(1) if self.colour_matrix or isp.colours else torch.eye(3)[None]
        self.ccm = matrix[0].to(self.ccm)
        curve = one.curves
        self.linearise = None if curve is None else curve.to(self.white).clone()
        self.packing, self.width = isp.packing, isp.width
        self.calibrated = True

    def packing_of(self, mosaic: Tensor, isp: ISP | None) -> tuple[str | None, int | None]:
        """How mosaics are packed, and the pixels of their rows: as ``isp`` says.

        Without one, bytes are read as the kept camera packs them; other types are codes.
        """
        if isp is not None:
            return isp.packing, isp.width
        return (self.packing, self.width) if mosaic.dtype == torch.uint8 else (None, None)

    def camera_parameters(self) -> list[nn.Parameter]:
        """The few numbers that stand for the ISP (gain, mix, gamma), where they are trainable."""
        return [p for p in (self.gain, self.mix, self.gamma) if p.requires_grad]

    def read_instead(self, mosaic: Tensor, isp: ISP | None, picture: tuple[int, int]) -> None:
        """Read these mosaics, until :meth:`read_input`, whatever the model hands over.

        Args:
            mosaic: ``[N, H, W]``, or packed bytes where ``isp`` says so.
            isp: each sample's camera; None for the one that was kept.
            picture: height and width of the stand-in that the model was called with; the stem
                refuses one of another size.
        """
        self._input.instead = mosaic, isp, picture

    def read_input(self) -> None:
        """Read what the model hands over again."""
        self._input.instead = None

    def forward(self, mosaic: Tensor) -> Tensor:
        """``[N, H, W]`` mosaics to ``[N, C, h, w]`` features.

        Raises:
            ValueError: if there is neither a camera with the call nor one that was kept, or a
                colour matrix is applied and the camera's filter has none.
        """
        instead, camera = self._input.instead, None
        if instead is not None:
            stand_in = mosaic
            mosaic, camera, picture = instead
            check_stand_in(stand_in, picture)
        # A flag of Python's, for a GPU's buffers cannot be looked at without waiting for it.
        if camera is None and not self.calibrated and not mosaic.is_meta:
            raise ValueError(
                "the mosaic came without its camera (levels, pattern, white balance), and the "
                "model was never calibrated: call it with isp=ISP.from_raw(raw), or keep one "
                "camera with calibrate(isp)"
            )
        batch = mosaic.shape[0]
        packing, width = self.packing_of(mosaic, camera)
        # What is one sample's stays one: raw_conv spreads it over the batch.
        black: Values
        white: Values
        pattern: str | int | Sequence[str] | Tensor
        if camera is None:
            black, white, pattern = self.black, self.white, self.pattern
            gain, linearise = self.balance, self.linearise
        else:
            if not self.colour_matrix:  # else matrix() does
                camera.check_matrix()
            black, white, pattern = camera.black, camera.white, camera.pattern
            gain = camera.gain(batch, mosaic.device)
            linearise = batched_curves(camera.curves, batch, mosaic.device)
        mix: Tensor | None = None
        if self.colour_matrix:
            ccm = self.ccm[None] if camera is None else camera.matrix(batch, mosaic.device)
            mix = after_planes(self.mix, planes_matrix(ccm))
        elif self.learn_camera:
            mix = self.mix
        rows, columns = mosaic.shape[-2], mosaic.shape[-1] if width is None else width
        return raw_conv(
            mosaic,
            self.weight,
            self.bias,
            black=black,
            white=white,
            pattern=pattern,
            gain=gain * self.gain if self.white_balance else self.gain,
            stride=self.stride[0],
            padding=self._edges(rows // 2, columns // 2),
            padding_value=self.padding_value,
            clip=self.clip,
            mix=mix,
            curve=self.curve,
            gamma=self.gamma if self.curve == "gamma" else None,
            activation=self.activation,
            packing=packing,
            width=width,
            linearise=linearise,
        )

    def _edges(self, height: int, width: int) -> tuple[int, int, int, int]:
        if not isinstance(self.edges, str):
            return self.edges
        top, bottom = same_padding(height, self.kernel_size[0], self.stride[0])
        left, right = same_padding(width, self.kernel_size[1], self.stride[1])
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


def check_stand_in(stand_in: Tensor, picture: tuple[int, int]) -> None:
    """Refuse what a model hands its stem if that is not the picture the mosaic stands for.

    Raises:
        ValueError: if its height and width are not those of ``picture``.
    """
    if tuple(stand_in.shape[-2:]) != picture:
        raise ValueError(
            f"the model makes a picture of {list(stand_in.shape[-2:])} pixels out of "
            f"{list(picture)} before its first layer: give mosaics of a size that it does not pad "
            "or resize, or make the student with rawify(model, picture=True)"
        )


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding of one axis, before and after: the odd one after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def share_camera(stems: Sequence[RawStem]) -> None:
    """Make several stems one camera's: they hold the same gain, mix and gamma, as parameters."""
    for stem in stems[1:]:
        stem.gain, stem.mix, stem.gamma = stems[0].gain, stems[0].mix, stems[0].gamma
