"""What an unpacked file says of its mosaic, where LibRaw, the file's tags or both may know it.

A value comes with its warning, which is None where there is nothing to warn of.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from isp_distill.raw import metadata, tiff
from isp_distill.raw.dng import (
    color as dng_color,
)
from isp_distill.raw.dng import (
    floating_point as dng_float,
)
from isp_distill.raw.dng import (
    levels as dng_levels,
)
from isp_distill.raw.metadata import Blacks, Gains, Matrix
from isp_distill.raw.raw_input import Located


def mosaic_of(
    found: Located,
    decoder: Any,
    head: bytes,
    sensor: tiff.Directory,
    frame: np.ndarray | None = None,
) -> tuple[np.ndarray, str | None]:
    """The visible area, uint16 [H, W], an odd last row or column left out.

    Args:
        found: the file.
        decoder: rawpy's, with the file unpacked.
        head: the file's first 16 bytes.
        sensor: the DNG's directory of the sensor data; empty for other formats.
        frame: the whole sensor, uint16, where it was not LibRaw that decoded it.

    Raises:
        CorruptRawError: a floating-point DNG's samples cannot be read.
        UnsupportedRawError: or are stored in a way that is not known here.
    """
    sizes = decoder.sizes
    if dng_float.is_float(sensor):
        return dng_float.visible_mosaic(found.name, found.file, sizes, head, sensor)
    height, width = sizes.height // 2 * 2, sizes.width // 2 * 2
    if frame is not None:
        top, left = sizes.top_margin, sizes.left_margin
        return np.ascontiguousarray(frame[top : top + height, left : left + width]), None
    # A copy, because LibRaw frees its memory with the decoder.
    return np.array(decoder.raw_image_visible[:height, :width], order="C"), None


def black_of_dng(
    sensor: tiff.Directory, sizes: Any, pattern: str, black: Blacks
) -> tuple[Blacks, str | None]:
    """Black levels of R, Gr, Gb, B on the mosaic's scale.

    Args:
        sensor: the DNG's directory of the sensor data.
        sizes: LibRaw's sizes (rawpy's ``ImageSizes``).
        pattern: of the mosaic.
        black: LibRaw's, where the tags say nothing.

    Raises:
        TagError: a tag that is needed cannot be read.
    """
    floating = dng_float.is_float(sensor)
    if floating:
        black = (0.0, 0.0, 0.0, 0.0)
    black, note = dng_levels.black_of_dng(
        sensor, sizes.top_margin, sizes.left_margin, pattern, black
    )
    if floating:
        scale = dng_float.scale_of(sensor)
        black = (black[0] * scale, black[1] * scale, black[2] * scale, black[3] * scale)
    return black, note


def white_of(
    decoder: Any, sensor: tiff.Directory, black: Blacks, peak: int
) -> tuple[float, str | None]:
    """The level at which the sensor saturates, on the mosaic's scale.

    Args:
        decoder: rawpy's, with the file unpacked.
        sensor: the DNG's directory of the sensor data; empty for other formats.
        black: levels on the mosaic's scale.
        peak: the mosaic's largest value.
    """
    if dng_float.is_float(sensor):
        return dng_float.WHITE, None
    return metadata.white_of(
        decoder.white_level, decoder.camera_white_level_per_channel, black, peak
    )


def colors_of(
    decoder: Any, directories: list[tiff.Directory]
) -> tuple[Gains, Matrix, list[str | None]]:
    """White-balance gains and colour matrix, and their warnings.

    Args:
        decoder: rawpy's, with the file unpacked.
        directories: every directory of the file.

    Raises:
        TagError: a tag that is needed cannot be read.
    """
    dng = tiff.is_dng(directories)
    profile = dng_color.colors_of(directories if dng else [])
    neutral = dng_color.as_shot_neutral(directories, profile) if dng else None
    balance, balance_note = metadata.white_balance_of(
        decoder.camera_whitebalance, neutral, decoder.daylight_whitebalance
    )
    ccm, ccm_note = None, None
    if profile.interpolates() and balance_note is None:
        ccm = dng_color.camera_to_srgb_under(profile, [1 / gain for gain in balance])
    if ccm is None:
        ccm, ccm_note = metadata.ccm_of(profile.daylight(), decoder.rgb_xyz_matrix)
    return balance, ccm, [balance_note, ccm_note]


def camera_of(directories: list[tiff.Directory]) -> str:
    """Make and model as one string, without the make said twice; "" where unknown."""
    make, model = (tiff.find_text(directories, t) for t in (tiff.MAKE, tiff.MODEL))
    if not model:
        return tiff.find_text(directories, tiff.UNIQUE_CAMERA_MODEL) or make
    return model if model.lower().startswith(make.lower()) else f"{make} {model}"


def exposure_of(
    decoder: Any, directories: list[tiff.Directory]
) -> tuple[float | None, float | None]:
    """Exposure time (seconds) and ISO speed: from the tags, else from LibRaw's float32 copy.

    An ISO tag of 65535 means "more than 16 bits" (EXIF 2.3, ISOSpeedRatings): the number is in the
    tag of the kind that SensitivityType names, else LibRaw may know it from the maker's notes.
    """
    other = getattr(decoder, "other", None)
    seconds = (tiff.find(directories, tiff.EXPOSURE_TIME) or (0.0,))[0]
    seconds = seconds or float(getattr(other, "shutter_speed", 0.0) or 0.0)
    iso = (tiff.find(directories, tiff.ISO_SPEED) or (0.0,))[0]
    if iso in (0, 65535):
        long_tags = (
            tiff.RECOMMENDED_EXPOSURE_INDEX,
            tiff.STANDARD_OUTPUT_SENSITIVITY,
            tiff.ISO_SPEED_LONG,
        )
        if (tiff.find(directories, tiff.SENSITIVITY_TYPE) or (0,))[0] in (1, 5):
            long_tags = (long_tags[1], long_tags[0], long_tags[2])
        known = [(tiff.find(directories, tag) or (0.0,))[0] for tag in long_tags]
        known.append(float(getattr(other, "iso_speed", 0.0) or 0.0))
        iso = next((v for v in known if 0 < v < float("inf")), iso)
    return (
        float(seconds) if 0 < seconds < float("inf") else None,
        float(iso) if 0 < iso < float("inf") else None,
    )
