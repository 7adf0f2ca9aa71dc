"""The writing side of a packed folder: what is in it, what is still to do, the shard being filled.

:mod:`isp_distill.shards` has the rules that keep the folder whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isp_distill import shards

KIND = "isp-distill mosaics"
PREFIX = "shard"
COMPRESSIONS = ("none", "zstd")
# A shard of which less than this is still in use is written anew without the rest.
_LIVE_SHARE = 0.5


@dataclass(frozen=True)
class Record:
    """One decoded file on its way into a shard.

    Attributes:
        name: its path below the source folder.
        array: what is stored: uint16 ``[H, W]``, or uint8 ``[bytes]`` where it is compressed.
        entry: what the manifest says of it.
    """

    name: str
    array: np.ndarray
    entry: dict[str, Any]


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
        added: records written by this writer.

    Raises:
        ValueError: the folder has other settings, or a damaged manifest.
    """

    def __init__(self, folder: Path, root: Path, settings: dict[str, Any], limit: int) -> None:
        self.folder, self.root, self._limit = folder, root, limit
        manifest = shards.read_manifest(folder, KIND)
        if manifest is None:
            if any(folder.glob(f"{PREFIX}-*.safetensors")):
                raise ValueError(
                    f"{folder}: holds shards but no {shards.MANIFEST}; restore it, or pack into "
                    "an empty folder"
                )
            manifest = {"format": KIND, "version": 1, "settings": settings, "shards": []}
            manifest.update(classes=[], skipped={}, complete=False, next=0)
        changed = [
            f"{k} was {manifest['settings'].get(k)!r}, is {v!r}"
            for k, v in settings.items()
            if manifest["settings"].get(k) != v
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

    def begin(self, names: Sequence[str], prune: bool) -> list[str]:
        """Compare the folder with its source; the names to decode, in the order given.

        Args:
            names: of every file in the source folder.
            prune: drop records that are not among them.
        """
        for shard in list(self._manifest["shards"]):
            path = self.folder / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                for name in list(shard["records"]):
                    self._drop(name)
        present = set(names)
        self.missing = sorted(set(self._shard_of) - present)
        if prune:
            for name in self.missing:
                self._drop(name)
            self.missing = []
        for name in set(self.skipped) - present:
            del self.skipped[name]
        todo = [name for name in names if not self._is_done(name)]
        self.names = [*names, *self.missing]
        self._manifest["complete"] = False
        # Before the first shard: a folder with shards always has a manifest.
        self._write()
        return todo

    def _is_done(self, name: str) -> bool:
        entry = self.records_entry(name)
        if entry is None:
            entry = self.skipped.get(name)
            # A damaged file, or a decoder that died, deserves another try; X-Trans stays X-Trans.
            if entry is None or entry["error"] != "UnsupportedRawError":
                return False
        try:
            stamp = shards.stamp_of(self.root / name)
        except OSError:
            return False
        return all(entry[key] == value for key, value in stamp.items())

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
        for name in self._shard_of:
            self._shard_of[name]["records"][name]["label"] = self._labels[name]

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
        self._bytes += record.array.nbytes
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
            entries[record.name] = {
                **record.entry,
                "key": str(key),
                "nbytes": record.array.nbytes,
            }
        arrays = {str(key): record.array for key, record in enumerate(self._waiting)}
        size = shards.write_shard(self.folder, name, arrays, {"records": entries})
        shard = {"file": name, "bytes": size, "records": entries}
        for record in self._waiting:
            # A file that had changed: its old record goes with the same stroke.
            self._drop(record.name)
            self._shard_of[record.name] = shard
        self._manifest["shards"].append(shard)
        self._waiting, self._bytes = [], 0
        self._write()

    def end(self) -> None:
        """Rewrite shards that hold little of use, mark the folder complete, clear away the rest."""
        for entry in list(self._manifest["shards"]):
            live = sum(record["nbytes"] for record in entry["records"].values())
            if live >= _LIVE_SHARE * entry["bytes"]:
                continue
            try:
                shard = shards.Shard(self.folder / entry["file"], entry["bytes"])
            except shards.DamagedShardError:
                continue  # verify will say so
            for name, record in list(entry["records"].items()):
                self._waiting.append(Record(name, shard.array(record["key"]), record))
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
        shards.write_manifest(self.folder, self._manifest)
        shards.delete_unlisted(self.folder, self._manifest, PREFIX)
