"""Label maps: a class for every pixel of a picture, and what a view of the picture shows of it.

**Where a map lies.** Over the upright picture, edge on edge, the EXIF orientation applied, at any
resolution of the picture's aspect ratio. Two pictures are meant by that: the camera's own (its
JPEG, what viewers and annotation tools show), which is the default crop of the mosaic
(``RawImage.default_crop``), and the whole mosaic, which :func:`isp_distill.render` shows. A map of
the size of one of them lies over it; else one with the default crop's aspect ratio lies over that;
else over the mosaic. ``frame="default_crop"`` or ``"visible"`` says so for all maps.

**What a view sees of it.** The part that its mosaic shows, turned over as the mosaic is, at the
resolution at which dense logits are compared (:class:`LabelGrid`): each of these pixels takes the
class at its centre. Classes are never blended.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from isp_distill.data.draw import Draw
from isp_distill.errors import RawError
from isp_distill.files.numpy_arrays import mapped_array
from isp_distill.files.pillow import pillow
from isp_distill.files.tree import is_file
from isp_distill.ops.dense_logits import full_size
from isp_distill.raw.framing import Frame, Rectangle
from isp_distill.raw.image import RawImage

Array = np.ndarray[Any, Any]

#: The label of pixels that have none, as in ``torch.nn.functional.cross_entropy``.
IGNORED = -100
SUFFIXES = (".png", ".npy")
# What stands for it in files: every value of a signed array is a number, IGNORED among them.
_IGNORED_IN = {"uint8": 255, "uint16": 65535}
# A PNG's bit depth: byte 8 of IHDR, the chunk that every PNG begins with.
_DEPTH = 24
# Sites that reading a mosaic may cut off a side: an odd last one; of a binned one, up to two.
_CUT = 2


@dataclass(frozen=True)
class LabelGrid:
    """What a view's label map is made for.

    Attributes:
        height: of dense logits where they are compared, pixels.
        width: likewise.
        classes: that they tell apart.
    """

    height: int
    width: int
    classes: int

    @classmethod
    def of(cls, logits: Sequence[int], size: int | Sequence[int] | None) -> LabelGrid:
        """The grid on which logits ``[C, h, w]`` are compared at ``size`` (their own where None).

        Raises:
            ValueError: for logits of another form: a class for the whole picture has no pixels.
        """
        if len(logits) != 3:
            raise ValueError(
                f"label maps need a dense teacher, with logits [N, C, h, w]: this one's are "
                f"{['N', *logits]}"
            )
        # Without memory: its shape is all that is asked for.
        return cls(*full_size(size, torch.empty(1, *logits, device="meta")), int(logits[0]))


class Shown(NamedTuple):
    """Which part of a picture a view shows.

    Attributes:
        picture: height and width, in any unit.
        window: top, left, height and width of the view in it.
        draw: the view; of it, the mirror and the flip.
        default_crop: the camera's own picture in it, where that is known.
        frame: over which of the two the map lies; None decides by its shape.
    """

    picture: tuple[int, int]
    window: tuple[int, int, int, int]
    draw: Draw
    default_crop: Rectangle | None = None
    frame: Frame = None


class LabelMaps:
    """The label maps of a folder of pictures: the same tree of names, ``.png`` or ``.npy``.

    A PNG has one channel of class indices (or a palette, whose colours mean nothing); an array in
    ``.npy`` is ``[h, w]``, of an integer type. Pixels that have no class are 255 in 8 bits, 65535
    in 16, and -100 in signed arrays. Only what a view shows is read of an array, whereas a PNG is
    decoded whole for each view: 53 ms on one core for a map of 12 MP, 3.5 for one with sides of a
    quarter, so maps are best no finer than the views.

    Args:
        folder: of the maps.
        names: the pictures' paths below their own folder; the map of ``a/b.dng`` is ``a/b.png``,
            or ``a/b.npy`` where that is missing.

    Attributes:
        root: their folder.
        paths: of the maps, in the order of the pictures.

    Raises:
        FileNotFoundError: the folder is missing, or lacks a map.
        OSError: a folder of maps cannot be read.
        ImportError: there are PNG files, and no Pillow to read them.
    """

    def __init__(self, folder: str | os.PathLike[str], names: Sequence[Path]) -> None:
        self.root = root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: there is no such folder (to look for label maps in)")
        self.paths: list[Path] = []
        missing = []
        for name in names:
            places = [root / name.with_suffix(suffix) for suffix in SUFFIXES]
            found = next((place for place in places if is_file(place)), None)
            if found is None:
                missing.append(places[0])
            else:
                self.paths.append(found)
        if missing:
            raise FileNotFoundError(
                f"{missing[0]}: there is no such label map (nor .npy); {len(missing)} of "
                f"{len(names)} files have none"
            )
        if any(path.suffix == ".png" for path in self.paths):
            _pillow()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Array:
        """The i-th map: int64 ``[h, w]``, -100 where it is to be ignored.

        Raises:
            RawError: the file cannot be read.
            ValueError: it holds no label map.
        """
        path = self.paths[index]
        return _labels(_checked(_read(path), str(path)))

    def view(self, index: int, shown: Shown, grid: LabelGrid) -> Array:
        """What a view shows of the i-th map; see :func:`map_view`."""
        path = self.paths[index]
        return map_view(_read(path), shown, grid, str(path))


def map_view(label_map: Array, shown: Shown, grid: LabelGrid, name: str) -> Array:
    """What a view shows of a label map: int64 ``[grid.height, grid.width]``, -100 for none.

    What lies outside of the map, where it covers the default crop only, has no class.

    Args:
        label_map: integers ``[h, w]``, with pixels of no class as in :class:`LabelMaps`.
        shown: the part of the picture.
        grid: what comes out.
        name: of the map, for errors.

    Raises:
        ValueError: the map is none, its aspect ratio is not the picture's, a class in the view is
            not one of the grid's, or it is to lie over a default crop that is not known.
    """
    _checked(label_map, name)
    first_row, first_column, *picture = laid_over(label_map.shape, shown, name)
    top, left, height, width = shown.window
    rows = _nearest(top - first_row, height, grid.height, label_map.shape[0], picture[0])
    columns = _nearest(left - first_column, width, grid.width, label_map.shape[1], picture[1])
    rows = rows[::-1] if shown.draw.flip else rows
    columns = columns[::-1] if shown.draw.mirror else columns
    inside = [
        (places >= 0) & (places < side)
        for places, side in zip((rows, columns), label_map.shape, strict=True)
    ]
    labels = np.full((grid.height, grid.width), IGNORED, np.int64)
    labels[np.ix_(*inside)] = _labels(label_map[np.ix_(rows[inside[0]], columns[inside[1]])])
    wrong = (labels >= grid.classes) | ((labels < 0) & (labels != IGNORED))
    if wrong.any():
        found = np.unique(labels[wrong])
        ignored = _IGNORED_IN.get(label_map.dtype.name, IGNORED)
        raise ValueError(
            f"{name}: holds the class {', '.join(map(str, found[:5].tolist()))}"
            f"{', ...' if len(found) > 5 else ''}, but the teacher knows {grid.classes} "
            f"(0 to {grid.classes - 1}); in a map of {label_map.dtype}, {ignored} stands for no "
            "class"
        )
    return labels


def as_label_map(label: Any, name: str = "the label") -> Array | None:
    """A dataset's label as a map: integers of two axes; None for a class, or for none.

    Args:
        label: of one item; an int, None, or anything that numpy takes for an array.
        name: of the label, for errors.

    Raises:
        ValueError: it is an array of something else, or no label at all; the message says what.
    """
    if label is None or isinstance(label, (int, float, str, bytes, np.generic)):
        return None
    try:
        array = label.detach().cpu().numpy() if isinstance(label, Tensor) else np.asarray(label)
    except (TypeError, ValueError, RuntimeError):
        array = np.empty((), object)
    found = _no_label(label, array)
    if found is not None:
        raise ValueError(
            f"{name} is {found}: expected a class index, a label map (integers [H, W]) or None"
        )
    return array if array.ndim == 2 else None


def _no_label(label: Any, array: Array) -> str | None:
    """What something is that is neither a class nor a label map; None for these."""
    what = f"{array.dtype} {list(array.shape)}"
    if isinstance(label, RawImage):
        return "a RawImage, and pairs of two pictures are not taken"
    if array.dtype.kind not in "biuf":
        return f"of the type {type(label).__name__}"
    if array.ndim == 0 or (array.ndim == 2 and array.dtype.kind != "f" and array.size):
        return None
    if array.ndim == 1 and array.size == 1:
        return None  # one number, which may be a class
    if array.ndim == 3 and (array.shape[2] in (3, 4) or array.shape[0] in (3, 4)):
        return (
            f"a picture ({what}); a pair of a mosaic and the camera's picture of it is (RawImage, "
            "uint8 [H, W, 3])"
        )
    if array.ndim == 1:
        return f"a list of {array.size} numbers ({what}; of one-hot labels, give the argmax)"
    if array.ndim == 2:
        return f"an array that holds no classes ({what})"
    return f"an array of {array.ndim} axes ({what}; of one-hot maps, give the argmax)"


def collate_labels(labels: Sequence[int | Array], grid: LabelGrid | None) -> Tensor | None:
    """A batch's labels: int64 ``[N, h, w]`` on a grid, else ``[N]``, or None where none has one.

    Args:
        labels: a sample's class, or -100, or its view of a map.
        grid: of the maps; None where there are none.

    Raises:
        ValueError: for a class among maps.
    """
    if grid is None:
        return torch.tensor(labels) if any(label != IGNORED for label in labels) else None
    maps = np.full((len(labels), grid.height, grid.width), IGNORED, np.int64)
    for place, label in zip(maps, labels, strict=True):
        if isinstance(label, int) and label != IGNORED:
            raise ValueError(
                f"the dataset gives a class ({label}) for one picture and label maps for others"
            )
        place[...] = label
    return torch.from_numpy(maps)


def _read(path: Path) -> Array:
    """The file's array; an ``.npy`` is mapped into memory.

    Raises:
        RawError: it cannot be read.
        ValueError: it is a PNG of more than one channel.
    """
    if path.suffix == ".png":
        return _read_png(path)
    try:
        return mapped_array(path)
    except (OSError, EOFError, ValueError) as error:
        raise RawError(path, f"cannot be read as a label map: {error}") from error


def _read_png(path: Path) -> Array:
    pillow = _pillow()
    try:
        with open(path, "rb") as file:
            depth = file.read(_DEPTH + 1)[_DEPTH:]
            file.seek(0)
            with pillow.open(file, formats=("PNG",)) as image:
                mode: str = image.mode
                array: Array = np.asarray(image)
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise RawError(path, f"cannot be read as a label map: {error}") from error
    if mode in ("I", "I;16", "I;16B"):
        return array.astype(np.uint16)
    if mode == "L" and depth in (b"\x02", b"\x04"):
        # Pillow stretches such greys to 8 bits.
        array = array // np.uint8(255 // (2 ** depth[0] - 1))
    elif mode not in ("1", "L", "P"):
        raise ValueError(
            f"{path}: is a PNG of mode {mode}: a label map has one channel of class indices, "
            "in 8 or 16 bits or by a palette"
        )
    return array.astype(np.uint8, copy=False)


def _pillow() -> Any:
    return pillow("reading label maps from PNG needs", " (or store them as .npy)")


def _checked(label_map: Array, name: str) -> Array:
    if label_map.ndim != 2 or 0 in label_map.shape or label_map.dtype.kind not in "bui":
        raise ValueError(
            f"{name}: a label map must be integers [h, w], not {label_map.dtype} "
            f"{list(label_map.shape)}"
        )
    return label_map


def _labels(values: Array) -> Array:
    """As int64, the pixels to be ignored as -100."""
    labels = values.astype(np.int64)
    ignored = _IGNORED_IN.get(values.dtype.name)
    if ignored is not None:
        labels[labels == ignored] = IGNORED
    return labels


def laid_over(
    label_map: tuple[int, ...], shown: Shown, name: str, what: str = "a label map"
) -> Rectangle:
    """Which part of the picture a map (or whatever else) lies over; see the top of this file.

    Raises:
        ValueError: it has the aspect ratio of neither, or the part is not known.
    """
    whole, crop = (0, 0, *shown.picture), shown.default_crop
    if shown.frame == "default_crop":
        if crop is None:
            raise ValueError(
                f'{name}: frame="default_crop", but its picture says of no default crop; use '
                'frame="visible", or None to decide for each map'
            )
        whole = crop
    elif shown.frame is None and crop is not None:
        cut = [of_map - side for of_map, side in zip(label_map, shown.picture, strict=True)]
        mosaics_own = label_map != crop[2:] and all(0 <= sites <= _CUT for sites in cut)
        # A small map may fit both: the nearer one is meant.
        away = [_away(label_map, one[2:]) for one in (crop, whole)]
        nearer = away[0] <= away[1] or not _fits(label_map, whole[2:])
        if not mosaics_own and nearer and _fits(label_map, crop[2:]):
            whole = crop
    _check_aspect(label_map, whole[2:], name, what)
    return whole


def _away(label_map: tuple[int, ...], picture: tuple[int, ...]) -> float:
    """How far apart two aspect ratios are; 0 for the same."""
    return abs(math.log(label_map[0] * picture[1] / (label_map[1] * picture[0])))


def _check_aspect(
    label_map: tuple[int, ...], picture: tuple[int, int], name: str, what: str
) -> None:
    if _fits(label_map, picture):
        return
    height, width = label_map
    side = _fits((width, height), picture)
    raise ValueError(
        f"{name}: {what} of {height} x {width} does not fit its picture of {picture[0]} x "
        f"{picture[1]}: {'it lies on its side; turn it' if side else 'draw it over the picture'} "
        "as the upright picture is (what the camera's JPEG or isp_distill.render shows), at any "
        "resolution of that aspect ratio"
    )


def _fits(label_map: tuple[int, ...], picture: tuple[int, int]) -> bool:
    """Whether one scale explains both sides: a map's are whole pixels, and a site may be cut."""
    scales = [
        ((of_map - 1) / (of_picture + _CUT), (of_map + 1) / of_picture)
        for of_map, of_picture in zip(label_map, picture, strict=True)
    ]
    return max(low for low, _ in scales) <= min(high for _, high in scales)


def _nearest(start: int, length: int, count: int, pixels: int, side: int) -> Array:
    """On which of a map's ``pixels`` the centres of a window's ``count`` parts fall.

    Along one axis: the window begins at ``start`` of the picture's ``side`` and has this length.
    Exact, in whole numbers: a mirrored view is the view, mirrored.
    """
    centres = 2 * count * start + length * (2 * np.arange(count, dtype=np.int64) + 1)
    nearest: Array = centres * pixels // (2 * count * side)
    return nearest
