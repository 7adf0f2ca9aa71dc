"""``predict``: a student on files, as it was measured in evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from isp_distill.arguments import whole_number
from isp_distill.data.device_input import moved
from isp_distill.data.item_name import item_name
from isp_distill.data.loader import ViewLoader
from isp_distill.data.sensor_files import is_sensor_folder
from isp_distill.data.sensor_folder import SensorFolder
from isp_distill.data.skipped import skipped_report
from isp_distill.data.source import Source
from isp_distill.detection.detected import Detections, detections
from isp_distill.detection.heads import heads_of
from isp_distill.files.listed import is_list_of_files
from isp_distill.jobs.progress import progress_bar
from isp_distill.models.modes import evaluating
from isp_distill.models.output import read_output
from isp_distill.models.student import as_student, takes_packed_mosaics
from isp_distill.models.trained_view import any_size, known_view
from isp_distill.ops.dense_logits import check_upright
from isp_distill.raw.image import RawImage
from isp_distill.raw.sensor_format import SensorFormat
from isp_distill.sources import Data, open_source
from isp_distill.students.description import StudentDescription, description_of
from isp_distill.students.prediction import ClassScore, DetectedBox, Prediction, Predictions
from isp_distill.students.saved import load

# Suffixes of frames that nothing describes but a sensor's format.
_FRAMES = (".raw", ".bin", ".npy", ".npz", ".pgm")


def predict(
    student: nn.Module | str | os.PathLike[str],
    data: Data | RawImage | np.ndarray[Any, Any],
    *,
    format: SensorFormat | None = None,
    top: int = 5,
    classes: Sequence[str] | None = None,
    crop: int | None = None,
    binning: int | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    workers: int = 2,
    trust: Sequence[str] = (),
    progress: bool = True,
) -> Predictions:
    """Run a student on RAW files, exactly as :func:`isp_distill.evaluate` measures it.

    Each file is turned upright, binned, and cut around its middle to the size that the student was
    trained at. Files are decoded ahead, by threads; damaged ones are left out and listed.

    Args:
        student: a module, or the path of a run or of a saved student, see :func:`isp_distill.load`.
        data: a file, a folder, or several; a dataset; a :class:`RawImage` or a list of such; or the
            codes of a frame, ``[H, W]``, or of several, ``[N, H, W]``, with ``format``.
        format: of frames without a ``sensor.toml``; the one that the student was trained on if
            None.
        top: so many of the best classes, at most as many as there are.
        classes: their names; those that were saved with the student if None.
        crop: side of the mosaics; None: what it was trained at. A student that was never trained
            needs it.
        binning: see :class:`isp_distill.View`.
        batch_size: views a forward pass.
        device: where to compute; where the student is if None.
        workers: threads that read.
        trust: see :func:`isp_distill.load`.
        progress: show a progress bar.

    Returns:
        :class:`~isp_distill.students.prediction.Predictions`: of every shot its best classes, and
        the class map where the student is dense; of a detector, its boxes in the file's pixels.

    Raises:
        FileNotFoundError: for a path without files, or without a student.
        TypeError: for data, or a student, of another kind.
        ValueError: for a setting out of range, or where no file could be used.

    Examples:
        >>> result = isp_distill.train(
        ...     "rawify", isp_distill.Teacher(model, size=32), "photos/raw", out="runs/first",
        ...     steps=2, batch_size=2, progress=False,
        ... )
        >>> found = isp_distill.predict(result.student, "photos/held-out", progress=False)
        >>> len(found), len(found[0].top), found.skipped
        (1, 4, {})
    """
    chosen = load(student, trust=trust) if isinstance(student, (str, os.PathLike)) else student
    if not isinstance(chosen, nn.Module):
        raise TypeError(
            f"student must be a module, or the path of a run, not {type(student).__name__}"
        )
    described = description_of(chosen)
    pupil = cast(nn.Module, as_student(chosen))
    top = whole_number(top, "top", least=1)
    batch_size = whole_number(batch_size, "batch_size", least=1)
    view = known_view(pupil, crop, binning)
    source, names = _opened(data, format, described)
    if classes is None and described is not None:
        classes = described.classes
    first = next(pupil.parameters(), torch.empty(0))
    where = first.device if device is None else torch.device(device)
    packed = takes_packed_mosaics(pupil)
    loader = ViewLoader(source, view, batch_size, workers=workers, packed=packed)
    with evaluating(pupil.to(where)):
        found = tuple(_predicted(pupil, loader, where, names, classes, top, described, progress))
    skipped = {**getattr(source, "skipped", {}), **loader.skipped}
    if skipped and progress:
        tqdm.write(skipped_report(skipped))
    if not found:
        raise ValueError(f"no file could be used:\n{skipped_report(skipped)}")
    return Predictions(found, skipped)


def _opened(
    data: Any, format: SensorFormat | None, described: StudentDescription | None
) -> tuple[Source, list[str]]:
    """The data as a dataset, and the name of each item."""
    if isinstance(data, RawImage):
        data = [data]
    if isinstance(data, np.ndarray):
        data = _frames(data, format)
    listed = isinstance(data, (str, os.PathLike)) or is_list_of_files(data)
    if format is None and described is not None and listed and _undescribed(data):
        format = described.sensor
    if format is not None and listed:
        source: Any = _sensor_folder(data, format)
    else:
        source = open_source(data)
    return source, [item_name(source, index) for index in range(len(source))]


def _frames(codes: np.ndarray[Any, Any], format: SensorFormat | None) -> list[RawImage]:
    """Frames in memory as RAW images."""
    if format is None:
        raise ValueError(
            "an array says nothing of its levels and its pattern: give format=SensorFormat(...)"
        )
    whole = codes[None] if codes.ndim == 2 else codes
    sides = (format.height, format.width)
    if whole.ndim != 3 or whole.shape[1:] != sides or whole.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"frames must be uint8 or uint16, [{sides[0]}, {sides[1]}] or [N, ...] as the format "
            f"says, got {codes.dtype} {list(codes.shape)}"
        )
    return [format.image(one.astype(np.uint16, copy=False)) for one in whole]


def _undescribed(data: Any) -> bool:
    """Whether files are frames that nothing beside them describes."""
    paths = [Path(data)] if isinstance(data, (str, os.PathLike)) else [Path(one) for one in data]
    folders = {path if path.is_dir() else path.parent for path in paths}
    if any(is_sensor_folder(folder) for folder in folders):
        return False
    return all(p.suffix.lower() in _FRAMES or (p.is_dir() and _has_frames(p)) for p in paths)


def _has_frames(folder: Path) -> bool:
    return any(file.suffix.lower() in _FRAMES for file in folder.iterdir())


def _sensor_folder(data: Any, format: SensorFormat) -> SensorFolder:
    if isinstance(data, (str, os.PathLike)):
        path = Path(data)
        return SensorFolder(path if path.is_dir() else path.parent, format,
                            files=None if path.is_dir() else [path])  # fmt: skip
    files = [Path(one) for one in data]
    return SensorFolder(files[0].parent, format, files=files)


@torch.no_grad()
def _predicted(
    student: nn.Module,
    loader: ViewLoader,
    device: torch.device,
    names: Sequence[str],
    classes: Sequence[str] | None,
    top: int,
    described: StudentDescription | None,
    progress: bool,
) -> Iterator[Prediction]:
    """The predictions, batch by batch, in the order of the files."""
    of_embedding = described is not None and described.output == "embedding"
    reads = None if described is None else described.reads
    heads = heads_of(student)
    batches = loader.fixed(1)
    bar = progress_bar("predict", len(names), shown=progress, leave=False)
    with bar as shown, loader.closing(batches), any_size(student):
        for batch in batches:
            seen = moved(batch, device)
            logits = read_output(student(seen.mosaic, seen.isp), reads)
            check_upright(seen.isp, logits)
            assert batch.items is not None
            named = [names[i] for i in batch.items]
            if heads is not None:
                assert batch.windows is not None
                found = detections(logits, heads, "student")
                for name, one_found, window in zip(named, found, batch.windows, strict=True):
                    yield Prediction(name, boxes=_boxes(one_found, window, classes))
            else:
                for name, one in zip(named, logits, strict=True):
                    yield _prediction(name, one, classes, top, of_embedding)
            shown.update(len(batch.items))


def _prediction(
    name: str, output: Tensor, classes: Sequence[str] | None, top: int, of_embedding: bool
) -> Prediction:
    output = output.float().cpu()
    if not bool(torch.isfinite(output).all()):
        raise ValueError(f"{name}: the student's output is not finite")
    if of_embedding:
        return Prediction(name, embedding=output.numpy())
    if output.dim() == 1:
        best = output.softmax(0).topk(min(top, len(output)))
        return Prediction(name, _scores(best.indices, best.values, classes))
    best_class = output.argmax(0)
    area = torch.bincount(best_class.reshape(-1), minlength=len(output)) / best_class.numel()
    largest = area.topk(min(top, int((area > 0).sum())))
    kind = np.uint8 if len(output) <= 256 else np.uint16
    drawn = best_class.numpy().astype(kind)
    return Prediction(name, _scores(largest.indices, largest.values, classes), drawn)


def _boxes(
    found: Detections, window: Sequence[float], classes: Sequence[str] | None
) -> tuple[DetectedBox, ...]:
    """Detections in pixels of the file, of a view that shows this window of it."""
    top, left, height, width = window
    scale, corner = torch.tensor([width, height] * 2), torch.tensor([left, top] * 2)
    placed = (found.boxes.cpu() * scale + corner).tolist()
    return tuple(
        DetectedBox(i, _class_name(i, classes), score, tuple(box))
        for i, score, box in zip(found.classes.tolist(), found.scores.tolist(), placed, strict=True)
    )


def _class_name(index: int, classes: Sequence[str] | None) -> str:
    return str(classes[index]) if classes and index < len(classes) else f"class {index}"


def _scores(
    indices: Tensor, values: Tensor, classes: Sequence[str] | None
) -> tuple[ClassScore, ...]:
    return tuple(
        ClassScore(i, _class_name(i, classes), v)
        for i, v in zip(indices.tolist(), values.tolist(), strict=True)
    )
