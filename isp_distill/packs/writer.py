"""The writing side of a packed folder: what is in it, what is still to do, the shard being filled.

:mod:`isp_distill.storage.shards` has the rules that keep the folder whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isp_distill.errors import RawError
from isp_distill.packs.originals import Originals
from isp_distill.packs.packed_pictures import key_of
from isp_distill.storage import shards
from isp_distill.storage.field_checks import FieldError
from isp_distill.storage.manifest import (
    MANIFEST,
    VERSION,
    digest_of,
    inspect_manifest,
    mismatched,
    record_digest,
    shard_header,
    write_manifest,
)
from isp_distill.storage.manifest_schema import (
    MOSAICS,
    PREFIXES,
    SETTINGS,
    STAMP,
    check_shard_name,
)

PREFIX = PREFIXES[MOSAICS]
# A shard is written anew once less than this share of it is still in use.
_LIVE_SHARE = 0.5
# The error of a folder that could not be listed.
_UNLISTED = "OSError"


@dataclass(frozen=True)
class Record:
    """One decoded file on its way into a shard.

    Attributes:
        name: its path below the source folder.
        array: what is stored: uint16 ``[H, W]``, uint8 ``[H, bytes]`` where it is packed, or uint8
            ``[bytes]`` where it is compressed.
        entry: what the manifest says of it.
        picture: the camera's own, as bytes of a JPEG, uint8 ``[n]``, or None.
    """

    name: str
    array: np.ndarray
    entry: dict[str, Any]
    picture: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """What is stored of it, in bytes."""
        return self.array.nbytes + (0 if self.picture is None else self.picture.nbytes)


class PackWriter:
    """A packed folder, opened for writing by the process that holds its lock.

    Args:
        folder: the packed folder.
        root: the source folder.
        settings: how mosaics are stored; the same for all of them.
        limit: bytes of a shard.

    Attributes:
        records: the manifest's entries by name.
        skipped: why a file is left out, by name.
        missing: names that are packed and no longer in the source folder.
        unseen: names that are packed, below a folder that could not be listed.
        damaged: records that were there and could not be used, each with the reason. They are
            written anew where their files are still there.
        added: records written by this writer.

    Raises:
        DamagedPackError: the folder's manifest cannot be read, or is of another version.
        ValueError: the folder has other settings.
    """

    def __init__(self, folder: Path, root: Path, settings: dict[str, Any], limit: int) -> None:
        self.folder, self.root, self._limit = folder, root, limit
        self.damaged: dict[str, str] = {}
        found = inspect_manifest(folder, MOSAICS)
        if found is None:
            if folder.is_dir() and shards.shard_files(folder, PREFIX):
                raise ValueError(
                    f"{folder}: holds shards but no {MANIFEST}; restore it, or pack into "
                    "an empty folder"
                )
            manifest = _new_manifest(settings)
        else:
            manifest = found.manifest
            self.damaged = {f.record: f.reason for f in found.faults if f.record is not None}
            if not found.head_is_sound:
                # What it says of all of them comes from this call; what the shards say of their
                # settings decides which records stay.
                manifest = {**_new_manifest(settings), "shards": manifest["shards"]}
                manifest["next"] = _next_number(folder)
        changed = [
            f"{k} was {manifest['settings'].get(k)!r}, is {settings.get(k)!r}"
            for k in dict.fromkeys([*settings, *manifest["settings"]])
            if manifest["settings"].get(k) != settings.get(k)
        ]
        if changed:
            raise ValueError(
                f"{folder}: was packed with other settings ({'; '.join(changed)}): pack into "
                "another folder"
            )
        self._manifest = manifest
        self._manifest["source"] = str(root.resolve())
        self._shard_of = {name: s for s in manifest["shards"] for name in s["records"]}
        self._labels: dict[str, int | None] = {}
        self._waiting: list[Record] = []
        self._bytes = 0
        self.missing: list[str] = []
        self.unseen: list[str] = []
        self.added = 0

    @property
    def records(self) -> dict[str, Any]:
        """The entries that are in the folder, by name."""
        return {name: shard["records"][name] for name, shard in self._shard_of.items()}

    @property
    def skipped(self) -> dict[str, dict[str, Any]]:
        """Files left out: error, reason and stamp, by name."""
        skipped: dict[str, dict[str, Any]] = self._manifest["skipped"]
        return skipped

    @property
    def stored_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard["bytes"] for shard in self._manifest["shards"])

    def begin(self, originals: Originals, prune: bool) -> list[str]:
        """Compare the folder with its source; the names to decode, in their order.

        Args:
            originals: what there is. While folders of it could not be listed, nothing is dropped
                that lies in a file which was not seen: it may still be there.
            prune: drop records that are no longer there.

        Raises:
            OSError: the system cannot read a shard now.
        """
        for shard in list(self._manifest["shards"]):
            for name, reason in self._unusable(shard).items():
                self.damaged[name] = reason
                self._drop(name)
        names, unlisted = originals.names, originals.unlisted
        present = set(names)
        for name in [n for n, why in self.skipped.items() if why["error"] == _UNLISTED]:
            del self.skipped[name]  # of the last call
        for name in set(self._shard_of) - present:
            if originals.is_seen(name):
                self._drop(name)  # its file is there, and holds it no longer
        for name in set(self.skipped) - present:
            if originals.is_seen(name):
                del self.skipped[name]
        gone = sorted(set(self._shard_of) - present)
        if unlisted:
            self.unseen = [name for name in gone if _is_below(name, unlisted)]
            self.missing = sorted(set(gone) - set(self.unseen))
        else:
            self.missing = [] if prune else gone
            for name in gone if prune else ():
                self._drop(name)
            for name in set(self.skipped) - present:
                del self.skipped[name]
        for name, reason in unlisted.items():
            self.skipped[name] = {"error": _UNLISTED, "reason": reason, "size": 0, "mtime_ns": 0}
        self.skipped.update(originals.refused)
        todo = [name for name in names if not self._is_done(originals, name)]
        self.names = [*names, *self.missing, *self.unseen]
        self._manifest["complete"] = False
        # Before the first shard: a folder with shards always has a manifest.
        self._write()
        return todo

    def _unusable(self, shard: dict[str, Any]) -> dict[str, str]:
        """Records whose shard is gone, or is another one: each with the reason."""
        try:
            opened = shards.Shard(self.folder / shard["file"], shard["bytes"])
            return mismatched(opened, MOSAICS, digest_of(self._manifest["settings"]), shard)
        except shards.UnreadableShardError as error:
            # It may be there again tomorrow: its records stay.
            raise OSError(
                f"{self.folder}: {error}; make it readable, or drop what is in it with "
                "isp-distill verify --drop"
            ) from error
        except shards.DamagedShardError as error:
            return dict.fromkeys(shard["records"], str(error))

    def _is_done(self, originals: Originals, name: str) -> bool:
        entry = self.records_entry(name)
        if entry is None:
            entry = self.skipped.get(name)
            # A damaged file, or a decoder that died, deserves another try; X-Trans stays X-Trans.
            if entry is None or entry["error"] != "UnsupportedRawError":
                return False
        try:
            stamp = originals.stamp(name)
        except (OSError, RawError):
            return False
        return all(entry.get(key) == stamp.get(key) for key in STAMP)

    def records_entry(self, name: str) -> dict[str, Any] | None:
        """The manifest's entry of one file, or None."""
        shard = self._shard_of.get(name)
        entry: dict[str, Any] | None = None if shard is None else shard["records"][name]
        return entry

    def label(self, classes: list[str], labels: list[int] | None) -> None:
        """Give every file its label, and every record that is there already.

        Args:
            classes: names of the classes; empty where labels are not folders.
            labels: of ``names``, or None.
        """
        self._manifest["classes"] = classes
        values = [None] * len(self.names) if labels is None else labels
        self._labels = dict(zip(self.names, values, strict=True))
        for name, shard in self._shard_of.items():
            entry = shard["records"][name]
            if entry["label"] != self._labels[name]:
                entry["label"] = self._labels[name]
                entry["digest"] = record_digest(MOSAICS, shard["file"], name, entry)

    def add(self, record: Record | tuple[str, dict[str, Any]]) -> None:
        """Take a decoded file, or the name of one that is left out and why."""
        if isinstance(record, tuple):
            name, why = record
            self._drop(name)
            self.skipped[name] = why
            return
        self.skipped.pop(record.name, None)
        record.entry["label"] = self._labels.get(record.name)
        self._waiting.append(record)
        self._bytes += record.nbytes
        self.added += 1
        if self._bytes >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Write the files that wait as one shard, then the manifest that lists it."""
        if not self._waiting:
            return
        # Counted up for good: the name of a shard that the manifest on the disk still lists must
        # not be written over.
        name = f"{PREFIX}-{self._manifest['next']:06}.safetensors"
        self._manifest["next"] += 1
        entries: dict[str, Any] = {}
        for key, record in enumerate(self._waiting):
            entry = {**record.entry, "key": str(key), "nbytes": record.array.nbytes}
            entry["digest"] = record_digest(MOSAICS, name, record.name, entry)
            entries[record.name] = entry
        arrays = {str(key): record.array for key, record in enumerate(self._waiting)}
        for record in self._waiting:
            if record.picture is not None:
                arrays[key_of(entries[record.name])] = record.picture
        about = shard_header(MOSAICS, name, digest_of(self._manifest["settings"]), entries)
        size = shards.write_shard(self.folder, name, arrays, about)
        shard = {"file": name, "bytes": size, "records": entries}
        for record in self._waiting:
            # A file that had changed: its old record goes in the same step.
            self._drop(record.name)
            self._shard_of[record.name] = shard
        self._manifest["shards"].append(shard)
        self._waiting, self._bytes = [], 0
        self._write()

    def end(self) -> None:
        """Rewrite shards that hold little of use, mark the folder complete, clear away the rest."""
        for entry in list(self._manifest["shards"]):
            live = sum(_live_bytes(record) for record in entry["records"].values())
            if live >= _LIVE_SHARE * entry["bytes"]:
                continue
            try:
                shard = shards.Shard(self.folder / entry["file"], entry["bytes"])
                self._waiting = [
                    Record(name, shard.array(record["key"]), record, _picture(shard, record))
                    for name, record in entry["records"].items()
                ]
            except shards.DamagedShardError:
                continue  # verify will say so
            self.flush()
        self._manifest["complete"] = True
        self._write()

    def _drop(self, name: str) -> None:
        shard = self._shard_of.pop(name, None)
        if shard is not None:
            del shard["records"][name]
            if not shard["records"]:
                kept = [other for other in self._manifest["shards"] if other is not shard]
                self._manifest["shards"] = kept

    def _write(self) -> None:
        write_manifest(self.folder, self._manifest)
        shards.delete_unlisted(self.folder, self._manifest, PREFIX)


def _live_bytes(record: Mapping[str, Any]) -> int:
    """What of a shard is a record's."""
    return int(record["nbytes"]) + int(record.get("picture", {}).get("nbytes", 0))


def _picture(shard: shards.Shard, record: dict[str, Any]) -> np.ndarray | None:
    return shard.array(key_of(record)) if "picture" in record else None


def _new_manifest(settings: dict[str, Any]) -> dict[str, Any]:
    """The manifest of an empty folder.

    Raises:
        FieldError: a setting is out of range.
    """
    SETTINGS(settings, "settings")
    head = {"format": MOSAICS, "version": VERSION, "settings": settings, "classes": []}
    return {**head, "skipped": {}, "complete": False, "shards": [], "next": 0}


def _next_number(folder: Path) -> int:
    """A number above those of all shards that are there."""
    numbers = [-1]
    for name in shards.shard_files(folder, PREFIX):
        try:
            numbers.append(check_shard_name(name, MOSAICS))
        except FieldError:
            continue  # pack did not make it
    return max(numbers) + 1


def _is_below(name: str, folders: Iterable[str]) -> bool:
    """Whether a file lies below one of the folders, or is one; "." holds all of them."""
    return any(folder in (".", name) or name.startswith(f"{folder}/") for folder in folders)
