"""Files that are named one by one, where a folder would be searched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

File = str | os.PathLike[str]


def is_list_of_files(data: object) -> bool:
    """Whether something is a list or tuple of paths and of nothing else."""
    return (
        isinstance(data, (list, tuple))
        and len(data) > 0
        and all(isinstance(item, (str, os.PathLike)) for item in data)
    )


def common_folder(files: Sequence[File]) -> Path:
    """The innermost folder that holds all of the files."""
    return Path(os.path.commonpath([Path(os.fspath(file)).absolute().parent for file in files]))


def named_files(
    root: Path, files: Sequence[File], extensions: Sequence[str]
) -> tuple[Path, list[Path]]:
    """A folder, and the named files in it, both absolute, in the order given.

    Args:
        root: the folder that all of them lie in.
        files: paths of files that exist.
        extensions: the suffixes that they may have, in any case.

    Raises:
        FileNotFoundError: there is no such file; the message names the first one.
        IsADirectoryError: one of them is a folder.
        ValueError: there is none; or one is named twice, lies elsewhere or has another suffix.
    """
    if isinstance(files, (str, os.PathLike)) or not files:
        raise ValueError(f"files must be a list of paths, not {files!r}")
    wanted = tuple(f".{e.lower().lstrip('.')}" for e in extensions)
    folder = root.absolute()
    found: dict[Path, None] = {}
    for file in files:
        path = Path(os.fspath(file)).absolute()
        if path.is_dir():
            raise IsADirectoryError(
                f"{file}: is a folder in a list of files: give the folder alone, or its files"
            )
        if not path.is_file():
            raise FileNotFoundError(f"{file}: there is no such file")
        if path.suffix.lower() not in wanted:
            raise ValueError(f"{file}: its name does not end in one of {', '.join(wanted)}")
        if path in found:
            raise ValueError(f"{file}: is named twice in the list")
        if not path.is_relative_to(folder):
            raise ValueError(f"{file}: lies outside of {root}")
        found[path] = None
    return folder, list(found)
