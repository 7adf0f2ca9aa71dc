"""A stem that begins with the picture of a demosaicing ISP: its kernel takes in its neighbours.

A superpixel's red is one photosite. A demosaiced picture, shrunk to half the sensor's size with
antialiasing, has in each pixel the red of a neighbourhood: sharper colours where they change, and a
fifth of the noise power (0.21 of red's and blue's, 0.27 of green's). Both steps are linear, and so
is the convolution that follows: they are one kernel, two taps larger. The curve comes before them
here and between them in an ISP, so the two pictures are near, not equal.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from isp_distill.isp.camera import DEMOSAICS
from isp_distill.models.stem import RawStem
from isp_distill.ops import reference
from isp_distill.raw.cfa import PATTERNS, pattern_codes

# Periods that one impulse can reach, and those of the mosaic that it lies in.
_REACH, _SIDE = 1, 12
# Whatever torch's default device is.
_EXACT: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


@functools.cache
def picture_filters(demosaic: str) -> Tensor:
    """What red, green and blue of a picture at half size are of the planes around.

    The mean over the four Bayer patterns, since one kernel serves mosaics of all of them. What
    Malvar's filters take from beyond the eight neighbours, at most 0.005, is given to the middle.

    Args:
        demosaic: "bilinear" or "malvar", see :func:`isp_distill.render`.

    Returns:
        float64 ``[3, 4, 3, 3]``: of the planes R, Gr, Gb, B, as a convolution's weight. All taps of
        a colour's own planes add to 1, of another's to 0.
    """
    middle = _SIDE // 2
    # Each plane's impulse in the middle period, for each pattern.
    planes = torch.zeros(4, 4, _SIDE, _SIDE, **_EXACT)
    planes[range(4), range(4), middle, middle] = 1
    filters = torch.zeros(3, 4, 2 * _REACH + 1, 2 * _REACH + 1, **_EXACT)
    near = slice(middle - _REACH, middle + _REACH + 1)
    for pattern in PATTERNS:
        codes = pattern_codes(pattern, 4, torch.device("cpu"))
        rgb = reference.demosaic(reference.unpack(planes, codes), codes, demosaic)
        half = functional.interpolate(
            rgb, scale_factor=0.5, mode="bilinear", align_corners=False, antialias=True
        )
        # A pixel above the impulse sees it below itself.
        taps = half[:, :, near, near].flip(2, 3)
        taps[:, :, _REACH, _REACH] += half.sum((2, 3)) - taps.sum((2, 3))
        filters += taps.transpose(0, 1) / len(PATTERNS)
    return filters


def begin_demosaiced(stem: RawStem, demosaic: str) -> None:
    """Change a stem that begins with a superpixel's picture into one of a demosaiced picture.

    Args:
        stem: of :func:`isp_distill.rawify` on the packed grid, whose planes are red, green, green
            and blue; changed in place.
        demosaic: of the picture, see :func:`picture_filters`.

    Raises:
        ValueError: the stem pads as TensorFlow does and skips what lies between its kernels.
    """
    side, filters = stem.weight.shape[-1], picture_filters(demosaic)
    if stem.edges == "same" and side < stem.stride[0]:
        raise ValueError(
            f'demosaic={demosaic!r} does not go with "same" padding of a kernel of {side} at a '
            f'stride of {stem.stride[0]}: give demosaic="superpixel"'
        )
    weight = stem.weight.detach().to("cpu", torch.float64)
    colours = torch.stack([weight[:, 0], weight[:, 1] + weight[:, 2], weight[:, 3]], 1)
    taps = filters.shape[-1]
    wide = torch.zeros(len(weight), 4, side + taps - 1, side + taps - 1, **_EXACT)
    for y in range(side):
        for x in range(side):
            reached = torch.einsum("oc,cpkl->opkl", colours[:, :, y, x], filters)
            wide[:, :, y : y + taps, x : x + taps] += reached
    stem.weight = nn.Parameter(wide.to(stem.weight), stem.weight.requires_grad)
    stem.kernel_size = (side + taps - 1, side + taps - 1)
    if not isinstance(stem.edges, str):
        left, right, top, bottom = (edge + taps // 2 for edge in stem.edges)
        stem.edges = (left, right, top, bottom)


def check_demosaic(demosaic: str, grid: str, columns: int) -> None:
    """Refuse what a student cannot begin with.

    Args:
        demosaic: of the picture.
        grid: of the student, see :func:`isp_distill.rawify`.
        columns: how many colours its filter's matrix takes.

    Raises:
        ValueError: naming what does not go together.
    """
    if demosaic not in DEMOSAICS:
        raise ValueError(f"unknown demosaic {demosaic!r}: expected {', '.join(DEMOSAICS)}")
    if demosaic == "superpixel":
        return
    if grid != "packed":
        raise ValueError(
            f'demosaic={demosaic!r} goes with grid="packed": the packed grid enlarged has nothing '
            'between its pixels; give demosaic="superpixel"'
        )
    if columns != 3:
        raise ValueError(
            f'demosaic={demosaic!r} needs a Bayer filter; for others give demosaic="superpixel"'
        )
