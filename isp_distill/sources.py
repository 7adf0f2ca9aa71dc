"""What views are cut from: folders of RAW files, folders of pictures, datasets of either."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from isp_distill.errors import RawError
from isp_distill.folder import RAW_EXTENSIONS, RawFolder
from isp_distill.label_maps import LabelGrid, LabelMaps, as_label_map
from isp_distill.listed_files import common_folder, is_list_of_files, named_files
from isp_distill.packed import PackedRaw, is_packed
from isp_distill.pictures import read_picture
from isp_distill.tree import files_below, nothing_found

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class Source(Protocol):
    """What a view can be cut from: a sequence of RAW images or of RGB pictures."""

    def __len__(self) -> int:
        """The number of files."""
        ...

    def __getitem__(self, index: int) -> Any:
        """A RawImage or a uint8 RGB array ``[H, W, 3]``, alone or with its label.

        A label is an int, or a label map: integers ``[h, w]`` over the upright picture, see
        :mod:`isp_distill.label_maps`.
        """
        ...


#: What data may be given as: a folder, a file, a list of files, or a dataset.
Data = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Source


class ImageFolder:
    """A folder of ordinary pictures; ``folder[i]`` is uint8 RGB ``[H, W, 3]``, upright.

    Args:
        root: searched recursively for JPEG, PNG, WebP, BMP and TIFF.
        label_maps: a folder with a class for every pixel of every picture; see :class:`RawFolder`.
        files: take these pictures, in this order, instead of searching ``root``.

    Raises:
        FileNotFoundError: if the folder or a named file is missing, the folder holds no picture,
            or a label map is missing.
        OSError: no picture was found, and a folder could not be listed.
        ValueError: a named file lies elsewhere, is named twice, or is no picture by its name.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        label_maps: str | os.PathLike[str] | None = None,
        files: Sequence[str | os.PathLike[str]] | None = None,
    ) -> None:
        self.root = Path(root)
        self.skipped: dict[str, str] = {}
        if files is None:
            self.paths, self.skipped = _files(self.root, IMAGE_EXTENSIONS)
        else:
            self.root, self.paths = named_files(self.root, files, IMAGE_EXTENSIONS)
        if not self.paths:
            sought = ", ".join(IMAGE_EXTENSIONS)
            raise nothing_found(self.root, f"no pictures in it (looked for {sought})", self.skipped)
        names = [path.relative_to(self.root) for path in self.paths]
        self.label_maps = None if label_maps is None else LabelMaps(label_maps, names)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        path = self.paths[index]
        if str(path) in self.skipped:
            raise RawError(path, self.skipped[str(path)])
        try:
            return read_picture(path)
        except RawError as error:
            self.skipped[str(path)] = error.reason
            raise

    def report(self) -> str:
        """The pictures that were skipped, with reasons; empty if none."""
        lines = [f"  {path}: {reason}" for path, reason in sorted(self.skipped.items())]
        return "\n".join([f"{len(lines)} pictures were skipped:", *lines]) if lines else ""


def _files(root: Path, extensions: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """The files below ``root`` with one of the extensions, and why folders were not listed."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder")
    return files_below(root, extensions)


# Items that may be damaged before none is looked at.
_FIRST_ITEMS = 8
# So many decoded files show what decoding costs.
_MEASURED = 16


def packing_note(source: Source, workers: int) -> str | None:
    """What packing a folder of RAW files would save, once enough of them were decoded.

    Args:
        source: any; only a RawFolder that keeps nothing decoded has something to save.
        workers: files decoded at a time.
    """
    if not isinstance(source, RawFolder) or source.keeps_decoded:
        return None
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


def has_label_maps(source: Source) -> bool:
    """Whether the labels are maps; a dataset that is no folder is asked for its first item."""
    if isinstance(source, (RawFolder, PackedRaw, ImageFolder)):
        return source.label_maps is not None
    for index in range(len(source)):
        try:
            item = source[index]
        except RawError:
            continue
        pair = item_and_label(item, index)
        if pair is not None:
            label = pair[1]
            if label is None:
                continue  # some have none
        else:
            label = source.label(index) if hasattr(source, "label") else None
        return as_label_map(label, f"the label of dataset item {index}") is not None
    return False


def _check_first_label(source: Source) -> None:
    """Refuse a label that is none before a run begins, even one that its loss would not look at."""
    for index in range(min(len(source), _FIRST_ITEMS)):
        try:
            pair = item_and_label(source[index], index)
        except RawError:
            continue
        if pair is not None:
            as_label_map(pair[1], f"the label of dataset item {index}")
        elif hasattr(source, "label"):
            as_label_map(source.label(index), f"the label of dataset item {index}")
        return


def item_and_label(item: Any, index: int) -> tuple[Any, Any] | None:
    """A dataset's item taken apart where it comes with its label; None where it is alone.

    Raises:
        ValueError: it is a tuple of another length.
    """
    if not isinstance(item, tuple):
        return None
    if len(item) != 2:
        raise ValueError(
            f"dataset item {index} is a tuple of {len(item)}: expected a RawImage or a picture, "
            "alone or with its label"
        )
    return item[0], item[1]


def label_grid(
    source: Source, output_shape: Callable[[], Sequence[int]], size: int | Sequence[int] | None
) -> LabelGrid | None:
    """What a dataset's label maps are to be made for; None where it has none.

    Args:
        source: the dataset.
        output_shape: the shape of a view's logits; asked only where there are label maps.
        size: at which dense logits are compared; their own where None.

    Raises:
        ValueError: there are label maps, and the logits are not dense.
    """
    return LabelGrid.of(output_shape(), size) if has_label_maps(source) else None


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
        if (
            root.is_dir()
            and not files_below(root, RAW_EXTENSIONS)[0]
            and files_below(root, IMAGE_EXTENSIONS)[0]
        ):
            return ImageFolder(root, label_maps=label_maps)
        return cast(Source, RawFolder(root, label_maps=label_maps))
    if is_list_of_files(data):
        return _open_files(cast("Sequence[str | os.PathLike[str]]", data), label_maps)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        if len(data) == 0:
            raise ValueError("the dataset is empty")
        if not isinstance(data, (RawFolder, PackedRaw, ImageFolder)):
            _check_first_label(cast(Source, data))
        return cast(Source, data)
    raise TypeError(
        f"data must be a folder, a file, a list of files, or a dataset with a length, not "
        f"{type(data).__name__}"
    )


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
