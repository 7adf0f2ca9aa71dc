"""A folder of ordinary pictures as a dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isp_distill.data.labelled_folder import LabelledFolder, check_one_kind
from isp_distill.data.labels import Labels
from isp_distill.data.pictures import read_picture
from isp_distill.errors import RawError
from isp_distill.files.chosen import Select, chosen_files
from isp_distill.files.listed import named_files
from isp_distill.files.tree import files_below, nothing_found

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class ImageFolder(LabelledFolder):
    """A folder of ordinary pictures; ``folder[i]`` is uint8 RGB ``[H, W, 3]``, upright.

    Args:
        root: searched recursively for JPEG, PNG, WebP, BMP and TIFF.
        labels: see :class:`RawFolder`.
        label_maps: a folder with a class for every pixel of every picture; see there.
        files: take these pictures, in this order, instead of searching ``root``.
        select: see there.
        limit: take at most so many pictures; see there.

    Attributes:
        root: the folder.
        paths: the pictures, sorted unless they were named.
        classes: the class names, sorted; empty where ``labels`` gives numbers or nothing.
        label_maps: the :class:`~isp_distill.data.label_maps.LabelMaps`, or None.
        skipped: reason by path, of pictures that could not be read and folders that could not be
            listed.

    Raises:
        FileNotFoundError: if the folder or a named file is missing, the folder holds no picture,
            or a label map or the file of labels is missing.
        OSError: no picture was found, and a folder could not be listed.
        ValueError: a named file lies elsewhere, is named twice, or is no picture by its name; none
            is selected; or a picture has no label.

    Examples:
        >>> pictures = isp_distill.ImageFolder("pictures")
        >>> len(pictures), pictures[0].shape
        (2, (64, 80, 3))
    """

    _called = "pictures"

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        labels: Labels = None,
        label_maps: str | os.PathLike[str] | None = None,
        files: Sequence[str | os.PathLike[str]] | None = None,
        select: Select = None,
        limit: int | None = None,
    ) -> None:
        check_one_kind(labels, label_maps)
        self.root = Path(root)
        self.skipped: dict[str, str] = {}
        if files is None:
            self.paths, self.skipped = _files(self.root, IMAGE_EXTENSIONS)
        else:
            self.root, self.paths = named_files(self.root, files, IMAGE_EXTENSIONS)
        if not self.paths:
            sought = ", ".join(IMAGE_EXTENSIONS)
            raise nothing_found(self.root, f"no pictures in it (looked for {sought})", self.skipped)
        self.paths = chosen_files(self.root, self.paths, select, limit)
        #: Whether it is all that lies below ``root``.
        self.is_whole = files is None and select is None and limit is None
        self._take_labels(labels, label_maps)

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


def _files(root: Path, extensions: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """The files below ``root`` with one of the extensions, and why folders were not listed."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder")
    return files_below(root, extensions)
