"""A convolution on a normalised RGB picture, folded into a :class:`RawStem` on the mosaic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from isp_distill.models.readers import Convolution
from isp_distill.models.stem import RawStem, same_padding
from isp_distill.raw.filters import FILTERS, ColourFilter

Padding = str | tuple[int, int, int, int]


class CannotFoldError(ValueError):
    """Why a convolution has no equal on the packed grid."""


@dataclass(frozen=True)
class Folding:
    """What every stem of one student has in common: see :func:`isp_distill.rawify`."""

    mean: Tensor  # [3]
    std: Tensor  # [3]
    grid: str
    curve: str
    white_balance: bool
    colour_matrix: bool
    learn_camera: bool
    colour_filter: ColourFilter = FILTERS[0]

    @property
    def mixes(self) -> bool:
        """Whether the stem mixes the planes before it convolves them."""
        return self.colour_matrix or self.learn_camera

    @property
    def spread(self) -> Tensor:
        """What each plane is of red, green and blue, float64 ``[4, 3]``; columns sum to 1."""
        names = self.colour_filter.planes
        if self.colour_filter.columns == 4:
            return torch.tensor([[float(name == c) for c in "RGB"] for name in names]).double()
        if self.colour_filter.columns == 1 and not self.mixes:
            return torch.full((4, 3), 0.25, dtype=torch.float64)
        halves = [[1.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 1.0]]
        return torch.tensor(halves).double()

    @property
    def mix(self) -> Tensor:
        """What the stem's ``mix`` begins as, float64 ``[4, 4]``.

        Of mono the mean of a period in every plane: one grey, which the weights of red, green and
        blue, and the border's three colours, see as their own.
        """
        if self.colour_filter.columns == 1 and not self.colour_matrix:
            return torch.full((4, 4), 0.25, dtype=torch.float64)
        return torch.eye(4, dtype=torch.float64)

    def stem(
        self, weight: Tensor, bias: Tensor | None, stride: int, padding: Padding, dtype: torch.dtype
    ) -> RawStem:
        """A stem on the packed grid that equals an RGB convolution on ``(x - mean) / std``.

        Args:
            weight: ``[C, 3, K, K]``, float64, on the packed grid already.
            bias: ``[C]`` or None.
            stride: of the convolution, on the packed grid.
            padding: likewise.
            dtype: of the stem's weights.
        """
        weight = weight / self.std[:, None, None]
        offset = -(weight * self.mean[:, None, None]).sum((1, 2, 3))
        if bias is not None:
            offset = offset + bias
        spread = self.spread
        stem = RawStem(
            len(weight),
            weight.shape[-1],
            stride,
            padding,
            curve=self.curve,
            white_balance=self.white_balance,
            colour_matrix=self.colour_matrix,
            learn_camera=self.learn_camera,
        )
        if dtype == torch.float64:
            stem.double()
        # In half precision its levels stay in float32: no sensor's white fits into less.
        stem.weight.data = stem.weight.data.to(dtype)
        bias_of_stem = cast(nn.Parameter, stem.bias)
        bias_of_stem.data = bias_of_stem.data.to(dtype)
        with torch.no_grad():
            stem.weight.copy_(torch.einsum("pc,ockl->opkl", spread, weight))
            bias_of_stem.copy_(offset)
            stem.mix.copy_(self.mix)
            # The RGB model was padded with zeros after (x - mean) / std: with the mean's colour.
            # A plane of several colours takes their mean; one of none is not looked at.
            share = spread / spread.sum(1, keepdim=True).clamp(min=1e-12)
            stem.padding_value.copy_(share @ self.mean)
        return stem

    def of_convolution(self, name: str, convolution: Convolution) -> RawStem:
        """The stem that takes a convolution's place.

        Raises:
            CannotFoldError: if there is none (groups, dilation, a kernel that is not square,
                unequal strides, a padding that is not of zeros).
            ValueError: if ``grid="sensor"`` meets an odd stride.
        """
        weight, (stride, *other) = convolution.weight, convolution.stride
        square = weight.shape[-2] == weight.shape[-1] and other == [stride]
        if not square or set(convolution.dilation) != {1} or convolution.groups != 1:
            raise CannotFoldError(f"{name} has no equal on a mosaic: {convolution.module}")
        padding = padding_of(name, convolution)
        dtype = weight.dtype
        bias = None if convolution.bias is None else _exact(convolution.bias)
        weight = _exact(weight)
        if self.grid == "sensor":
            weight, stride, padding = fold_to_packed(weight, stride, padding)
        return self.stem(weight, bias, stride, padding, dtype)


def _exact(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float64)


def padding_of(name: str, convolution: Convolution) -> Padding:
    """What the convolution pads, found in its attributes and confirmed by running it.

    Raises:
        CannotFoldError: if it pads otherwise, or does more than convolve.
    """
    module, weight = convolution.module, convolution.weight
    candidates: list[Padding] = []
    static = getattr(module, "static_padding", None)
    if isinstance(static, nn.ZeroPad2d):
        left, right, top, bottom = (int(p) for p in static.padding)
        candidates.append((left, right, top, bottom))
    if isinstance(module.padding, str):
        span = weight.shape[-1] - 1
        edges = (0, 0) if module.padding == "valid" else (span // 2, span - span // 2)
        candidates.append((*edges, *edges))
    else:
        vertical, horizontal = module.padding
        candidates.append((horizontal, horizontal, vertical, vertical))
    candidates.append("same")
    draw = torch.Generator().manual_seed(0)
    # No kernel is larger than what it reads.
    more = weight.shape[-1] if weight.shape[-1] > 32 else 0
    probes = [
        torch.randn(1, 3, side + more, side + more, generator=draw).to(weight)
        for side in (64, 62, 61, 224)
    ]
    with torch.no_grad():
        actual = [module(probe) for probe in probes]
        for padding in candidates:
            if all(
                _agrees(convolution, padding, image, output)
                for image, output in zip(probes, actual, strict=True)
            ):
                return padding
    raise CannotFoldError(f"rawify cannot tell how {name} pads its input: {module}")


def _agrees(convolution: Convolution, padding: Padding, image: Tensor, actual: Tensor) -> bool:
    weight, stride = convolution.weight, convolution.stride
    edges = padding
    if isinstance(edges, str):
        top = same_padding(image.shape[2], weight.shape[2], stride[0])
        left = same_padding(image.shape[3], weight.shape[3], stride[1])
        edges = (*left, *top)
    padded = nn.functional.pad(image, edges)
    expected = nn.functional.conv2d(padded, weight, convolution.bias, stride)
    if actual.shape != expected.shape:
        return False
    limit = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 2e-2
    return bool(torch.allclose(actual, expected, atol=limit * float(expected.abs().max())))


def fold_to_packed(
    weight: Tensor, stride: int, padding: str | Sequence[int]
) -> tuple[Tensor, int, tuple[int, int, int, int]]:
    """The kernel on the packed grid that equals one on the nearest-upsampled packed image.

    Image column ``o * stride - pad + tap`` lies in period ``o * stride / 2 + (tap - pad) // 2``:
    the taps that fall into one period are summed.

    Raises:
        ValueError: for an odd stride.
        CannotFoldError: for a "same" padding that depends on the picture's size.
    """
    kernel = weight.shape[-1]
    if stride % 2:
        raise ValueError(
            f'grid="sensor" needs an even stride, the convolution has {stride}: take grid="packed",'
            " or picture=True, which makes the picture and enlarges it"
        )
    if isinstance(padding, str):
        if stride > 2:
            raise CannotFoldError(f'"same" padding at a stride of {stride} depends on the size')
        # The sides are even: a multiple of the stride, where "same" is a fixed padding.
        low, high = same_padding(stride * 8, kernel, stride)
        padding = (low, high, low, high)
    left, right, top, bottom = padding

    def fold(w: Tensor, dim: int, before: int, after: int) -> tuple[Tensor, int, int]:
        first = (0 - before) // 2
        taps = (kernel - 1 - before) // 2 - first + 1
        shape = list(w.shape)
        shape[dim] = taps
        folded = torch.zeros(shape, dtype=w.dtype)
        period = torch.tensor([(tap - before) // 2 - first for tap in range(kernel)])
        folded.index_add_(dim, period, w)
        return folded, -first, (before + after - kernel) // 2 + taps + first

    weight, low_y, high_y = fold(weight, 2, top, bottom)
    weight, low_x, high_x = fold(weight, 3, left, right)
    if weight.shape[2] != weight.shape[3]:
        raise CannotFoldError("its paddings differ so much that the folded kernel is not square")
    return weight, stride // 2, (low_x, high_x, low_y, high_y)
