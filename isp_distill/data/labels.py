"""The classes of a folder's files, from folders, a file, a mapping or a function."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from isp_distill.data.class_labels import as_class
from isp_distill.data.label_file import LabelFile, is_label_file

Labels = (
    Literal["folder"]
    | str
    | os.PathLike[str]
    | LabelFile
    | Mapping[str, int]
    | Callable[[Path], int]
    | None
)


def stated(labels: Labels) -> str | None:
    """Labels as a file of settings has them: "folder", or a path; None for all others."""
    if isinstance(labels, str) and labels == "folder":
        return "folder"
    return str(Path(labels)) if is_label_file(labels) else None  # type: ignore[arg-type]  # a path


def labelled(
    root: Path, paths: Sequence[Path], labels: Labels
) -> tuple[list[int] | None, list[str]]:
    """The class of every file, and the names of the classes.

    Computed when a folder is opened, so that a missing label is known then.

    Args:
        root: the folder.
        paths: of the files, below it; one that holds several pictures may come several times.
        labels: see :class:`isp_distill.RawFolder`.

    Returns:
        The classes, None where ``labels`` is. The names, sorted; none where classes are numbers.

    Raises:
        FileNotFoundError: there is no such file of labels.
        ValueError: a file has no label, or one that is no class; or ``labels`` is nothing of all
            this.
    """
    if labels is None:
        return None, []
    names = [path.relative_to(root).as_posix() for path in paths]
    if isinstance(labels, str) and labels == "folder":
        return _of_folders(root, paths, names)
    if isinstance(labels, LabelFile):
        return labels.of(root, names), list(labels.classes)
    if is_label_file(labels):
        file = Path(labels)  # type: ignore[arg-type]  # by now a path
        if not file.exists() and (root / file).exists():
            raise FileNotFoundError(
                f"{file}: there is no such file of labels: {root / file} is one"
            )
        return labelled(root, paths, LabelFile.read(file))
    if isinstance(labels, Mapping):
        return _of_mapping(root, paths, names, labels), []
    if callable(labels):
        return [as_class(labels(path), str(path)) for path in paths], []
    raise ValueError(
        'labels must be None, "folder", a file that ends in .csv or .jsonl, a mapping or a '
        f"function, not {labels!r}"
    )


def _of_folders(
    root: Path, paths: Sequence[Path], names: Sequence[str]
) -> tuple[list[int], list[str]]:
    """The first folder below the root is the class."""
    outside = [path for path in paths if path.parent == root]
    if outside:
        raise ValueError(
            f'{outside[0]}: labels="folder" needs every file in a folder named after its class; '
            f"{len(outside)} lie in {root} itself"
        )
    folders = [name.split("/")[0] for name in names]
    classes = sorted(set(folders))
    number = {name: i for i, name in enumerate(classes)}
    return [number[folder] for folder in folders], classes


def _of_mapping(
    root: Path, paths: Sequence[Path], names: Sequence[str], labels: Mapping[str, int]
) -> list[int]:
    keys = [(name, path.name) for name, path in zip(names, paths, strict=True)]
    missing = [k[0] for k in keys if k[0] not in labels and k[1] not in labels]
    if missing:
        raise ValueError(
            f"{root / missing[0]}: no label for it; {len(missing)} of {len(paths)} files have "
            "none (keys are paths below the folder, or file names)"
        )
    return [
        as_class(labels[k[0]] if k[0] in labels else labels[k[1]], str(root / k[0])) for k in keys
    ]
