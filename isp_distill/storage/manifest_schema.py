"""What a manifest may say: the type and the range of every field of it.

A manifest is a file, and files are damaged and edited. Whoever reads one may rely on what is
checked here: no index, count or size leads outside of its shard, and no name outside of its folder.
"""

from __future__ import annotations

import itertools
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from isp_distill.raw.metadata import PATTERNS
from isp_distill.raw.refusals import MAX_PIXELS
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

Check = Callable[[Any, str], None]

_COUNT = 1 << 62
_LEVEL = 1e9
_TEXT = 1 << 16


class FieldError(ValueError):
    """A field is not what it must be.

    Args:
        field: its name, with dots between the names of nested ones.
        reason: what is wrong, to be said after the name.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field, self.reason = field, reason


def shown(value: object) -> str:
    """A value for an error: short, however long or deeply nested the value is."""
    return reprlib.repr(value)


def whole(low: int, high: int) -> Check:
    """An integer in a range; true and false are no integers."""

    def check(value: Any, field: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise FieldError(field, f"is {shown(value)}: expected an integer in {low}..{high}")

    return check


def number(low: float, high: float) -> Check:
    """A finite number in a range."""

    def check(value: Any, field: str) -> None:
        ours = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not ours or not low <= value <= high:  # NaN is in no range
            raise FieldError(field, f"is {shown(value)}: expected a number in {low:g}..{high:g}")

    return check


def _flag(value: Any, field: str) -> None:
    if not isinstance(value, bool):
        raise FieldError(field, f"is {shown(value)}: expected true or false")


def _text(value: Any, field: str) -> None:
    if not isinstance(value, str) or len(value) > _TEXT or "\0" in value:
        raise FieldError(field, f"is {shown(value)}: expected a text")


def _hexadecimal(value: Any, field: str) -> None:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{32}", value):
        raise FieldError(field, f"is {shown(value)}: expected 32 hexadecimal digits")


def one_of(*allowed: str) -> Check:
    """One of some texts."""

    def check(value: Any, field: str) -> None:
        if not isinstance(value, str) or value not in allowed:
            raise FieldError(field, f"is {shown(value)}: expected one of {', '.join(allowed)}")

    return check


def optional(of: Check) -> Check:
    """Null, or what another check allows."""

    def check(value: Any, field: str) -> None:
        if value is not None:
            of(value, field)

    return check


def listed(of: Check, low: int, high: int) -> Check:
    """A list of a length in a range, every item of which passes a check."""

    def check(value: Any, field: str) -> None:
        if not isinstance(value, (list, tuple)) or not low <= len(value) <= high:
            length = f"{low}" if low == high else f"{low} to {high}"
            raise FieldError(field, f"is {shown(value)}: expected a list of {length}")
        for item in value:
            of(item, field)

    return check


def table(fields: Mapping[str, Check], also: Mapping[str, Check] | None = None) -> Check:
    """An object with exactly these fields; those of ``also`` may be missing."""
    every = {**fields, **(also or {})}

    def check(value: Any, field: str) -> None:
        before = f"{field}." if field else ""
        if not isinstance(value, dict):
            raise FieldError(field, f"is {shown(value)}: expected an object")
        for name in fields:
            if name not in value:
                raise FieldError(before + name, "is missing")
        for name, item in value.items():
            if name not in every:
                raise FieldError(before + shown(name), "is none that pack writes")
            every[name](item, before + name)

    return check


def plain(depth: int) -> Check:
    """Any JSON that is nested no deeper."""

    def check(value: Any, field: str) -> None:
        if isinstance(value, (dict, list, tuple)):
            if depth == 0:
                raise FieldError(field, "is nested too deep")
            items = value.values() if isinstance(value, dict) else value
            for item in items:
                plain(depth - 1)(item, field)
        elif isinstance(value, float) and not math.isfinite(value):
            raise FieldError(field, f"is {value}: expected a finite number")

    return check


def _object(value: Any, field: str) -> None:
    if not isinstance(value, dict):
        raise FieldError(field, f"is {shown(value)}: expected an object")


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

#: The fields of a RawImage that a record has.
_FIELDS = table(
    {
        "pattern": one_of(*PATTERNS),
        "black": listed(number(-_LEVEL, _LEVEL), 4, 4),
        "white": number(-_LEVEL, _LEVEL),
        "white_balance": listed(number(0, _LEVEL), 3, 3),
        "ccm": listed(listed(number(-_LEVEL, _LEVEL), 3, 3), 3, 3),
        "orientation": whole(1, 8),
        "camera": _text,
        "exposure_time": optional(number(0, _LEVEL)),
        "iso": optional(number(0, _LEVEL)),
        "default_crop": optional(listed(whole(0, 1 << 30), 4, 4)),
        "baseline_exposure": number(-1000, 1000),
        "gain_map": optional(_GAIN_MAP),
    }
)


def check_fields(fields: Any, shape: tuple[int, int]) -> None:
    """The fields of a mosaic of this shape.

    Raises:
        FieldError: one of them cannot be.
    """
    _FIELDS(fields, "fields")
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
_FORMAT: dict[str, Check] = {"format": _hexadecimal}
#: The fields of a record that tell whether its file, or what describes it, has changed.
STAMP = (*_STAMP, *_FORMAT)

#: A camera's picture of a mosaic, and how it lies over it.
_PICTURE = table({
    "shape": listed(whole(1, MAX_PIXELS), 2, 2), "orientation": whole(1, 8),
    "scale": number(1e-6, 1e6), "shift": listed(number(-_LEVEL, _LEVEL), 2, 2),
    "residual": number(0, _LEVEL), "nbytes": whole(1, _COUNT), "checksum": _hexadecimal,
})  # fmt: skip

_MOSAIC = table(
    {
        **_STAMP,
        "shape": listed(whole(2, MAX_PIXELS), 2, 2),
        "fields": _object,
        "checksum": _hexadecimal,
        "label": optional(whole(-(1 << 63), (1 << 63) - 1)),
        "key": _text,
        "nbytes": whole(1, _COUNT),
        "digest": _hexadecimal,
    },
    {"bands": listed(whole(0, _COUNT), 2, MAX_PIXELS), "picture": _PICTURE, **_FORMAT},
)
_LOGITS_ROW = table(
    {"row": whole(0, 1 << 20), "mosaic": _hexadecimal, "digest": _hexadecimal},
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
    bands = entry.get("bands")
    if bands is None:
        if entry["nbytes"] != 2 * height * width:
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


_SHARD: dict[str, Check] = {"bytes": whole(1, _COUNT), "records": _object}
_SHARDS = {
    MOSAICS: table({"file": _text, **_SHARD}),
    LOGITS: table({"file": _text, "checksums": _object, **_SHARD}),
}


def check_shard(kind: str, shard: Any) -> None:
    """What a manifest says of a shard, less its records.

    Raises:
        FieldError: it is none that ``pack`` writes.
    """
    _SHARDS[kind](shard, "")
    check_shard_name(shard["file"], kind)
    for checksum in shard.get("checksums", {}).values():
        _hexadecimal(checksum, "checksums")


SETTINGS = table(
    {"upright": _flag, "binning": whole(1, 1 << 15), "compression": one_of(*COMPRESSIONS)},
    {"picture": _text, "picture_side": optional(whole(32, MAX_PIXELS))},
)
_SKIPPED = table({"error": _text, "reason": _text, **_STAMP}, _FORMAT)
_ALL: dict[str, Check] = {
    "format": _text,
    "version": whole(0, 1 << 30),
    "shards": plain(1 << 30),
    "next": whole(0, 10**18),
    "digest": _hexadecimal,
}
_HEADS = {
    MOSAICS: table(
        {
            **_ALL,
            "settings": SETTINGS,
            "source": _text,
            "classes": listed(_text, 0, 1 << 30),
            "skipped": _object,
            "complete": _flag,
        }
    ),
    LOGITS: table(
        {
            **_ALL,
            "teacher": _object,
            "views": _object,
            "columns": listed(_text, len(COLUMNS), len(COLUMNS)),
            "output": optional(listed(whole(1, MAX_LOGITS), 1, 8)),
        }
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
