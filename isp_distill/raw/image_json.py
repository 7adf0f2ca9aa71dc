"""A RawImage's fields as compact JSON and back: what decode workers send.

``record_fields.py`` keeps the same in packed folders, with the gains written out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from isp_distill.raw.gain_map import GainMap
from isp_distill.raw.image import RawImage


def fields_of(raw: RawImage) -> dict[str, Any]:
    """Every field but the mosaic, how it is packed, and the path, as JSON can hold it."""
    fields = {f.name: getattr(raw, f.name) for f in dataclasses.fields(raw)}
    # Not the path: it may not be valid Unicode, and whoever reads the fields knows it.
    for name in ("mosaic", "packing", "packed_width", "path"):
        del fields[name]
    # Not where there is none: readers that know no such field read the rest.
    if raw.linearise is None:
        del fields["linearise"]
    if raw.gain_map is not None:
        fields["gain_map"] = raw.gain_map.as_json()
    return fields


def image_fields(stored: dict[str, Any]) -> dict[str, Any]:
    """The fields of a RawImage, less mosaic and path, from their JSON.

    A field that is newer than the JSON has its default.

    Raises:
        KeyError, TypeError, ValueError: the JSON is not what :func:`fields_of` made.
    """
    fields = {
        **stored,
        "black": tuple(stored["black"]),
        "white_balance": tuple(stored["white_balance"]),
        "ccm": None if stored["ccm"] is None else tuple(tuple(row) for row in stored["ccm"]),
    }
    if stored.get("default_crop") is not None:
        fields["default_crop"] = tuple(stored["default_crop"])
    if stored.get("gain_map") is not None:
        fields["gain_map"] = GainMap.from_json(stored["gain_map"])
    return fields
