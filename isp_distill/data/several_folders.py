"""Several folders as one dataset: their files one after another, their classes numbered alike."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from isp_distill.data.class_labels import has_labels
from isp_distill.data.image_folder import ImageFolder
from isp_distill.data.label_maps import LabelMaps
from isp_distill.data.source import RowReader, Source
from isp_distill.files.listed import common_folder
from isp_distill.raw.framing import Frame, Rectangle
from isp_distill.raw.image import RawImage


class SeveralFolders:
    """Folders of any kinds one after another; :func:`several_folders` makes it.

    Args:
        parts: the folders: of RAW files, sensor dumps or packed ones; or all of pictures.

    Attributes:
        parts: the folders.
        paths: of all files.
        classes: the class names of all folders, sorted.
        label_maps: of all files, or None.
        stated: the paths and labels that the folders were opened by, where a file of settings can
            say them; None where they were given as datasets.

    Raises:
        ValueError: some hold pictures and others RAW data; some have label maps and others none, or
            some class names and others numbers; or their label maps are to lie over different
            frames.
    """

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = list(parts)
        pictures = [isinstance(part, ImageFolder) for part in self.parts]
        if any(pictures) and not all(pictures):
            one, other = (self.name_of(pictures.index(kind)) for kind in (True, False))
            raise ValueError(
                f"{one}: holds pictures, and {other} RAW data: train on one kind at a time"
            )
        self._starts = [0]
        for part in self.parts:
            self._starts.append(self._starts[-1] + len(part))
        self.paths: list[Path] = [path for part in self.parts for path in _of(part, "paths", [])]
        self.label_maps = self._joined_maps()
        self.frame: Frame = self._common_frame()
        self.classes, self._numbers = self._joined_classes()
        self.stated: dict[str, Any] | None = None

    def name_of(self, number: int) -> str:
        """What a folder is called in errors: its path."""
        part = self.parts[number]
        return str(getattr(part, "path", None) or getattr(part, "root", f"folder {number}"))

    def _joined_maps(self) -> LabelMaps | None:
        maps = [_of(part, "label_maps", None) for part in self.parts]
        if all(one is None for one in maps):
            return None
        if any(one is None for one in maps):
            lacking = self.name_of(maps.index(None))
            raise ValueError(f"{lacking}: has no label maps, and other folders have: give them all")
        return _JoinedMaps(maps)

    def _common_frame(self) -> Frame:
        frames = [_of(part, "frame", None) for part in self.parts]
        if self.label_maps is not None and len(set(frames)) > 1:
            named = ", ".join(f"{self.name_of(i)}: {frame!r}" for i, frame in enumerate(frames))
            raise ValueError(f"label maps of one dataset lie over one frame ({named})")
        return cast(Frame, frames[0])

    def _joined_classes(self) -> tuple[list[str], list[list[int] | None]]:
        """The names of all classes, and for each folder the new numbers of its own."""
        own = [list(_of(part, "classes", [])) for part in self.parts]
        names = sorted({name for classes in own for name in classes})
        if self.label_maps is None and names:
            for number, (part, classes) in enumerate(zip(self.parts, own, strict=True)):
                if not classes and has_labels(part):
                    named = next(i for i, others in enumerate(own) if others)
                    raise ValueError(
                        f"{self.name_of(number)}: its classes are numbers, and those of "
                        f"{self.name_of(named)} have names: give all of them names, or none"
                    )
        place = {name: number for number, name in enumerate(names)}
        return names, [[place[name] for name in classes] or None for classes in own]

    def _place(self, index: int) -> tuple[int, int]:
        """The folder of an item, and the item's number in it."""
        index = range(len(self))[index]
        number = bisect.bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Any:
        """What the item's folder gives.

        Raises:
            RawError: its file cannot be used.
            IndexError: there is no such item.
        """
        number, own = self._place(index)
        return self.parts[number][own]

    def label(self, index: int) -> Any:
        """The item's class, in the numbers of all folders; its label map; or None."""
        number, own = self._place(index)
        label = cast(Any, self.parts[number]).label(own)
        numbers = self._numbers[number]
        if label is None or numbers is None or self.label_maps is not None:
            return label
        return numbers[label]

    @property
    def on_error(self) -> Literal["skip", "raise"]:
        """ "raise" where any folder says so."""
        said = [_of(part, "on_error", "skip") for part in self.parts]
        return "raise" if "raise" in said else "skip"

    @property
    def gain_map(self) -> bool | None:
        """None where any folder is to warn of gain maps."""
        said = [_of(part, "gain_map", None) for part in self.parts]
        return None if None in said else any(said)

    @property
    def skipped(self) -> dict[str, str]:
        """Reason by path, of what could not be used in any folder."""
        return {path: why for part in self.parts for path, why in _of(part, "skipped", {}).items()}

    def stop_reading(self) -> None:
        """End the reads that other threads are waiting for, where a folder can."""
        self._each("stop_reading")

    def close(self) -> None:
        """Close every folder that can be closed."""
        self._each("close")

    def _each(self, name: str) -> None:
        for part in self.parts:
            if hasattr(part, name):
                getattr(part, name)()


class SeveralRowReaders(SeveralFolders):
    """Folders of which some read rows, as packed ones do; see :class:`RowReader`."""

    def _reader(self, index: int) -> tuple[RowReader, int]:
        number, own = self._place(index)
        return cast(RowReader, self.parts[number]), own

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width of an item's mosaic."""
        part, own = self._reader(index)
        return part.shape(own)

    def rows(self, index: int, top: int, bottom: int) -> RawImage:
        """Its rows ``top .. bottom - 1``, with its camera; ``top`` is even."""
        part, own = self._reader(index)
        return part.rows(own, top, bottom)

    def packed_rows(self, index: int, top: int, bottom: int) -> RawImage:
        """The same, packed where they are stored so."""
        part, own = self._reader(index)
        return part.packed_rows(own, top, bottom)

    def reads_rows(self, index: int) -> bool:
        """Whether the item's folder reads rows, and those of this file."""
        part, own = self._reader(index)
        return isinstance(part, RowReader) and part.reads_rows(own)

    def default_crop(self, index: int) -> Rectangle | None:
        """What the camera shows of the whole mosaic."""
        part, own = self._reader(index)
        return part.default_crop(own)


def several_folders(parts: Sequence[Source]) -> SeveralFolders:
    """Folders as one dataset; rows are read where a folder can.

    Raises:
        ValueError: they do not go together, see :class:`SeveralFolders`.
    """
    rows = any(isinstance(part, RowReader) for part in parts)
    return (SeveralRowReaders if rows else SeveralFolders)(parts)


class _JoinedMaps(LabelMaps):
    """Label maps of several folders, one after another."""

    def __init__(self, maps: Sequence[LabelMaps]) -> None:
        self.root = common_folder([one.root / "any" for one in maps])
        self.paths = [path for one in maps for path in one.paths]


def _of(part: Source, name: str, otherwise: Any) -> Any:
    return getattr(part, name, otherwise)
