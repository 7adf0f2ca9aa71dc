"""Changes to a RawImage's values: binning, and the correction of its lens shading.

Moves of the mosaic (``upright``, ``crop``) are in ``image.py``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isp_distill.raw import framing
from isp_distill.raw.binning import bin_mosaic
from isp_distill.raw.companding import linear_values
from isp_distill.raw.image import RawImage

#: Why an image of companded codes is not binned.
COMPANDED = (
    "its codes are companded, and binned ones would be linear values, which 16 bits do not hold: "
    "do not bin it here; views of it are binned as they are cut, View(crop, binning=...)"
)


def binned(raw: RawImage, factor: int) -> RawImage:
    """Average ``factor`` x ``factor`` sites of one colour into one, as a sensor's binning does.

    Gain map and default crop follow, the latter rounded to whole sites.

    Args:
        raw: any image.
        factor: 1 or more; sites that do not fill a block are cut.

    Raises:
        ValueError: less than one period is left, or the codes are companded: their mean is not the
            code of the mean, and a mosaic of 16 bits does not hold linear values.
    """
    if factor < 1 or min(raw.height, raw.width) < 2 * factor:
        raise ValueError(f"a mosaic of {raw.height}x{raw.width} cannot be binned by {factor}")
    if factor > 1 and raw.linearise is not None:
        raise ValueError(COMPANDED)
    raw = raw.unpacked()
    mosaic = bin_mosaic(raw.mosaic, factor)
    return replace(
        raw,
        mosaic=mosaic,
        default_crop=framing.binned(raw.default_crop, factor, *mosaic.shape),
        gain_map=None if raw.gain_map is None else raw.gain_map.scaled(factor, factor),
    )


def binned_values(raw: RawImage, factor: int) -> tuple[np.ndarray, RawImage]:
    """The mosaic of :func:`binned`, also where codes are companded, and its camera.

    Args:
        raw: any image.
        factor: as there.

    Returns:
        uint16 ``[h, w]``, or linear values, float32, of companded codes. The camera's own mosaic
        means nothing, and it has no curve where linear values are returned.

    Raises:
        ValueError: less than one period is left.
    """
    if raw.linearise is None:
        small = binned(raw, factor)
        return small.mosaic, small
    values = bin_mosaic(linear_values(raw.pixels.codes, raw.linearise), factor)
    camera = replace(raw.unpacked(), linearise=None, default_crop=None)
    return values, binned(camera, factor)


def corrected(raw: RawImage) -> RawImage:
    """Apply the gain map to the mosaic, so that whatever reads it sees even light.

    Values are rounded to uint16 and stop at the white level: see :meth:`GainMap.apply`.

    Args:
        raw: any image.

    Returns:
        The corrected picture without a gain map; ``raw`` itself where it has none.

    Raises:
        ValueError: the codes are companded; a gain is of linear values.
    """
    if raw.gain_map is None:
        return raw
    if raw.linearise is not None:
        raise ValueError(
            "its codes are companded, and a gain map is of linear values: leave the correction to "
            "render, gain_map=False"
        )
    mosaic = raw.gain_map.apply(raw.pixels.codes, raw.pattern, raw.black, raw.white)
    return replace(raw.unpacked(), mosaic=mosaic, gain_map=None)
