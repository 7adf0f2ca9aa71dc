"""Real mosaics as a program's inputs: what int8 is calibrated and measured on."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isp_distill.data.draw import FIXED_PLACES, Draw
from isp_distill.data.source import item_and_label, item_and_picture
from isp_distill.errors import RawError
from isp_distill.exports.lowering import Camera
from isp_distill.exports.precision import Feed
from isp_distill.exports.verification import Program
from isp_distill.isp.camera import ISP
from isp_distill.jobs.progress import progress_bar
from isp_distill.raw.companding import linear_values
from isp_distill.raw.image import RawImage, upright
from isp_distill.sources import Data, open_source

#: Files of the data that are read, spread over all of them.
FILES = 128
# From so many on, every other one is measured and not calibrated on.
_ENOUGH = 8
_ROUNDS = 5
# Types of a mosaic that hold 24 bits.
_HOLD_LINEAR = (torch.float32, torch.int32)


@dataclass(frozen=True)
class Measured:
    """An int8 file beside the float32 one that it was made of.

    Attributes:
        files: on which they were compared.
        held_out: whether these were not calibrated on.
        agreement: share of predictions (of pixels, where dense) with the same top class.
        milliseconds: of one input, in float32 and in int8: the least of several runs, one thread.
    """

    files: int
    held_out: bool
    agreement: float
    milliseconds: tuple[float, float]


def split(feeds: list[Feed]) -> tuple[list[Feed], list[Feed]]:
    """What to calibrate on, and what to measure on: the same where there are few."""
    return (feeds[::2], feeds[1::2]) if len(feeds) >= _ENOUGH else (feeds, feeds)


def feeds_of(data: Data, program: Program, progress: bool = True) -> list[Feed]:
    """A program's inputs from RAW files: each file's middle.

    Args:
        data: RAW files, as :func:`isp_distill.train` takes them.
        program: says the size, the type, and whether the camera is an input.
        progress: show a progress bar.

    Raises:
        TypeError: the data are pictures.
        ValueError: no file could be used, or fewer than a fixed batch.
    """
    source = open_source(data)
    shown = min(len(source), FILES)
    chosen = [index * len(source) // shown for index in range(shown)]
    single: list[Feed] = []
    skipped: list[str] = []
    with progress_bar("calibrate", shown, shown=progress, leave=False) as bar:
        for index in chosen:
            try:
                single.append(_feed(_raw(source, index), program))
            except RawError as error:
                skipped.append(str(error))
            bar.update()
    batch = program.batch or 1
    if len(single) < batch:
        first = f"; the first was left out: {skipped[0]}" if skipped else ""
        raise ValueError(f"calibration needs {batch} files, {len(single)} could be used{first}")
    groups = [single[i : i + batch] for i in range(0, len(single) - batch + 1, batch)]
    return [{name: np.concatenate([one[name] for one in g]) for name in g[0]} for g in groups]


def _raw(source: Any, index: int) -> RawImage:
    item, _ = item_and_picture(source[index])
    item, _ = item_and_label(item, index) or (item, None)
    if not isinstance(item, RawImage):
        raise TypeError(
            "calibration needs RAW files, and these are pictures: the mosaics that are made of "
            "them are not what a sensor delivers"
        )
    return item.unpacked()


def _feed(raw: RawImage, program: Program) -> Feed:
    height, width = program.sides
    crop = program.view.crop
    if (height, width) == (crop, crop):
        mosaic, camera = program.view.cut_raw(upright(raw), Draw(FIXED_PLACES[0]))
    else:
        camera = raw
        top, left = (
            (side - want) // 4 * 2
            for side, want in zip(raw.mosaic.shape, (height, width), strict=True)
        )
        if min(top, left) < 0:
            what = f"its mosaic of {raw.height} x {raw.width} is smaller than the file's input"
            raise RawError(raw.path, f"{what} of {height} x {width}")
        mosaic = raw.mosaic[top : top + height, left : left + width]
    curve = camera.linearise
    if program.isp is None and curve is not None:
        mosaic, camera = linear_values(mosaic, curve), replace(camera, linearise=None)
    if program.isp is None and mosaic.dtype == np.float32 and program.dtype not in _HOLD_LINEAR:
        raise ValueError(
            "a program for any camera takes linear values, and these are of up to 24 bits: export "
            "with mosaic_dtype=torch.float32, or build the camera in, isp=..."
        )
    if program.codes is not None and mosaic.dtype == np.float32:
        raise ValueError(
            "the file takes companded codes, and these frames are larger, so they would be binned "
            "to linear values: export with size=(height, width) of the frames"
        )
    feed = {"mosaic": program.of_codes(np.ascontiguousarray(mosaic)[None]).numpy()}
    if program.isp is None:
        one = Camera.of(ISP.from_raw(camera), 1)
        feed |= {name: value.contiguous().numpy() for name, value in one._asdict().items()}
    return feed


def measured(before: Path, after: Path, feeds: list[Feed], held_out: bool) -> Measured:
    """Compare two ONNX files in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [
        onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for file in (before, after)
    ]
    agreed = rows = 0
    for feed in feeds:
        best = [session.run(None, feed)[0].argmax(1) for session in sessions]
        agreed += int((best[0] == best[1]).sum())
        rows += best[0].size
    least = [float("inf")] * 2
    for _ in range(_ROUNDS):
        for place, session in enumerate(sessions):
            began = time.perf_counter()
            session.run(None, feeds[0])
            least[place] = min(least[place], time.perf_counter() - began)
    batch = len(feeds[0]["mosaic"])
    return Measured(
        len(feeds) * batch,
        held_out,
        agreed / rows,
        (1e3 * least[0] / batch, 1e3 * least[1] / batch),
    )
