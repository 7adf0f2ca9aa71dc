"""Cameras' pictures in a packed folder: each beside its mosaic, with how it lies over that."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isp_distill.data.camera_picture import CameraPicture
from isp_distill.data.pairs import Aligned, Pairs, resized
from isp_distill.data.picture_files import PictureFiles
from isp_distill.data.registration import Registration
from isp_distill.raw.decoding.pool import DecodePool
from isp_distill.raw.image import RawImage, upright
from isp_distill.storage import shards

# JPEG of pictures that were resized or were none: what is lost is below the noise of the sensor.
_QUALITY = 95


@dataclass(frozen=True)
class StoredPicture:
    """A picture on its way into a shard.

    Attributes:
        array: the bytes of its JPEG, uint8 ``[n]``.
        entry: what the manifest says of it.
    """

    array: np.ndarray[Any, Any]
    entry: dict[str, Any]


class PicturePacker:
    """Finds, registers and encodes the pictures of the files that are packed. Thread-safe.

    Args:
        where: see :class:`isp_distill.RawFolder`.
        side: the shorter side of what is stored; None stores a JPEG's bytes as they are.
        max_misalignment: see there.
        root: the folder of the RAW files.
        paths: the RAW files.
        pool: decodes them.

    Raises:
        FileNotFoundError: there is no such folder, or no file has a picture.
        ValueError: ``side`` is below 32, or ``max_misalignment`` not above 0.
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        side: int | None,
        max_misalignment: float,
        root: Path,
        paths: Sequence[Path],
        pool: DecodePool,
    ) -> None:
        self._pairs = Pairs(len(paths), max_misalignment)
        self._files = PictureFiles(where, root, paths, pool.workers, pool.timeout_s)
        self._paths, self._pool, self._side = paths, pool, side
        self._index = {path: index for index, path in enumerate(paths)}

    def _pair(self, index: int) -> tuple[RawImage, CameraPicture]:
        return upright(self._pool.read(self._paths[index])), self._files.of(index)

    def of(self, path: Path, raw: RawImage, binning: int) -> StoredPicture:
        """The picture of a file.

        Args:
            path: the file.
            raw: what is in it, upright and not binned.
            binning: of what is stored of it.

        Raises:
            RawError: it has none, or that does not lie over the mosaic.
        """
        index = self._index[path]
        aligned = self._pairs.place(index, raw, self._files.of(index), self._pair)
        picture, placed = aligned.picture, aligned.registration
        orientation = picture.orientation
        jpeg = picture.jpeg()
        if jpeg is None or (self._side is not None and min(picture.shape) > self._side):
            factor = 1.0 if self._side is None else min(1.0, self._side / min(picture.shape))
            pixels = picture.whole(round(factor * max(picture.shape)))
            placed, orientation = resized(placed, pixels.shape[:2]), 1
            jpeg = _encoded(pixels)
        array = np.frombuffer(jpeg, np.uint8)
        entry = {
            "shape": list(placed.picture),
            "orientation": orientation,
            "scale": placed.scale * binning,
            "shift": list(placed.shift),
            "residual": placed.residual,
            "nbytes": len(array),
            "checksum": shards.digest(array),
        }
        return StoredPicture(array, entry)

    def close(self) -> None:
        """Stop the processes that look into RAW files."""
        self._files.close()


def key_of(record: dict[str, Any]) -> str:
    """The name of a record's picture in its shard."""
    return f"{record['key']}-picture"


def aligned_of(record: dict[str, Any], shard: shards.Shard, path: str) -> Aligned:
    """A stored picture, not decoded yet, and how it lies over its stored mosaic.

    Raises:
        DamagedShardError: it is not of its size.
        RawError: it cannot be read as a picture.
    """
    said = record["picture"]
    stored = shard.array(key_of(record))
    if stored.dtype != np.uint8 or stored.shape != (said["nbytes"],):
        raise shards.DamagedShardError(f"{shard.name}: its picture is not of its size")
    picture = CameraPicture(stored.tobytes(), path, said["orientation"])
    height, width = record["shape"]
    size = (said["shape"][0], said["shape"][1])
    down, right = said["shift"]
    placed = Registration(said["scale"], (down, right), said["residual"], (), (height, width), size)
    if picture.shape != size or min(placed.shown[2:]) < 2:
        raise shards.DamagedShardError(f"{shard.name}: its picture does not lie over its mosaic")
    return Aligned(picture, placed)


def _encoded(pixels: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()
