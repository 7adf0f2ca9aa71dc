"""Files that appear whole or not at all, and folders that one process at a time writes to."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from isp_distill.files.disk import naming_disk

_LOCK = ".lock"


@contextlib.contextmanager
def replaced(path: Path, suffix: str = "") -> Iterator[Path]:
    """A path to write to, whose file then takes the place of ``path``.

    After a kill at any moment there is the old file or the new one, whole. Where the body raises,
    the old one stays.

    Args:
        path: the file.
        suffix: of the temporary name, for writers that look at it.

    Raises:
        OSError: it cannot be written; the message names the file, and the disk where that is full.
    """
    # Threads too: two of them may write one file.
    unique = f"{os.getpid()}.{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}.{unique}.tmp{suffix}")
    try:
        with naming_disk(path):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which then takes the place of ``path``, with all its files or not.

    Where the body raises, or the process is killed in it, the old folder stays.

    Args:
        path: the folder.

    Raises:
        OSError: it cannot be written; the message names it, and the disk where that is full.
    """
    unique = f"{os.getpid()}.{threading.get_ident()}"
    made, old = (path.with_name(f".{path.name}.{unique}.{end}") for end in ("tmp", "old.tmp"))
    try:
        with naming_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            made.mkdir()
            yield made
            for file in made.iterdir():
                with open(file, "rb+") as written:
                    os.fsync(written.fileno())
            # A folder cannot take another's place in one step: a kill just here leaves none.
            if path.exists():
                os.rename(path, old)
            os.rename(made, path)
    finally:
        for folder in (made, old):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def only_writer(
    folder: Path, busy: str = "another process is writing to it", wait: float = 0.0
) -> Iterator[None]:
    """Make a folder, hold its lock, and clear away what killed writers left half written.

    The lock goes with the process that holds it, however that ends.

    Args:
        folder: to write to.
        busy: what the error says of the folder.
        wait: seconds to wait for a process that holds the lock.

    Raises:
        RuntimeError: if another process is writing.
        OSError: the folder cannot be made, or not be written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _LOCK)
    try:
        with naming_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=wait)
    except Timeout:
        raise RuntimeError(f"{folder}: {busy}") from None
    try:
        clear_leftovers(folder)
        yield
    finally:
        lock.release()


def clear_leftovers(folder: Path) -> None:
    """Delete what killed writers left half written; only for the process that holds the lock."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
