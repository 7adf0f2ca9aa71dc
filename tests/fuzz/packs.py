"""Damaged packed folders and stored teachers: refused by name, or what was packed."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import dng_cases
import numpy as np
import training_run

from isp_distill import PackedRaw, pack, verify, write_dng
from isp_distill.data.views import View
from isp_distill.errors import RawError
from isp_distill.packs.stored_teacher import StoredTeacher

from .area import Refused
from .mutations import damaged_bytes, damaged_json

_FILES, _CROP, _VIEWS = 4, 32, 2
_MANIFEST = "isp-distill.json"


@functools.cache
def _teacher() -> Any:
    return training_run.teacher()


@functools.cache
def _originals() -> tuple[Path, ...]:
    """Two packed folders, of several shards each: with a stored teacher, and compressed."""
    root = Path(tempfile.mkdtemp(prefix="isp-distill-fuzz-packs-"))
    raw = root / "raw"
    raw.mkdir()
    for index in range(_FILES):
        write_dng(raw / f"{index}.dng", dng_cases.noise((40, 44), index), black=64 + index)
    common: dict[str, Any] = {"shard_bytes": 8000, "progress": False, "workers": 1}
    pack(raw, root / "plain", teacher=_teacher(), views=_VIEWS, crop=_CROP, **common)
    pack(raw, root / "zstd", compression="zstd", **common)
    return root / "plain", root / "zstd"


def _content(folder: Path) -> dict[str, Any]:
    """Everything that a reader takes out of a folder, by name."""
    packed = PackedRaw(folder)
    found: dict[str, Any] = {}
    for index, name in enumerate(packed.names):
        raw = packed[index]
        for field in dataclasses.fields(raw):
            if field.name != "path":
                found[f"{name} {field.name}"] = getattr(raw, field.name)
    stored = StoredTeacher.matching(packed, _teacher(), View(_CROP), None)
    if stored is not None:
        for index, name in enumerate(packed.names):
            for number in range(_VIEWS):
                found[f"{name} view {number}"], found[f"{name} logits {number}"] = stored.view(
                    index, number
                )
    return found


@functools.cache
def _expected(folder: Path) -> dict[str, Any]:
    return _content(folder)


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    if found.keys() != expected.keys():
        return f"names {sorted(found.keys() ^ expected.keys())}"
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            if not np.array_equal(value, found[name]):
                return name
        elif value != found[name]:
            return f"{name}: {found[name]!r} where {value!r} was packed"
    return None


def _damage(folder: Path, draw: random.Random) -> bool:
    """Damage one thing; whether it may only show in the values of mosaics and logits."""
    manifests = sorted(folder.rglob(_MANIFEST))
    data = sorted(folder.rglob("*.safetensors"))
    kind = draw.randrange(6)
    if kind <= 1:
        path = draw.choice(manifests)
        manifest = damaged_json(json.loads(path.read_text()), draw)
        path.write_text(json.dumps(manifest))
        return False
    if kind == 2:
        path = draw.choice(manifests)
        path.write_bytes(damaged_bytes(path.read_bytes(), draw))
        return False
    if kind <= 4:
        path = draw.choice(data)
        path.write_bytes(damaged_bytes(path.read_bytes(), draw))
        return True
    one, other = draw.choice(data), draw.choice(data)
    if draw.random() < 0.5:
        os.replace(one, other)
    else:
        between = folder / "between"
        os.replace(one, between)
        if other.exists():
            os.replace(other, one)
        os.replace(between, other)
    return False


def attempt(number: int, folder: Path) -> None:
    """One damaged folder, read whole, then verified."""
    draw = random.Random(number)
    original = draw.choice(_originals())
    expected = _expected(original)
    copied = folder / "packed"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(original, copied)
    values_only = _damage(copied, draw)
    refusal: Exception | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            difference = _difference(_content(copied), expected)
        except (RawError, ValueError, FileNotFoundError) as error:
            _named(error, copied)
            difference, refusal = None, error
        if difference is not None and not values_only:
            raise AssertionError(f"read without a word, though damaged: {difference}")
        try:
            sound = verify(copied, progress=False).sound
        except (RawError, ValueError, FileNotFoundError) as error:
            _named(error, copied)
            sound, refusal = False, error
    if difference is not None and sound:
        raise AssertionError(f"verify says that all is sound, but {difference}")
    if refusal is not None or not sound:
        raise Refused from refusal


def _named(error: Exception, folder: Path) -> None:
    """A RawError names the file that was packed, any other error of ours the folder."""
    said = str(error)
    assert isinstance(error, RawError) or str(folder) in said, f"{type(error).__name__}: {said}"
