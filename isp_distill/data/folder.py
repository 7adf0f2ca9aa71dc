"""A folder of camera RAW files as a dataset."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from isp_distill.data.decoded_cache import DecodedCache
from isp_distill.data.labelled_folder import LabelledFolder, check_one_kind
from isp_distill.data.labels import Labels
from isp_distill.data.paired_folder import PairedFolder
from isp_distill.data.pairs import MAX_MISALIGNMENT
from isp_distill.errors import CorruptRawError, RawError
from isp_distill.files.chosen import Select, chosen_files
from isp_distill.files.listed import named_files
from isp_distill.files.tree import files_below, nothing_found
from isp_distill.raw.camera_warnings import warn_of_unseen
from isp_distill.raw.changes import corrected
from isp_distill.raw.decoding.pool import DecodePool
from isp_distill.raw.framing import Frame, checked_frame
from isp_distill.raw.image import RawImage
from isp_distill.raw.image import upright as turn_upright

#: Suffixes of the formats that LibRaw reads and that can hold a Bayer mosaic.
# fmt: off
RAW_EXTENSIONS = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".k25",
    ".kdc", ".mdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".ori", ".pef", ".raf", ".raw",
    ".rw2", ".rwl", ".sr2", ".srf", ".srw",
)
# fmt: on


class RawFolder(PairedFolder, LabelledFolder, Dataset[RawImage]):
    """Every RAW file below a folder; ``folder[i]`` decodes the i-th into a RawImage.

    ``train`` and ``evaluate`` take the folder as it is. A ``torch.utils.data.DataLoader`` of it
    makes batches of whole mosaics, which must be of one size: see :func:`isp_distill.collate` for
    views of one size and for labels; ``collate_fn=list`` gives lists of RawImage.

    Files are decoded in other processes, so that a damaged one cannot end this one. Thread-safe.
    It pickles cheaply and survives a fork: each process has decoders and a cache of its own (and
    its own ``skipped``).

    Args:
        root: searched recursively, in sorted order; names that begin with a dot are left out.
        labels: None; "folder": the name of the file's first folder below ``root`` is its class,
            numbered in sorted order (see ``classes``); the path of a CSV with the header
            ``path,label``, or of JSON lines with these keys (see
            :mod:`isp_distill.data.label_file`); a mapping from the path below ``root``, with
            forward slashes, or from the bare file name, to an int; or a function of the path.
        label_maps: instead of ``labels``: a folder with a class for every pixel of every file, by
            the same name below it: ``a/b.png`` (one channel, 8 or 16 bits, or a palette; needs
            Pillow) or ``a/b.npy`` for ``a/b.dng``. A map lies over the upright picture (see
            ``frame``), at any resolution; 255 (65535 in 16 bits, -100 in signed arrays) has no
            class. See :mod:`isp_distill.data.label_maps`.
        on_error: what users of the dataset should do about a file that cannot be used. Either way
            ``folder[i]`` raises its RawError; with "skip" it is recorded in ``skipped`` too, never
            decoded again, and a training loader takes another file in its place.
        upright: apply the orientation of each file, so that pictures stand upright.
        workers: decoding processes, at most.
        timeout_s: seconds for one file.
        cache_bytes: keep up to this many bytes of decoded mosaics in memory, the least recently
            used dropped first; 0 keeps none.
        cache: a folder to keep decoded mosaics in, 2 bytes a pixel: each file is decoded once,
            and later views read only the rows that they show. Any number of processes and runs
            may share it; a RAW file that changed is decoded anew.
        extensions: suffixes to look for, in any case.
        files: take these files, in this order, instead of searching ``root``, which they lie in.
        select: take only the files whose path below ``root`` fits this glob (``"night/*.dng"``) or
            lies in this sub-folder (``"night"``), or for whose path this function says True.
        limit: take at most so many files, spread evenly over the others; for a first try.
        frame: over what label maps lie: the camera's own picture ("default_crop") or all that
            :func:`isp_distill.render` shows ("visible"); None decides by each map's shape.
        gain_map: True corrects the mosaics by their files' gain maps (lens shading), so that the
            student sees even light too; values are rounded and stop at the white level. False
            leaves the mosaics as they are (``render`` corrects its pictures all the same), None
            too, with a warning for each camera that has gain maps.
        picture: what teachers see, instead of what :func:`isp_distill.render` makes: the camera's
            own picture. "embedded" (the largest JPEG in the file), "beside" (``IMG_1.JPG`` beside
            ``IMG_1.CR2``), or a folder in which ``a/b.jpg`` is that of ``a/b.cr2``. Views are then
            cut from the part of the mosaic that the picture shows: see
            :func:`isp_distill.register`. Files without a picture are left out.
        max_misalignment: leave out files of which a part of the picture lies farther from the
            mosaic, in pixels at a width of 1000; their numbers stand in ``skipped``.
            ``math.inf`` takes every file that its camera's registration is known for.

    Attributes:
        root: the folder.
        paths: the files, sorted unless they were named.
        classes: the class names, sorted; empty where ``labels`` gives numbers or nothing.
        label_maps: the :class:`~isp_distill.data.label_maps.LabelMaps`, or None.
        pictures: the :class:`~isp_distill.data.picture_files.PictureFiles`, or None.
        on_error: "skip" or "raise".
        skipped: reason by path, of the files that could not be used, and of the folders that could
            not be listed.
        decoded: how many files were decoded so far, and the seconds it took: what :func:`pack`,
            or a cache, saves in every epoch.

    Raises:
        FileNotFoundError: the folder or a named file is missing, or the folder holds no file with
            these extensions; or a label map, or the file of labels, is missing.
        OSError: no file was found, and a folder could not be listed.
        ValueError: an argument is out of range, a named file lies elsewhere, none is selected, or
            a file has no label.
        ImportError: label maps are PNG files, and Pillow is missing.

    Examples:
        >>> folder = isp_distill.RawFolder("photos/raw")
        >>> len(folder), folder[0].mosaic.shape
        (3, (96, 128))
        >>> folder.close()
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        labels: Labels = None,
        label_maps: str | os.PathLike[str] | None = None,
        on_error: Literal["skip", "raise"] = "skip",
        upright: bool = True,
        workers: int = 2,
        timeout_s: float = 60.0,
        cache_bytes: int = 0,
        cache: str | os.PathLike[str] | None = None,
        extensions: Sequence[str] = RAW_EXTENSIONS,
        files: Sequence[str | os.PathLike[str]] | None = None,
        select: Select = None,
        limit: int | None = None,
        frame: Frame = None,
        gain_map: bool | None = None,
        picture: str | os.PathLike[str] | None = None,
        max_misalignment: float = MAX_MISALIGNMENT,
    ) -> None:
        if on_error not in ("skip", "raise"):
            raise ValueError(f'on_error must be "skip" or "raise", not {on_error!r}')
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must not be negative, not {cache_bytes}")
        check_one_kind(labels, label_maps)
        self.root = Path(root)
        self.on_error = on_error
        self.upright = upright
        self.frame = checked_frame(frame)
        self.gain_map = gain_map
        self.cache_bytes = cache_bytes
        self.skipped: dict[str, str]
        self._errors: dict[str, type[RawError]] = {}
        if files is None:
            self.paths, self.skipped = raw_files_below(self.root, extensions)
        else:
            self.root, self.paths = named_files(self.root, files, extensions)
            self.skipped = {}
        self.paths = chosen_files(self.root, self.paths, select, limit)
        #: Whether it is all that lies below ``root``.
        self.is_whole = files is None and select is None and limit is None
        self._take_labels(labels, label_maps)
        self._pool = DecodePool(workers, timeout_s)
        self._take_pictures(picture, max_misalignment, workers, timeout_s)
        self._cache: OrderedDict[int, RawImage] = OrderedDict()
        self._cached_bytes = 0
        self._kept = None if cache is None else DecodedCache(cache, upright, bool(gain_map))
        self.decoded: tuple[int, float] = (0, 0.0)
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def keeps_decoded(self) -> bool:
        """Whether decoded files are kept, in memory or in a folder."""
        return self.cache_bytes > 0 or self._kept is not None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> RawImage:
        """The decoded file; treat its mosaic as read-only, since the cache may hold it.

        Raises:
            UnsupportedRawError: no Bayer mosaic in it.
            CorruptRawError: damaged, unreadable, or the decoder died on it.
            IndexError: there is no such file.
        """
        path = self.paths[index]
        index = range(len(self.paths))[index]
        name = str(path)
        self._after_fork()
        with self._lock:
            if name in self.skipped:
                raise self._errors.get(name, CorruptRawError)(name, self.skipped[name])
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        try:
            kept = None if self._kept is None else self._kept.get(path)
            raw = self._decode(path) if kept is None else kept
        except RawError as error:
            if self.on_error == "skip":
                with self._lock:
                    self.skipped[name] = error.reason
                    self._errors[name] = type(error)
            raise
        if self.gain_map is None:
            warn_of_unseen(name, raw.camera, raw.gain_map)
        self._remember(index, raw)
        return raw

    def _decode(self, path: Path) -> RawImage:
        """Decode a file, turn it upright, and keep it in the cache's folder."""
        began = time.perf_counter()
        try:
            raw = self._pool.read(path)
        except OSError as error:
            raise CorruptRawError(str(path), f"cannot be opened: {error.strerror}") from error
        if self.upright:
            raw = turn_upright(raw)
        if self.gain_map:
            raw = corrected(raw)
        with self._lock:
            self.decoded = self.decoded[0] + 1, self.decoded[1] + time.perf_counter() - began
        if self._kept is not None:
            self._kept.put(path, raw)
        return raw

    def _remember(self, index: int, raw: RawImage) -> None:
        """Put an image in the cache and drop the least recently used ones that no longer fit."""
        if raw.mosaic.nbytes > self.cache_bytes:
            return
        with self._lock:
            # Two threads may have decoded the same file; it counts once.
            if index not in self._cache:
                self._cached_bytes += raw.mosaic.nbytes
            self._cache[index] = raw
            while self._cached_bytes > self.cache_bytes:
                _, dropped = self._cache.popitem(last=False)
                self._cached_bytes -= dropped.mosaic.nbytes

    def report(self) -> str:
        """The files that could not be used, each with its reason; "" if none."""
        with self._lock:
            return super().report()

    def stop_reading(self) -> None:
        """End the reads that other threads are waiting for: they raise RuntimeError."""
        self._pool.stop_reading()
        if self.pictures is not None:
            self.pictures.stop_reading()

    def close(self) -> None:
        """Stop the decoding processes; the dataset cannot be read afterwards."""
        self._pool.close()
        if self.pictures is not None:
            self.pictures.close()

    def _after_fork(self) -> None:
        # Another thread of the parent may have held the lock when this process was forked, and
        # have been half done with the sum.
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.Lock()
            self._cached_bytes = sum(raw.mosaic.nbytes for raw in self._cache.values())

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_lock", "_cache", "_cached_bytes", "_pid"):
            del state[name]
        state["_pool"] = (self._pool.workers, self._pool.timeout_s)
        state["skipped"], state["_errors"] = dict(self.skipped), dict(self._errors)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pool = DecodePool(*state["_pool"])
        self._cache = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()
        self._pid = os.getpid()


def raw_files_below(root: Path, extensions: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """The files below ``root`` with one of the extensions, and why folders were not listed."""
    if isinstance(extensions, str) or not extensions:
        raise ValueError(f"extensions must be a list of suffixes, not {extensions!r}")
    wanted = tuple(f".{e.lower().lstrip('.')}" for e in extensions)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: there is no such folder (to look for {', '.join(wanted)} in)"
        )
    found, unlisted = files_below(root, wanted)
    if not found:
        raise nothing_found(root, f"no RAW files in it (looked for {', '.join(wanted)})", unlisted)
    return found, unlisted
