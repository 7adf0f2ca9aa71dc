"""Some of a folder's files: those of a name, or a few that stand for all."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path

#: A glob or a sub-folder, or a function of the path that says whether the file is taken.
Select = str | Callable[[Path], bool] | None


def matches(name: str, pattern: str) -> bool:
    """Whether a path below a folder, with forward slashes, fits a glob or lies in a sub-folder.

    A star stands for slashes too: ``night/*.dng`` takes ``night/1/a.dng``.
    """
    return fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern.rstrip('/')}/")


def chosen_files(root: Path, paths: list[Path], select: Select, limit: int | None) -> list[Path]:
    """The files that are selected; of these at most ``limit``, spread evenly over them.

    Args:
        root: the folder they lie in.
        paths: of all, in order.
        select: which ones; None: all.
        limit: how many at most; None: any number.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: none is selected, or ``limit`` is below 1.
    """
    if isinstance(select, str):
        pattern = select
        chosen = [p for p in paths if matches(p.relative_to(root).as_posix(), pattern)]
    elif callable(select):
        chosen = [path for path in paths if select(path)]
    elif select is None:
        chosen = paths
    else:
        raise TypeError(
            f"select must be a glob such as 'night/*.dng' or a function of the path, not {select!r}"
        )
    if paths and not chosen:
        said = f"select={select!r}" if isinstance(select, str) else "select"
        first = paths[0].relative_to(root).as_posix()
        raise ValueError(
            f"{root}: {said} takes none of its {len(paths)} files, such as {first!r} (names are "
            "below the folder, with forward slashes)"
        )
    if limit is None:
        return chosen
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be a whole number of files, not {limit!r}")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    taken = min(limit, len(chosen))
    return [chosen[index * len(chosen) // taken] for index in range(taken)]
