"""``rawify``: an RGB model made RAW.

A rawified model starts as exactly the RGB model on a superpixel-demosaiced image: red weights on R,
half the green ones on Gr and Gb each, blue on B, the model's mean and std folded in.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from isp_distill.stem import GRIDS, RawModel, RawStem, same_padding


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
        top = same_padding(image.shape[2], conv.kernel_size[0], conv.stride[0])
        left = same_padding(image.shape[3], conv.kernel_size[1], conv.stride[1])
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
        low, high = same_padding(stride * 8, kernel, stride)
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
