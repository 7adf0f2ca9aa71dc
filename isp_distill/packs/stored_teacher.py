"""The teacher's work, paid once: its logits for a number of fixed views of every packed file.

The teacher is frozen, so what it says of a view never changes. ``store_teacher``
(teacher_writer.py) draws K views of each file, from the seed and the file's name alone, and writes
them down as numbers beside the logits. ``train()`` then cuts the same views for the student and
never runs the teacher. Epoch e sees view e modulo K.

A set of logits lies in ``teachers/<name>`` of the packed folder: a manifest and shards, as
:mod:`isp_distill.storage.shards` keeps them. It knows what it depends on: the teacher
(:mod:`isp_distill.models.fingerprint`), the views, and the checksum of every mosaic.

Relabelled crops as in FKD (Shen & Xing 2022) and FunMatch (Beyer et al. 2022): student and teacher
see the very same view.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isp_distill.data.draw import Draw
from isp_distill.data.views import View
from isp_distill.errors import CorruptRawError, DamagedPackError
from isp_distill.files.tree import is_file
from isp_distill.isp.augmentation import ISPAugmentation
from isp_distill.isp.camera import ISP
from isp_distill.models.fingerprint import differences, fingerprint
from isp_distill.models.teacher import Teacher
from isp_distill.packs.reader import PackedRaw
from isp_distill.storage import shards
from isp_distill.storage.logit_codec import check, decode, decode_features
from isp_distill.storage.manifest import MANIFEST, mismatched, read_manifest
from isp_distill.storage.manifest_schema import LOGITS

FOLDER = "teachers"


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
        features: of the teacher that are stored beside its logits, as float16: keys of its output,
            or names of its modules.
    """

    views: int
    view: View
    seed: int = 0
    augmentation: ISPAugmentation | None = None
    top: int = 0
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.views < 1 or self.top < 0:
            raise ValueError("views must be at least 1, and top 0 (everything) or more")

    def described(self) -> dict[str, Any]:
        """As JSON."""
        changed = None if self.augmentation is None else dataclasses.asdict(self.augmentation)
        view = dataclasses.asdict(self.view)
        if self.view.area is None:
            del view["ratio"]  # it has no effect
        own: dict[str, Any] = {
            "views": self.views,
            "seed": self.seed,
            "top": self.top,
            "augmentation": changed,
        }
        if self.features:
            own["features"] = list(self.features)
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


class StoredTeacher:
    """The stored logits of one teacher, read.

    Args:
        packed: the packed folder they belong to.
        folder: of the set.
        features: names of those that are read beside the logits.

    Raises:
        DamagedPackError: the set's manifest is damaged.
        ValueError: the set lacks files that are packed.
    """

    def __init__(self, packed: PackedRaw, folder: Path, features: Sequence[str] = ()) -> None:
        manifest = read_manifest(folder, LOGITS)
        if manifest is None:
            raise ValueError(f"{folder}: holds no stored logits")
        self.folder, self._packed = folder, packed
        #: Identifies teacher and views.
        self.name = folder.name
        self.teacher: dict[str, Any] = manifest["teacher"]
        self.settings: dict[str, Any] = manifest["views"]
        self.views = int(self.settings["views"])
        #: Whether what is stored as logits is the embedding of a teacher without a classifier.
        self.embedding = bool(self.settings.get("embedding", False))
        self._top = int(self.settings["top"])
        self._output: list[int] = manifest["output"] or []
        self._features: list[list[int]] = manifest.get("features") or []
        self._names = tuple(features)
        stored = self.settings.get("features", [])
        self._numbers = [stored.index(name) for name in features]
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
        self._arrays: dict[str, tuple[dict[str, np.ndarray], dict[str, str]]] = {}

    @classmethod
    def matching(
        cls,
        packed: object,
        teacher: Teacher,
        view: View,
        augmentation: ISPAugmentation | None = None,
        features: Sequence[str] = (),
    ) -> StoredTeacher | None:
        """The stored logits of this teacher for these views, or None where nothing is stored.

        ``features``: of it, that must be stored too.

        Raises:
            ValueError: logits are stored, but of another teacher or for other views, or their
                manifest is damaged; it says which part differs.
        """
        if not isinstance(packed, PackedRaw) or not packed.use_stored_teacher:
            return None
        folders = stored_sets(packed.path)
        if not folders:
            return None
        given = fingerprint(teacher)
        wanted = ViewSettings(1, view, 0, augmentation).described()
        why = []
        for folder in folders:
            try:
                manifest = read_manifest(folder, LOGITS)
            except DamagedPackError as error:
                why.append(str(error))
                continue
            if manifest is None:
                continue
            stored = manifest["views"]
            # How many views, of which seed, and how they are stored is the set's own affair.
            free = {
                key: stored[key]
                for key in ("views", "seed", "top", "features", "embedding")
                if key in stored
            }
            lacks = [name for name in features if name not in stored.get("features", [])]
            found = differences(manifest["teacher"], given)
            found += differences(stored, {**wanted, **free})
            found += [f"features of {name} are not stored" for name in lacks]
            if not found:
                return cls(packed, folder, features)
            why.append(f"{folder.name}: {'; '.join(found)}")
        raise ValueError(
            f"{packed.path}: its stored logits belong to another teacher or to other views "
            f"({' | '.join(why)}): store this one's with pack(..., teacher=..., match=...), or "
            "run the teacher itself with PackedRaw(path, use_stored_teacher=False)"
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
            arrays, others = self._shard(shard)
            name = self._packed.names[index]
            if name in others:
                raise shards.DamagedShardError(others[name])
            numbers = arrays["views"][row, number % self.views]
            logits = decode(arrays, row, number % self.views)
        except (shards.DamagedShardError, ValueError, IndexError) as error:
            raise self._damaged(index, error) from error
        down, right, mirror, flip, area, ratio = map(float, numbers[:6])
        draw = Draw(
            (down, right), bool(mirror), bool(flip), None if math.isnan(area) else area, ratio
        )
        return draw, logits

    def features(self, index: int, number: int) -> dict[str, np.ndarray] | None:
        """The features of a view of the i-th file by their names, float16; None if none are read.

        Raises:
            CorruptRawError: the shard is damaged.
        """
        if not self._names:
            return None
        shard, row = self._places[index]
        try:
            arrays, _ = self._shard(shard)
            found = decode_features(arrays, row, number % self.views, self._numbers)
        except (shards.DamagedShardError, ValueError, IndexError) as error:
            raise self._damaged(index, error) from error
        return dict(zip(self._names, found, strict=True))

    def _damaged(self, index: int, error: Exception) -> CorruptRawError:
        return CorruptRawError(
            str(self._packed.paths[index]),
            f"its stored logits are damaged ({error}): run isp-distill verify --drop "
            f"{self._packed.path}, then pack with the teacher again",
        )

    def _shard(self, listed: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """A shard's arrays, and its records that are not the manifest's, each with a reason."""
        found = self._arrays.get(listed["file"])
        if found is None:
            shard = shards.Shard(self.folder / listed["file"], listed["bytes"])
            others = mismatched(shard, LOGITS, self.folder.name, listed)
            arrays = {key: shard.array(key) for key in shard.keys}
            check(arrays, self.views, self._output, self._top, self._features)
            found = self._arrays[listed["file"]] = arrays, others
        return found


def stored_sets(packed: Path) -> list[Path]:
    """The folders of stored logits in a packed folder, sorted.

    Raises:
        OSError: a folder cannot be listed.
    """
    try:
        names = sorted(os.listdir(packed / FOLDER))
    except FileNotFoundError:
        return []
    return [packed / FOLDER / n for n in names if is_file(packed / FOLDER / n / MANIFEST)]
