"""From files to batches: views of mosaics, in an order that is a function of seed and step alone.

A *view* is one sample's crop: whole CFA periods, the pattern tracked through flips. Which file and
which view stand at position p of a run depends on (seed, p) and nothing else, so a run that is
resumed at any step sees what it would have seen.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from isp_distill.cfa import PATTERNS
from isp_distill.errors import RawError
from isp_distill.folder import RAW_EXTENSIONS, RawFolder
from isp_distill.isp import ISP, NoiseModel
from isp_distill.ops.unprocess import unprocess
from isp_distill.packed import PackedRaw, is_packed
from isp_distill.raw import RawImage

if TYPE_CHECKING:
    from isp_distill.stored_teacher import StoredTeacher

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# A bad file is replaced by another one; this many bad ones in a row mean a bad folder.
_REPLACEMENTS = 50


class Source(Protocol):
    """What a view can be cut from: a sequence of RAW images or of RGB pictures."""

    def __len__(self) -> int:
        """The number of files."""
        ...

    def __getitem__(self, index: int) -> Any:
        """A RawImage, a uint8 RGB array ``[H, W, 3]``, or either of these with an int label."""
        ...


class ImageFolder:
    """A folder of ordinary pictures; ``folder[i]`` is uint8 RGB ``[H, W, 3]``, upright.

    Args:
        root: searched recursively for JPEG, PNG, WebP, BMP and TIFF.

    Raises:
        FileNotFoundError: if the folder is missing or holds no picture.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.paths = _files(self.root, IMAGE_EXTENSIONS)
        if not self.paths:
            raise FileNotFoundError(
                f"{self.root}: no pictures in it (looked for {', '.join(IMAGE_EXTENSIONS)})"
            )
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        try:
            from PIL import Image, ImageOps
        except ImportError as error:
            raise ImportError(
                "reading pictures needs Pillow: pip install isp-distill[images]"
            ) from error
        path = self.paths[index]
        if str(path) in self.skipped:
            raise RawError(path, self.skipped[str(path)])
        try:
            with Image.open(path) as image:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            self.skipped[str(path)] = f"cannot be read as a picture: {error}"
            raise RawError(path, self.skipped[str(path)]) from error

    def report(self) -> str:
        """The pictures that were skipped, with reasons; empty if none."""
        lines = [f"  {path}: {reason}" for path, reason in sorted(self.skipped.items())]
        return "\n".join([f"{len(lines)} pictures were skipped:", *lines]) if lines else ""


def _files(root: Path, extensions: Sequence[str]) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder")
    return sorted(p for p in root.rglob("*") if p.suffix.lower() in extensions and p.is_file())


def open_source(data: str | Path | Source) -> Source:
    """A packed folder, one of RAW files, one of ordinary pictures, or a dataset as it is.

    Raises:
        FileNotFoundError: for a folder without either.
        TypeError: for something that is neither a path nor a dataset.
    """
    if isinstance(data, (str, Path)):
        root = Path(data)
        if is_packed(root):
            return cast(Source, PackedRaw(root))
        if root.is_dir() and not _files(root, RAW_EXTENSIONS) and _files(root, IMAGE_EXTENSIONS):
            return ImageFolder(root)
        return cast(Source, RawFolder(root))
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        if len(data) == 0:
            raise ValueError("the dataset is empty")
        return data
    raise TypeError(f"data must be a folder or a dataset with a length, not {type(data).__name__}")


# Mosaic or picture, camera or None, label, the teacher's logits or None.
_Sample = tuple[Any, Any, int, Any]


@dataclass(frozen=True)
class RawBatch:
    """A batch as the trainer takes it.

    Attributes:
        mosaic: ``[N, H, W]`` uint16.
        isp: every sample's camera.
        labels: int64 ``[N]`` with -100 where there is none, or None.
        picture: what the teacher sees where the data are pictures: float32 ``[N, 3, H, W]``.
        teacher: the teacher's logits where they were stored: float32 ``[N, C, ...]``.
    """

    mosaic: Tensor
    isp: ISP
    labels: Tensor | None = None
    picture: Tensor | None = None
    teacher: Tensor | None = None

    def to(self, device: torch.device | str) -> RawBatch:
        """The batch on a device; copies overlap with compute where its memory is pinned."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name in ("mosaic", "labels", "picture", "teacher")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, isp=self.isp.to(device, non_blocking=True), **moved)

    def pin_memory(self) -> RawBatch:
        """The batch in page-locked memory."""
        pinned = {
            name: value.pin_memory()
            for name in ("mosaic", "labels", "picture", "teacher")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, isp=self.isp.pin_memory(), **pinned)


def bin_mosaic(mosaic: np.ndarray[Any, Any], factor: int) -> np.ndarray[Any, Any]:
    """Average ``factor`` x ``factor`` sites of one colour into one: ``[H, W]`` uint16 to smaller.

    What a sensor's binning mode does; the pattern stays. Periods that do not fill a block are cut.
    """
    if factor == 1:
        return mosaic
    rows, columns = mosaic.shape[0] // (2 * factor), mosaic.shape[1] // (2 * factor)
    blocks = mosaic[: rows * 2 * factor, : columns * 2 * factor]
    blocks = blocks.reshape(rows, factor, 2, columns, factor, 2)
    mean = blocks.mean(axis=(1, 4), dtype=np.float32)
    binned: np.ndarray[Any, Any] = np.rint(mean).astype(np.uint16)
    return binned.reshape(rows * 2, columns * 2)


@dataclass(frozen=True)
class View:
    """How a sample is cut: where, how large, and mirrored or not.

    Attributes:
        crop: sides of the mosaic that comes out, sensor pixels, even.
        binning: sites of one colour averaged per side; None takes the largest that still leaves
            the crop, so that a large sensor is seen whole rather than through a keyhole.
    """

    crop: int
    binning: int | None = None

    def __post_init__(self) -> None:
        if self.crop < 2 or self.crop % 2:
            raise ValueError(f"crop must be even and at least 2, got {self.crop}")
        if self.binning is not None and self.binning < 1:
            raise ValueError(f"binning must be at least 1, got {self.binning}")

    def factor(self, height: int, width: int, path: str) -> int:
        """The binning factor for a mosaic of this size.

        Raises:
            RawError: if the crop does not fit.
        """
        largest = min(height, width) // self.crop
        factor = largest if self.binning is None else self.binning
        if largest < max(factor, 1):
            raise RawError(
                path,
                f"its mosaic of {height} x {width} is too small for a crop of {self.crop} "
                f"with binning {max(factor, 1)}: choose a smaller crop",
            )
        return factor

    def cut_raw(
        self, raw: RawImage, place: tuple[float, float], mirror: bool
    ) -> tuple[np.ndarray[Any, Any], RawImage]:
        """The view's mosaic, and the camera it is seen with (its pattern follows the mirror)."""
        mosaic = bin_mosaic(raw.mosaic, self.factor(raw.height, raw.width, raw.path))
        top, left = _corner(mosaic.shape, self.crop, place)
        mosaic = mosaic[top : top + self.crop, left : left + self.crop]
        pattern = raw.pattern
        if mirror:
            # Columns of an even width change places: each row of the period is read backwards.
            mosaic = mosaic[:, ::-1]
            pattern = PATTERNS[PATTERNS.index(pattern) ^ 1]
        period = np.ascontiguousarray(mosaic[:2, :2])
        return mosaic, dataclasses.replace(raw, mosaic=period, pattern=pattern)

    def cut_picture(
        self, picture: np.ndarray[Any, Any], place: tuple[float, float], mirror: bool
    ) -> np.ndarray[Any, Any]:
        """The view of an RGB picture ``[H, W, 3]``, its shorter side scaled to the crop's."""
        from PIL import Image

        height, width = picture.shape[:2]
        scale = self.crop / min(height, width)
        size = (max(self.crop, round(width * scale)), max(self.crop, round(height * scale)))
        resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
        top, left = _corner(resized.shape, self.crop, place)
        cut = resized[top : top + self.crop, left : left + self.crop]
        return cut[:, ::-1] if mirror else cut


def _corner(shape: tuple[int, ...], crop: int, place: tuple[float, float]) -> tuple[int, int]:
    return tuple(  # type: ignore[return-value]  # two sides in, two out
        2 * round(p * ((side - crop) // 2)) for side, p in zip(shape[:2], place, strict=True)
    )


#: Where the fixed views of an evaluation lie: the middle, then the corners.
_PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))


def training_order(length: int, seed: int, position: int) -> int:
    """Which file stands at a position of the run: every epoch a new permutation."""
    epoch, place = divmod(position, length)
    return int(_permutation(length, seed, epoch)[place])


@functools.lru_cache(maxsize=4)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng((seed, epoch)).permutation(length)


class ViewLoader:
    """Batches of views, made by threads ahead of time.

    Args:
        source: see :class:`Source`.
        view: how samples are cut.
        batch_size: samples a batch.
        seed: decides order, places, mirrors and made-up cameras.
        workers: threads that read and cut.
        prefetch: batches made ahead.
        noise: for pictures: sensor noise that :func:`isp_distill.unprocess` adds.
        stored: the teacher's stored logits: training sees their views.
    """

    def __init__(
        self,
        source: Source,
        view: View,
        batch_size: int,
        *,
        seed: int = 0,
        workers: int = 2,
        prefetch: int = 3,
        noise: NoiseModel | None = None,
        stored: StoredTeacher | None = None,
    ) -> None:
        if batch_size < 1 or workers < 1 or prefetch < 1:
            raise ValueError("batch_size, workers and prefetch must be at least 1")
        self.source, self.view, self.batch_size = source, view, batch_size
        self.seed, self.workers, self.prefetch, self.noise = seed, workers, prefetch, noise
        self.stored = stored
        #: Files left out, with reasons.
        self.skipped: dict[str, str] = {}

    def training(self, first_step: int, steps: int) -> Generator[RawBatch, None, None]:
        """The batches of steps ``first_step .. steps - 1``."""

        def sample(position: int) -> _Sample:
            draw = np.random.default_rng((self.seed, 1, position))
            place, mirror = (float(draw.random()), float(draw.random())), bool(draw.random() < 0.5)
            for attempt in range(_REPLACEMENTS):
                index = training_order(len(self.source), self.seed, position)
                if attempt:
                    index = int(draw.integers(len(self.source)))
                try:
                    if self.stored is not None:
                        epoch = position // len(self.source)
                        place, mirror, logits = self.stored.view(index, epoch)
                        return (*self._view(index, place, mirror)[:3], logits)
                    return self._view(index, place, mirror)
                except RawError as error:
                    self._refuse(error)
            raise RuntimeError(
                f"{_REPLACEMENTS} files in a row could not be used:\n{self.report()}"
            )

        def positions() -> Iterator[list[Any]]:
            for step in range(first_step, steps):
                start = step * self.batch_size
                yield list(range(start, start + self.batch_size))

        return self._batches(sample, positions(), first_step)

    def fixed(self, views: int, files: int | None = None) -> Generator[RawBatch, None, None]:
        """Every file's first ``views`` fixed views (middle, corners), files in their order.

        ``files``: at most so many of them, spread evenly over the source.
        """
        if not 1 <= views <= len(_PLACES):
            raise ValueError(f"views must be between 1 and {len(_PLACES)}, got {views}")

        def sample(what: tuple[int, int]) -> _Sample | None:
            try:
                return self._view(what[0], _PLACES[what[1]], mirror=False)
            except RawError as error:
                self._refuse(error)
                return None

        count = len(self.source)
        shown = count if files is None else min(files, count)
        chosen = [index * count // shown for index in range(shown)]
        every = [(index, place) for index in chosen for place in range(views)]
        size = self.batch_size
        return self._batches(
            sample, iter([every[i : i + size] for i in range(0, len(every), size)]), 0
        )

    def report(self) -> str:
        """The files that were left out, with reasons; empty if none."""
        lines = [f"  {path}: {reason}" for path, reason in sorted(self.skipped.items())]
        return "\n".join([f"{len(lines)} files were skipped:", *lines]) if lines else ""

    def _refuse(self, error: RawError) -> None:
        if getattr(self.source, "on_error", "skip") == "raise":
            raise error
        self.skipped[error.path] = error.reason

    def _view(self, index: int, place: tuple[float, float], mirror: bool) -> _Sample:
        item = self.source[index]
        label: int | None = None
        if isinstance(item, tuple):
            item, label = item
        elif hasattr(self.source, "label"):
            label = self.source.label(index)
        known = -100 if label is None else int(label)
        if isinstance(item, RawImage):
            mosaic, camera = self.view.cut_raw(item, place, mirror)
            return np.ascontiguousarray(mosaic), camera, known, None
        if isinstance(item, np.ndarray) and item.ndim == 3 and item.dtype == np.uint8:
            return (
                np.ascontiguousarray(self.view.cut_picture(item, place, mirror)),
                None,
                known,
                None,
            )
        raise TypeError(
            f"dataset item {index} is a {type(item).__name__}: expected a RawImage or a uint8 RGB "
            "array [H, W, 3], alone or with a label"
        )

    def _batches(
        self,
        sample: Callable[[Any], _Sample | None],
        groups: Iterator[list[Any]],
        first: int,
    ) -> Generator[RawBatch, None, None]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="isp-distill-view")
        waiting: collections.deque[list[Future[_Sample | None]]] = collections.deque()
        try:
            step = first
            while True:
                while len(waiting) < self.prefetch:
                    group = next(groups, None)
                    if group is None:
                        break
                    waiting.append([pool.submit(sample, what) for what in group])
                if not waiting:
                    return
                made = [future.result() for future in waiting.popleft()]
                samples = [s for s in made if s is not None]
                if samples:
                    yield self._collate(samples, step)
                step += 1
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _collate(self, samples: list[_Sample], step: int) -> RawBatch:
        arrays, cameras, known, stored = zip(*samples, strict=True)
        labels = torch.tensor(known) if any(k != -100 for k in known) else None
        stacked = torch.from_numpy(np.stack(arrays))
        if cameras[0] is not None:
            logits = None if stored[0] is None else torch.from_numpy(np.stack(stored))
            return RawBatch(stacked, ISP.from_raw(list(cameras)), labels, teacher=logits)
        picture = stacked.permute(0, 3, 1, 2).float() / 255
        seed = int(np.random.default_rng((self.seed, 2, step)).integers(2**63))
        patterns = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, len(samples)))
        mosaic, isp = unprocess(picture, pattern=patterns, noise=self.noise, seed=seed)
        return RawBatch(mosaic, isp, labels, picture)


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Batches that hold every file once."""
    return math.ceil(len(source) / batch_size)
