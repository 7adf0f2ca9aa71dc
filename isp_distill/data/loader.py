"""From files to batches: views of mosaics, in an order that is a function of seed and step alone.

Which file and which view stand at position p of a run depends on (seed, p) and nothing else, so a
run that is resumed at any step sees what it would have seen.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from isp_distill.data.batch import RawBatch
from isp_distill.data.camera_picture import CameraPicture, is_picture
from isp_distill.data.class_labels import as_class
from isp_distill.data.draw import FIXED_PLACES, Draw
from isp_distill.data.label_maps import (
    IGNORED,
    LabelGrid,
    LabelMaps,
    Shown,
    as_label_map,
    map_view,
)
from isp_distill.data.order import training_order
from isp_distill.data.pairs import MAX_MISALIGNMENT, Aligned, PairedSource, Pairs
from isp_distill.data.sample import Sample, batch_of
from isp_distill.data.skipped import skipped_report
from isp_distill.data.source import RowReader, Source, item_and_label, item_and_picture
from isp_distill.data.true_boxes import TrueBoxes
from isp_distill.data.views import View
from isp_distill.errors import RawError
from isp_distill.ops.unprocess.noise import NoiseModel
from isp_distill.raw.camera_warnings import warn_of_unseen
from isp_distill.raw.framing import Rectangle
from isp_distill.raw.image import RawImage

#: How much of the batches is made ahead, unless said otherwise.
PREFETCH_BYTES = 1 << 27
# Batches under way until the first one has shown how large they are.
_AT_FIRST = 2
# A bad file is replaced by another one. So many bad ones in a row mean a bad folder.
_REPLACEMENTS = 50


class StoredViews(Protocol):
    """Anything that knows a teacher's logits for fixed views of every file."""

    def view(self, index: int, epoch: int) -> tuple[Draw, np.ndarray[Any, Any]]:
        """A file's view in an epoch, and the teacher's logits for it."""
        ...

    def features(self, index: int, epoch: int) -> dict[str, np.ndarray[Any, Any]] | None:
        """The teacher's features for that view by their names, where some are read."""
        ...


class ViewLoader:
    """Batches of views, made by threads ahead of time.

    Args:
        source: see :class:`Source`.
        view: how samples are cut.
        batch_size: samples a batch.
        seed: decides order, places, mirrors and made-up cameras.
        workers: threads that read and cut.
        prefetch_bytes: batches made ahead, so many bytes of them; always one at least.
        noise: for pictures: sensor noise that :func:`isp_distill.unprocess` adds.
        stored: the teacher's stored logits: training sees their views.
        grid: what label maps are made for; None leaves them out.
        boxes: the true boxes of the source's files; None leaves them out.
        pin: make the batches in page-locked memory, from which a GPU copies by itself.
        packed: let mosaics stay packed in batches of which every view can, see
            :meth:`View.cut_raw`, and companded codes what they are; for students that read them
            so. Others get codes, or linear values.
    """

    def __init__(
        self,
        source: Source,
        view: View,
        batch_size: int,
        *,
        seed: int = 0,
        workers: int = 2,
        prefetch_bytes: int = PREFETCH_BYTES,
        noise: NoiseModel | None = None,
        stored: StoredViews | None = None,
        grid: LabelGrid | None = None,
        boxes: TrueBoxes | None = None,
        pin: bool = False,
        packed: bool = False,
    ) -> None:
        if min(batch_size, workers, prefetch_bytes) < 1:
            raise ValueError("batch_size, workers and prefetch_bytes must be at least 1")
        self.source, self.view, self.batch_size = source, view, batch_size
        self._rows = source if isinstance(source, RowReader) else None
        self._paired = source if isinstance(source, PairedSource) else None
        self.seed, self.workers, self.noise = seed, workers, noise
        self.prefetch_bytes, self.stored, self.pin = prefetch_bytes, stored, pin
        self.grid, self.boxes, self.packed = grid, boxes, packed
        maps = getattr(source, "label_maps", None)
        self._maps = maps if isinstance(maps, LabelMaps) else None
        most = getattr(source, "max_misalignment", MAX_MISALIGNMENT)
        self._pairs = Pairs(len(source), most)
        #: Files left out, with reasons.
        self.skipped: dict[str, str] = {}
        self._abandoned = False

    def training(
        self, first_step: int, steps: int, rank: int = 0, count: int = 1
    ) -> Generator[RawBatch, None, None]:
        """The batches of steps ``first_step .. steps - 1``.

        With ``count`` processes, each takes a share of every step. Together they hold what one
        process would with ``count`` times the batch size.
        """

        def sample(position: int) -> Sample:
            random = np.random.default_rng((self.seed, 1, position))
            drawn = self.view.draw(random)
            tried: set[int] = set()
            index = training_order(len(self.source), self.seed, position)
            while len(tried) < min(_REPLACEMENTS, len(self.source)):
                if tried:
                    index = int(random.integers(len(self.source)))
                    if index in tried:
                        continue
                tried.add(index)
                try:
                    if self.stored is not None:
                        epoch = position // len(self.source)
                        drawn, logits = self.stored.view(index, epoch)
                        features = self.stored.features(index, epoch)
                        made = self._view(index, drawn, seen=False)
                        return made._replace(logits=logits, features=features)
                    return self._view(index, drawn)
                except RawError as error:
                    self._refuse(error)
            count = len(self.source)
            what = f"{len(tried)} files in a row, of {count}, could not be used"
            if len(tried) == count:
                what = f"none of the {count} files could be used"
            raise RuntimeError(f"{what}:\n{self.report()}")

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

        ``files``: at most so many of them, spread evenly over the source. With ``count``
        processes, the ``rank``-th takes every ``count``-th batch.
        """
        if not 1 <= views <= len(FIXED_PLACES):
            raise ValueError(f"views must be between 1 and {len(FIXED_PLACES)}, got {views}")

        def sample(what: tuple[int, int]) -> Sample | None:
            try:
                return self._view(what[0], Draw(FIXED_PLACES[what[1]]))
            except RawError as error:
                self._refuse(error)
                return None

        length = len(self.source)
        shown = length if files is None else min(files, length)
        chosen = [index * length // shown for index in range(shown)]
        every = [(index, place) for index in chosen for place in range(views)]
        size = self.batch_size
        groups = [every[i : i + size] for i in range(0, len(every), size)]
        # Without a number: what is measured does not depend on how it is divided into batches.
        return self._batches(sample, iter(groups[rank::count]), itertools.repeat(None))

    def report(self) -> str:
        """The files that were left out, with reasons; empty if none."""
        return skipped_report(self.skipped)

    def _refuse(self, error: RawError) -> None:
        if getattr(self.source, "on_error", "skip") == "raise":
            raise error
        self.skipped[error.path] = error.reason

    def _view(self, index: int, drawn: Draw, *, seen: bool = True) -> Sample:
        """One view; ``seen``: the teacher sees it, so that a camera's picture of it is cut too."""
        if self._rows is not None and self._rows.reads_rows(index):
            aligned = self._aligned(index, None, None)
            within = None if aligned is None else aligned.within
            mosaic, camera = self.view.cut_rows(
                self._rows, index, drawn, within, packed=self.packed
            )
            size, crop = self._rows.shape(index), self._rows.default_crop(index)
            known = self._class_or_map(index)
        else:
            item, picture = item_and_picture(self.source[index])
            item, known = item_and_label(item, index) or (item, self._class_or_map(index))
            if is_picture(item):
                cut = self.view.cut_picture(item, drawn)
                label = self._label(index, known, drawn, item.shape[:2])
                window = self.view.picture_part(item.shape[0], item.shape[1], drawn)
                truth = self._boxes(index, drawn, item.shape[:2])
                array = np.ascontiguousarray(cut)
                return Sample(array, None, label, item=index, window=window, boxes=truth)
            if not isinstance(item, RawImage):
                raise TypeError(
                    f"dataset item {index} is a {type(item).__name__}: expected a RawImage or a "
                    "uint8 RGB array [H, W, 3], alone or with a label"
                )
            aligned = self._aligned(index, item, picture)
            within = None if aligned is None else aligned.within
            mosaic, camera = self.view.cut_raw(item, drawn, within, packed=self.packed)
            size, crop = (item.height, item.width), item.default_crop
        label = self._label(index, known, drawn, size, camera, crop, within)
        self._warn_of_unseen(camera)
        window = self.view.window_within(size, within, drawn, camera.path)
        shown = None
        if aligned is not None and seen:
            shown = aligned.view(window, drawn, self.view.crop)
        truth = self._boxes(index, drawn, size, camera, crop, within)
        array = np.ascontiguousarray(mosaic)
        return Sample(array, camera, label, None, shown, index, window=window, boxes=truth)

    def _boxes(self, index: int, drawn: Draw, size: Sequence[int], *placed: Any) -> Any:
        """The true boxes that a view shows; ``placed`` are :meth:`_shown`'s last arguments."""
        if self.boxes is None:
            return None
        return self.boxes.view(index, self._shown(index, drawn, size, *(placed or (None,) * 3)))

    def _aligned(self, index: int, raw: RawImage | None, picture: Any) -> Aligned | None:
        """The camera's picture of an item over its mosaic; None where there is none."""
        if picture is not None:
            named = CameraPicture(picture, self._name(index))
            return self._pairs.place(index, raw, named, self._pair)
        return None if self._paired is None else self._paired.aligned(index, raw)

    def _pair(self, index: int) -> tuple[RawImage, CameraPicture]:
        """A dataset's item and its picture."""
        item, picture = item_and_picture(self.source[index])
        if picture is None:
            raise RawError(self._name(index), "it has no picture")
        raw = item[0] if isinstance(item, tuple) else item
        return raw, CameraPicture(picture, self._name(index))

    def _warn_of_unseen(self, camera: RawImage) -> None:
        """Warn once a camera of what the student does not see, unless the caller has chosen."""
        if camera.gain_map is not None and getattr(self.source, "gain_map", None) is None:
            warn_of_unseen(camera.path, camera.camera, camera.gain_map)

    def _class_or_map(self, index: int) -> Any:
        """What the dataset says of an item; of a map in a file, the view reads its part later."""
        if self._maps is not None or not hasattr(self.source, "label"):
            return None
        return self.source.label(index)

    def _label(
        self,
        index: int,
        known: Any,
        drawn: Draw,
        size: Sequence[int],
        camera: RawImage | None = None,
        crop: Rectangle | None = None,
        within: Rectangle | None = None,
    ) -> Any:
        """The class, or -100; or what the view shows of the label map, int64 ``[h, w]``.

        Args:
            index: of the item.
            known: its class or its whole label map; None where it has none, or has it in a file.
            drawn: the view.
            size: height and width of the mosaic or picture.
            camera: of the mosaic; None for a picture.
            crop: the mosaic's default crop, where it is known.
            within: the part of the mosaic that views are cut from, if not all of it.
        """
        if self._maps is not None:
            if self.grid is None:
                return IGNORED
            shown = self._shown(index, drawn, size, camera, crop, within)
            return self._maps.view(index, shown, self.grid)
        label_map = as_label_map(known, f"the label of dataset item {index}")
        if label_map is None:
            return IGNORED if known is None else as_class(known, self._name(index))
        if self.grid is None:
            return IGNORED
        shown = self._shown(index, drawn, size, camera, crop, within)
        return map_view(label_map, shown, self.grid, f"the label map of dataset item {index}")

    def _name(self, index: int) -> str:
        paths = getattr(self.source, "paths", None)
        return f"dataset item {index}" if paths is None else str(paths[index])

    def _shown(
        self,
        index: int,
        drawn: Draw,
        size: Sequence[int],
        camera: RawImage | None,
        crop: Rectangle | None,
        within: Rectangle | None,
    ) -> Shown:
        """Which part of its label map a view shows; the arguments are :meth:`_label`'s.

        Raises:
            ValueError: for a mosaic that does not lie as its label map does.
        """
        height, width = size
        if camera is None:
            return Shown(*self.view.picture_window(height, width, drawn), drawn)
        if camera.orientation != 1:
            raise ValueError(
                f"{camera.path or f'dataset item {index}'}: its mosaic lies on its side "
                f"(orientation {camera.orientation}), its label map over the upright picture: "
                "turn it upright (RawFolder and pack do so by themselves, isp_distill.upright)"
            )
        window = self.view.window_within(size, within, drawn, camera.path)
        return Shown((height, width), window, drawn, crop, getattr(self.source, "frame", None))

    def _batches(
        self,
        sample: Callable[[Any], Sample | None],
        groups: Iterator[list[Any]],
        numbers: Iterable[int | None],
    ) -> Generator[RawBatch, None, None]:
        """The batches, in order: samples by several threads, batches of them by one more."""

        def make(futures: list[Future[Sample | None]], number: int | None) -> RawBatch | None:
            samples = [s for f in futures if (s := f.result()) is not None]
            if not samples:
                return None
            batch = self._collate(samples, number)
            return batch.pin_memory() if self.pin else batch

        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="isp-distill-view")
        binder = ThreadPoolExecutor(1, thread_name_prefix="isp-distill-batch")
        waiting: collections.deque[Future[RawBatch | None]] = collections.deque()
        remaining, ahead = iter(numbers), _AT_FIRST
        try:
            batch = None
            while True:
                while len(waiting) < ahead and (group := next(groups, None)) is not None:
                    futures = [pool.submit(sample, what) for what in group]
                    # Which backend makes mosaics of pictures is the caller's choice.
                    run = contextvars.copy_context().run
                    waiting.append(binder.submit(run, make, futures, next(remaining)))
                if batch is not None:
                    yield batch
                if not waiting:
                    return
                batch = waiting.popleft().result()
                if batch is not None:
                    ahead = max(1, self.prefetch_bytes // batch.nbytes)
        except KeyboardInterrupt:
            self.abandon()
            raise
        finally:
            # A batch that is being made waits for its samples, which may never be made.
            for future in waiting:
                future.cancel()
            pool.shutdown(wait=not self._abandoned, cancel_futures=True)
            binder.shutdown(wait=not self._abandoned, cancel_futures=True)

    def abandon(self) -> None:
        """Wait for no sample that is being made: a file may take a minute, a dataset for ever."""
        self._abandoned = True
        stop = getattr(self.source, "stop_reading", None)
        if stop is not None:
            stop()

    @contextlib.contextmanager
    def closing(self, batches: Generator[RawBatch, None, None]) -> Iterator[None]:
        """Close the batches at the end of a block; after Ctrl-C, without waiting for a sample."""
        try:
            yield
        except KeyboardInterrupt:
            self.abandon()
            raise
        finally:
            batches.close()

    def _collate(self, samples: list[Sample], number: int | None) -> RawBatch:
        batch = batch_of(samples, self.grid, self.noise, self.seed, number)
        return batch if self.packed else batch.linear()
