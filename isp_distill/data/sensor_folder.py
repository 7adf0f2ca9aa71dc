"""A folder of sensor dumps as a dataset: headerless frames, arrays and 16-bit pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from torch.utils.data import Dataset

from isp_distill.data.labelled_folder import LabelledFolder, check_one_kind
from isp_distill.data.labels import Labels
from isp_distill.data.paired_folder import PairedFolder
from isp_distill.data.pairs import MAX_MISALIGNMENT
from isp_distill.data.picture_files import EMBEDDED
from isp_distill.data.sensor_description import SENSOR_TOML
from isp_distill.data.sensor_files import (
    SensorFiles,
    frame_names,
    is_sensor_folder,
    sensor_files_below,
)
from isp_distill.errors import RawError
from isp_distill.files.chosen import Select, chosen_files
from isp_distill.files.listed import named_files
from isp_distill.raw.framing import Rectangle
from isp_distill.raw.image import RawImage
from isp_distill.raw.image import upright as turn_upright
from isp_distill.raw.sensor_file import SENSOR_EXTENSIONS
from isp_distill.raw.sensor_format import SensorFormat

# EXIF orientations above this exchange rows and columns; those of the others upside down.
_KEEPS_ROWS = 4
_UPSIDE_DOWN = (3, 4)


class SensorFolder(PairedFolder, LabelledFolder, Dataset[RawImage]):
    """Every frame below a folder of sensor dumps; ``folder[i]`` is the i-th as a RawImage.

    Files are ``.raw`` and ``.bin`` (bytes, one frame after another), ``.npy`` and ``.npz`` (arrays
    of codes ``[H, W]`` or ``[N, H, W]``, or of packed bytes), ``.pgm``, 16-bit ``.png`` and
    ``.tif`` (one channel; they need Pillow). Several frames in a file are several samples.

    ``train``, ``evaluate`` and the shell open a folder that has a ``sensor.toml`` by its path.
    They read only the rows that a view shows, and give packed bytes to the kernels as they are
    where a view is whole groups of pixels, neither binned nor mirrored: the numbers are the same.
    Thread-safe; nothing is kept open.

    Args:
        root: searched recursively, in sorted order; names that begin with a dot are left out.
        format: of all files; None reads ``sensor.toml`` in ``root``, see
            :mod:`isp_distill.data.sensor_description`.
        labels: see :class:`isp_distill.RawFolder`; every frame of a file has the file's class.
        label_maps: instead of ``labels``: a folder with a class for every pixel, see there. That
            of frame 3 of ``a/b.raw``, where the file holds several, is ``a/b.raw/0003.png``.
        on_error: see there.
        upright: apply the orientation that the format states.
        files: take these files, in this order, instead of searching ``root``.
        select: see there.
        limit: take at most so many files, with all frames of each; see there.
        picture: what teachers see instead of what :func:`isp_distill.render` makes: "beside" or a
            folder of pictures, see :class:`isp_distill.RawFolder`. Only for files of one frame.
        max_misalignment: see there.
        packed: give the bytes of packed frames as they are: ``folder[i].mosaic`` is then uint8
            ``[H, bytes]``, and ``packing`` says how they lie. False unpacks them.

    Attributes:
        root: the folder.
        paths: each frame's file.
        frames: each frame's number in its file.
        classes: the class names, sorted; empty where ``labels`` gives numbers or nothing.
        label_maps: the :class:`~isp_distill.data.label_maps.LabelMaps`, or None.
        on_error: "skip" or "raise".
        skipped: reason by path, of files that could not be used and folders that could not be
            listed.

    Raises:
        FileNotFoundError: the folder, its ``sensor.toml`` or a named file is missing, or it holds
            no frame.
        OSError: no file was found, and a folder could not be listed.
        ValueError: ``sensor.toml`` says something that a format has not, every file is of another
            size than it says, or an argument is out of range.

    Example:
        >>> import numpy as np, pathlib
        >>> dumps = pathlib.Path("dumps")
        >>> dumps.mkdir()
        >>> np.save(dumps / "0.npy", np.full((5, 64, 96), 100, np.uint16))
        >>> form = isp_distill.SensorFormat(96, 64, "uint16", "RGGB", black=64, bits=10)
        >>> folder = isp_distill.SensorFolder(dumps, form)
        >>> len(folder), folder[4].mosaic.shape, folder[4].white
        (5, (64, 96), 1023.0)
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        format: SensorFormat | None = None,
        *,
        labels: Labels = None,
        label_maps: str | os.PathLike[str] | None = None,
        on_error: Literal["skip", "raise"] = "skip",
        upright: bool = True,
        files: Sequence[str | os.PathLike[str]] | None = None,
        select: Select = None,
        limit: int | None = None,
        picture: str | os.PathLike[str] | None = None,
        max_misalignment: float = MAX_MISALIGNMENT,
        packed: bool = False,
    ) -> None:
        if on_error not in ("skip", "raise"):
            raise ValueError(f'on_error must be "skip" or "raise", not {on_error!r}')
        check_one_kind(labels, label_maps)
        self.root, self.on_error, self.upright = Path(root), on_error, upright
        self.packed = packed
        self.skipped: dict[str, str] = {}
        if files is None:
            found, self.skipped = sensor_files_below(self.root)
        else:
            self.root, found = named_files(self.root, files, SENSOR_EXTENSIONS)
        if format is None and not is_sensor_folder(self.root):
            raise FileNotFoundError(missing_description(self.root, found[0]))
        self._files = SensorFiles(self.root, format)
        self.paths: list[Path] = []
        self.frames: list[int] = []
        #: Each frame's name below the folder, see :mod:`isp_distill.data.sensor_files`.
        self.names: list[str] = []
        found = chosen_files(self.root, found, select, limit)
        #: Whether it is all that lies below ``root``, by its ``sensor.toml``.
        self.is_whole = files is None and select is None and limit is None and format is None
        for path in found:
            self._take(path)
        if not self.paths:
            first = "\n".join(f"  {p}: {why}" for p, why in list(self.skipped.items())[:3])
            raise ValueError(f"{self.root}: none of its {len(found)} files could be used:\n{first}")
        self._take_labels(labels, label_maps, [Path(name) for name in self.names])
        if picture == EMBEDDED:
            raise ValueError(
                f'{self.root}: sensor dumps hold no pictures: use picture="beside" or a folder'
            )
        if picture is not None and len(set(self.paths)) != len(self.paths):
            raise ValueError(
                f"{self.root}: pictures are of files with one frame, and some have several"
            )
        self._take_pictures(picture, max_misalignment)

    @property
    def format(self) -> SensorFormat | None:
        """The format of all frames; None where they have several."""
        found = {self._files.format(path) for path in self.paths}
        return found.pop() if len(found) == 1 else None

    def _take(self, path: Path) -> None:
        """Count a file's frames, or note why it has none."""
        try:
            frames = self._files.frames(path)
        except RawError as error:
            if self.on_error == "raise":
                raise
            self.skipped[str(path)] = error.reason
            return
        self.paths += [path] * frames
        self.frames += range(frames)
        self.names += frame_names(path.relative_to(self.root).as_posix(), frames)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> RawImage:
        """The i-th frame.

        Raises:
            RawError: its file cannot be used.
            IndexError: there is no such frame.
        """
        raw = self._read(index, self._files.read)
        return raw if self.packed else raw.unpacked()

    def reads_rows(self, index: int) -> bool:
        """Whether some rows of the i-th frame can be read: not of a camera's own file, or one
        that is turned on its side, or has a camera's picture."""
        form = self._files.format(self.paths[index])
        turned = form is not None and self.upright and form.orientation > _KEEPS_ROWS
        return form is not None and not turned and self.pictures is None

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width of the i-th frame's mosaic, where rows of it can be read."""
        form = self._files.format(self.paths[index])
        assert form is not None
        return form.height // form.block, form.width // form.block

    def default_crop(self, index: int) -> Rectangle | None:
        """None: no dump says what a camera shows of it."""
        return None

    def rows(self, index: int, top: int, bottom: int) -> RawImage:
        """Rows ``top .. bottom - 1``, both even, of the i-th frame; reads no others.

        Of ``.npz`` and of pictures the whole file is read.

        Raises:
            RawError: its file cannot be used.
            ValueError: such rows are not in the mosaic.
        """
        raw = self.packed_rows(index, top, bottom)
        return raw if self.packed else raw.unpacked()

    def packed_rows(self, index: int, top: int, bottom: int) -> RawImage:
        """The same rows, as packed bytes where the frame is packed."""
        height, _ = self.shape(index)
        if not 0 <= top < bottom <= height or top % 2 or bottom % 2:
            raise ValueError(f"rows {top}:{bottom} must be even and inside the mosaic's {height}")

        def read(path: Path, frame: int) -> RawImage:
            form = self._files.format(path)
            assert form is not None
            below = self.upright and form.orientation in _UPSIDE_DOWN
            first, last = (height - bottom, height - top) if below else (top, bottom)
            return self._files.read_rows(path, frame, first, last)

        return self._read(index, read)

    def _read(self, index: int, read: Callable[[Path, int], RawImage]) -> RawImage:
        """What ``read`` reads of the i-th frame, turned upright, packed if it may be."""
        path = self.paths[index]
        if str(path) in self.skipped:
            raise RawError(path, self.skipped[str(path)])
        try:
            raw = read(path, self.frames[index])
            return turn_upright(raw) if self.upright else raw
        except RawError as error:
            if self.on_error == "skip":
                self.skipped[str(path)] = error.reason
            raise


def missing_description(root: Path, first: Path) -> str:
    """What to write for a folder of sensor dumps, with an example made from its first file."""
    lines = ['format = "SRGGB10"  # or packing, bits and pattern', "width = 1920", "height = 1080"]
    if first.suffix.lower() == ".npy":
        try:
            array = np.load(first, mmap_mode="r", allow_pickle=False)
            height, width = array.shape[-2:]
            most = int(array.reshape(-1, width)[:64].max())
            bits = next((b for b in (8, 10, 12, 14) if most < 1 << b), 16)
            lines = [
                f'packing = "{array.dtype if array.dtype.itemsize < 2 else "uint16"}"',
                f"bits = {bits}  # its first rows hold codes up to {most}",
                'pattern = "RGGB"',
                f"width = {width}",
                f"height = {height}",
            ]
        except (ValueError, OSError, AttributeError):
            pass  # the example without it
    text = "\n    ".join([*lines, "black = 64", "white_balance = [2.0, 1.0, 1.6]"])
    return (
        f"{root}: nothing says what {first.name} and the others are: write {root / SENSOR_TOML}, "
        f"for example\n\n    {text}\n\nor give SensorFolder(root, SensorFormat(...))"
    )
