"""Shards: safetensors files in a folder, and the manifest that says what is in them.

The rules that keep a folder whole through a kill at any moment:

1. A shard is written under another name, flushed to the disk, and then renamed.
2. Only then does the manifest that lists it replace the old one, in the same way. Readers believe
   the manifest alone, so a shard is there wholly or not at all.
3. A shard that no manifest lists is what a kill left behind; the next writer deletes it.
4. One process writes at a time: it holds a lock, which the system takes back however it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from isp_distill.atomic import replaced, write_atomically

MANIFEST = "isp-distill.json"


def digest(array: np.ndarray) -> str:
    """The checksum of an array's bytes: BLAKE2b of 128 bits, in hexadecimal."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.blake2b(flat.data, digest_size=16).hexdigest()


def stamp_of(path: Path) -> dict[str, int]:
    """What tells whether a file has changed: its size, and its time of modification."""
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


def read_manifest(folder: Path, kind: str) -> dict[str, Any] | None:
    """The manifest of a folder, or None where it has none.

    Args:
        folder: with shards.
        kind: what they must hold.

    Raises:
        ValueError: the manifest is no such one, or damaged.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        text = ""
    try:
        manifest: dict[str, Any] = json.loads(text)
        found, version = manifest["format"], manifest["version"]
        list(manifest["shards"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged, or no manifest of isp-distill; restore it, or pack into an empty "
            "folder"
        ) from error
    if (found, version) != (kind, 1):
        raise ValueError(
            f"{path}: holds {found!r} of version {version}, not {kind!r} of version 1, which is "
            "what this isp-distill reads"
        )
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest, so that there is always one whole one."""
    write_atomically(folder / MANIFEST, json.dumps(manifest).encode("ascii"))
    _sync(folder)


def write_shard(
    folder: Path, name: str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> int:
    """Write one safetensors file; it appears whole or not at all.

    Args:
        folder: where.
        name: of the file.
        arrays: tensors by name.
        metadata: what the file says about itself, as JSON.

    Returns:
        Its size in bytes.

    Raises:
        OSError: it cannot be written, for example because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        with replaced(folder / name) as temporary:
            about = {"isp_distill": json.dumps(metadata)}
            save_file(dict(arrays), str(temporary), metadata=about)
            size = temporary.stat().st_size
    except SafetensorError as error:
        raise OSError(f"{folder / name}: cannot be written: {error}") from error
    _sync(folder)
    return size


def _sync(folder: Path) -> None:
    """Make renames in a folder last, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def delete_unlisted(folder: Path, manifest: Mapping[str, Any], prefix: str) -> None:
    """Delete the shards that a manifest, which is on the disk, does not list."""
    listed = {shard["file"] for shard in manifest["shards"]}
    for path in folder.glob(f"{prefix}-*.safetensors"):
        if path.name not in listed:
            path.unlink(missing_ok=True)


class DamagedShardError(Exception):
    """A shard is missing, not of its size, or not readable; the message says which."""


class Shard:
    """A shard, mapped into memory: arrays are views of the file, and cost what is read of them.

    Args:
        path: the file.
        size: the bytes it must have.

    Raises:
        DamagedShardError: it is not the file that was written.
    """

    def __init__(self, path: Path, size: int) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            found = path.stat().st_size
            if found != size:
                raise DamagedShardError(f"{path.name} has {found} bytes instead of {size}")
            # Through torch, which maps: the numpy reader copies. A private mapping: who writes to
            # an array changes a copy in memory and never the file.
            self._file = cast(Any, safe_open(str(path), framework="pt"))
            self.keys: set[str] = set(self._file.keys())
        except FileNotFoundError:
            raise DamagedShardError(f"{path.name} is missing") from None
        except (OSError, SafetensorError) as error:
            raise DamagedShardError(f"{path.name} cannot be read: {error}") from error
        self.name = path.name

    def array(self, key: str) -> np.ndarray:
        """One array of it, not copied.

        Raises:
            DamagedShardError: there is no such array.
        """
        if key not in self.keys:
            raise DamagedShardError(f"{self.name} has no record {key}")
        array: np.ndarray = self._file.get_tensor(key).numpy()
        return array
