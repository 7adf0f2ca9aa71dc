"""From files to batches: views of mosaics, in an order that is a function of seed and step alone.

Which file and which view stand at position p of a run depends on (seed, p) and nothing else, so a
run that is resumed at any step sees what it would have seen.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from isp_distill.errors import RawError
from isp_distill.isp import ISP, NoiseModel
from isp_distill.ops.unprocess import unprocess
from isp_distill.packed import PackedRaw
from isp_distill.raw import RawImage
from isp_distill.sources import IMAGE_EXTENSIONS, ImageFolder, Source, open_source
from isp_distill.views import FIXED_PLACES, View, bin_mosaic

__all__ = [
    "IMAGE_EXTENSIONS",
    "ImageFolder",
    "RawBatch",
    "Source",
    "View",
    "ViewLoader",
    "bin_mosaic",
    "open_source",
    "skipped_report",
    "steps_per_epoch",
    "training_order",
]

if TYPE_CHECKING:
    from isp_distill.stored_teacher import StoredTeacher

# A bad file is replaced by another one; this many bad ones in a row mean a bad folder.
_REPLACEMENTS = 50


#: Mosaic or picture, camera or None, label, the teacher's logits or None.
Sample = tuple[Any, Any, int, Any]


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

    def tensors(self) -> list[Tensor]:
        """Every tensor in it."""
        own = [getattr(self, field.name) for field in dataclasses.fields(self)]
        isp = [getattr(self.isp, field.name) for field in dataclasses.fields(self.isp)]
        return [value for value in (*own, *isp) if isinstance(value, Tensor)]

    def pin_memory(self) -> RawBatch:
        """The batch in page-locked memory."""
        pinned = {
            name: value.pin_memory()
            for name in ("mosaic", "labels", "picture", "teacher")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, isp=self.isp.pin_memory(), **pinned)


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

    def training(
        self, first_step: int, steps: int, rank: int = 0, count: int = 1
    ) -> Generator[RawBatch, None, None]:
        """The batches of steps ``first_step .. steps - 1``.

        Of ``count`` processes, each takes a share of every step: together the ``rank``-th ones
        hold what one process would with ``count`` times the batch size.
        """

        def sample(position: int) -> Sample:
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
                start = (step * count + rank) * self.batch_size
                yield list(range(start, start + self.batch_size))

        numbers = range(first_step * count + rank, steps * count + rank, count)
        return self._batches(sample, positions(), numbers)

    def fixed(
        self, views: int, files: int | None = None, rank: int = 0, count: int = 1
    ) -> Generator[RawBatch, None, None]:
        """Every file's first ``views`` fixed views (middle, corners), files in their order.

        ``files``: at most so many of them, spread evenly over the source. Of ``count`` processes,
        the ``rank``-th takes every ``count``-th batch.
        """
        if not 1 <= views <= len(FIXED_PLACES):
            raise ValueError(f"views must be between 1 and {len(FIXED_PLACES)}, got {views}")

        def sample(what: tuple[int, int]) -> Sample | None:
            try:
                return self._view(what[0], FIXED_PLACES[what[1]], mirror=False)
            except RawError as error:
                self._refuse(error)
                return None

        length = len(self.source)
        shown = length if files is None else min(files, length)
        chosen = [index * length // shown for index in range(shown)]
        every = [(index, place) for index in chosen for place in range(views)]
        size = self.batch_size
        groups = [every[i : i + size] for i in range(0, len(every), size)]
        numbers = range(rank, len(groups), count)
        return self._batches(sample, iter(groups[rank::count]), numbers)

    def report(self) -> str:
        """The files that were left out, with reasons; empty if none."""
        return skipped_report(self.skipped)

    def _refuse(self, error: RawError) -> None:
        if getattr(self.source, "on_error", "skip") == "raise":
            raise error
        self.skipped[error.path] = error.reason

    def _view(self, index: int, place: tuple[float, float], mirror: bool) -> Sample:
        if isinstance(self.source, PackedRaw):
            label = self.source.label(index)
            mosaic, camera = self.view.cut_packed(self.source, index, place, mirror)
            return np.ascontiguousarray(mosaic), camera, -100 if label is None else label, None
        item = self.source[index]
        label = None
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
        sample: Callable[[Any], Sample | None],
        groups: Iterator[list[Any]],
        numbers: Iterable[int],
    ) -> Generator[RawBatch, None, None]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="isp-distill-view")
        waiting: collections.deque[list[Future[Sample | None]]] = collections.deque()
        try:
            for number in numbers:
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
                    yield self._collate(samples, number)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _collate(self, samples: list[Sample], number: int) -> RawBatch:
        arrays, cameras, known, stored = zip(*samples, strict=True)
        labels = torch.tensor(known) if any(k != -100 for k in known) else None
        stacked = torch.from_numpy(np.stack(arrays))
        if cameras[0] is not None:
            logits = None if stored[0] is None else torch.from_numpy(np.stack(stored))
            return RawBatch(stacked, ISP.from_raw(list(cameras)), labels, teacher=logits)
        picture = stacked.permute(0, 3, 1, 2).float() / 255
        seed = int(np.random.default_rng((self.seed, 2, number)).integers(2**63))
        patterns = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, len(samples)))
        mosaic, isp = unprocess(picture, pattern=patterns, noise=self.noise, seed=seed)
        return RawBatch(mosaic, isp, labels, picture)


def skipped_report(skipped: dict[str, str]) -> str:
    """Files that were left out, with reasons, as text; empty if none."""
    lines = [f"  {path}: {reason}" for path, reason in sorted(skipped.items())]
    return "\n".join([f"{len(lines)} files were skipped:", *lines]) if lines else ""


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Batches that hold every file once."""
    return math.ceil(len(source) / batch_size)
