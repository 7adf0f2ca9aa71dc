"""What ``pack`` left, as a dataset: mosaics mapped into memory, crops that read only their rows."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from isp_distill.data.label_maps import LabelMaps
from isp_distill.data.pairs import Aligned
from isp_distill.data.sensor_files import file_and_frame, frame_order
from isp_distill.data.skipped import skipped_report
from isp_distill.errors import CorruptRawError
from isp_distill.files.tree import is_file
from isp_distill.packs.packed_pictures import aligned_of
from isp_distill.raw.camera_warnings import warn_of_unseen
from isp_distill.raw.changes import corrected
from isp_distill.raw.framing import Frame, Rectangle, checked_frame, checked_rectangle
from isp_distill.raw.image import RawImage
from isp_distill.raw.image import crop as crop_raw
from isp_distill.raw.packings import row_bytes
from isp_distill.raw.pixels import Pixels
from isp_distill.raw.record_fields import fields_of_rows, image_fields
from isp_distill.storage import shards
from isp_distill.storage.manifest import MANIFEST, digest_of, mismatched, read_manifest
from isp_distill.storage.manifest_schema import MOSAICS
from isp_distill.storage.mosaic_codec import DamagedBandError, decompress


def is_packed(folder: Path) -> bool:
    """Whether a folder was made by ``pack``."""
    return is_file(folder / MANIFEST)


class PackedRaw(Dataset[RawImage]):
    """The mosaics that :func:`isp_distill.pack` stored; used as a :class:`RawFolder` is.

    ``packed[i]`` costs nothing until its mosaic is read: it is a view of the file, of which only
    the rows that are touched come from the disk (a compressed one is decoded whole; ``crop``
    decodes only the bands of its rows). Thread-safe; pickles by its path and survives a fork.

    Where ``pack(picture=...)`` stored the cameras' own pictures, teachers see these.

    Args:
        path: the packed folder.
        on_error: what users of the dataset should do about a damaged record; see
            :class:`RawFolder`.
        label_maps: a folder with a class for every pixel of every packed file, by the names that
            the files had; see :class:`RawFolder`. They take the place of packed classes, and
            follow stored views as they do any other.
        use_stored_teacher: whether ``train()`` takes the logits that ``pack(teacher=...)`` stored.
        frame: over what label maps lie; see :class:`RawFolder`.
        gain_map: whether mosaics are corrected by their files' gain maps; see :class:`RawFolder`.
        packed: give the bytes of packed frames as they are, see :class:`SensorFolder`.

    Attributes:
        root: the folder that was packed, on the machine where it was.
        paths: the files that are packed, in the order of :class:`RawFolder`; one that holds several
            frames comes once for each.
        frames: each frame's number in its file; 0 for RAW files.
        classes: the class names where ``pack(labels="folder")`` made the labels.
        label_maps: the :class:`~isp_distill.data.label_maps.LabelMaps`, or None.
        on_error: "skip" or "raise".
        skipped: reason by path, of the files that were left out; and of damaged records, once met.

    Raises:
        FileNotFoundError: the folder is missing, or ``pack`` did not make it; or a label map is
            missing.
        ImportError: label maps are PNG files, and Pillow is missing.
        DamagedPackError: its manifest is damaged or edited, or of another version.
        ValueError: no file in it could be packed.

    Examples:
        >>> report = isp_distill.pack("photos/raw", "packed", progress=False)
        >>> packed = isp_distill.PackedRaw("packed")
        >>> len(packed), packed[0].mosaic.shape
        (3, (96, 128))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        label_maps: str | os.PathLike[str] | None = None,
        on_error: Literal["skip", "raise"] = "skip",
        use_stored_teacher: bool = True,
        frame: Frame = None,
        gain_map: bool | None = None,
        packed: bool = False,
    ) -> None:
        if on_error not in ("skip", "raise"):
            raise ValueError(f'on_error must be "skip" or "raise", not {on_error!r}')
        self.path, self.on_error, self.packed = Path(path), on_error, packed
        self.use_stored_teacher = use_stored_teacher
        self.frame, self.gain_map = checked_frame(frame), gain_map
        manifest = read_manifest(self.path, MOSAICS)
        if manifest is None:
            raise FileNotFoundError(
                f"{self.path}: no packed folder (it has no {MANIFEST}); make one with "
                "isp_distill.pack(folder, out)"
            )
        self.root = Path(manifest["source"])
        self.classes: list[str] = manifest["classes"]
        self.settings: dict[str, Any] = manifest["settings"]
        self.skipped = {str(self.root / n): w["reason"] for n, w in manifest["skipped"].items()}
        found = [(name, e, s) for s in manifest["shards"] for name, e in s["records"].items()]
        found.sort(key=lambda item: frame_order(item[0]))
        if not found:
            raise ValueError(
                f"{self.path}: nothing is packed in it; {len(self.skipped)} files were skipped"
            )
        if not manifest["complete"]:
            warnings.warn(
                f"{self.path}: pack was interrupted after {len(found)} files; call it again",
                stacklevel=2,
            )
        #: Names below the packed folder, with forward slashes; frame 3 of a file of several frames
        #: is ``a/b.raw/0003``.
        self.names = [name for name, _, _ in found]
        files = [file_and_frame(name) for name in self.names]
        self.paths = [self.root / file for file, _ in files]
        self.frames = [frame for _, frame in files]
        names = [Path(name) for name in self.names]
        self.label_maps = None if label_maps is None else LabelMaps(label_maps, names)
        self._entries: list[dict[str, Any]] = [entry for _, entry, _ in found]
        self._files: list[str] = [s["file"] for _, _, s in found]
        self._listed: dict[str, dict[str, Any]] = {s["file"]: s for s in manifest["shards"]}
        self._open: dict[str, tuple[shards.Shard, dict[str, str]]] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> RawImage:
        """The whole mosaic, a view of the file where it is neither compressed nor unpacked.

        Raises:
            CorruptRawError: its record is damaged; the message names shard and file.
            IndexError: there is no such file.
        """
        height, _ = self.shape(index)
        raw = self.rows(index, 0, height)
        if self.gain_map is None:
            warn_of_unseen(raw.path, raw.camera, raw.gain_map)
        return raw

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width of the i-th mosaic; nothing is read."""
        height, width = self._entries[index]["shape"]
        return int(height), int(width)

    def default_crop(self, index: int) -> Rectangle | None:
        """The i-th file's default crop, within its whole mosaic; nothing is read."""
        stored = self._entries[index]["fields"].get("default_crop")
        return None if stored is None else checked_rectangle(stored, *self.shape(index))

    def aligned(self, index: int, raw: RawImage | None = None) -> Aligned | None:
        """The stored picture of the camera's and how it lies over the mosaic, or None.

        Raises:
            CorruptRawError: the record is damaged.
        """
        entry = self._entries[index]
        if "picture" not in entry:
            return None
        path = str(self.paths[index])
        try:
            shard, others = self._shard(self._files[index])
            if self.names[index] in others:
                raise shards.DamagedShardError(others[self.names[index]])
            return aligned_of(entry, shard, path)
        except shards.DamagedShardError as error:
            reason = (
                f"its record in shard {self.path / self._files[index]} is damaged ({error}): run "
                f"isp-distill verify --drop {self.path}, then pack again"
            )
            if self.on_error == "skip":
                self.skipped[path] = reason
            raise CorruptRawError(path, reason) from error

    def crop(self, index: int, top: int, left: int, height: int, width: int) -> RawImage:
        """A rectangle of the i-th mosaic, its pattern tracked; reads the rows it needs.

        Args:
            index: of the file.
            top: first row.
            left: first column.
            height: rows, even.
            width: columns, even.

        Raises:
            ValueError: the rectangle has an odd or empty size, or leaves the mosaic.
            CorruptRawError: the record is damaged.
        """
        rows, columns = self.shape(index)
        if min(top, left) < 0 or top + height > rows or left + width > columns:
            raise ValueError(
                f"crop of {height}x{width} at ({top}, {left}) leaves the mosaic ({rows}x{columns})"
            )
        # Whole periods of rows, so that the pattern of what is read is that of the file.
        first, last = top // 2 * 2, -(-(top + height) // 2) * 2
        found = crop_raw(self.packed_rows(index, first, last), top - first, left, height, width)
        return found if self.packed else found.unpacked()

    def reads_rows(self, index: int) -> bool:
        """Rows of every record can be read alone."""
        return True

    def rows(self, index: int, top: int, bottom: int) -> RawImage:
        """Rows ``top .. bottom - 1``, both even, as an image of their own; reads no others.

        Raises:
            ValueError: such rows are not in the mosaic.
            CorruptRawError: the record is damaged.
        """
        raw = self.packed_rows(index, top, bottom)
        return raw if self.packed else raw.unpacked()

    def packed_rows(self, index: int, top: int, bottom: int) -> RawImage:
        """The same rows, as packed bytes where the record holds such."""
        entry, path = self._entries[index], str(self.paths[index])
        file = self._files[index]
        height, width = entry["shape"]
        if not 0 <= top < bottom <= height or top % 2 or bottom % 2:
            raise ValueError(f"rows {top}:{bottom} must be even and inside the mosaic's {height}")
        try:
            shard, others = self._shard(file)
            if self.names[index] in others:
                raise shards.DamagedShardError(others[self.names[index]])
            stored = shard.array(entry["key"])
            if "bands" in entry:
                if stored.dtype != np.uint8 or stored.shape != (entry["bands"][-1],):
                    raise shards.DamagedShardError(f"{file}: its bands are not of their size")
                mosaic = decompress(stored, entry["bands"], (height, width), top, bottom)
                pixels = Pixels.of(mosaic)
            else:
                pixels = _stored_pixels(stored, entry, file).window(top, 0, bottom - top, width)
            fields = fields_of_rows(image_fields(entry["fields"]), top, bottom)
            raw = RawImage(path=path, **pixels.fields(), **fields)
            return corrected(raw) if self.gain_map else raw
        except (shards.DamagedShardError, DamagedBandError) as error:
            several = self.names[index] != file_and_frame(self.names[index])[0]
            what = f"the record of its frame {self.frames[index]}" if several else "its record"
            reason = (
                f"{what} in shard {self.path / file} is damaged ({error}): run "
                f"isp-distill verify --drop {self.path}, then pack again"
            )
            if self.on_error == "skip":
                self.skipped[path] = reason
            raise CorruptRawError(path, reason) from error

    def _shard(self, file: str) -> tuple[shards.Shard, dict[str, str]]:
        """A shard, and those of its records that are not the manifest's, each with a reason."""
        if self._pid != os.getpid():
            # Another thread of the parent may have held the lock when this process was forked.
            self._pid, self._lock = os.getpid(), threading.Lock()
        with self._lock:
            if file not in self._open:
                listed = self._listed[file]
                shard = shards.Shard(self.path / file, listed["bytes"])
                made_as = digest_of(self.settings)
                self._open[file] = shard, mismatched(shard, MOSAICS, made_as, listed)
            return self._open[file]

    def label(self, index: int) -> int | np.ndarray | None:
        """The i-th file's class, its whole label map (int64, -100 for no class), or None."""
        if self.label_maps is not None:
            return self.label_maps[index]
        label: int | None = self._entries[index]["label"]
        return label

    def checksum(self, index: int) -> str:
        """The checksum of what is stored of the i-th file, its picture included."""
        entry = self._entries[index]
        checksum: str = entry["checksum"]
        return checksum if "picture" not in entry else digest_of(checksum, entry["picture"])

    def report(self) -> str:
        """The files that could not be used, each with its reason; "" if none."""
        return skipped_report(self.skipped)

    def close(self) -> None:
        """Forget the open shards; a later read opens them again."""
        with self._lock:
            self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_lock", "_open", "_pid"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()


def _stored_pixels(stored: np.ndarray, entry: dict[str, Any], file: str) -> Pixels:
    """A record that is not compressed: codes, or packed bytes.

    Raises:
        DamagedShardError: it is not of the size that the manifest says.
    """
    (height, width), packing = entry["shape"], entry.get("packing")
    kind, columns = (np.uint16, width)
    if packing is not None:
        kind, columns = np.uint8, row_bytes(width, packing)
    if stored.dtype != kind or stored.shape != (height, columns):
        raise shards.DamagedShardError(f"{file}: its record is not of its size")
    return Pixels(stored, packing, width)
