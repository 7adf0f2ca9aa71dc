"""A folder of ordinary pictures as a dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isp_distill.data.label_maps import LabelMaps
from isp_distill.data.pictures import read_picture
from isp_distill.errors import RawError
from isp_distill.files.listed import named_files
from isp_distill.files.tree import files_below, nothing_found

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


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

    Examples:
        >>> pictures = isp_distill.ImageFolder("pictures")
        >>> len(pictures), pictures[0].shape
        (2, (64, 80, 3))
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
