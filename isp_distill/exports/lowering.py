"""A RAW student in standard operators: what an exported program is made of.

Nothing here calls this library's kernels, so what is traced from it runs where the library is not.
It is also not the reference taken apart: each step is the form that onnxruntime runs fastest, and
the tests hold it against the student itself.

- The 2x2 period is packed by a convolution with a 2x2 identity, stride 2 (a sixth of the time of
  the reshape and transpose that ``pixel_unshuffle`` becomes). It is exact: every output is one
  sensor value times 1 plus zeros.
- ``x ** gamma`` is ``exp(gamma * log(x))``: runtimes vectorise those two and not the power.
- The border holds the colour of the mean, not zero. With ``v`` that colour, ``conv(x, border v)``
  is ``conv(x - v, border 0)`` plus the sum of ``weight * v``, and that is the convolution's own
  padding and its bias.
- One camera, known beforehand, costs nothing: its pattern reorders the weights, levels and gains
  become that first convolution's own numbers, the colour matrix a 1x1 convolution, and runtimes
  clamp in the convolution before.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isp_distill.data.views import View
from isp_distill.exports.lowered_packing import Unpacking
from isp_distill.isp.camera import ISP
from isp_distill.isp.matrices import planes_matrix
from isp_distill.models.output import EXPORT_OPTION, Output, read_output
from isp_distill.models.raw_model import RawModel
from isp_distill.models.rawify import replaced_module
from isp_distill.models.stem import RawStem, check_stand_in
from isp_distill.models.student import PlanesModel
from isp_distill.ops import reference
from isp_distill.raw.packings import packing_of


class Camera(NamedTuple):
    """Each sample's camera, as a program takes it: float32, the pattern int64."""

    black: Tensor  # [N, 4], sensor units
    white: Tensor  # [N], sensor units
    gain: Tensor  # [N, 4], white balance times exposure of the planes R, Gr, Gb, B
    pattern: Tensor  # [N], the site of the first colour: a code of isp_distill.raw.cfa.PATTERNS
    ccm: Tensor  # [N, 3, 3]

    @classmethod
    def of(cls, isp: ISP, batch: int) -> Camera:
        """The camera of an ISP, or of one for each sample.

        Raises:
            ValueError: if a value fits neither one sample nor ``batch`` samples.
        """
        one = isp.batched(batch)
        levels = cast(Tensor, one.black), cast(Tensor, one.white)
        # Whatever applies a matrix asks for it by ISP.matrix, which refuses to give none.
        ccm = torch.eye(3).expand(batch, 3, 3) if one.colours is None else one.matrix(batch)
        return cls(*levels, one.gain(batch), cast(Tensor, one.pattern) & 3, ccm)


def _partners() -> Tensor:
    """``[4, 4]``: in pattern p the site of plane k, and the plane of site k, are both ``p ^ k``."""
    return torch.tensor([[pattern ^ k for k in range(4)] for pattern in range(4)])


def _exchanged(sites: Tensor, order: Tensor) -> Tensor:
    """Planes ``[N, 4, h, w]`` of the sites, by ``order`` ``[N, 4]``; or sites of the planes."""
    batch, _, height, width = sites.shape
    # Along one axis: each plane is one block of memory.
    first = 4 * torch.arange(batch, device=sites.device)[:, None]
    index = (first + order).reshape(-1)
    return sites.flatten(0, 1).index_select(0, index).reshape(batch, 4, height, width)


class StandardPlanes(nn.Module):
    """A :class:`PlanesModel` in standard operators."""

    partner: Tensor
    identity: Tensor

    def __init__(self, student: PlanesModel) -> None:
        super().__init__()
        self.model, self.channels = student.model, student.channels
        #: What the model computes in; the steps before it are float32.
        self.dtype = torch.float32
        self.register_buffer("partner", _partners())
        self.register_buffer("identity", torch.eye(4).reshape(4, 1, 2, 2))

    def forward(self, mosaic: Tensor, camera: Camera) -> Any:
        """What the model makes of ``[N, H, W]`` mosaics, with one camera or one for each."""
        sites = F.conv2d(mosaic[:, None], self.identity, stride=2)
        order = self.partner[camera.pattern]
        scale = camera.gain / (camera.white[:, None] - camera.black)
        black, scale = camera.black.gather(1, order), scale.gather(1, order)
        x = ((sites - black[:, :, None, None]) * scale[:, :, None, None]).clamp(0, 1)
        x = F.pixel_shuffle(x, 2) if self.channels == 1 else _exchanged(x, order)
        return self.model(x.to(self.dtype))


class StandardStem(nn.Module):
    """A :class:`RawStem` in standard operators.

    Args:
        stem: the stem; its numbers are copied.
        height: of the packed image, which named paddings depend on.
        width: likewise.
        camera: one camera to build in; None takes each sample's from :attr:`camera`.
    """

    weight: Tensor
    bias: Tensor
    border: Tensor
    gain: Tensor
    mix: Tensor
    gamma: Tensor
    taps: Tensor
    level: Tensor
    partner: Tensor

    def __init__(self, stem: RawStem, height: int, width: int, camera: ISP | None) -> None:
        super().__init__()
        self.stride, self.curve, self.activation = stem.stride, stem.curve, stem.activation
        self.clip, self.edges = stem.clip, stem._edges(height, width)
        self.white_balance, self.colour_matrix = stem.white_balance, stem.colour_matrix
        self.mixes = stem.colour_matrix or stem.learn_camera
        #: ``[N, H, W]`` float32, and each sample's camera unless one is built in; for one call.
        self.mosaic: Tensor | None = None
        self.camera: Camera | None = None
        #: Height and width of the picture that the mosaic stands for, if a model is called on it.
        self.picture: tuple[int, int] | None = None
        weight, border = stem.weight.detach(), stem.padding_value
        mix, gain = stem.mix.detach(), stem.gain.detach()
        taps, level = torch.eye(4).reshape(4, 1, 2, 2), torch.zeros(4)
        offset = torch.zeros(len(weight)) if stem.bias is None else stem.bias.detach()
        if camera is not None:
            one = Camera.of(camera, 1)
            pattern, black = int(one.pattern[0]), one.black[0]
            if self.colour_matrix:
                mix = mix @ planes_matrix(camera.matrix(1))[0]
            balance = one.gain[0] * gain if self.white_balance else gain
            plane_of_site = [pattern ^ site for site in range(4)]
            scale = (balance / (one.white - black))[plane_of_site]
            taps, level = taps * scale[:, None, None, None], -black[plane_of_site] * scale
            if self.mixes:
                mix = mix[:, plane_of_site]  # sites in, planes out
            else:
                weight, border = weight[:, plane_of_site], border[plane_of_site]
        self.register_buffer("taps", taps)
        self.register_buffer("level", level)
        self.register_buffer("mix", mix.clone())
        self.register_buffer("gain", gain.clone())
        self.register_buffer("gamma", stem.gamma.detach().clone())
        self.register_buffer("weight", weight.clone())
        self.register_buffer("border", border.clone())
        self.register_buffer("bias", offset + torch.einsum("ockl,c->o", weight, border))
        self.register_buffer("partner", _partners())
        self.shifted = bool((border != 0).any())

    def forward(self, stand_in: Tensor) -> Tensor:
        """The features of :attr:`mosaic`, whatever it is called with: see :class:`RawModel`."""
        assert self.mosaic is not None
        if self.picture is not None:
            check_stand_in(stand_in, self.picture)
        mix = self.mix
        x = F.conv2d(self.mosaic[:, None], self.taps, self.level, stride=2)
        if self.camera is not None:
            x, black, scale, mix = self._of_camera(x)
            x = (x - black[:, :, None, None]) * scale[:, :, None, None]
        x = x.clamp(0, 1) if self.clip else x
        if self.mixes:
            if mix.dim() == 2:
                x = F.conv2d(x, mix[:, :, None, None])
            else:
                x = torch.einsum("nij,njhw->nihw", mix, x)
            x = x.clamp(0, 1) if self.clip else x
        if self.curve == "gamma":
            x = (x.clamp(min=1e-8).log() * self.gamma).exp()
        else:
            x = reference.apply_curve(x, self.curve, None)
        if self.shifted:
            x = x - self.border[:, None, None]
        x = x.to(self.weight.dtype)
        left, right, top, bottom = self.edges
        if (left, top) == (right, bottom):
            y = F.conv2d(x, self.weight, self.bias, self.stride, (top, left))
        else:
            y = F.conv2d(F.pad(x, self.edges), self.weight, self.bias, self.stride)
        return reference.activate(y, self.activation)

    def keep_float32(self, buffers: dict[str, Tensor]) -> None:
        """Take back what the steps before the convolution compute with, after a change of dtype."""
        for name, value in buffers.items():
            if name not in ("weight", "bias"):
                setattr(self, name, value)

    def _of_camera(self, sites: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sites as planes R, Gr, Gb, B, and black, scale and mix per sample."""
        assert self.camera is not None
        camera, batch = self.camera, sites.shape[0]
        planes = _exchanged(sites, self.partner[camera.pattern])
        gain = self.gain * camera.gain if self.white_balance else self.gain.expand(batch, 4)
        scale = gain / (camera.white[:, None] - camera.black)
        mix = self.mix @ planes_matrix(camera.ccm) if self.colour_matrix else self.mix
        return planes, camera.black, scale, mix


class Bytes(NamedTuple):
    """How a program's packed mosaics are read."""

    packing: str
    width: int  # pixels of a row


def binned(
    mosaic: Tensor,
    view: View,
    width: int | None = None,
    unpacking: Unpacking | None = None,
    table: Tensor | None = None,
) -> Tensor:
    """The middle view of ``[N, H, W]`` mosaics, float32: as :meth:`View.cut_raw` cuts it.

    Of packed ones, ``[N, H, bytes]`` and ``width`` pixels, the view's groups alone are unpacked.
    Companded codes are looked up in ``table`` ``[L]``; the mean of linear values is not rounded.
    """
    height, width = mosaic.shape[1], mosaic.shape[2] if width is None else width
    factor, crop = view.factor(height, width, "the exported mosaic"), view.crop
    sides = [side // (2 * factor) * 2 for side in (height, width)]
    top, left = (factor * 2 * round(0.5 * ((side - crop) // 2)) for side in sides)
    if (height, width) != (factor * crop, factor * crop):
        mosaic = mosaic[:, top : top + factor * crop]
        if unpacking is None:
            mosaic = mosaic[:, :, left : left + factor * crop]
    if unpacking is not None:
        group = packing_of(unpacking.packing)
        first, before = divmod(left, group.pixels)
        codes = unpacking(mosaic[:, :, first * group.bytes :], before + factor * crop)
        mosaic = codes[:, :, before:] if before else codes
    x = mosaic.float()
    if table is not None:
        x = table[mosaic.to(torch.int64).clamp(0, len(table) - 1)]
    if factor > 1:
        mean = block_means(x, factor)
        x = (torch.round(mean) if table is None else mean).reshape(-1, crop, crop)
    return x


def block_means(mosaic: Tensor, factor: int) -> Tensor:
    """Means over ``factor`` x ``factor`` sites of one colour: of ``[N, S, S]``, rows of a period.

    Down the rows first, where what is added lies side by side: a mean over both axes at once takes
    OpenVINO three times as long. Sums of 16-bit codes are exact in float32 up to a factor of 16.
    """
    rows = mosaic.reshape(-1, factor, 2 * mosaic.shape[2]).sum(1)
    periods = rows.reshape(-1, factor, 2)
    total = periods[:, 0]
    for k in range(1, factor):
        total = total + periods[:, k]
    return total / factor**2


class StandardStudent(nn.Module):
    """A student in standard operators: mosaics, and their camera, to logits.

    Args:
        student: what :func:`isp_distill.models.student.as_student` makes of a module; it is taken
            apart.
        view: what of the mosaic the student sees.
        camera: one camera to build in, or None.
        dtype: of the network. The steps before its first convolution are float32 in any case:
            16-bit sensor values do not fit float16.
        packed: how mosaics are packed, if they are.
        output: which part of what the student returns, see :class:`isp_distill.Teacher`.
    """

    table: Tensor | None

    def __init__(
        self,
        student: RawModel | PlanesModel,
        view: View,
        camera: ISP | None,
        dtype: torch.dtype = torch.float32,
        packed: Bytes | None = None,
        output: Output = None,
    ) -> None:
        super().__init__()
        self.dtype, self.output = dtype, output
        self.width = None if packed is None else packed.width
        self.unpacking = None if packed is None else Unpacking(packed.packing)
        self.view, self.built_in = view, None if camera is None else Camera.of(camera, 1)
        curve = None if camera is None else camera.curves
        self.register_buffer("table", None if curve is None else curve[0].cpu().clone())
        if isinstance(student, PlanesModel):
            student.model.to(dtype)
            planes = StandardPlanes(student)
            planes.dtype = dtype
            self.model: nn.Module = planes
            return
        self.picture = view.crop // 2 if student.grid == "packed" else view.crop
        self.model = student.model
        stems, originals = [], []
        for stem in student.stems:
            stems.append(StandardStem(stem, view.crop // 2, view.crop // 2, camera))
            stems[-1].picture = self.picture, self.picture
            name = next(n for n, module in self.model.named_modules() if module is stem)
            self.model = replaced_module(self.model, name, stems[-1])
            originals.append({k: v.clone() for k, v in stems[-1].named_buffers()})
        self.stems = nn.ModuleList(stems)
        # Before the stems go back to float32: they lie in the model.
        self.model.to(dtype)
        for standard, whole in zip(stems, originals, strict=True):
            standard.keep_float32(whole)

    def predict(self, mosaic: Tensor, camera: Camera | None) -> Tensor:
        """Logits of ``[N, H, W]`` mosaics, or of packed ones."""
        x = binned(mosaic, self.view, self.width, self.unpacking, self.table)
        if isinstance(self.model, StandardPlanes):
            return self._read(self.model(x, self.built_in if camera is None else camera))
        # As RawModel does: the model is called on a stand-in, its stems read the mosaic.
        for stem in self._standard_stems():
            stem.mosaic, stem.camera = x, camera
        try:
            stand_in = torch.zeros((), device=x.device, dtype=self.dtype)
            shape = x.shape[0], 3, self.picture, self.picture
            return self._read(self.model(stand_in.expand(shape)))
        finally:
            for stem in self._standard_stems():
                stem.mosaic = stem.camera = None

    def _read(self, output: Any) -> Tensor:
        return read_output(output, self.output, EXPORT_OPTION).float()

    def _standard_stems(self) -> list[StandardStem]:
        return cast(list[StandardStem], list(self.stems))


class OneCamera(StandardStudent):
    """A student with its camera built in: ``mosaic`` to logits."""

    def forward(self, mosaic: Tensor) -> Tensor:
        """Logits of ``[N, H, W]`` mosaics."""
        return self.predict(mosaic, None)


class AnyCamera(StandardStudent):
    """A student that is told each sample's camera: see :class:`Camera`."""

    def forward(
        self,
        mosaic: Tensor,
        black: Tensor,
        white: Tensor,
        gain: Tensor,
        pattern: Tensor,
        ccm: Tensor,
    ) -> Tensor:
        """Logits of ``[N, H, W]`` mosaics."""
        return self.predict(mosaic, Camera(black, white, gain, pattern, ccm))
