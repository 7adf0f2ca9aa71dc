"""What data may be given as: a path, a list of files or a dataset, opened as what it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from isp_distill.data.folder import RAW_EXTENSIONS, RawFolder
from isp_distill.data.image_folder import IMAGE_EXTENSIONS, ImageFolder
from isp_distill.data.sensor_folder import (
    SensorFolder,
    is_sensor_folder,
    missing_description,
)
from isp_distill.data.source import Source, check_first_label
from isp_distill.files.listed import common_folder, is_list_of_files
from isp_distill.files.tree import files_below
from isp_distill.packs.reader import PackedRaw, is_packed

#: What data may be given as: a folder, a file, a list of files, or a dataset.
Data = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Source

# So many decoded files show what decoding costs.
_MEASURED = 16
# What only a description makes readable.
_ARRAYS = (".npy", ".npz")


def open_source(data: Data, label_maps: str | os.PathLike[str] | None = None) -> Source:
    """A packed folder, one of RAW files, one of ordinary pictures, or a dataset as it is.

    Args:
        data: the folder's path, one file's, a list of files, or a dataset.
        label_maps: the folder of its label maps, see :class:`RawFolder`. Those of named files lie
            as the files do below the innermost folder that holds them all.

    Raises:
        FileNotFoundError: for a folder without either, or a file or label map that is missing.
        ValueError: for an empty dataset, a list of both RAW files and pictures, or a first item
            whose label is none.
        TypeError: for something that is neither a path nor a dataset.
    """
    if isinstance(data, (str, os.PathLike)):
        root = Path(data)
        if root.is_file():
            return _open_files([root], label_maps)
        if is_packed(root):
            return cast(Source, PackedRaw(root, label_maps=label_maps))
        if is_sensor_folder(root):
            return cast(Source, SensorFolder(root, label_maps=label_maps))
        if root.is_dir():
            held = _held_below(root)
            if held == "pictures":
                return ImageFolder(root, label_maps=label_maps)
            if isinstance(held, Path):
                raise FileNotFoundError(missing_description(root, held))
        return cast(Source, RawFolder(root, label_maps=label_maps))
    if is_list_of_files(data):
        return _open_files(cast("Sequence[str | os.PathLike[str]]", data), label_maps)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        if len(data) == 0:
            raise ValueError("the dataset is empty")
        if not isinstance(data, (RawFolder, PackedRaw, ImageFolder, SensorFolder)):
            check_first_label(cast(Source, data))
        return cast(Source, data)
    raise TypeError(
        f"data must be a folder, a file, a list of files, or a dataset with a length, not "
        f"{type(data).__name__}"
    )


def _held_below(root: Path) -> Literal["raw", "pictures"] | Path | None:
    """What a folder holds: RAW files, else pictures, else arrays, of which the first is named."""
    found = files_below(root, (*RAW_EXTENSIONS, *IMAGE_EXTENSIONS, *_ARRAYS))[0]
    suffixes = {path.suffix.lower() for path in found}
    if suffixes & set(RAW_EXTENSIONS):
        return "raw"
    if suffixes & set(IMAGE_EXTENSIONS):
        return "pictures"
    return found[0] if found else None


def _open_files(
    files: Sequence[str | os.PathLike[str]], label_maps: str | os.PathLike[str] | None
) -> Source:
    pictures = [Path(file).suffix.lower() in IMAGE_EXTENSIONS for file in files]
    if any(pictures) and not all(pictures):
        raise ValueError(
            f"{files[pictures.index(True)]}: is a picture, {files[pictures.index(False)]} is none: "
            "give RAW files or pictures, not both"
        )
    root = common_folder(files)
    if pictures[0]:
        return ImageFolder(root, label_maps=label_maps, files=files)
    return cast(Source, RawFolder(root, label_maps=label_maps, files=files))


def packing_note(source: Source, workers: int) -> str | None:
    """What packing a folder of RAW files would save, once enough of them were decoded.

    Args:
        source: any; only a RawFolder that keeps nothing decoded has something to save.
        workers: files decoded at a time.
    """
    if not isinstance(source, RawFolder) or source.keeps_decoded:
        return None
    if source.pictures is not None:
        return None  # the shell's pack, which the note names, stores no pictures
    files, seconds = source.decoded
    if files < _MEASURED:
        return None
    each = seconds / files
    return (
        f"decoding takes {1e3 * each:.0f} ms a RAW file ({files} measured), so {len(source)} files "
        f"cost {each * len(source) / workers:.1f} s of every epoch with {workers} workers; packed "
        f"they cost it once: isp-distill pack {source.root} OUT, then train on OUT (or keep them "
        "with RawFolder(..., cache=FOLDER))"
    )
