"""``verify``: is every byte of a packed folder the byte that was written?"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from isp_distill.errors import DamagedPackError
from isp_distill.files.atomic import only_writer
from isp_distill.packs.packed_pictures import key_of
from isp_distill.packs.stored_teacher import stored_sets
from isp_distill.storage import shards
from isp_distill.storage.logit_codec import check
from isp_distill.storage.manifest import (
    MANIFEST,
    Inspected,
    digest_of,
    inspect_manifest,
    mismatched,
    write_manifest,
)
from isp_distill.storage.manifest_schema import LOGITS, MOSAICS


@dataclass(frozen=True)
class VerifyReport:
    """What :func:`verify` found.

    Attributes:
        path: the packed folder.
        records: mosaics, and files with stored logits, that were checked.
        damaged: by shard: the files whose records are damaged, each with what is wrong. By
            ``isp-distill.json``: what is wrong with what the manifest says of all of them.
        dropped: whether the damaged records were taken out of the manifest.

    Examples:
        >>> report = isp_distill.pack("photos/raw", "packed", progress=False)
        >>> print(isp_distill.verify("packed", progress=False))
        packed: 3 records, all sound
    """

    path: Path
    records: int
    damaged: dict[str, dict[str, str]] = field(default_factory=dict)
    dropped: bool = False

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged

    def __str__(self) -> str:
        if self.sound:
            return f"{self.path}: {self.records} records, all sound"
        lines = []
        for shard, files in self.damaged.items():
            lines.append(f"{shard}: {len(files)} damaged")
            lines += [f"  {name}: {reason}" for name, reason in files.items()]
        advice = "pack again to decode them anew"
        if not self.dropped:
            advice = "run isp-distill verify --drop, then " + advice
        total = sum(map(len, self.damaged.values()))
        return "\n".join(
            [*lines, f"{self.path}: {total} of {self.records} records damaged; {advice}"]
        )


def verify(
    path: str | os.PathLike[str], *, drop: bool = False, progress: bool = True
) -> VerifyReport:
    """Read a packed folder whole: every record and its bytes against their digests.

    Args:
        path: the packed folder.
        drop: take damaged records out of the manifest, so that the next :func:`pack` decodes their
            files (or computes their logits) again.
        progress: show a progress bar.

    Returns:
        The :class:`VerifyReport`, which names damage by shard and file.

    Raises:
        FileNotFoundError: there is no packed folder.
        DamagedPackError: its manifest cannot be read, or is of another version.
        OSError: a folder of stored logits cannot be listed.
        RuntimeError: with ``drop``, while another process is packing into it.

    Examples:
        >>> report = isp_distill.pack("photos/raw", "packed", progress=False)
        >>> isp_distill.verify("packed", progress=False).sound
        True
    """
    folder = Path(path)
    found = inspect_manifest(folder, MOSAICS)
    if found is None:
        raise FileNotFoundError(f"{folder}: no packed folder (it has no {MANIFEST})")
    if not drop:
        return _verify(folder, progress, drop=False)
    with only_writer(folder):
        return _verify(folder, progress, drop=True)


def _verify(folder: Path, progress: bool, *, drop: bool) -> VerifyReport:
    damaged: dict[str, dict[str, str]] = {}
    records = 0
    for place, kind in [(folder, MOSAICS), *((p, LOGITS) for p in stored_sets(folder))]:
        try:
            found = inspect_manifest(place, kind)
        except DamagedPackError as error:
            if kind == MOSAICS:
                raise
            # All of a set is computed again, its manifest too.
            bad: dict[str, dict[str, str]] = {MANIFEST: {error.field: error.reason}}
        else:
            if found is None:
                continue  # it was deleted meanwhile
            counted, bad = _check(place, kind, found, progress)
            records += counted
            if drop and bad:
                _drop(place, kind, found, bad)
        damaged.update({str((place / f).relative_to(folder)): why for f, why in bad.items()})
    return VerifyReport(folder, records, damaged, drop)


def _check(
    place: Path, kind: str, found: Inspected, progress: bool
) -> tuple[int, dict[str, dict[str, str]]]:
    """How many records a folder lists, and the damaged ones by shard, each with what is wrong."""
    bad: dict[str, dict[str, str]] = {}
    records = len(found.shard_of)
    for fault in found.faults:
        # What is wrong beside the records is said of the manifest.
        shard = MANIFEST if fault.record is None else found.shard_of[fault.record]
        name = fault.field if fault.record is None else fault.record
        bad.setdefault(shard, {})[name] = f"{fault.field} {fault.reason}"
    for shard in tqdm(found.manifest["shards"], desc="verify", unit="shard", disable=not progress):
        records += len(shard["records"])
        wrong = _damaged(place, kind, shard, found)
        if wrong:
            bad.setdefault(shard["file"], {}).update(wrong)
    return records, bad


def _drop(place: Path, kind: str, found: Inspected, bad: dict[str, dict[str, str]]) -> None:
    """Write a manifest without the damaged records."""
    manifest = found.manifest
    for shard in manifest["shards"]:
        for name in bad.get(shard["file"], ()):
            shard["records"].pop(name, None)
    manifest["shards"] = [shard for shard in manifest["shards"] if shard["records"]]
    if kind == MOSAICS:
        manifest["complete"] = False
    # What is damaged beside the records is for pack to say anew.
    write_manifest(place, manifest, sealed=found.head_is_sound)


def _damaged(folder: Path, kind: str, entry: dict[str, Any], found: Inspected) -> dict[str, str]:
    """The damaged records of a shard, each with what is wrong."""
    mosaics = kind == MOSAICS
    try:
        shard = shards.Shard(folder / entry["file"], entry["bytes"])
        if not mosaics:
            made_as = folder.name
        elif found.head_is_sound:
            made_as = digest_of(found.manifest["settings"])
        else:
            # Its settings may be what is damaged: pack knows them from its caller.
            made_as = str(shard.about().get("made_as"))
        bad = mismatched(shard, kind, made_as, entry)
        if mosaics:
            return {**_damaged_mosaics(shard, entry), **bad}
        _check_logits(shard, entry, found)
    except shards.DamagedShardError as error:
        return dict.fromkeys(entry["records"], str(error))
    return bad


def _damaged_mosaics(shard: shards.Shard, entry: dict[str, Any]) -> dict[str, str]:
    bad = {}
    for name, record in entry["records"].items():
        try:
            found = shards.digest(shard.array(record["key"]))
        except shards.DamagedShardError as error:
            bad[name] = str(error)
            continue
        if found != record["checksum"]:
            bad[name] = f"its bytes have checksum {found} instead of {record['checksum']}"
        elif "picture" in record and not _sound_picture(shard, record):
            bad[name] = "its picture is missing or has another checksum"
    return bad


def _sound_picture(shard: shards.Shard, record: dict[str, Any]) -> bool:
    try:
        return bool(shards.digest(shard.array(key_of(record))) == record["picture"]["checksum"])
    except shards.DamagedShardError:
        return False


def _check_logits(shard: shards.Shard, entry: dict[str, Any], found: Inspected) -> None:
    """Refuse a shard of logits whose arrays are damaged: a record is a row of each of them."""
    arrays = {key: shard.array(key) for key in shard.keys}
    for key, checksum in entry["checksums"].items():
        if key not in arrays or shards.digest(arrays[key]) != checksum:
            raise shards.DamagedShardError(f"its array {key} has another checksum")
    if not found.head_is_sound:
        return  # what the arrays are held against is damaged
    settings = found.manifest["views"]
    try:
        features = found.manifest.get("features") or ()
        output = found.manifest["output"] or [1]
        check(arrays, settings["views"], output, settings["top"], features)
    except ValueError as error:
        raise shards.DamagedShardError(str(error)) from error
