"""Checkpoints that a kill leaves whole, and of which a single changed bit is noticed.

A checkpoint is a file of ``torch.save``, a ZIP, whose comment is the BLAKE2b of everything before
it: torch reads it as any other, and torch itself would not see that a bit has changed.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from isp_distill.files.atomic import only_writer, replaced

# A killed run's process may take a moment to be gone.
_LOCK_TIMEOUT_S = 10.0

FORMAT = "isp-distill checkpoint"
VERSION = 3
_SEAL = b"isp-distill blake2b "
_SEAL_BYTES = len(_SEAL) + 64
# Before a ZIP's comment, its length: two bytes, little-endian.
_LENGTH_BYTES = 2
_CHUNK = 1 << 20

#: What a checkpoint holds: the types of each part. One of matched features has "matching" too, the
#: projectors and the teacher's statistics: they are no part of the student.
_PARTS: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "settings": (dict,),
    "processes": (int,),
    "stored_teacher": (str, type(None)),
    "belongs_to": (dict,),
    "student": (dict,),
    "optimizer": (dict,),
    "average": (dict, type(None)),
    "random": (list,),
    "before": (dict, type(None)),
}


def only_run(folder: Path) -> AbstractContextManager[None]:
    """Make the folder and hold its lock, so that no two runs mix their files; clear leftovers.

    Raises:
        RuntimeError: on entry, if another run holds it.
    """
    return only_writer(
        folder,
        "another run is writing there: wait for it, end it, or train into another folder",
        _LOCK_TIMEOUT_S,
    )


class NotOursError(ValueError):
    """A file that isp-distill did not write, so nobody is told to replace it."""


class _Hashing:
    """A file that hashes what is written, and keeps the error that torch would put in its words."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = hashlib.blake2b(digest_size=32)
        self.error: OSError | None = None
        self._last = b""

    def write(self, data: bytes) -> int:
        # The two last bytes change, so they wait for what follows.
        data = self._last + bytes(data)
        self._last = data[-_LENGTH_BYTES:]
        self._put(data[: -len(self._last)])
        return len(data)

    def flush(self) -> None:
        """Nothing waits here but the two last bytes."""

    def seal(self) -> None:
        self._put(_SEAL_BYTES.to_bytes(_LENGTH_BYTES, "little"))
        self._put(_SEAL + self.hash.hexdigest().encode())

    def _put(self, data: bytes) -> None:
        self.hash.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint (tensors, numbers, strings, containers of them) atomically.

    Raises:
        OSError: it cannot be written; the one before stays.
    """
    with replaced(path) as temporary, open(temporary, "wb") as file:
        sealed = _Hashing(file)
        try:
            # Written to, and no more is asked of it, hence the ignore.
            torch.save({**state, "format": FORMAT, "version": VERSION}, sealed)  # type: ignore[arg-type]
            sealed.seal()
        except Exception:
            if sealed.error is not None:
                raise sealed.error from None
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        ValueError: the file is damaged, was changed, or is no checkpoint of this version; the
            message names it and says which.
    """
    if path.is_dir():
        inside = path / "checkpoint.pt"
        there = f"give {inside}" if inside.is_file() else "give a checkpoint.pt that train() wrote"
        raise IsADirectoryError(f"{path}: is a folder, no checkpoint: {there}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such checkpoint")
    sealed = _check_seal(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if sealed:
            # The content is what was written: torch is another.
            said = str(error).strip().partition("\n")[0]
            raise ValueError(f"{path}: this version of torch cannot read it ({said})") from error
        raise NotOursError(f"{path}: is damaged, or no checkpoint of isp-distill") from error
    _check_parts(path, state, sealed)
    return dict(state)


def _check_seal(path: Path) -> bool:
    """Whether the file ends in the checksum of its content.

    Raises:
        ValueError: the checksum is of something else; or the file was none of ours to begin with.
    """
    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path}: is empty")
    digest = hashlib.blake2b(digest_size=32)
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(max(0, size - _SEAL_BYTES))
        seal = file.read()
        if not re.fullmatch(re.escape(_SEAL) + rb"[0-9a-f]{64}", seal):
            if start != b"PK\x03\x04":
                raise NotOursError(f"{path}: is no checkpoint of isp-distill")
            return False
        file.seek(0)
        left = size - _SEAL_BYTES
        while left and (chunk := file.read(min(_CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    if digest.hexdigest().encode() != seal[len(_SEAL) :]:
        raise ValueError(f"{path}: is damaged (it is not what its checksum was made of)")
    return True


def _check_parts(path: Path, state: Any, sealed: bool) -> None:
    """Check the content's form before any of it is used.

    Raises:
        ValueError: it is another one.
    """
    ours = isinstance(state, dict) and state.get("format") == FORMAT
    if not ours:
        if isinstance(state, dict) and {"step", "options", "student", "optimizer"} <= state.keys():
            raise ValueError(
                f"{path}: was written by isp-distill 0.1.0, which recorded neither a checksum nor "
                "the teacher and the data that it belongs to, so no run goes on from it; its "
                "weights are torch.load(path, weights_only=True)['student']"
            )
        raise NotOursError(f"{path}: is a file of torch's, but no checkpoint of isp-distill")
    if state.get("version") != VERSION:
        raise ValueError(
            f"{path}: is a checkpoint of version {state.get('version')!r}, and this isp-distill "
            f"reads version {VERSION}"
        )
    if not sealed:
        raise ValueError(f"{path}: was changed after isp-distill wrote it (its checksum is gone)")
    for name, types in _PARTS.items():
        if name not in state:
            raise ValueError(f"{path}: lacks {name!r}, which every checkpoint has")
        if not isinstance(state[name], types) or isinstance(state[name], bool):
            raise ValueError(f"{path}: its {name!r} is a {type(state[name]).__name__}")
    _check_weights(path, "student", state["student"])
    _check_weights(path, "average", state["average"] or {})
    beside = state.get("matching", {})
    if not isinstance(beside, dict):
        raise ValueError(f"{path}: its 'matching' is a {type(beside).__name__}")
    _check_weights(path, "matching", beside)
    if state["step"] < 0:
        raise ValueError(f"{path}: its 'step' is {state['step']}")
    for pair in state["random"]:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not _is_random(pair):
            raise ValueError(f"{path}: its 'random' holds no states of random generators")
    if not {"state", "param_groups"} <= state["optimizer"].keys():
        raise ValueError(f"{path}: its 'optimizer' is no state of an optimiser")


def _is_random(pair: Any) -> bool:
    return isinstance(pair[0], Tensor) and (pair[1] is None or isinstance(pair[1], Tensor))


def _check_weights(path: Path, part: str, weights: dict[Any, Any]) -> None:
    for name, value in weights.items():
        extra = isinstance(name, str) and name.rpartition(".")[2] == "_extra_state"
        if not isinstance(name, str) or not (extra or isinstance(value, Tensor)):
            raise ValueError(f"{path}: its {part!r} holds {name!r}, which is no tensor")
