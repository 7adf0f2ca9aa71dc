"""``export``: a RAW student as a file that runs without this library."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isp_distill.arguments import whole_numbers
from isp_distill.data.views import View
from isp_distill.exports.calibration import Measured, feeds_of, measured, split
from isp_distill.exports.lowering import AnyCamera, Bytes, Camera, OneCamera, StandardStudent
from isp_distill.exports.model_card import metadata_of, write_card
from isp_distill.exports.precision import INT8, PRECISIONS, to_int8
from isp_distill.exports.verification import TOLERANCE, Program, check_outputs, examples
from isp_distill.files.atomic import replaced
from isp_distill.isp.camera import ISP
from isp_distill.models.output import Output, checked_output
from isp_distill.models.raw_model import RawModel
from isp_distill.models.student import PlanesModel, as_student
from isp_distill.models.trained_view import fixed_view, trained_at
from isp_distill.ops.raw_conv.arguments import MOSAIC_DTYPES
from isp_distill.raw.packings import PACKED
from isp_distill.sources import Data
from isp_distill.students.description import description_of

FORMATS = (".onnx", ".pt2")


def export(
    student: nn.Module,
    path: str | Path,
    *,
    isp: ISP | None = None,
    crop: int | None = None,
    size: Sequence[int] | None = None,
    binning: int | None = None,
    batch: int | None = None,
    mosaic_dtype: torch.dtype = torch.uint16,
    opset: int | None = None,
    precision: str = "float32",
    calibration: Data | None = None,
    classes: Sequence[str] | None = None,
    verify: bool = True,
    packing: str | None = None,
    output: Output = None,
) -> Path:
    """Write a student as ONNX (``.onnx``) or as a ``torch.export`` program (``.pt2``).

    The RawStem becomes standard operators, so the file needs onnxruntime, or torch, and no part of
    this library. It is written whole or not at all. A model card beside it,
    ``student.model_card.md``, says what goes in and what comes out, with one example in numbers.

    The file's first input is ``mosaic``, ``[N, H, W]`` in sensor units, as the sensor delivers it:
    black level and white balance are the file's own work. Its output is ``logits``. The camera
    comes in one of two ways:

    - ``isp`` given: one camera, built in; ``mosaic`` is the only input. This is the form for a
      product: the pattern reorders the weights and the levels are constants. A companding sensor's
      curve (``isp.linearise``) is a table in the file.
    - ``isp=None``: any camera, one per sample; the inputs ``black``, ``white``, ``gain``,
      ``pattern`` and ``ccm`` follow, always all of them. :func:`camera_inputs` makes them. Of a
      companding sensor such a file takes linear values, ``mosaic_dtype=torch.float32``.

    Args:
        student: a rawified model, or any module that :func:`isp_distill.train` takes; it is not
            changed.
        path: ends in ``.onnx`` or ``.pt2``; an existing file is replaced.
        isp: the camera to build in, or None.
        crop: side of the mosaic that the student itself sees, even; None: what it was trained with,
            or 448 where it was not trained.
        size: (height, width) of the mosaics that come in, even; (crop, crop) if None. From a larger
            one the file takes the middle view, binned, as :func:`isp_distill.evaluate` does.
        binning: see :class:`isp_distill.View`; None, where ``crop`` is too and ``size`` is
            given: what it was trained with.
        batch: a fixed batch size, for models or runtimes that need one; None leaves it open.
        mosaic_dtype: of the mosaic input. onnxruntime reads uint16 on its CPU and CUDA providers;
            for runtimes without 16-bit unsigned tensors take int32 or float32. int16 holds
            14-bit sensors.
        opset: ONNX opset; the exporter's own if None.
        precision: "float32"; "float16", for GPUs; "int8", quantised by onnxruntime's own tools
            and calibrated on ``calibration``; or "int8_signed", the same with signed weights: the
            faster one in onnxruntime on ARM and on x86 processors with VNNI, and wrong on x86
            without it, where sums overflow. The steps before the first convolution stay float32.
        calibration: RAW files like those that it will see, for int8: as :func:`isp_distill.train`
            takes data. At most 128 of them are read. The card says how often int8 and float32 agree
            on every other one of them, which then are not calibrated on, and what each takes.
        classes: names of what it predicts, for the card; those of a loaded student if None.
        verify: run the file on random mosaics and compare it with the student. ONNX files are
            compared where onnxruntime is installed.
        packing: take the sensor's bytes, unpacked in the file: "mipi10" and so on, see
            :func:`isp_distill.raw_conv`. ``mosaic`` is then uint8 ``[N, height, bytes]``, rows
            without padding, and ``size`` counts pixels as ever.
        output: which part of what the student returns becomes ``logits``, where it is none of the
            usual ones: ``student_output`` of :func:`isp_distill.train`.

    Returns:
        The path.

    Raises:
        TypeError: if the student is no module.
        ValueError: for another ending, a setting out of range, an ISP of several cameras, or a
            model that cannot be traced (for an open batch: try ``batch=1``).
        ImportError: if onnx and onnxscript are missing.
        RuntimeError: if the file does not compute what the student computes; it is not kept.

    Examples:
        >>> path = isp_distill.export(isp_distill.rawify(model), "student.pt2", crop=64)
        >>> program = torch.export.load(path).module()
        >>> raw = isp_distill.read_raw("photos/new.dng")
        >>> mosaic, isp = isp_distill.cut_view(raw, isp_distill.View(64))
        >>> camera = isp_distill.camera_inputs(isp)
        >>> program(mosaic, *(torch.from_numpy(value) for value in camera.values())).shape
        torch.Size([1, 4])
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: the name must end in {' or '.join(FORMATS)}")
    if not isinstance(student, nn.Module):
        raise TypeError(f"a student to export must be an nn.Module, not {type(student).__name__}")
    if mosaic_dtype not in MOSAIC_DTYPES or mosaic_dtype in (torch.float16, torch.float64):
        raise ValueError(f"mosaic_dtype {mosaic_dtype}: expected an integer type or float32")
    if packing not in (None, *PACKED):
        raise ValueError(f"unknown packing {packing!r}: expected one of {', '.join(PACKED)}")
    if packing is not None and mosaic_dtype not in (torch.uint16, torch.uint8):
        raise ValueError(f"mosaics packed as {packing} are bytes, not {mosaic_dtype}")
    if isp is not None and isp.linearise is not None and mosaic_dtype.is_floating_point:
        raise ValueError(
            f"the camera's codes are companded, and codes are whole numbers, not {mosaic_dtype}: "
            "take torch.uint16; or, of linear values, isp.replace(linearise=None)"
        )
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    checked_output(output, "output")
    view = fixed_view(student, crop, binning, 448)
    crop, binning = view.crop, None if size is None and binning is None else view.binning
    view = View(crop, binning)
    pair = (crop, crop) if size is None else whole_numbers(size, "size (height, width)")
    if len(pair) != 2 or min(pair) < 2 or pair[0] % 2 or pair[1] % 2:
        raise ValueError(f"size {pair}: expected (height, width), even numbers")
    sides = (pair[0], pair[1])
    if min(sides) // crop < (binning or 1):
        raise ValueError(f"size {sides} is too small for a crop of {crop}, binning {binning or 1}")
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: expected {', '.join(PRECISIONS)}")
    if precision in INT8 and path.suffix != ".onnx":
        raise ValueError(f"{path}: int8 is for .onnx; a .pt2 program is quantised by torch's tools")
    if (precision in INT8) != (calibration is not None):
        raise ValueError(
            f'precision="{INT8[0]}" or "{INT8[1]}" needs calibration=, a folder of RAW files like '
            "those that it will see; other precisions take none"
        )
    if path.suffix == ".onnx":
        _need_onnx()
    # Copied on the CPU: a student on a GPU is not moved away from under its owner.
    original = copy.deepcopy(student).cpu().float().eval()
    trained_at(original, None)  # the crop is the caller's choice
    pupil = as_student(original)
    assert isinstance(pupil, (RawModel, PlanesModel))  # what becomes of a module
    form = AnyCamera if isp is None else OneCamera
    half = precision == "float16"
    dtype = torch.float16 if half else torch.float32
    packed = None if packing is None else Bytes(packing, sides[1])
    lowered: StandardStudent = form(copy.deepcopy(pupil), view, isp, dtype, packed, output)
    lowered = lowered.eval().requires_grad_(False)
    program = Program(view, sides, isp, batch, mosaic_dtype, packed, output)
    inputs = examples(program, batch or 2, seed=0)
    traced = _traced(lowered, inputs, batch is None)
    path.parent.mkdir(parents=True, exist_ok=True)
    compared = None
    with replaced(path, suffix=path.suffix) as temporary:
        if path.suffix == ".pt2":
            traced.example_inputs = None  # else the random mosaics travel in the file
            torch.export.save(traced, temporary)
        else:
            described = metadata_of(program, precision)
            _save_onnx(traced, inputs, temporary, batch is None, opset, described)
        if verify:
            check_outputs(temporary, path, pupil, program, TOLERANCE[dtype])
        if calibration is not None:
            signed = precision == "int8_signed"
            compared = _quantised(temporary, program, calibration, signed)
    write_card(path, program, precision, _names(student, classes), compared)
    return path


def _quantised(path: Path, program: Program, calibration: Data, signed: bool) -> Measured:
    """Make a float32 file an int8 one."""
    feeds = feeds_of(calibration, program)
    seen, compared = split(feeds)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".int8.") as folder:
        made = Path(folder) / "int8.onnx"
        to_int8(path, made, seen, signed)
        found = measured(path, made, compared, held_out=seen is not compared)
        os.replace(made, path)
    return found


def _names(student: nn.Module, classes: Sequence[str] | None) -> list[str] | None:
    """The names of what a student predicts, where somebody knows them."""
    if classes is not None:
        return [str(name) for name in classes]
    described = description_of(student)
    return None if described is None or described.classes is None else list(described.classes)


def camera_inputs(isp: ISP, batch: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs of an exported student that describe the camera, for onnxruntime.

    ``session.run(None, {"mosaic": mosaic, **camera_inputs(ISP.from_raw(raw))})``.

    Args:
        isp: one camera for all samples, or one for each.
        batch: number of samples.

    Returns:
        ``black`` float32 ``[N, 4]`` and ``white`` float32 ``[N]`` (sensor units), ``gain`` float32
        ``[N, 4]`` (white balance times exposure, of the planes R, Gr, Gb, B), ``pattern`` int64
        ``[N]`` (0 RGGB, 1 GRBG, 2 GBRG, 3 BGGR; others alike), and ``ccm`` float32 ``[N, 3, 3]``.

    Raises:
        ValueError: if a value fits neither one sample nor ``batch`` samples, or the filter's colour
            matrix is missing or not 3x3, which such a program takes; or codes are companded.

    Examples:
        >>> inputs = isp_distill.camera_inputs(isp_distill.ISP(black=64, white=1023), batch=2)
        >>> {name: value.shape for name, value in inputs.items()}
        {'black': (2, 4), 'white': (2,), 'gain': (2, 4), 'pattern': (2,), 'ccm': (2, 3, 3)}
    """
    if isp.linearise is not None:
        raise ValueError(
            "a program for any camera takes linear values, and these codes are companded: build "
            "the camera in, export(student, path, isp=isp), or give such a program (mosaic_dtype="
            "torch.float32) linear values, with camera_inputs(isp.replace(linearise=None))"
        )
    if isp.matrix(batch).shape[2] != 3:
        raise ValueError(
            "a program for any camera takes 3x3 colour matrices, and the filter's has "
            f"{isp.colours} columns: build the camera in, export(student, path, isp=isp)"
        )
    camera = Camera.of(isp, batch)._asdict()
    return {name: value.contiguous().numpy() for name, value in camera.items()}


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401  (only whether it is there)
        import onnxscript  # noqa: F401  (likewise)
    except ImportError as error:
        raise ImportError(
            f"ONNX export needs onnx and onnxscript ({error}): pip install isp-distill[export]"
        ) from error


def _traced(
    lowered: nn.Module, inputs: dict[str, Tensor], open_batch: bool
) -> torch.export.ExportedProgram:
    free = {0: torch.export.Dim("batch")} if open_batch else None
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(
                lowered,
                tuple(inputs.values()),
                dynamic_shapes=dict.fromkeys(inputs, free),
            )
    except Exception as error:
        hint = "; if the model fixes its batch size, export with batch=1" if open_batch else ""
        raise ValueError(f"torch.export cannot trace the student{hint}: {error}") from error


def _save_onnx(
    program: torch.export.ExportedProgram,
    inputs: dict[str, Tensor],
    path: Path,
    open_batch: bool,
    opset: int | None,
    described: dict[str, str],
) -> None:
    free = {0: "batch"} if open_batch else None
    with torch.no_grad(), _quiet():
        written = torch.onnx.export(
            program,
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(inputs, free),
            opset_version=opset,
            verbose=False,
        )
        assert written is not None
        written.model.metadata_props.update(described)
        written.save(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters talk of what is theirs to mind; errors still come out."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
