"""A RawImage's fields as JSON, and back: what a packed record and a cached file say of a mosaic."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from isp_distill.raw import image_json as raw_json
from isp_distill.raw.gain_map import GainMap
from isp_distill.raw.image import RawImage


def stored_fields(raw: RawImage) -> dict[str, Any]:
    """The fields of a RawImage as JSON, less its mosaic and path; the gains as lists."""
    fields = raw_json.fields_of(raw)
    if raw.gain_map is not None:
        gains = {f.name: getattr(raw.gain_map, f.name) for f in dataclasses.fields(raw.gain_map)}
        fields["gain_map"] = {**gains, "gains": raw.gain_map.gains.tolist()}
    return fields


def image_fields(stored: dict[str, Any]) -> dict[str, Any]:
    """The fields of a RawImage, less its mosaic and path, from :func:`stored_fields`."""
    gains = stored["gain_map"]
    if gains is not None:
        gains = GainMap(**{**gains, "gains": np.array(gains["gains"], dtype=np.float32)})
    return {**raw_json.image_fields({**stored, "gain_map": None}), "gain_map": gains}


def fields_of_rows(fields: dict[str, Any], top: int, bottom: int) -> dict[str, Any]:
    """A RawImage's fields for rows ``top .. bottom - 1`` alone: what has a place moves with them.

    The default crop is the part of it that is in these rows, or None where none is.
    """
    crop, gains = fields["default_crop"], fields["gain_map"]
    if crop is not None:
        first, last = max(crop[0], top), min(crop[0] + crop[2], bottom)
        crop = (first - top, crop[1], last - first, crop[3]) if first < last else None
    if gains is not None and top:
        gains = dataclasses.replace(gains, top=gains.top - top)
    return {**fields, "default_crop": crop, "gain_map": gains}
