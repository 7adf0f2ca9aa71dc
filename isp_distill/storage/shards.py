"""Shards: safetensors files in a folder, whose manifest (manifest.py) says what is in them.

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

from isp_distill.files.atomic import replaced


def digest(array: np.ndarray) -> str:
    """The checksum of an array's bytes: BLAKE2b of 128 bits, in hexadecimal."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.blake2b(flat.data, digest_size=16).hexdigest()


def stamp_of(path: Path) -> dict[str, int]:
    """What tells whether a file has changed: its size, and its time of modification."""
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


def parse_json(text: str | bytes) -> Any:
    """JSON from a file that may be damaged; a key that comes twice, NaN and infinity are refused.

    Raises:
        ValueError: it is no such JSON, nested too deep, or needs more memory than there is.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("an object has a key twice")
        return found

    def none(name: str) -> None:
        raise ValueError(f"{name} is no number")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=none)
    except (RecursionError, MemoryError) as error:
        raise ValueError("it is nested too deep, or too large") from error


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
    make_renames_last(folder)
    return size


def make_renames_last(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def delete_unlisted(folder: Path, manifest: Mapping[str, Any], prefix: str) -> None:
    """Delete the shards that a manifest, which is on the disk, does not list."""
    listed = {shard["file"] for shard in manifest["shards"]}
    for name in shard_files(folder, prefix):
        if name not in listed:
            (folder / name).unlink(missing_ok=True)


def shard_files(folder: Path, prefix: str) -> list[str]:
    """The names of the shards in a folder, listed or not; sorted.

    Raises:
        OSError: the folder cannot be listed (``glob`` would say that it is empty).
    """
    names = os.listdir(folder)
    return sorted(n for n in names if n.startswith(f"{prefix}-") and n.endswith(".safetensors"))


class DamagedShardError(Exception):
    """A shard is missing, not of its size, or not readable; the message says which."""


class UnreadableShardError(DamagedShardError):
    """The system cannot read a shard now: its disk or its network fails, or it may not be read."""


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
            # Through torch, which maps: the numpy reader copies. The mapping is private: whoever
            # writes to an array changes a copy in memory and never the file.
            self._file = cast(Any, safe_open(str(path), framework="pt"))
            self.keys: set[str] = set(self._file.keys())
        except FileNotFoundError:
            raise DamagedShardError(f"{path.name} is missing") from None
        except OSError as error:
            raise UnreadableShardError(f"{path.name} cannot be read: {error}") from error
        except SafetensorError as error:
            raise DamagedShardError(f"{path.name} cannot be read: {error}") from error
        self.name = path.name

    def about(self) -> dict[str, Any]:
        """What the file says about itself.

        Raises:
            DamagedShardError: it says nothing that could be read.
        """
        try:
            about = parse_json((self._file.metadata() or {})["isp_distill"])
        except (ValueError, KeyError) as error:
            raise DamagedShardError(f"{self.name} says nothing about itself: {error}") from error
        if not isinstance(about, dict):
            raise DamagedShardError(f"{self.name} says nothing about itself")
        return about

    def array(self, key: str) -> np.ndarray:
        """One array of it, not copied.

        Raises:
            DamagedShardError: there is no such array, or it is none that numpy knows.
        """
        from safetensors import SafetensorError

        if key not in self.keys:
            raise DamagedShardError(f"{self.name} has no record {key}")
        try:
            array: np.ndarray = self._file.get_tensor(key).numpy()
        except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
            # A type that numpy does not know: the header is not the one that was written.
            raise DamagedShardError(f"{self.name}: record {key} is no array: {error}") from error
        return array
