"""The specification: every operation of the library in plain PyTorch, to be checked by eye.

Nothing here is fast. Every other backend computes what this file computes and is tested against it
(``unprocess`` and ``expose`` have a file of their own, reference_unprocess.py). Arguments arrive
checked and in one form (``[N, ...]`` tensors, see the file of each operation); float64 in means
float64 throughout, anything else computes in float32. Gradients are autograd's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# --------------------------------------------------------------------------- the mosaic


def pack(mosaic: Tensor, pattern: Tensor) -> Tensor:
    """``[N, H, W]`` to ``[N, 4, H/2, W/2]``: plane k holds site ``pattern ^ k`` (R, Gr, Gb, B)."""
    # Patterns above 3 are other filters than Bayer's; their two lowest bits say the site.
    sites = torch.stack([mosaic[:, row::2, column::2] for row in (0, 1) for column in (0, 1)], 1)
    site_of_plane = (pattern[:, None] & 3) ^ torch.arange(4, device=mosaic.device)
    return sites[torch.arange(len(mosaic), device=mosaic.device)[:, None], site_of_plane]


def unpack(planes: Tensor, pattern: Tensor) -> Tensor:
    """``[N, 4, h, w]`` planes (R, Gr, Gb, B) back to the ``[N, 2h, 2w]`` mosaic."""
    plane_of_site = (pattern[:, None] & 3) ^ torch.arange(4, device=planes.device)
    sites = planes[torch.arange(len(planes), device=planes.device)[:, None], plane_of_site]
    return F.pixel_shuffle(sites, 2)[:, 0]


def clamp(x: Tensor, low: float, high: float = math.inf) -> Tensor:
    """``x`` between two bounds; a value on a bound was not cut off, and NaN stays NaN.

    ``torch.clamp`` has had either derivative on its bounds, 1 and then 0, depending on the release.
    """
    return torch.where(x < low, low, torch.where(x > high, high, x))


def normalise(planes: Tensor, black: Tensor, white: Tensor, gain: Tensor, clip: bool) -> Tensor:
    """``(x - black) * gain / (white - black)``, black and gain ``[N, 4]``, white ``[N]``."""
    scale = gain / (white[:, None] - black)
    x = (planes - black[:, :, None, None]) * scale[:, :, None, None]
    return clamp(x, 0, 1) if clip else x


#: mu-law companding, ITU-T G.711: the "log" curve is log(1 + MU x) / log(1 + MU).
MU = 255.0


def apply_curve(x: Tensor, curve: str, gamma: Tensor | None) -> Tensor:
    """The per-pixel curve of :func:`raw_conv`; negative values count as black."""
    if curve == "sqrt":
        return clamp(x, 1e-8).sqrt()
    if curve == "log":
        return torch.log1p(MU * clamp(x, 0)) / math.log1p(MU)
    if curve == "gamma":
        assert gamma is not None
        return clamp(x, 1e-8) ** gamma
    return x


def raw_conv(
    mosaic: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    black: Tensor,
    white: Tensor,
    pattern: Tensor,
    gain: Tensor,
    stride: int,
    padding: tuple[int, int, int, int],
    padding_value: Tensor | None,
    clip: bool,
    mix: Tensor | None,
    curve: str,
    gamma: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """``activation(conv2d(curve(mix(normalise(pack(mosaic)))), weight, bias))``.

    ``padding`` is (left, right, top, bottom) on the packed grid; it holds ``padding_value``
    (``[4]``, zero where None) after the curve.
    """
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    black, white, gain = black.to(dtype), white.to(dtype), gain.to(dtype)
    x = normalise(pack(mosaic.to(dtype), pattern), black, white, gain, clip)
    if mix is not None:
        x = torch.einsum("nij,njhw->nihw", mix.to(dtype), x)
        x = clamp(x, 0, 1) if clip else x
    x = apply_curve(x, curve, None if gamma is None else gamma.to(dtype))
    if padding_value is not None:
        border = padding_value.to(dtype)[:, None, None]
        x = F.pad(x - border, padding) + border
    else:
        x = F.pad(x, padding)
    y = F.conv2d(x, weight.to(dtype), None if bias is None else bias.to(dtype), stride)
    return activate(y, activation).to(out_dtype)


def activate(y: Tensor, activation: str) -> Tensor:
    """The epilogue of :func:`raw_conv`; ``gelu`` is the exact one (erf)."""
    if activation == "none":
        return y
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu,
        "relu6": F.relu6,
        "silu": F.silu,
        "gelu": F.gelu,
    }
    return functions[activation](y)


# --------------------------------------------------------------------------- distillation


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) over the last axis, where classes of probability 0 in a count nothing."""
    a = log_a.exp()
    return (a * (log_a - log_b).masked_fill(a == 0, 0)).sum(-1)


def objective_rows(
    s: Tensor, t: Tensor, target: Tensor, objective: str, parameters: tuple[float, ...], T: float
) -> Tensor:
    """The objective of each row: student and teacher logits ``[rows, C]`` to ``[rows]``.

    ``target`` (``[rows]``, a class) is read by ``dkd`` only.
    """
    log_q, log_p = F.log_softmax(s / T, -1), F.log_softmax(t / T, -1)
    if objective in ("forward_kl", "cwd"):  # Hinton et al. 2015; Shu et al. 2021 (over pixels)
        return T**2 * _kl(log_p, log_q)
    if objective == "reverse_kl":
        return T**2 * _kl(log_q, log_p)
    if objective == "jsd":  # Agarwal et al. 2024, eq. 1: the mixture is beta p + (1 - beta) q
        (beta,) = parameters
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        return T**2 * (beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m))
    if objective == "tvd":  # total variation distance, in [0, 1]
        return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    if objective == "mse":  # summed over classes; a class that the teacher masks counts nothing
        return (s - t).masked_fill(t == -math.inf, 0).square().sum(-1)
    if objective == "binary_kl":  # classes apart; a weight by the teacher's confidence
        gamma, floor = parameters
        log_q, log_p = (
            torch.stack([F.logsigmoid(x / T), F.logsigmoid(-x / T)], -1) for x in (s, t)
        )
        weight = log_p[..., 0].exp().clamp(min=floor) ** gamma
        return T**2 * (weight * _kl(log_p, log_q)).sum(-1)
    if objective == "dkd":  # Zhao et al. 2022, eq. 7
        alpha, beta = parameters
        at_target = F.one_hot(target, s.shape[-1]).bool()
        log_binary, rest = [], []
        for logits, log_prob in ((t, log_p), (s, log_q)):
            others = (logits / T).masked_fill(at_target, -math.inf)
            log_not = torch.logsumexp(others, -1) - torch.logsumexp(logits / T, -1)
            log_at = log_prob.gather(-1, target[:, None])[:, 0]
            log_binary.append(torch.stack([log_at, log_not], -1))
            # Softmax over the other classes; the target's own entry is 0 in the teacher's.
            rest.append(F.log_softmax(others, -1))
        return T**2 * (alpha * _kl(*log_binary) + beta * _kl(rest[0], rest[1]))
    raise ValueError(f"unknown objective {objective!r}")


def distill_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    *,
    objective: str,
    parameters: tuple[float, ...],
    temperature: float,
    alpha: float,
    mask: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """``alpha * objective + (1 - alpha) * cross_entropy``, and the count of top-1 agreements.

    Logits ``[N, C, ...]``; labels and mask ``[N, ...]``; weight ``[N]``. A row is one position of
    one sample. Rows outside the mask count nothing and are not read; rows whose label is
    ``ignore_index`` count in the objective and not in the cross entropy. ``mean`` divides each of
    the two by the summed weight of the rows that count in it; ``batchmean`` divides by N.
    """
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    batch, classes = student.shape[:2]
    positions = (batch, *student.shape[2:])

    def rows(logits: Tensor) -> Tensor:
        return logits.to(dtype).movedim(1, -1).reshape(-1, classes)

    counted = torch.ones(positions, dtype=torch.bool, device=student.device)
    counted = (counted if mask is None else mask.bool()).reshape(-1)
    of_row = torch.ones(batch, dtype=dtype, device=student.device) if weight is None else weight
    of_row = of_row.to(dtype).view(batch, *[1] * (len(positions) - 1)).expand(positions).reshape(-1)
    s = rows(student).masked_fill(~counted[:, None], 0)
    t = rows(teacher.detach()).masked_fill(~counted[:, None], 0)
    agreement = ((s.argmax(-1) == t.argmax(-1)) & counted).sum()

    labelled, target = counted, t.argmax(-1)
    if labels is not None:
        labelled = counted & (labels.reshape(-1) != ignore_index)
        target = torch.where(labelled, labels.reshape(-1), target)

    # Each row is multiplied, not the sum: torch gives a tensor of no axes times a number a tangent
    # of float64.
    def reduce(loss: Tensor, counts: Tensor, row_weight: Tensor, denominator: int) -> Tensor:
        loss = loss.masked_fill(~counts, 0) * row_weight
        if reduction == "none":
            return loss
        if reduction == "mean":
            total = torch.where(counts, row_weight, 0).sum()
            return loss.sum() / torch.where(total > 0, total, 1)
        return (loss / denominator if reduction == "batchmean" else loss).sum()

    result = torch.zeros((), dtype=dtype, device=student.device)
    if objective == "cwd":  # a row is one channel of one sample, a distribution over its pixels
        inside = counted.view(batch, 1, -1)
        flat_s = student.to(dtype).reshape(batch, classes, -1).masked_fill(~inside, -1e30)
        flat_t = teacher.detach().to(dtype).reshape(batch, classes, -1)
        flat_t = flat_t.masked_fill(~inside, -math.inf)
        counts = inside.any(-1).expand(batch, classes).reshape(-1)
        channel_weight = torch.ones(batch, dtype=dtype, device=student.device)
        channel_weight = channel_weight if weight is None else weight.to(dtype)
        channel_weight = channel_weight[:, None].expand(batch, classes).reshape(-1)
        pixels = inside.shape[-1]
        flat_t = flat_t.reshape(-1, pixels).masked_fill(~counts[:, None], 0)
        flat_s = flat_s.reshape(-1, pixels)
        loss = objective_rows(flat_s, flat_t, target, "cwd", (), temperature)
        result = reduce(alpha * loss, counts, channel_weight, batch)
        if reduction == "none":
            return result.view(batch, classes), agreement
    elif alpha != 0:
        loss = objective_rows(s, t, target, objective, parameters, temperature)
        result = reduce(alpha * loss, counted, of_row, batch)
    if alpha != 1:
        cross_entropy = F.cross_entropy(
            s, target, reduction="none", label_smoothing=label_smoothing
        )
        result = result + reduce((1 - alpha) * cross_entropy, labelled, of_row, batch)
    return (result.view(positions) if reduction == "none" else result), agreement


# --------------------------------------------------------------------------- the ISP

# How the missing values at a site are interpolated: ``green`` at red and blue, ``row`` for the
# colour that shares the green site's row, ``column`` for the one that shares its column (row,
# transposed), ``across`` for red at blue and blue at red.
_BILINEAR: dict[str, list[list[float]]] = {
    "green": [[0, 1, 0], [1, 0, 1], [0, 1, 0]],
    "row": [[0, 0, 0], [2, 0, 2], [0, 0, 0]],
    "across": [[1, 0, 1], [0, 0, 0], [1, 0, 1]],
}  # / 4
# Malvar, He, Cutler: "High-quality linear interpolation for demosaicing of Bayer-patterned color
# images", ICASSP 2004, figure 2.
_MALVAR: dict[str, list[list[float]]] = {
    "green": [
        [0, 0, -1, 0, 0],
        [0, 0, 2, 0, 0],
        [-1, 2, 4, 2, -1],
        [0, 0, 2, 0, 0],
        [0, 0, -1, 0, 0],
    ],
    "row": [
        [0, 0, 0.5, 0, 0],
        [0, -1, 0, -1, 0],
        [-1, 4, 5, 4, -1],
        [0, -1, 0, -1, 0],
        [0, 0, 0.5, 0, 0],
    ],
    "across": [
        [0, 0, -1.5, 0, 0],
        [0, 2, 0, 2, 0],
        [-1.5, 0, 6, 0, -1.5],
        [0, 2, 0, 2, 0],
        [0, 0, -1.5, 0, 0],
    ],
}  # / 8


def reflect(index: Tensor, size: int) -> Tensor:
    """Indices beyond an edge, mirrored about the edge's own row: parity, and so colour, is kept."""
    period = 2 * (size - 1)
    index = index % period
    return torch.where(index < size, index, period - index)


def _filter(x: Tensor, taps: list[list[float]], scale: float) -> Tensor:
    kernel = torch.tensor(taps, dtype=x.dtype, device=x.device) / scale
    radius, (height, width) = len(taps) // 2, x.shape[1:]
    rows = reflect(torch.arange(-radius, height + radius, device=x.device), height)
    columns = reflect(torch.arange(-radius, width + radius, device=x.device), width)
    return F.conv2d(x[:, rows][:, :, columns][:, None], kernel[None, None])[:, 0]


def demosaic(x: Tensor, pattern: Tensor, method: str, colours: int = 3) -> Tensor:
    """``[N, H, W]`` to ``[N, colours, H, W]``, for ``superpixel`` ``[N, colours, H/2, W/2]``.

    4 colours: none is doubled, ``superpixel`` only. 1: mono, of which nothing is missing.
    """
    if method == "superpixel":
        planes = pack(x, pattern)
        if colours != 3:
            return planes if colours == 4 else planes.mean(1, keepdim=True)
        red, green_r, green_b, blue = planes.unbind(1)
        return torch.stack([red, (green_r + green_b) / 2, blue], 1)
    if colours == 1:
        return x[:, None]
    filters, scale = (_BILINEAR, 4) if method == "bilinear" else (_MALVAR, 8)
    green, row, across = (_filter(x, filters[name], scale) for name in ("green", "row", "across"))
    column = _filter(x, [list(taps) for taps in zip(*filters["row"], strict=True)], scale)
    y = torch.arange(x.shape[1], device=x.device)[:, None] % 2
    site = 2 * y + torch.arange(x.shape[2], device=x.device)[None, :] % 2
    plane = site[None] ^ (pattern[:, None, None] & 3)  # 0 R, 1 Gr, 2 Gb, 3 B
    at_r, at_gr, at_gb, at_b = (plane == k for k in range(4))
    return torch.stack(
        [
            torch.where(at_r, x, torch.where(at_gr, row, torch.where(at_gb, column, across))),
            torch.where(at_r | at_b, green, x),
            torch.where(at_b, x, torch.where(at_gb, row, torch.where(at_gr, column, across))),
        ],
        1,
    )


#: mu-law for a high dynamic range, Kalantari and Ramamoorthi: "Deep High Dynamic Range Imaging of
#: Dynamic Scenes", SIGGRAPH 2017, section 4: the "log" tone is log(1 + MU x) / log(1 + MU).
TONE_MU = 5000.0


def tone_curve(x: Tensor, tone: str) -> Tensor:
    """Linear light in [0, 1] to display values in [0, 1]."""
    if tone == "srgb":  # IEC 61966-2-1
        return torch.where(x < 0.0031308, 12.92 * x, 1.055 * x.clamp(min=1e-8) ** (1 / 2.4) - 0.055)
    if tone in ("gamma", "smoothstep"):
        x = x.clamp(min=1e-8) ** (1 / 2.2)
        return 3 * x**2 - 2 * x**3 if tone == "smoothstep" else x
    if tone == "log":
        return torch.log1p(TONE_MU * x) / math.log1p(TONE_MU)
    return x


def orient(image: Tensor, orientation: int) -> Tensor:
    """Turn the last two axes upright from an EXIF orientation (1..8)."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(-2, -1)
    flips = {1: (), 2: (-1,), 3: (-2, -1), 4: (-2,), 5: (), 6: (-1,), 7: (-2, -1), 8: (-2,)}
    return image.flip(flips[orientation]) if flips[orientation] else image


def render(
    mosaic: Tensor,
    *,
    black: Tensor,
    white: Tensor,
    pattern: Tensor,
    gain: Tensor,
    ccm: Tensor,
    demosaic_method: str,
    tone: str,
    orientation: int,
    crop: tuple[int, int, int, int],
    size: tuple[int, int],
    resize_in: str,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Mosaic ``[N, H, W]`` to the tensor a teacher takes, ``[N, 3, *size]``.

    Normalise and white-balance with the highlights clipped at the sensor, demosaic, cut the crop
    (top, left, height, width, in sensor pixels, even for superpixel), turn upright, colour matrix,
    clip, tone, antialiased bilinear resize (before clip and tone where ``resize_in`` is "linear"),
    ``(x - mean) / std``. ``ccm`` is ``[N, 3, colours]``, see :func:`demosaic`.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    black, white, gain = black.to(compute), white.to(compute), gain.to(compute)
    x = normalise(pack(mosaic.to(compute), pattern), black, white, gain, clip=True)
    rgb = demosaic(unpack(x, pattern), pattern, demosaic_method, ccm.shape[2])
    top, left, height, width = (c // 2 for c in crop) if demosaic_method == "superpixel" else crop
    rgb = orient(rgb[:, :, top : top + height, left : left + width], orientation)
    rgb = torch.einsum("nij,njhw->nihw", ccm.to(compute), rgb)
    if resize_in == "linear":
        rgb = tone_curve(_resize(rgb, size).clamp(0, 1), tone)
    else:
        rgb = _resize(tone_curve(rgb.clamp(0, 1), tone), size)
    mean, std = mean.to(compute), std.to(compute)
    return ((rgb - mean[:, None, None]) / std[:, None, None]).to(dtype)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    # Each axis alone, as the last one. Asked for a height and a width of 1 at once, torch (2.14 was
    # seen to) repeats the first row.
    for target in (size[1], size[0]):
        if image.shape[-1] != target:
            image = F.interpolate(
                image,
                (image.shape[-2], target),
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )
        image = image.transpose(-2, -1).contiguous()
    return image
