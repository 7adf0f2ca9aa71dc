"""``verify``: is every byte of a packed folder the byte that was written?"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from isp_distill import shards
from isp_distill.atomic import only_writer
from isp_distill.pack_writer import KIND
from isp_distill.stored_teacher import FOLDER as TEACHERS
from isp_distill.stored_teacher import KIND as LOGITS


@dataclass(frozen=True)
class VerifyReport:
    """What :func:`verify` found.

    Attributes:
        path: the packed folder.
        records: mosaics, and files with stored logits, that were checked.
        damaged: by shard: the files whose records are damaged, each with what is wrong.
        dropped: whether the damaged records were taken out of the manifest.
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
    """Read a packed folder whole and compare every record with its checksum.

    Args:
        path: the packed folder.
        drop: take damaged records out of the manifest, so that the next :func:`pack` decodes their
            files (or computes their logits) again.
        progress: show a progress bar.

    Returns:
        The :class:`VerifyReport`, which names damage by shard and file.

    Raises:
        FileNotFoundError: there is no packed folder.
        ValueError: its manifest is damaged.
        RuntimeError: with ``drop``, while another process is packing into it.
    """
    folder = Path(path)
    if shards.read_manifest(folder, KIND) is None:
        raise FileNotFoundError(f"{folder}: no packed folder (it has no {shards.MANIFEST})")
    if not drop:
        return _verify(folder, progress, drop=False)
    with only_writer(folder):
        return _verify(folder, progress, drop=True)


def _verify(folder: Path, progress: bool, *, drop: bool) -> VerifyReport:
    sets = [(folder, KIND)]
    sets += [(p.parent, LOGITS) for p in sorted(folder.glob(f"{TEACHERS}/*/{shards.MANIFEST}"))]
    damaged: dict[str, dict[str, str]] = {}
    records = 0
    for place, kind in sets:
        manifest = shards.read_manifest(place, kind)
        assert manifest is not None
        found: dict[str, dict[str, str]] = {}
        for shard in tqdm(manifest["shards"], desc="verify", unit="shard", disable=not progress):
            records += len(shard["records"])
            bad = (_damaged_mosaics if kind == KIND else _damaged_logits)(place, shard)
            if bad:
                found[shard["file"]] = bad
                for name in bad if drop else ():
                    del shard["records"][name]
        if drop and found:
            manifest["shards"] = [shard for shard in manifest["shards"] if shard["records"]]
            if kind == KIND:
                manifest["complete"] = False
            shards.write_manifest(place, manifest)
        damaged.update({str((place / f).relative_to(folder)): bad for f, bad in found.items()})
    return VerifyReport(folder, records, damaged, drop)


def _damaged_mosaics(folder: Path, entry: dict[str, Any]) -> dict[str, str]:
    """The damaged records of a shard, each with what is wrong."""
    try:
        shard = shards.Shard(folder / entry["file"], entry["bytes"])
    except shards.DamagedShardError as error:
        return dict.fromkeys(entry["records"], str(error))
    bad = {}
    for name, record in entry["records"].items():
        try:
            found = shards.digest(shard.array(record["key"]))
        except shards.DamagedShardError as error:
            bad[name] = str(error)
            continue
        if found != record["checksum"]:
            bad[name] = f"its bytes have checksum {found} instead of {record['checksum']}"
    return bad


def _damaged_logits(folder: Path, entry: dict[str, Any]) -> dict[str, str]:
    """All records of a shard of logits whose arrays are damaged: a record is a row of each."""
    try:
        shard = shards.Shard(folder / entry["file"], entry["bytes"])
        for key, checksum in entry["checksums"].items():
            if shards.digest(shard.array(key)) != checksum:
                raise shards.DamagedShardError(f"its array {key} has another checksum")
    except shards.DamagedShardError as error:
        return dict.fromkeys(entry["records"], str(error))
    return {}
