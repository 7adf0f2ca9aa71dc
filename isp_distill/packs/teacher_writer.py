"""Computing and storing a teacher's logits: the writing side of stored_teacher.py."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from isp_distill.data.batch import RawBatch
from isp_distill.data.sample import pictures_of
from isp_distill.errors import DamagedPackError
from isp_distill.files.atomic import clear_leftovers
from isp_distill.isp.camera import ISP
from isp_distill.isp.gain_maps import GainMaps
from isp_distill.isp.matrices import joined_matrices
from isp_distill.models.fingerprint import fingerprint
from isp_distill.models.match import Match
from isp_distill.models.matching import TeacherTaps
from isp_distill.models.modes import evaluating
from isp_distill.models.teacher import Teacher
from isp_distill.models.teacher_output import lacks_classifier
from isp_distill.packs.reader import PackedRaw
from isp_distill.packs.stored_teacher import FOLDER, ViewSettings
from isp_distill.raw.companding import linear_values
from isp_distill.storage import shards
from isp_distill.storage.field_checks import FieldError
from isp_distill.storage.logit_codec import encode, encode_features, output_of
from isp_distill.storage.manifest import (
    VERSION,
    inspect_manifest,
    mismatched,
    record_digest,
    shard_header,
    write_manifest,
)
from isp_distill.storage.manifest_schema import (
    COLUMNS,
    LOGITS,
    PREFIXES,
    check_shard_name,
)

PREFIX = PREFIXES[LOGITS]
# A kill loses at most one shard of the teacher's work.
_SHARD_BYTES = 8 << 20
_SHARD_FILES = 256


_Row = tuple[str, str, np.ndarray, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Cut:
    """One view: its mosaic, the numbers it is stored as, and the ISP the teacher sees it with.

    Where a camera's picture is stored, the teacher sees that: uint8 ``[crop, crop, 3]``.
    """

    mosaic: np.ndarray
    numbers: list[float]
    isp: ISP
    picture: np.ndarray | None = None


def store_teacher(
    packed: PackedRaw,
    teacher: Teacher,
    settings: ViewSettings,
    *,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Compute and store a teacher's logits for ``settings.views`` views of every packed file.

    Its features too, where the settings name some. How much that will be is said before it starts.

    Goes on where a killed call was; computes again what was packed anew. The caller holds the lock
    of the packed folder.

    Args:
        packed: the packed folder.
        teacher: whose logits.
        settings: which views, and how they are stored.
        batch_size: views the teacher sees at once.
        device: where it runs; a GPU if there is one, if None.
        workers: threads that cut views.
        progress: show a progress bar.

    Returns:
        The folder of this set.

    Raises:
        RawError: a packed record is damaged, or a crop does not fit its mosaic.
        ValueError: a logit does not fit into float16 (use ``top``).
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with evaluating(*([] if teacher.module is None else [teacher.module])):
        teacher.prepare(where)
        return _stored(packed, teacher, settings, where, batch_size, workers, progress)


def _stored(
    packed: PackedRaw,
    teacher: Teacher,
    settings: ViewSettings,
    where: torch.device,
    batch_size: int,
    workers: int,
    progress: bool,
) -> Path:
    """:func:`store_teacher` with the teacher on its device, in eval mode."""
    stored_for = {"teacher": fingerprint(teacher), "views": settings.described()}
    if lacks_classifier(teacher, where):
        stored_for["views"]["embedding"] = True
    name = hashlib.sha256(json.dumps(stored_for, sort_keys=True).encode()).hexdigest()[:16]
    folder = packed.path / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    manifest = _opened(folder, stored_for)
    _forget_stale(folder, manifest, packed)
    write_manifest(folder, manifest)
    shards.delete_unlisted(folder, manifest, PREFIX)
    done = {n for shard in manifest["shards"] for n in shard["records"]}
    todo = [index for index, n in enumerate(packed.names) if n not in done]
    taps = TeacherTaps(teacher, [Match("logits"), *map(Match, settings.features)])
    rows: list[_Row] = []
    try:
        bar = tqdm(total=len(todo), desc="teacher", unit="file", disable=not progress)
        with taps.listening(), bar:
            if todo and progress:
                tqdm.write(_size_said(taps, settings, len(todo), folder, where))
            for row in _predicted(packed, todo, taps, settings, batch_size, where, workers):
                rows.append(row)
                bar.update()
                size = sum(a.nbytes for _, _, _, arrays in rows for a in arrays.values())
                if size >= _SHARD_BYTES or len(rows) >= _SHARD_FILES:
                    _flush(folder, manifest, rows)
    finally:
        _flush(folder, manifest, rows)
    return folder


def _opened(folder: Path, stored_for: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a set, with what is sound of it: all of it can be computed again."""
    new = {"format": LOGITS, "version": VERSION, **stored_for, "columns": list(COLUMNS)}
    new.update(output=None, shards=[], next=0)
    if "features" in stored_for["views"]:
        new["features"] = None
    try:
        found = inspect_manifest(folder, LOGITS)
    except DamagedPackError:
        found = None
    if (
        found is not None
        and found.head_is_sound
        and all(found.manifest[key] == value for key, value in stored_for.items())
    ):
        return found.manifest
    # Not even the number of the next shard is known; a name that is in use must not be used again.
    for name in shards.shard_files(folder, PREFIX):
        with contextlib.suppress(FieldError):
            new["next"] = max(new["next"], 1 + check_shard_name(name, LOGITS))
    return new


def _forget_stale(folder: Path, manifest: dict[str, Any], packed: PackedRaw) -> None:
    """Drop records of files that are gone, or packed anew, or in a shard that is not sound.

    Raises:
        OSError: the system cannot read a shard now.
    """
    now = {name: packed.checksum(index) for index, name in enumerate(packed.names)}
    for shard in manifest["shards"]:
        try:
            opened = shards.Shard(folder / shard["file"], shard["bytes"])
            bad = set(mismatched(opened, LOGITS, folder.name, shard))
        except shards.UnreadableShardError as error:
            raise OSError(f"{folder}: {error}; make it readable, or delete it") from error
        except shards.DamagedShardError:
            bad = set(shard["records"])
        shard["records"] = {
            name: record
            for name, record in shard["records"].items()
            if name not in bad and now.get(name) == record["mosaic"]
        }
    manifest["shards"] = [shard for shard in manifest["shards"] if shard["records"]]


def _flush(
    folder: Path,
    manifest: dict[str, Any],
    rows: list[_Row],
) -> None:
    if not rows:
        return
    name = f"{PREFIX}-{manifest['next']:06}.safetensors"
    manifest["next"] += 1
    arrays = {key: np.stack([row[3][key] for row in rows]) for key in rows[0][3]}
    arrays["views"] = np.stack([row[2] for row in rows])
    output = output_of(arrays)
    if manifest["output"] not in (None, output):
        raise ValueError(
            f"the teacher gives logits of {output} a view, and gave {manifest['output']} before"
        )
    manifest["output"] = output
    if "features" in manifest:
        count = len(manifest["views"]["features"])
        shapes = [list(arrays[f"feature.{number}"].shape[2:]) for number in range(count)]
        if manifest["features"] not in (None, shapes):
            raise ValueError(
                f"the teacher gives features of {shapes} a view, and gave {manifest['features']} "
                "before"
            )
        manifest["features"] = shapes
    records: dict[str, dict[str, Any]] = {}
    for number, (file, mosaic, _, _) in enumerate(rows):
        records[file] = {"row": number, "mosaic": mosaic}
        records[file]["digest"] = record_digest(LOGITS, name, file, records[file])
    about = shard_header(LOGITS, name, folder.name, records)
    size = shards.write_shard(folder, name, arrays, about)
    checksums = {key: shards.digest(array) for key, array in arrays.items()}
    manifest["shards"].append(
        {"file": name, "bytes": size, "checksums": checksums, "records": records}
    )
    write_manifest(folder, manifest)
    rows.clear()


def _predicted(
    packed: PackedRaw,
    todo: list[int],
    taps: TeacherTaps,
    settings: ViewSettings,
    batch_size: int,
    where: torch.device,
    workers: int,
) -> Iterator[_Row]:
    """Name, mosaic's checksum, views and stored logits of every file in turn."""

    def cut(index: int) -> list[Cut]:
        raw = packed[index]
        own = ISP.from_raw(raw)
        aligned = packed.aligned(index)
        within = None if aligned is None else aligned.within
        made = []
        for number in range(settings.views):
            draw, numbers, isp = settings.draw(packed.names[index], number, own)
            mosaic, camera = settings.view.cut_raw(raw, draw, within)
            picture = None
            if aligned is not None:
                size = raw.height, raw.width
                window = settings.view.window_within(size, within, draw, raw.path)
                picture = aligned.view(window, draw, settings.view.crop)
            if camera.linearise is not None:  # views that were binned are linear already
                mosaic = linear_values(mosaic, camera.linearise)
            seen = ISP.from_raw(camera)
            isp = isp.batched(1).replace(
                pattern=seen.pattern, gain_map=seen.gain_map, linearise=None
            )
            made.append(Cut(np.ascontiguousarray(mosaic), numbers, isp, picture))
        return made

    pool = ThreadPoolExecutor(workers, thread_name_prefix="isp-distill-view")
    waiting: collections.deque[Future[list[Cut]]] = collections.deque()
    group = max(1, batch_size // settings.views)
    rest = iter(todo)
    try:
        for start in range(0, len(todo), group):
            files = todo[start : start + group]
            while len(waiting) < 2 * group and (index := next(rest, None)) is not None:
                waiting.append(pool.submit(cut, index))
            flat = [one for _ in files for one in waiting.popleft().result()]
            pieces = [
                _outputs(taps, flat[i : i + batch_size], where)
                for i in range(0, len(flat), batch_size)
            ]
            logits, *features = (torch.cat(each) for each in zip(*pieces, strict=True))
            for number, index in enumerate(files):
                chosen = slice(number * settings.views, (number + 1) * settings.views)
                numbers = np.array([one.numbers for one in flat[chosen]])
                stored = encode(logits[chosen], settings.top)
                stored |= encode_features([value[chosen] for value in features])
                yield packed.names[index], packed.checksum(index), numbers, stored
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@torch.no_grad()
def _outputs(taps: TeacherTaps, views: list[Cut], where: torch.device) -> list[Tensor]:
    """The teacher's logits ``[len(views), C, ...]`` and its features, float32."""
    each = [view.isp for view in views]
    names = ("black", "white", "pattern", "white_balance", "exposure")
    isp = each[0].replace(
        ccm=joined_matrices([cast(Tensor | None, one.batched(1).ccm) for one in each]),
        **{n: torch.cat([getattr(one, n) for one in each]) for n in names},
    )
    isp = isp.replace(gain_map=GainMaps.cat([(one.gain_maps, 1) for one in each]))
    mosaics = torch.from_numpy(np.stack([view.mosaic for view in views]))
    picture = pictures_of([view.picture for view in views])
    batch = RawBatch(mosaics, isp, picture=picture).to(where)
    return [value.float().cpu() for value in taps(taps.teacher.picture(batch))]


def _size_said(
    taps: TeacherTaps, settings: ViewSettings, files: int, folder: Path, where: torch.device
) -> str:
    """What will be stored, and how much that is."""
    shapes = [list(value.shape[1:]) for value in taps(taps.teacher.black(where))]
    names = ["logits", *settings.features]
    sizes = [2 * math.prod(shape) for shape in shapes]
    if 0 < settings.top < shapes[0][0]:
        index = 2 if shapes[0][0] <= 65536 else 4
        sizes[0] = (settings.top * (2 + index) + 2) * math.prod(shapes[0][1:])
    each = ", ".join(
        f"{name} {shape} {size / 1e3:.1f} kB"
        for name, shape, size in zip(names, shapes, sizes, strict=True)
    )
    total = sum(sizes) * settings.views * files
    free = shutil.disk_usage(folder).free
    return (
        f"teacher: {each} a view; {settings.views} views of {files} files are "
        f"{total / 1e6:.1f} MB, and {free / 1e6:.0f} MB are free"
    )
