"""Pipes, sockets and devices under a file's name: reading one may wait, or go on, for ever."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_ordinary(path: str | os.PathLike[str], error: Callable[[str, str], Exception]) -> None:
    """Refuse what must not be opened to be read whole.

    Links are followed. Nothing is said where there is no such file, or the system cannot tell:
    opening it then says so better.

    Args:
        path: of the file.
        error: makes the error of the path and a reason, which ends a sentence.

    Raises:
        Exception: what ``error`` makes.
    """
    try:
        kind = _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):
        return
    if kind:
        raise error(os.fspath(path), f"it is {kind}, not a file; save what it gives in a file")
