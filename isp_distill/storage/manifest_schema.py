"""What a manifest may say: the type and the range of every field of it.

A manifest is a file, and files are damaged and edited. Whoever reads one may rely on what is
checked here: no index, count or size leads outside of its shard, and no name outside of its folder.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isp_distill.raw.companding import curve_of
from isp_distill.raw.filters import KNOWN, filter_of
from isp_distill.raw.packings import PACKED, row_bytes
from isp_distill.raw.tiff import MAX_PIXELS
from isp_distill.storage.field_checks import (
    Check,
    FieldError,
    any_object,
    flag,
    hexadecimal,
    listed,
    number,
    one_of,
    optional,
    plain,
    shown,
    table,
    text,
    whole,
)
from isp_distill.storage.mosaic_codec import BAND_ROWS

#: What the shards of a folder can hold.
MOSAICS = "isp-distill mosaics"
LOGITS = "isp-distill logits"
PREFIXES = {MOSAICS: "shard", LOGITS: "logits"}
#: The numbers that a stored view is: those of a :class:`isp_distill.data.draw.Draw` (an area of NaN
#: is None), and factors on the exposure and the red and blue gains of the teacher's ISP.
COLUMNS = ("down", "right", "mirror", "flip", "area", "ratio", "exposure", "red", "blue")
COMPRESSIONS = ("none", "zstd")
#: The most numbers that the logits of one view may have: 1 GiB as float32.
MAX_LOGITS = 1 << 28

_COUNT = 1 << 62
_LEVEL = 1e9


def check_name(name: str, *, folder: bool = False) -> None:
    """A record's name: a path below the source folder, with forward slashes.

    Args:
        name: from a manifest.
        folder: the source folder itself is one, too.

    Raises:
        FieldError: it would lead out of the folder, or is no path.
    """
    parts = name.split("/")
    own = folder and name == "."
    if (
        not own and (not set(parts).isdisjoint({"", ".", ".."}) or "\0" in name or len(name) > 4096)
    ) or Path(name).drive:
        raise FieldError("name", f"is {shown(name)}: expected a path below the source folder")


def check_shard_name(name: Any, kind: str) -> int:
    """The number in a shard's name.

    Raises:
        FieldError: ``pack`` gives no such name.
    """
    found = None
    if isinstance(name, str):
        found = re.fullmatch(rf"{PREFIXES[kind]}-([0-9]{{6,18}})\.safetensors", name)
    if found is None:
        raise FieldError("file", f"is {shown(name)}: expected a name as pack gives them")
    return int(found[1])


_GAIN_MAP = table(
    {
        "gains": listed(listed(listed(number(1e-30, 1e30), 1, 4096), 1, 4096), 4, 4),
        "top": number(-_LEVEL, _LEVEL),
        "left": number(-_LEVEL, _LEVEL),
        "step_y": number(1e-9, _LEVEL),
        "step_x": number(1e-9, _LEVEL),
    }
)


def _curve(value: Any, field: str) -> None:
    """A companding sensor's curve: knots, or a table."""
    try:
        if value is None:
            raise ValueError("is null")
        curve_of(value)
    except (TypeError, ValueError) as error:
        raise FieldError(field, f"is {shown(value)}: {error}") from error


_FIELDS = table(
    {
        "pattern": one_of(*KNOWN),
        "black": listed(number(-_LEVEL, _LEVEL), 4, 4),
        "white": number(-_LEVEL, _LEVEL),
        "white_balance": listed(number(0, _LEVEL), 3, 3),
        "ccm": optional(listed(listed(number(-_LEVEL, _LEVEL), 1, 4), 3, 3)),
        "orientation": whole(1, 8),
        "camera": text,
        "exposure_time": optional(number(0, _LEVEL)),
        "iso": optional(number(0, _LEVEL)),
        "default_crop": optional(listed(whole(0, 1 << 30), 4, 4)),
        "baseline_exposure": number(-1000, 1000),
        "gain_map": optional(_GAIN_MAP),
    },
    {"linearise": _curve},
)


def check_fields(fields: Any, shape: tuple[int, int]) -> None:
    """The fields of a mosaic of this shape.

    Raises:
        FieldError: one of them cannot be.
    """
    _FIELDS(fields, "fields")
    if {len(r) for r in fields["ccm"] or ()} - {columns := filter_of(fields["pattern"]).columns}:
        raise FieldError("fields.ccm", f"has rows of another length than {columns}")
    if not max(fields["black"]) < fields["white"]:
        raise FieldError(
            "fields.white", f"is {fields['white']}, which is not above {shown(fields['black'])}"
        )
    if fields["default_crop"] is not None:
        top, left, height, width = fields["default_crop"]
        if min(height, width) < 1 or top + height > shape[0] or left + width > shape[1]:
            raise FieldError(
                "fields.default_crop",
                f"is {shown(fields['default_crop'])}: expected a part of {shape[0]} x {shape[1]}",
            )
    gains = fields["gain_map"]
    if gains is not None and len({len(row) for plane in gains["gains"] for row in plane}) > 1:
        raise FieldError("fields.gain_map.gains", "has rows of several lengths")
    if gains is not None and len({len(plane) for plane in gains["gains"]}) > 1:
        raise FieldError("fields.gain_map.gains", "has planes of several heights")


_STAMP = {"size": whole(0, _COUNT), "mtime_ns": whole(-_COUNT, _COUNT)}
# Of a sensor dump: a digest of its description.
_FORMAT: dict[str, Check] = {"format": hexadecimal}
#: The fields of a record that tell whether its file, or what describes it, has changed.
STAMP = (*_STAMP, *_FORMAT)

#: A camera's picture of a mosaic, and how it lies over it.
_PICTURE = table({
    "shape": listed(whole(1, MAX_PIXELS), 2, 2), "orientation": whole(1, 8),
    "scale": number(1e-6, 1e6), "shift": listed(number(-_LEVEL, _LEVEL), 2, 2),
    "residual": number(0, _LEVEL), "nbytes": whole(1, _COUNT), "checksum": hexadecimal,
})  # fmt: skip

_MOSAIC = table(
    {
        **_STAMP,
        "shape": listed(whole(2, MAX_PIXELS), 2, 2),
        "fields": any_object,
        "checksum": hexadecimal,
        "label": optional(whole(-(1 << 63), (1 << 63) - 1)),
        "key": text,
        "nbytes": whole(1, _COUNT),
        "digest": hexadecimal,
    },
    {
        "bands": listed(whole(0, _COUNT), 2, MAX_PIXELS),
        "packing": one_of(*PACKED),
        "picture": _PICTURE,
        **_FORMAT,
    },
)
_LOGITS_ROW = table(
    {"row": whole(0, 1 << 20), "mosaic": hexadecimal, "digest": hexadecimal},
)


def check_record(kind: str, entry: Any, shard_bytes: int) -> None:
    """One record, against itself and the bytes of its shard.

    Raises:
        FieldError: it is none that ``pack`` writes.
    """
    if kind == LOGITS:
        _LOGITS_ROW(entry, "")
        return
    _MOSAIC(entry, "")
    height, width = entry["shape"]
    if height % 2 or width % 2 or height * width > MAX_PIXELS:
        raise FieldError(
            "shape", f"is {shown(entry['shape'])}: expected even sides of up to {MAX_PIXELS} pixels"
        )
    check_fields(entry["fields"], (height, width))
    if entry["nbytes"] > shard_bytes:
        raise FieldError("nbytes", f"is {entry['nbytes']}, but its shard has {shard_bytes} bytes")
    bands, packing = entry.get("bands"), entry.get("packing")
    if packing is not None and bands is not None:
        raise FieldError("packing", f"is {packing}, of a record that is compressed")
    if bands is None:
        row = 2 * width if packing is None else row_bytes(width, packing)
        if entry["nbytes"] != row * height:
            raise FieldError(
                "shape", f"is {shown(entry['shape'])}, but {entry['nbytes']} bytes are stored"
            )
        return
    rising = all(a < b for a, b in itertools.pairwise(bands))
    if len(bands) != -(-height // BAND_ROWS) + 1 or not rising or bands[0] != 0:
        raise FieldError(
            "bands", f"are {shown(bands)}: expected the rising offsets of {height} rows' bands"
        )
    if bands[-1] != entry["nbytes"]:
        raise FieldError("bands", f"end at {bands[-1]}, but {entry['nbytes']} bytes are stored")


_SHARD: dict[str, Check] = {"bytes": whole(1, _COUNT), "records": any_object}
_SHARDS = {
    MOSAICS: table({"file": text, **_SHARD}),
    LOGITS: table({"file": text, "checksums": any_object, **_SHARD}),
}


def check_shard(kind: str, shard: Any) -> None:
    """What a manifest says of a shard, less its records.

    Raises:
        FieldError: it is none that ``pack`` writes.
    """
    _SHARDS[kind](shard, "")
    check_shard_name(shard["file"], kind)
    for checksum in shard.get("checksums", {}).values():
        hexadecimal(checksum, "checksums")


SETTINGS = table(
    {"upright": flag, "binning": whole(1, 1 << 15), "compression": one_of(*COMPRESSIONS)},
    {"packed": flag, "picture": text, "picture_side": optional(whole(32, MAX_PIXELS))},
)
_SKIPPED = table({"error": text, "reason": text, **_STAMP}, _FORMAT)
_ALL: dict[str, Check] = {
    "format": text,
    "version": whole(0, 1 << 30),
    "shards": plain(1 << 30),
    "next": whole(0, 10**18),
    "digest": hexadecimal,
}
_SHAPE = listed(whole(1, MAX_LOGITS), 1, 8)
_HEADS = {
    MOSAICS: table(
        {
            **_ALL,
            "settings": SETTINGS,
            "source": text,
            "classes": listed(text, 0, 1 << 30),
            "skipped": any_object,
            "complete": flag,
        }
    ),
    LOGITS: table(
        {
            **_ALL,
            "teacher": any_object,
            "views": any_object,
            "columns": listed(text, len(COLUMNS), len(COLUMNS)),
            "output": optional(_SHAPE),
        },
        {"features": optional(listed(_SHAPE, 0, 256))},
    ),
}


def check_head(kind: str, manifest: Mapping[str, Any]) -> None:
    """What a manifest says beside its shards.

    Raises:
        FieldError: it is none that ``pack`` writes.
    """
    _HEADS[kind]({**manifest, "shards": []}, "")
    if kind == MOSAICS:
        for name, why in manifest["skipped"].items():
            check_name(name, folder=True)
            _SKIPPED(why, "skipped")
        return
    plain(3)(manifest["teacher"], "teacher")
    plain(3)(manifest["views"], "views")
    views = manifest["views"]
    for name, low, high in (("views", 1, 1 << 20), ("seed", 0, _COUNT), ("top", 0, MAX_LOGITS)):
        whole(low, high)(views.get(name), f"views.{name}")
    names = views.get("features", [])
    listed(text, 0, 256)(names, "views.features")
    shapes = manifest.get("features")
    if shapes is not None and len(shapes) != len(names):
        raise FieldError("features", f"are {len(shapes)}, and {len(names)} have a name")
    for shape in shapes or ():
        check_output(shape)
    if tuple(manifest["columns"]) != COLUMNS:
        raise FieldError("columns", f"are {shown(manifest['columns'])}: expected {COLUMNS}")
    check_output(manifest["output"])


def check_output(output: Any) -> None:
    """The shape of one view's logits, or None where nothing is stored yet.

    Raises:
        FieldError: it has more numbers than a view's logits may.
    """
    if output is not None and math.prod(output) > MAX_LOGITS:
        raise FieldError("output", f"is {shown(output)}: expected up to {MAX_LOGITS} numbers")
