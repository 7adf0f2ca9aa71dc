"""What a disk refuses, said in one sentence that names the file and the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}


@contextlib.contextmanager
def naming_disk(path: Path) -> Iterator[None]:
    """Make an OSError of the block say which file could not be written, and on which disk.

    It keeps its ``errno`` and its class.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise  # a sentence of ours
        raise _sentence(path, error) from error


def _sentence(path: Path, error: OSError) -> OSError:
    what = f"{path}: cannot be written: {error.strerror}"
    if error.errno in _FULL:
        folder = _existing(path.parent)
        free = shutil.disk_usage(folder).free
        # A quota or a limit of the process may end a file on a disk with room.
        what += (
            f" (disk {_mount_point(folder)}, {free / 1e6:.0f} MB free): make room there and call "
            "again; what was written before is kept"
        )
    # With two arguments its text would begin with a number in brackets.
    found = type(error)(what)
    found.errno = error.errno
    return found


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made; nothing is left behind.

    If the folder is missing, the nearest one above it must be writable.

    Raises:
        NotADirectoryError: it is a file, or lies below one.
        OSError: a file cannot be made there: no permission, a read-only or a full disk.
    """
    place = _existing(folder)
    if not place.is_dir():
        same = place == Path(os.path.abspath(folder))
        below = "" if same else f", and {folder} would lie below it"
        raise NotADirectoryError(f"{place}: is a file{below}: give a folder to write to")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0")
    except OSError as error:
        reason = error.strerror or error
        raise type(error)(
            f"{folder}: cannot be written to ({place}: {reason}): give another folder"
        ) from error


def _existing(path: Path) -> Path:
    """The path, or the nearest one above it that exists."""
    path = Path(os.path.abspath(path))
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _mount_point(path: Path) -> Path:
    while not path.is_mount() and path != path.parent:
        path = path.parent
    return path
