"""``PairedFolder``: what folders of RAW files have in common that give cameras' pictures too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from isp_distill.data.camera_picture import CameraPicture
from isp_distill.data.pairs import Aligned, Pairs
from isp_distill.data.picture_files import PictureFiles
from isp_distill.errors import CorruptRawError, RawError
from isp_distill.raw.image import RawImage


class PairedFolder:
    """A part of a folder: the cameras' pictures of its files, where there are some.

    Attributes:
        pictures: where they are, or None.
    """

    root: Path
    paths: list[Path]
    skipped: dict[str, str]
    on_error: Literal["skip", "raise"]
    upright: bool
    pictures: PictureFiles | None = None

    if TYPE_CHECKING:

        def __getitem__(self, index: int) -> RawImage:
            """The i-th file, which the folder itself reads."""

    def _take_pictures(
        self,
        picture: str | os.PathLike[str] | None,
        max_misalignment: float,
        workers: int = 2,
        timeout_s: float = 60.0,
    ) -> None:
        """Let the cameras' pictures be what teachers see; files without one are left out.

        Raises:
            ValueError: the mosaics may lie on their sides, or ``max_misalignment`` is not above 0.
            FileNotFoundError: there is no such folder, or no file has a picture.
            CorruptRawError: a file has none, and ``on_error`` is "raise".
        """
        self._pairs = Pairs(len(self.paths), max_misalignment)
        if picture is None:
            return
        if not self.upright:
            raise ValueError("pictures stand upright, and so must mosaics: leave upright at True")
        pictures = PictureFiles(picture, self.root, self.paths, workers, timeout_s)
        if pictures.missing and self.on_error == "raise":
            raise CorruptRawError(*next(iter(pictures.missing.items())))
        self.skipped.update(pictures.missing)
        self.pictures = pictures

    def _pair(self, index: int) -> tuple[RawImage, CameraPicture]:
        assert self.pictures is not None
        return self[index], self.pictures.of(index)

    def picture(self, index: int) -> CameraPicture | None:
        """The camera's picture of the i-th file, not decoded yet; None without ``picture=``.

        Raises:
            RawError: it has none, or it cannot be read.
        """
        return None if self.pictures is None else self.pictures.of(index)

    def aligned(self, index: int, raw: RawImage | None = None) -> Aligned | None:
        """The camera's picture of the i-th file and how it lies over the mosaic, or None.

        Raises:
            RawError: it has no picture, or that is another one, or ``max_misalignment`` is passed.
        """
        if self.pictures is None:
            return None
        try:
            return self._pairs.place(index, raw, self.pictures.of(index), self._pair)
        except RawError as error:
            if self.on_error == "skip":
                self.skipped[str(self.paths[index])] = error.reason
            raise
