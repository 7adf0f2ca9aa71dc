"""The teacher's work, paid once: its logits for a number of fixed views of every packed file.

The teacher is frozen, so what it says of a view never changes. ``store_teacher`` draws K views of
each file (from the seed and the file's name alone), writes them down as numbers beside the logits,
and ``train()`` then cuts the same views for the student and never runs the teacher. Epoch e sees
view e modulo K.

A set of logits lies in ``teachers/<name>`` of the packed folder: a manifest and shards, as
:mod:`isp_distill.shards` keeps them. It knows what it depends on: the teacher
(:mod:`isp_distill.fingerprint`), the views, and the checksum of every mosaic.

Relabelled crops as in FKD (Shen & Xing 2022) and FunMatch (Beyer et al. 2022): student and teacher
see the very same view.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from isp_distill import shards
from isp_distill.atomic import clear_leftovers
from isp_distill.augmentation import ISPAugmentation
from isp_distill.data import RawBatch
from isp_distill.errors import CorruptRawError
from isp_distill.fingerprint import differences, fingerprint
from isp_distill.gain_maps import GainMaps
from isp_distill.isp import ISP
from isp_distill.logit_codec import decode, encode
from isp_distill.packed import PackedRaw
from isp_distill.teacher import Teacher
from isp_distill.views import Draw, View

KIND = "isp-distill logits"
PREFIX = "logits"
FOLDER = "teachers"
#: The numbers that a view is stored as: those of a :class:`isp_distill.views.Draw` (an area of NaN
#: is None), and factors on the exposure and the red and blue gains of the teacher's ISP.
COLUMNS = ("down", "right", "mirror", "flip", "area", "ratio", "exposure", "red", "blue")
# A kill loses at most one shard of the teacher's work.
_SHARD_BYTES = 8 << 20
_SHARD_FILES = 256


_Row = tuple[str, str, np.ndarray, dict[str, np.ndarray]]


@dataclass(frozen=True)
class ViewSettings:
    """Which views are stored, and how their logits are.

    Attributes:
        views: of each file.
        view: what they are drawn from.
        seed: of the views.
        augmentation: of the teacher's ISP.
        top: 0 stores every logit as float16, which changes an ImageNet teacher's distribution by
            less than 1e-6 nats. k stores the k largest log-probabilities, their classes and what
            the rest sum to, spread evenly over them when read: an eighth of the bytes with 64 of
            1000 classes, and 0.08 nats from the teacher. For dense teachers and very many classes.
    """

    views: int
    view: View
    seed: int = 0
    augmentation: ISPAugmentation | None = None
    top: int = 0

    def __post_init__(self) -> None:
        if self.views < 1 or self.top < 0:
            raise ValueError("views must be at least 1, and top 0 (everything) or more")

    def described(self) -> dict[str, Any]:
        """As JSON."""
        changed = None if self.augmentation is None else dataclasses.asdict(self.augmentation)
        view = dataclasses.asdict(self.view)
        if self.view.area is None:
            del view["ratio"]  # it has no effect
        own = {"views": self.views, "seed": self.seed, "top": self.top, "augmentation": changed}
        described: dict[str, Any] = json.loads(json.dumps({**view, **own}))
        return described

    def draw(self, name: str, number: int, isp: ISP) -> tuple[Draw, list[float], ISP]:
        """One view of a file, the numbers it is stored as, and the ISP the teacher sees it with."""
        key = int.from_bytes(
            hashlib.blake2b(name.encode("utf-8", "surrogateescape")).digest()[:8], "little"
        )
        rng = np.random.default_rng((self.seed, key, number))
        draw = self.view.draw(rng)
        area = math.nan if draw.area is None else draw.area
        numbers = [*draw.place, float(draw.mirror), float(draw.flip), area, draw.ratio]
        if self.augmentation is None:
            return draw, [*numbers, 1.0, 1.0, 1.0], isp
        drawn = self.augmentation.draw(isp, 1, int(rng.integers(2**62)))
        before, after = isp.batched(1), drawn.batched(1)
        factor = torch.as_tensor(after.exposure) / torch.as_tensor(before.exposure)
        balance = torch.as_tensor(after.white_balance) / torch.as_tensor(before.white_balance)
        red, _, blue = balance[0].tolist()
        return draw, [*numbers, float(factor), red, blue], drawn


@dataclass(frozen=True)
class Cut:
    """One view: its mosaic, the numbers it is stored as, and the ISP the teacher sees it with."""

    mosaic: np.ndarray
    numbers: list[float]
    isp: ISP


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
    stored_for = {"teacher": fingerprint(teacher), "views": settings.described()}
    name = hashlib.sha256(json.dumps(stored_for, sort_keys=True).encode()).hexdigest()[:16]
    folder = packed.path / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    manifest = shards.read_manifest(folder, KIND)
    if manifest is None:
        manifest = {"format": KIND, "version": 1, **stored_for, "columns": COLUMNS, "shards": []}
        manifest["next"] = 0
    _forget_stale(folder, manifest, packed)
    shards.write_manifest(folder, manifest)
    shards.delete_unlisted(folder, manifest, PREFIX)
    done = {n for shard in manifest["shards"] for n in shard["records"]}
    todo = [index for index, n in enumerate(packed.names) if n not in done]
    training, model = teacher.model.training, teacher.model
    model.to(where).eval()
    rows: list[_Row] = []
    try:
        with tqdm(total=len(todo), desc="teacher", unit="file", disable=not progress) as bar:
            for row in _predicted(packed, todo, teacher, settings, batch_size, where, workers):
                rows.append(row)
                bar.update()
                size = sum(a.nbytes for _, _, _, arrays in rows for a in arrays.values())
                if size >= _SHARD_BYTES or len(rows) >= _SHARD_FILES:
                    _flush(folder, manifest, rows)
    finally:
        model.train(training)
        _flush(folder, manifest, rows)
    return folder


def _forget_stale(folder: Path, manifest: dict[str, Any], packed: PackedRaw) -> None:
    """Drop records of files that are gone, or packed anew, or in a shard that is."""
    now = {name: packed.checksum(index) for index, name in enumerate(packed.names)}
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        whole = path.is_file() and path.stat().st_size == shard["bytes"]
        shard["records"] = {
            name: record
            for name, record in shard["records"].items()
            if whole and now.get(name) == record["mosaic"]
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
    records = {row[0]: {"row": i, "mosaic": row[1]} for i, row in enumerate(rows)}
    size = shards.write_shard(folder, name, arrays, {"records": records, "columns": COLUMNS})
    checksums = {key: shards.digest(array) for key, array in arrays.items()}
    manifest["shards"].append(
        {"file": name, "bytes": size, "checksums": checksums, "records": records}
    )
    shards.write_manifest(folder, manifest)
    rows.clear()


def _predicted(
    packed: PackedRaw,
    todo: list[int],
    teacher: Teacher,
    settings: ViewSettings,
    batch_size: int,
    where: torch.device,
    workers: int,
) -> Iterator[_Row]:
    """Name, mosaic's checksum, views and stored logits of every file in turn."""

    def cut(index: int) -> list[Cut]:
        raw = packed[index]
        own = ISP.from_raw(raw)
        made = []
        for number in range(settings.views):
            draw, numbers, isp = settings.draw(packed.names[index], number, own)
            mosaic, camera = settings.view.cut_raw(raw, draw)
            seen = ISP.from_raw(camera)
            isp = isp.batched(1).replace(pattern=seen.pattern, gain_map=seen.gain_map)
            made.append(Cut(np.ascontiguousarray(mosaic), numbers, isp))
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
            logits = torch.cat(
                [
                    _logits(teacher, flat[i : i + batch_size], where)
                    for i in range(0, len(flat), batch_size)
                ]
            )
            for number, index in enumerate(files):
                chosen = slice(number * settings.views, (number + 1) * settings.views)
                numbers = np.array([one.numbers for one in flat[chosen]])
                stored = encode(logits[chosen], settings.top)
                yield packed.names[index], packed.checksum(index), numbers, stored
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@torch.no_grad()
def _logits(teacher: Teacher, views: list[Cut], where: torch.device) -> Tensor:
    """The teacher's logits, float32 ``[len(views), C, ...]``."""
    each = [view.isp for view in views]
    names = ("black", "white", "pattern", "white_balance", "ccm", "exposure")
    isp = each[0].replace(**{n: torch.cat([getattr(one, n) for one in each]) for n in names})
    isp = isp.replace(gain_map=GainMaps.cat([(one.gain_maps, 1) for one in each]))
    batch = RawBatch(torch.from_numpy(np.stack([view.mosaic for view in views])), isp).to(where)
    return teacher.logits(teacher.picture(batch)).float().cpu()


class StoredTeacher:
    """The stored logits of one teacher, read.

    Args:
        packed: the packed folder they belong to.
        folder: of the set.

    Raises:
        ValueError: the set is damaged, or lacks files that are packed.
    """

    def __init__(self, packed: PackedRaw, folder: Path) -> None:
        manifest = shards.read_manifest(folder, KIND)
        if manifest is None:
            raise ValueError(f"{folder}: holds no stored logits")
        self.folder, self._packed = folder, packed
        #: Identifies teacher and views.
        self.name = folder.name
        self.teacher: dict[str, Any] = manifest["teacher"]
        self.settings: dict[str, Any] = manifest["views"]
        self.views = int(self.settings["views"])
        self._places: list[tuple[dict[str, Any], int]] = []
        where = {n: (s, r) for s in manifest["shards"] for n, r in s["records"].items()}
        missing = []
        for index, name in enumerate(packed.names):
            shard, record = where.get(name, (None, None))
            if shard is None or record["mosaic"] != packed.checksum(index):
                missing.append(name)
            else:
                self._places.append((shard, record["row"]))
        if missing:
            raise ValueError(
                f"{folder}: no stored logits for {len(missing)} of {len(packed)} packed files, for "
                f"example {missing[0]}: call pack with the teacher again"
            )
        self._arrays: dict[str, dict[str, np.ndarray]] = {}

    @classmethod
    def matching(
        cls,
        packed: object,
        teacher: Teacher,
        view: View,
        augmentation: ISPAugmentation | None = None,
    ) -> StoredTeacher | None:
        """The stored logits of this teacher for these views, or None where nothing is stored.

        Raises:
            ValueError: logits are stored, but of another teacher or for other views; it says
                which part differs.
        """
        if not isinstance(packed, PackedRaw) or not packed.use_stored_teacher:
            return None
        folders = sorted(p.parent for p in packed.path.glob(f"{FOLDER}/*/{shards.MANIFEST}"))
        if not folders:
            return None
        given = fingerprint(teacher)
        wanted = ViewSettings(1, view, 0, augmentation).described()
        why = []
        for folder in folders:
            manifest = shards.read_manifest(folder, KIND)
            assert manifest is not None
            stored = manifest["views"]
            # How many views, of which seed, and how they are stored is the set's own affair.
            free = {key: stored[key] for key in ("views", "seed", "top")}
            found = differences(manifest["teacher"], given)
            found += differences(stored, {**wanted, **free})
            if not found:
                return cls(packed, folder)
            why.append(f"{folder.name}: {'; '.join(found)}")
        raise ValueError(
            f"{packed.path}: its stored logits belong to another teacher or to other views "
            f"({' | '.join(why)}): store this one's with pack(..., teacher=...), or run the "
            "teacher itself with PackedRaw(path, use_stored_teacher=False)"
        )

    def output_shape(self) -> tuple[int, ...]:
        """The shape of a view's logits, ``(C,)`` or ``(C, h, w)``."""
        return self.view(0, 0)[1].shape

    def view(self, index: int, number: int) -> tuple[Draw, np.ndarray]:
        """A view of the i-th file, and its logits, float32 ``[C, ...]``.

        Raises:
            CorruptRawError: the shard is damaged.
        """
        shard, row = self._places[index]
        try:
            arrays = self._arrays.get(shard["file"])
            if arrays is None:
                opened = shards.Shard(self.folder / shard["file"], shard["bytes"])
                arrays = {key: opened.array(key) for key in opened.keys}
                self._arrays[shard["file"]] = arrays
            numbers = arrays["views"][row, number % self.views]
            logits = decode(arrays, row, number % self.views)
        except (shards.DamagedShardError, KeyError, IndexError) as error:
            raise CorruptRawError(
                str(self._packed.paths[index]), f"its stored logits are damaged: {error}"
            ) from error
        down, right, mirror, flip, area, ratio = map(float, numbers[:6])
        draw = Draw(
            (down, right), bool(mirror), bool(flip), None if math.isnan(area) else area, ratio
        )
        return draw, logits
