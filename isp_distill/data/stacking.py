"""Mosaics of one size as one tensor, with their cameras; bytes where all are packed alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isp_distill.isp.camera import ISP
from isp_distill.raw.companding import linear_values
from isp_distill.raw.image import RawImage
from isp_distill.raw.pixels import Pixels


def stacked(
    mosaics: Sequence[np.ndarray[Any, Any]], cameras: Sequence[RawImage]
) -> tuple[Tensor, ISP]:
    """A batch of mosaics and its ISP.

    Args:
        mosaics: codes ``[H, W]``, or packed bytes ``[H, bytes]`` where the camera says so.
        cameras: one for each; ``packing`` and ``packed_width`` say how its mosaic is packed.

    Returns:
        uint16 ``[N, H, W]``; or uint8 ``[N, H, bytes]`` where all are packed alike, and ``isp``
        says how. Where some are linear values, float32, so are all.
    """
    if len({mosaic.dtype == np.float32 for mosaic in mosaics}) > 1:
        pairs = list(zip(mosaics, cameras, strict=True))
        mosaics = [_linear(mosaic, camera) for mosaic, camera in pairs]
        cameras = [replace(camera.unpacked(), linearise=None) for camera in cameras]
    ways = {
        (camera.packing, camera.packed_width, mosaic.shape)
        for mosaic, camera in zip(mosaics, cameras, strict=True)
    }
    if len(ways) > 1:
        pairs = list(zip(mosaics, cameras, strict=True))
        mosaics = [_codes(mosaic, camera) for mosaic, camera in pairs]
        cameras = [camera.unpacked() for camera in cameras]
    return torch.from_numpy(np.stack(mosaics)), ISP.from_raw(list(cameras))


def _linear(mosaic: np.ndarray[Any, Any], camera: RawImage) -> np.ndarray[Any, Any]:
    if mosaic.dtype == np.float32:
        return mosaic
    codes = _codes(mosaic, camera)
    if camera.linearise is None:
        return codes.astype(np.float32)
    return linear_values(codes, camera.linearise)


def _codes(mosaic: np.ndarray[Any, Any], camera: RawImage) -> np.ndarray[Any, Any]:
    return Pixels(mosaic, camera.packing, camera.width).codes
