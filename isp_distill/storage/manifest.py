"""The manifest of a folder of shards: which there are, what each holds, and digests over all of it.

Three digests make sure that what is read is what was written:

- a record's own, over everything that it says, its name and its shard's;
- the manifest's, over what it says beside the records, and over the records' digests;
- in the header of each shard, its name and its records' digests (without the labels, which may
  change while the shard stays).

Readers check the first two when they open a folder, and the third when they open a shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isp_distill.errors import DamagedPackError
from isp_distill.files.atomic import write_atomically
from isp_distill.files.ordinary import check_ordinary
from isp_distill.storage.field_checks import FieldError, shown
from isp_distill.storage.manifest_schema import (
    MOSAICS,
    check_head,
    check_name,
    check_record,
    check_shard,
    check_shard_name,
)
from isp_distill.storage.shards import Shard, make_renames_last, parse_json

MANIFEST = "isp-distill.json"
#: Of manifests and shards. A manifest that says what older readers do not know is of the next one.
VERSION = 2
VERSION_OF_PACKED = 3
VERSION_OF_COMPANDED = 4
_VERSIONS = (VERSION, VERSION_OF_PACKED, VERSION_OF_COMPANDED)
#: The most bytes of a manifest: enough for some 500,000 files.
MAX_BYTES = 512 << 20
_START_ANEW = "restore it, or pack into an empty folder"


def digest_of(*what: Any) -> str:
    """The digest of JSON: BLAKE2b of 128 bits, in hexadecimal, over its one canonical form."""
    text = json.dumps(what, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def record_digest(kind: str, shard: str, name: str, entry: Mapping[str, Any]) -> str:
    """The digest of everything that a record says."""
    said = {key: value for key, value in entry.items() if key != "digest"}
    return digest_of(kind, shard, name, said)


def stored_digest(kind: str, shard: str, name: str, entry: Mapping[str, Any]) -> str:
    """The digest that the header of a shard has of a record: its label may change later."""
    said = {key: value for key, value in entry.items() if key != "label"}
    return record_digest(kind, shard, name, said)


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """The digest of what a manifest says, records by their digests."""
    head = {key: value for key, value in manifest.items() if key not in ("shards", "digest")}
    listed = [
        {**shard, "records": {name: e.get("digest") for name, e in shard["records"].items()}}
        for shard in manifest["shards"]
    ]
    return digest_of(head, listed)


def shard_header(
    kind: str, file: str, made_as: str, records: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What a shard says about itself.

    Args:
        kind: of its records.
        file: its name.
        made_as: what its records have in common beside their kind, as a digest or a name.
        records: the manifest's entries by name.
    """
    known = {name: stored_digest(kind, file, name, entry) for name, entry in records.items()}
    about = {"kind": kind, "version": VERSION, "shard": file, "made_as": made_as}
    return {**about, "records": known}


def mismatched(shard: Shard, kind: str, made_as: str, listed: Mapping[str, Any]) -> dict[str, str]:
    """The records of a shard that are not those that the manifest lists, each with a reason.

    Args:
        shard: opened.
        kind: of its records.
        made_as: see :func:`shard_header`.
        listed: what the manifest says of it.

    Raises:
        DamagedShardError: its header cannot be read.
    """
    about = shard.about()
    file, records = listed["file"], listed["records"]
    wanted = {"kind": kind, "version": VERSION, "shard": file, "made_as": made_as}
    for key, value in wanted.items():
        if about.get(key) != value:
            said = f"its file says that its {key} is {shown(about.get(key))}, not {value!r}"
            return dict.fromkeys(records, f"{file} is another shard: {said}")
    known = about.get("records")
    if not isinstance(known, dict):
        return dict.fromkeys(records, f"{file} does not say what it holds")
    return {
        name: f"{file} holds another record of this name than the manifest says"
        for name, entry in records.items()
        if known.get(name) != stored_digest(kind, file, name, entry)
    }


@dataclass
class Inspected:
    """A manifest, and what is wrong with it.

    Attributes:
        manifest: as it was read, but with the sound records alone.
        head_is_sound: whether what it says beside its records is, and no record is missing.
        faults: all that is wrong, as errors; those of a record name it.
        shard_of: the shard of every faulty record, by its name.
    """

    manifest: dict[str, Any]
    head_is_sound: bool = True
    faults: list[DamagedPackError] = field(default_factory=list)
    shard_of: dict[str, str] = field(default_factory=dict)


def _parsed(folder: Path, kind: str) -> dict[str, Any] | None:
    path = folder / MANIFEST
    try:
        check_ordinary(
            path, lambda _, why: DamagedPackError(folder, None, "the file", why, _START_ANEW)
        )
        size = path.stat().st_size
        if size > MAX_BYTES:
            reason = f"has {size} bytes, more than the {MAX_BYTES} of any that pack writes"
            raise DamagedPackError(folder, None, "the file", reason, _START_ANEW)
        manifest: Any = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except DamagedPackError:
        raise
    except ValueError as error:
        raise DamagedPackError(
            folder, None, "the file", f"is not the JSON that pack writes ({error})", _START_ANEW
        ) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), str):
        raise DamagedPackError(folder, None, "format", "is missing", _START_ANEW)
    found, version = manifest["format"], manifest.get("version")
    if found != kind:
        raise DamagedPackError(
            folder, None, "format", f"is {shown(found)}: expected {kind!r}", _START_ANEW
        )
    if version == 1 and not isinstance(version, bool):
        raise DamagedPackError(
            folder, None, "version",
            "is 1: it was packed by isp-distill 0.1, without digests of what it says",
            "pack its files again, into an empty folder",
        )  # fmt: skip
    if version not in _VERSIONS or not isinstance(version, int):
        reads = f"{VERSION} to {VERSION_OF_COMPANDED}"
        raise DamagedPackError(
            folder, None, "version", f"is {shown(version)}: this isp-distill reads {reads}",
            "install the isp-distill that packed it, or pack into an empty folder",
        )  # fmt: skip
    if not isinstance(manifest.get("shards"), list):
        raise DamagedPackError(folder, None, "shards", "are no list", _START_ANEW)
    return manifest


def inspect_manifest(folder: Path, kind: str) -> Inspected | None:
    """Read a manifest and check all that it says; None where there is none.

    Args:
        folder: with shards.
        kind: what they must hold.

    Raises:
        DamagedPackError: it cannot be read at all, or is of another version.
        OSError: the file cannot be read.
    """
    manifest = _parsed(folder, kind)
    if manifest is None:
        return None
    found = Inspected(manifest)

    def head_fault(error: FieldError) -> None:
        found.head_is_sound = False
        found.faults.append(DamagedPackError(folder, None, error.field, error.reason))

    whole: list[dict[str, Any]] = []
    files: set[str] = set()
    names: set[str] = set()
    highest = -1
    for shard in manifest["shards"]:
        try:
            check_shard(kind, shard)
            highest = max(highest, check_shard_name(shard["file"], kind))
            if shard["file"] in files:
                raise FieldError("file", f"is {shard['file']}, which is listed twice")
        except FieldError as error:
            head_fault(FieldError(f"shards.{error.field}", error.reason))
            continue
        files.add(shard["file"])
        whole.append({**shard, "records": {}})
        for name, entry in shard["records"].items():
            try:
                _check_record(kind, shard, name, entry)
                if name in names:
                    raise FieldError("name", "is in two shards")
            except FieldError as error:
                fault = DamagedPackError(folder, name, error.field, error.reason)
                found.faults.append(fault)
                found.shard_of[name] = shard["file"]
                continue
            names.add(name)
            whole[-1]["records"][name] = entry
    try:
        check_head(kind, manifest)
        if manifest["next"] <= highest:
            raise FieldError("next", f"is {manifest['next']}, but there is a shard {highest}")
        if found.head_is_sound and _digest_as_read(manifest) != manifest["digest"]:
            raise FieldError("digest", "is not that of what it says")
    except FieldError as error:
        head_fault(error)
    manifest["shards"] = [shard for shard in whole if shard["records"]]
    return found


def _check_record(kind: str, shard: dict[str, Any], name: str, entry: Any) -> None:
    check_name(name)
    check_record(kind, entry, shard["bytes"])
    if record_digest(kind, shard["file"], name, entry) != entry["digest"]:
        raise FieldError("digest", "is not that of what it says: a field was changed")


def _digest_as_read(manifest: dict[str, Any]) -> str:
    """The digest, whatever the records are: what is wrong with one is its own fault."""
    shards = []
    for shard in manifest["shards"]:
        records = {}
        for name, entry in shard["records"].items():
            digest = entry.get("digest") if isinstance(entry, dict) else None
            records[name] = {"digest": digest if isinstance(digest, str) else None}
        shards.append({**shard, "records": records})
    return manifest_digest({**manifest, "shards": shards})


def read_manifest(folder: Path, kind: str) -> dict[str, Any] | None:
    """The manifest of a folder, or None where it has none.

    Args:
        folder: with shards.
        kind: what they must hold.

    Raises:
        DamagedPackError: it is none, is damaged, or says what ``pack`` never wrote.
        OSError: the file cannot be read.
    """
    found = inspect_manifest(folder, kind)
    if found is None:
        return None
    if found.faults:
        raise found.faults[0]
    return found.manifest


def _version_of(manifest: dict[str, Any]) -> int:
    """The lowest version that can say it all, so that older readers read what they know."""
    if manifest["format"] == MOSAICS:
        records = [entry for shard in manifest["shards"] for entry in shard["records"].values()]
        if any("linearise" in entry["fields"] for entry in records):
            return VERSION_OF_COMPANDED
        if "packed" in manifest["settings"] or any("packing" in entry for entry in records):
            return VERSION_OF_PACKED
    return VERSION


def write_manifest(folder: Path, manifest: dict[str, Any], *, sealed: bool = True) -> None:
    """Replace the manifest, so that there is always one whole one.

    Args:
        folder: with shards.
        manifest: all of it; gets its version and its digest. Its records have theirs.
        sealed: False where what it says beside its records is known to be damaged: it stays so.

    Raises:
        ValueError: it lists more files than a manifest holds.
        OSError: it cannot be written.
    """
    if sealed:
        manifest["version"] = _version_of(manifest)
    manifest["digest"] = manifest_digest(manifest) if sealed else ""
    text = json.dumps(manifest, allow_nan=False).encode("ascii")
    if len(text) > MAX_BYTES:
        raise ValueError(f"{folder}: too many files for one packed folder: pack into several")
    write_atomically(folder / MANIFEST, text)
    make_renames_last(folder)
