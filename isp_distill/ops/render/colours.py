"""What the kernels of ``render`` are told of a filter: a demosaicing and a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from isp_distill.isp.camera import DEMOSAICS
from isp_distill.isp.matrices import of_planes

#: Of the kernels alone: every site of a mono sensor is a pixel, and nothing is interpolated.
NO_DEMOSAIC = "none"
#: By the number that the compiled kernels have for each.
KERNEL_DEMOSAICS = (*DEMOSAICS, NO_DEMOSAIC)


def for_kernels(demosaic: str, ccm: Tensor) -> tuple[str, Tensor]:
    """The demosaicing that the kernels run, and the matrix that they take.

    Args:
        demosaic: one of :data:`isp_distill.isp.camera.DEMOSAICS`.
        ccm: ``[N, 3, colours]``.

    Returns:
        A name of :data:`KERNEL_DEMOSAICS`, and ``[N, 3, 3]``; or, of superpixels of another filter
        than one with a doubled colour, the matrix over the four planes, ``[N, 3, 4]``.
    """
    if ccm.shape[2] != 1:
        return demosaic, ccm
    if demosaic == "superpixel":
        return demosaic, of_planes(ccm)
    # All three of what is called red, green and blue hold the site's own value.
    return NO_DEMOSAIC, torch.nn.functional.pad(ccm, (0, 2))
