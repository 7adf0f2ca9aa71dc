"""The files below a folder, and the folders that could not be looked into."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path


def files_below(root: Path, suffixes: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """The files below a folder that have one of the suffixes.

    ``os.walk``, ``glob`` and ``rglob`` pass over what they cannot list, so that files of a share
    that is away seem to be deleted. Here the caller is told.

    Args:
        root: searched recursively; links to folders are not followed, so a loop of them does no
            harm.
        suffixes: in lower case, with their dots; names may have them in any case.

    Returns:
        The files, sorted by their path below ``root``. Names that begin with a dot are left out:
        macOS leaves ``._x.dng`` beside ``x.dng`` on foreign disks, and they hold no picture. And
        why folders could not be listed, by their path.
    """
    wanted = tuple(suffixes)
    found: list[Path] = []
    unlisted: dict[str, str] = {}
    waiting = [os.fspath(root)]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    try:
                        # Where the system does not say what it is, this asks, and may fail: for
                        # this one, and not for those after it.
                        is_folder = entry.is_dir()
                    except OSError as error:
                        if not entry.is_symlink():
                            unlisted[entry.path] = (
                                "the system cannot say whether it is a folder "
                                f"({error.strerror or error}): what is in it was not seen"
                            )
                            continue
                        is_folder = False  # a link that leads nowhere, such as one to itself
                    if is_folder:
                        if not entry.is_symlink():
                            waiting.append(entry.path)
                    elif entry.name.lower().endswith(wanted) and not entry.name.startswith("."):
                        found.append(Path(entry.path))
        except OSError as error:
            unlisted[folder] = (
                f"the folder cannot be listed ({error.strerror or error}): what is in it was not "
                "seen"
            )
    found.sort(key=lambda path: path.relative_to(root).parts)
    return found, unlisted


def is_file(path: Path) -> bool:
    """Whether there is a file.

    Raises:
        OSError: the system cannot tell (``Path.is_file`` says no, in some versions of Python).
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def nothing_found(root: Path, what: str, unlisted: dict[str, str]) -> OSError:
    """The error where a folder has none of the files that are looked for.

    Args:
        root: the folder.
        what: was looked for, as the end of a sentence.
        unlisted: from :func:`files_below`.
    """
    if not unlisted:
        return FileNotFoundError(f"{root}: {what}")
    name, reason = next(iter(sorted(unlisted.items())))
    others = f" ({len(unlisted)} folders in all)" if len(unlisted) > 1 else ""
    return OSError(f"{root}: {what}, but {name}: {reason}{others}")
