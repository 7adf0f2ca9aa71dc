"""Frames of sensor dumps: how many a file holds, and one of them, or some rows of it.

A file's name says what it is: ``.raw`` and ``.bin`` are bytes, one frame after another; ``.npy``
and ``.npz`` arrays of codes ``[H, W]`` or ``[N, H, W]``, or of packed bytes; ``.pgm``, ``.png`` and
``.tif`` one picture of one channel. What a file says of its size is compared with the format before
anything of that size is allocated.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from isp_distill.errors import CorruptRawError, RawError, UnsupportedRawError
from isp_distill.files.numpy_arrays import array_header, mapped_array, read_array
from isp_distill.files.pillow import pillow
from isp_distill.raw.packings import PACKED, row_bytes
from isp_distill.raw.pixels import Pixels
from isp_distill.raw.sensor_format import SensorFormat

BYTES = (".raw", ".bin")
ARRAYS = (".npy", ".npz")
PICTURES = (".pgm", ".png", ".tif", ".tiff")
SENSOR_EXTENSIONS = (*BYTES, *ARRAYS, *PICTURES)


def count_frames(path: Path, form: SensorFormat) -> int:
    """How many frames a file holds.

    Raises:
        RawError: it is not of this format; the message says what differs.
    """
    with _explained(path):
        suffix = path.suffix.lower()
        if suffix in BYTES:
            return _count_in_bytes(path, form)
        if suffix == ".npy":
            array = mapped_array(path)
            return _frames_of(path, array.shape, array.dtype, form)
        if suffix == ".npz":
            return len(_members(path, form))
        return 1


def read_pixels(path: Path, frame: int, top: int, bottom: int, form: SensorFormat) -> Pixels:
    """The rows ``top .. bottom - 1`` of a frame, packed if they are, without a row's padding.

    Of bytes and of ``.npy`` no other rows are read; of the other kinds the whole file.

    Raises:
        RawError: the file is damaged, or not of this format.
    """
    with _explained(path):
        suffix = path.suffix.lower()
        if suffix in BYTES:
            rows = _rows_of_bytes(path, frame, top, bottom, form)
        elif suffix == ".npy":
            rows = _frame(mapped_array(path), frame, path, form)[top:bottom]
        elif suffix == ".npz":
            rows = _frame_of_members(path, frame, form)[top:bottom]
        else:
            rows = _picture(path, form)[top:bottom]
        if (rows.dtype == np.uint8 and rows.shape[1] != form.width) or suffix in BYTES:
            if form.packing not in PACKED:
                return Pixels.of(form.codes(rows))
            needed = row_bytes(form.width, form.packing)
            rows = rows[:, :needed]
            # What is mapped is copied: a file may shrink later.
            rows = np.array(rows) if isinstance(rows, np.memmap) else rows
            return Pixels(rows, form.packing, form.width)
        return Pixels.of(_checked_codes(rows, path, form))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Whatever a library raises for a file becomes our error, which names the file."""
    try:
        yield
    except (RawError, ImportError, MemoryError, SystemError):
        raise
    except FileNotFoundError as error:
        raise CorruptRawError(path, "there is no such file") from error
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise CorruptRawError(path, f"cannot be read ({said})") from error


def _count_in_bytes(path: Path, form: SensorFormat) -> int:
    size = os.stat(path).st_size - form.header
    frames, rest = divmod(max(size, 0), form.frame_bytes)
    # The last row of the last frame may be without its padding.
    if rest and form.frame_bytes - rest <= _padding(form):
        frames, rest = frames + 1, 0
    if rest or not frames:
        after = f" after a header of {form.header}" if form.header else ""
        raise CorruptRawError(
            path,
            f"holds {max(size, 0)} bytes{after}: a frame of {form.height} x {form.width} pixels in "
            f"{form.packing} takes {form.frame_bytes}, so it holds {frames} and {rest} bytes too "
            "many (or another size, packing or stride is right)",
        )
    return frames


def _padding(form: SensorFormat) -> int:
    assert form.stride is not None
    return form.stride - row_bytes(form.width, form.packing)


def _rows_of_bytes(path: Path, frame: int, top: int, bottom: int, form: SensorFormat) -> np.ndarray:
    assert form.stride is not None
    _count_in_bytes(path, form)  # the file may have changed
    start = form.header + frame * form.frame_bytes + top * form.stride
    wanted = (bottom - top) * form.stride
    rows = np.zeros((bottom - top, form.stride), np.uint8)
    with open(path, "rb") as file:
        file.seek(start)
        found = file.readinto(rows.reshape(-1).data)
    if found < wanted - _padding(form):
        raise CorruptRawError(path, f"ends in the middle of frame {frame}")
    return rows


def _frames_of(path: Path, shape: tuple[int, ...], kind: np.dtype[Any], form: SensorFormat) -> int:
    """How many frames an array of this shape and type holds."""
    packed = form.packing not in ("uint8", "uint16")
    forms = [(form.height, form.width)]
    if packed and kind == np.uint8:
        forms = [(form.height, form.stride)]  # type: ignore[list-item]  # never None
    if shape[-2:] not in forms or len(shape) not in (2, 3) or kind.kind not in "iu":
        expected = " or ".join(f"[{h}, {w}]" for h, w in forms)
        raise UnsupportedRawError(
            path,
            f"holds {kind} {list(shape)}: expected whole numbers {expected}, or several such "
            f"frames [N, ...] (of a format of {form.height} x {form.width} in {form.packing})",
        )
    if len(shape) == 3 and not shape[0]:
        raise CorruptRawError(path, "holds no frame")
    return shape[0] if len(shape) == 3 else 1


def _frame(array: np.ndarray, frame: int, path: Path, form: SensorFormat) -> np.ndarray:
    frames = _frames_of(path, array.shape, array.dtype, form)
    if frame >= frames:
        raise CorruptRawError(path, f"has {frames} frames, and number {frame} was asked for")
    return array if array.ndim == 2 else array[frame]


def _members(path: Path, form: SensorFormat) -> list[tuple[str, int]]:
    """Every frame of a ``.npz``: the array's name in it, and the number in that array."""
    found = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith(".npy"):
                continue
            with archive.open(name) as member:
                shape, dtype = array_header(member)
            found += [(name, i) for i in range(_frames_of(path, shape, dtype, form))]
    if not found:
        raise CorruptRawError(path, "holds no array")
    return found


def _frame_of_members(path: Path, frame: int, form: SensorFormat) -> np.ndarray:
    members = _members(path, form)
    if frame >= len(members):
        raise CorruptRawError(path, f"has {len(members)} frames, number {frame} was asked for")
    name, index = members[frame]
    with zipfile.ZipFile(path) as archive, archive.open(name) as member:
        array = read_array(member)
    return _frame(array, index, path, form)


def _picture(path: Path, form: SensorFormat) -> np.ndarray:
    """A picture of one channel, of the format's size."""
    with pillow(f"{path}: pictures of a sensor are read with").open(path) as image:
        size, mode = (image.height, image.width), image.mode
        if size != (form.height, form.width) or not (mode == "L" or mode.startswith("I")):
            raise UnsupportedRawError(
                path,
                f"is {size[0]} x {size[1]} of mode {mode}: expected one channel of "
                f"{form.height} x {form.width}, in 8 or 16 bits",
            )
        return np.asarray(image)


def _checked_codes(rows: np.ndarray, path: Path, form: SensorFormat) -> np.ndarray:
    """Codes that came as numbers: shifted, and none larger than the format's bits."""
    assert form.bits is not None
    codes = np.asarray(rows)
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) > 0xFFFF):
        raise CorruptRawError(path, f"holds {codes.min()} to {codes.max()}: codes are 0 to 65535")
    codes = np.right_shift(codes.astype(np.uint16), form.shift)
    most = int(codes.max()) if codes.size else 0
    if most >> form.bits:
        raise UnsupportedRawError(
            path,
            f"holds code {most}, more than {form.bits} bits can say: bits is wrong, or the codes "
            f"lie in the high bits (shift = {16 - form.bits})",
        )
    return np.ascontiguousarray(codes)
