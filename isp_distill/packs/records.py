"""Files and frames on their way into a pack: read ahead of time, each made one record."""

from __future__ import annotations

import collections
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from isp_distill.errors import RawError
from isp_distill.packs.originals import Originals
from isp_distill.packs.packed_pictures import PicturePacker
from isp_distill.packs.writer import Record
from isp_distill.raw.changes import COMPANDED, binned
from isp_distill.raw.image import RawImage
from isp_distill.raw.image import upright as turn_upright
from isp_distill.raw.record_fields import stored_fields
from isp_distill.storage import shards
from isp_distill.storage.field_checks import FieldError
from isp_distill.storage.manifest_schema import check_fields
from isp_distill.storage.mosaic_codec import compress

#: Files as records, or their names and why they are left out.
Decoded = Generator[Record | tuple[str, dict[str, Any]], None, None]


def decoded(
    originals: Originals,
    todo: list[str],
    workers: int,
    settings: dict[str, Any],
    pictures: PicturePacker | None = None,
) -> Decoded:
    """The files in their order, decoded by several threads ahead of time; or why they are not."""
    waiting: collections.deque[Future[Record | tuple[str, dict[str, Any]]]] = collections.deque()
    threads = ThreadPoolExecutor(workers + 1, thread_name_prefix="isp-distill-pack")
    rest = iter(todo)
    try:
        while True:
            # One file more than there are workers: no decoder waits for a checksum.
            while len(waiting) < workers + 2 and (name := next(rest, None)) is not None:
                waiting.append(threads.submit(_decode, originals, name, settings, pictures))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _decode(
    originals: Originals,
    name: str,
    settings: dict[str, Any],
    pictures: PicturePacker | None = None,
) -> Record | tuple[str, dict[str, Any]]:
    """One file, or one frame, as a record, or its name and why it is left out."""
    stamp: dict[str, Any] = {"size": 0, "mtime_ns": 0}
    try:
        # Before decoding: a file that changes meanwhile is noticed next time.
        stamp = originals.stamp(name)
        raw = originals.read(name)
        stored = None
        if pictures is not None:
            stored = pictures.of(originals.file(name), turn_upright(raw), settings["binning"])
    except OSError as error:
        return name, {
            "error": "CorruptRawError",
            "reason": f"cannot be opened: {error.strerror}",
            **stamp,
        }
    except RawError as error:
        return name, {"error": type(error).__name__, "reason": error.reason, **stamp}
    record = _record(name, raw, stamp, settings)
    if stored is not None and isinstance(record, Record):
        record.entry["picture"] = stored.entry
        record = replace(record, picture=stored.array)
    return record


def _record(
    name: str, raw: RawImage, stamp: dict[str, Any], settings: dict[str, Any]
) -> Record | tuple[str, dict[str, Any]]:
    if settings["upright"]:
        raw = turn_upright(raw)
    if settings["binning"] > 1:
        if min(raw.height, raw.width) < 2 * settings["binning"]:
            reason = f"its mosaic of {raw.height} x {raw.width} is too small to bin"
            return name, {"error": "UnsupportedRawError", "reason": reason, **stamp}
        if raw.linearise is not None:
            return name, {"error": "UnsupportedRawError", "reason": COMPANDED, **stamp}
        raw = binned(raw, settings["binning"])
    if settings["compression"] != "none" or not settings.get("packed", True):
        raw = raw.unpacked()
    fields = stored_fields(raw)
    try:
        check_fields(fields, (raw.height, raw.width))
    except FieldError as error:
        return name, {"error": "CorruptRawError", "reason": f"what it says: {error}", **stamp}
    entry: dict[str, Any] = {**stamp, "shape": [raw.height, raw.width], "fields": fields}
    array = raw.mosaic
    if raw.packing is not None:
        entry["packing"] = raw.packing
    if settings["compression"] == "zstd":
        array, entry["bands"] = compress(array)
    entry["checksum"] = shards.digest(array)
    return Record(name, array, entry)
