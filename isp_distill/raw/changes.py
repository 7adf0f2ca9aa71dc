"""Changes to a RawImage's values: binning, and the correction of its lens shading.

Moves of the mosaic (``upright``, ``crop``) are in ``image.py``.
"""

from __future__ import annotations

from dataclasses import replace

from isp_distill.raw import framing
from isp_distill.raw.binning import bin_mosaic
from isp_distill.raw.image import RawImage


def binned(raw: RawImage, factor: int) -> RawImage:
    """Average ``factor`` x ``factor`` sites of one colour into one, as a sensor's binning does.

    Gain map and default crop follow, the latter rounded to whole sites.

    Args:
        raw: any image.
        factor: 1 or more; sites that do not fill a block are cut.

    Raises:
        ValueError: less than one period is left.
    """
    if factor < 1 or min(raw.mosaic.shape) < 2 * factor:
        raise ValueError(f"a mosaic of {raw.height}x{raw.width} cannot be binned by {factor}")
    mosaic = bin_mosaic(raw.mosaic, factor)
    return replace(
        raw,
        mosaic=mosaic,
        default_crop=framing.binned(raw.default_crop, factor, *mosaic.shape),
        gain_map=None if raw.gain_map is None else raw.gain_map.scaled(factor, factor),
    )


def corrected(raw: RawImage) -> RawImage:
    """Apply the gain map to the mosaic, so that whatever reads it sees even light.

    Values are rounded to uint16 and stop at the white level: see :meth:`GainMap.apply`.

    Args:
        raw: any image.

    Returns:
        The corrected picture without a gain map; ``raw`` itself where it has none.
    """
    if raw.gain_map is None:
        return raw
    mosaic = raw.gain_map.apply(raw.mosaic, raw.pattern, raw.black, raw.white)
    return replace(raw, mosaic=mosaic, gain_map=None)
