"""What ``pack`` packs: the files of a folder, each as one record, or each of its frames as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from isp_distill.data.folder import RAW_EXTENSIONS, raw_files_below
from isp_distill.data.sensor_files import (
    SensorFiles,
    file_and_frame,
    frame_names,
    is_sensor_folder,
    sensor_files_below,
)
from isp_distill.data.sensor_folder import missing_description
from isp_distill.errors import RawError
from isp_distill.files.tree import files_below
from isp_distill.raw.decoding.pool import DecodePool
from isp_distill.raw.image import RawImage
from isp_distill.raw.sensor_file import ARRAYS, SENSOR_EXTENSIONS
from isp_distill.raw.sensor_format import SensorFormat
from isp_distill.storage.manifest import digest_of
from isp_distill.storage.shards import stamp_of


class Originals(Protocol):
    """What there is to pack.

    Attributes:
        root: the folder.
        names: of every record, below the folder, in their order.
        unlisted: why folders could not be listed, by their names.
        refused: files that hold no record: error, reason and stamp, by name.
    """

    root: Path
    names: list[str]
    unlisted: dict[str, str]
    refused: dict[str, dict[str, Any]]

    def file(self, name: str) -> Path:
        """The file of a record, also of one that is gone."""
        ...

    def is_seen(self, name: str) -> bool:
        """Whether the file of a record is there, whatever it holds now."""
        ...

    def stamp(self, name: str) -> dict[str, Any]:
        """What changes where a record must be made anew.

        Raises:
            OSError: the system does not say.
            RawError: what describes it cannot be used.
        """
        ...

    def read(self, name: str) -> RawImage:
        """The record's image.

        Raises:
            OSError: the file cannot be opened.
            RawError: it cannot be used.
        """
        ...


class RawFiles:
    """A folder of RAW files, each one record, decoded in other processes; see :class:`Originals`.

    Raises:
        FileNotFoundError: the folder is missing, or holds no RAW file.
        OSError: no file was found, and a folder could not be listed.
    """

    def __init__(self, root: Path, extensions: Sequence[str], pool: DecodePool) -> None:
        found, unlisted = raw_files_below(root, extensions)
        self.root, self._pool = root, pool
        self.names = [path.relative_to(root).as_posix() for path in found]
        self.unlisted = _named(root, unlisted)
        self.refused: dict[str, dict[str, Any]] = {}
        self._seen = set(self.names)

    def file(self, name: str) -> Path:
        """The file of a record."""
        return self.root / name

    def is_seen(self, name: str) -> bool:
        """Whether it is there."""
        return name in self._seen

    def stamp(self, name: str) -> dict[str, Any]:
        """Size and time of modification."""
        return stamp_of(self.root / name)

    def read(self, name: str) -> RawImage:
        """The decoded file."""
        return self._pool.read(self.root / name)


class SensorFrames:
    """A folder of sensor dumps, every frame one record; see :class:`Originals`.

    Args:
        root: the folder.
        form: of all files; None reads its ``sensor.toml``.
        extensions: suffixes to look for.
        pool: reads what a camera's own files in the folder hold.

    Raises:
        FileNotFoundError: the folder is missing, holds no dump, or no ``sensor.toml``.
        OSError: no file was found, and a folder could not be listed.
        ValueError: ``sensor.toml`` says something that a format has not.
    """

    def __init__(
        self, root: Path, form: SensorFormat | None, extensions: Sequence[str], pool: DecodePool
    ) -> None:
        found, unlisted = sensor_files_below(root, extensions)
        self.root, self._pool = root, pool
        self._files = SensorFiles(root, form)
        self.names: list[str] = []
        self.unlisted = _named(root, unlisted)
        self.refused: dict[str, dict[str, Any]] = {}
        self._seen = set()
        for path in found:
            name = path.relative_to(root).as_posix()
            self._seen.add(name)
            try:
                self.names += frame_names(name, self._files.frames(path))
            except RawError as error:
                stamp = {"size": 0, "mtime_ns": 0}
                why = {"error": type(error).__name__, "reason": error.reason}
                self.refused[name] = {**why, **stamp}

    def file(self, name: str) -> Path:
        """The file that holds the frame."""
        return self.root / file_and_frame(name)[0]

    def is_seen(self, name: str) -> bool:
        """Whether that file is there, with or without the frame."""
        return file_and_frame(name)[0] in self._seen

    def stamp(self, name: str) -> dict[str, Any]:
        """Size, time of modification, and a digest of what the description says of the file."""
        path = self.file(name)
        form = self._files.format(path)
        if form is None:
            return stamp_of(path)
        # A field that a later version adds changes no digest while it has its default.
        said = {
            field.name: getattr(form, field.name)
            for field in dataclasses.fields(form)
            if getattr(form, field.name) != field.default
        }
        return {**stamp_of(path), "format": digest_of(said)}

    def read(self, name: str) -> RawImage:
        """The frame."""
        path = self.file(name)
        return self._files.read(path, file_and_frame(name)[1], camera=self._pool.read)


def found_originals(
    root: Path,
    form: SensorFormat | None,
    extensions: Sequence[str] | None,
    pool: DecodePool,
) -> Originals:
    """What there is to pack in a folder.

    Args:
        root: the folder.
        form: of its files, where they are sensor dumps without a ``sensor.toml``.
        extensions: suffixes to look for; None: all that are read.
        pool: decodes RAW files.

    Raises:
        FileNotFoundError: the folder is missing, or holds nothing that could be packed.
        OSError: nothing was found, and a folder could not be listed.
        ValueError: what describes the folder cannot be used.
    """
    if form is not None or is_sensor_folder(root):
        return SensorFrames(root, form, extensions or SENSOR_EXTENSIONS, pool)
    try:
        return RawFiles(root, RAW_EXTENSIONS if extensions is None else extensions, pool)
    except FileNotFoundError:
        arrays = files_below(root, ARRAYS)[0] if root.is_dir() else []
        if arrays:
            raise FileNotFoundError(missing_description(root, arrays[0])) from None
        raise


def _named(root: Path, unlisted: dict[str, str]) -> dict[str, str]:
    return {Path(name).relative_to(root).as_posix(): why for name, why in unlisted.items()}
