"""Where the cameras' pictures of a folder of RAW files are: in them, beside them, or elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from isp_distill.data.camera_picture import CameraPicture
from isp_distill.data.image_folder import IMAGE_EXTENSIONS
from isp_distill.errors import CorruptRawError
from isp_distill.raw.decoding.pool import DecodePool
from isp_distill.raw.embedded_picture import embedded_picture

EMBEDDED, BESIDE = "embedded", "beside"


class PictureFiles:
    """The camera's picture of each of some RAW files.

    Args:
        where: "embedded" (the largest JPEG in the RAW file), "beside" (``IMG_1.JPG`` beside
            ``IMG_1.CR2``), or a folder in which ``a/b.jpg`` is the picture of ``a/b.cr2``. Suffixes
            may be in any case, and those of :class:`isp_distill.ImageFolder`; JPEG comes first.
        root: the folder of the RAW files.
        paths: the RAW files.
        workers: processes that look into RAW files, at most.
        timeout_s: seconds for one file.

    Attributes:
        missing: why there is no picture, by RAW file.

    Raises:
        FileNotFoundError: there is no such folder, or no RAW file has a picture in it.
        ValueError: ``where`` is empty.
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        root: Path,
        paths: Sequence[Path],
        workers: int = 2,
        timeout_s: float = 60.0,
    ) -> None:
        self.where = os.fspath(where)
        self.missing: dict[str, str] = {}
        self._pool: DecodePool | None = None
        self._pictures: list[Path | None] = []
        self._paths = paths
        if not self.where:
            raise ValueError('picture is empty: it is "embedded", "beside" or a folder')
        if self.where == EMBEDDED:
            self._pool = DecodePool(workers, timeout_s, decoder=embedded_picture)
            return
        folder = root if self.where == BESIDE else Path(self.where)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: there is no such folder of pictures; picture= is "
                '"embedded", "beside" or a folder'
            )
        known: dict[Path, dict[str, Path]] = {}
        mosaics = set(paths)
        for path in paths:
            place = folder / path.relative_to(root).parent
            if place not in known:
                known[place] = _pictures_in(place, mosaics)
            found = known[place].get(path.stem)
            self._pictures.append(found)
            if found is None:
                self.missing[str(path)] = f"it has no picture: {place / path.stem}.jpg is missing"
        if len(self.missing) == len(paths):
            first = next(iter(self.missing.items()))
            raise FileNotFoundError(
                f"{first[0]}: {first[1]}; none of the {len(paths)} files has one"
            )

    def of(self, index: int) -> CameraPicture:
        """The picture of the i-th file; nothing of it is decoded yet.

        Raises:
            RawError: it has none, or it cannot be read.
        """
        path = self._paths[index]
        if self._pool is None:
            found = self._pictures[index]
            if found is None:
                raise CorruptRawError(path, self.missing[str(path)])
            return CameraPicture(found)
        try:
            jpeg, orientation = self._pool.read_picture(path)
        except OSError as error:
            raise CorruptRawError(path, f"cannot be opened: {error.strerror}") from error
        return CameraPicture(jpeg, str(path), orientation)

    def file(self, index: int) -> Path | None:
        """The file that the picture of the i-th RAW file is in."""
        return self._paths[index] if self._pool is not None else self._pictures[index]

    def stop_reading(self) -> None:
        """End the reads that other threads are waiting for: they raise RuntimeError."""
        if self._pool is not None:
            self._pool.stop_reading()

    def close(self) -> None:
        """Stop the processes; no embedded picture can be read afterwards."""
        if self._pool is not None:
            self._pool.close()

    def __getstate__(self) -> dict[str, object]:
        pool = self._pool
        return {
            **self.__dict__,
            "_pool": None if pool is None else (pool.workers, pool.timeout_s),
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        settings = state["_pool"]
        if isinstance(settings, tuple):
            self._pool = DecodePool(*settings, decoder=embedded_picture)


def _pictures_in(folder: Path, mosaics: set[Path]) -> dict[str, Path]:
    """The pictures in a folder, by their names without suffix; of several, the first suffix's.

    ``mosaics`` are none: a sensor dump may be a PNG.
    """
    found: dict[str, Path] = {}
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return found
    for suffix in IMAGE_EXTENSIONS:
        for name in names:
            if name.startswith(".") or folder / name in mosaics:
                continue
            if name.lower().endswith(suffix):
                found.setdefault(name[: -len(suffix)], folder / name)
    return found
