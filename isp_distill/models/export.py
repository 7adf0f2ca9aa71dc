"""``export``: a RAW student as a file that runs without this library."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isp_distill.arguments import whole_numbers
from isp_distill.data.views import View
from isp_distill.files.atomic import replaced
from isp_distill.isp.camera import ISP
from isp_distill.models.lowering import AnyCamera, Camera, OneCamera, StandardStudent
from isp_distill.models.raw_model import RawModel
from isp_distill.models.student import PlanesModel, as_student
from isp_distill.models.teacher import logits_of
from isp_distill.models.trained_view import fixed_view, trained_at
from isp_distill.ops.raw_conv.arguments import MOSAIC_DTYPES
from isp_distill.raw.cfa import PATTERNS
from isp_distill.version import __version__

FORMATS = (".onnx", ".pt2")
# Of the largest logit: what two orders of the same sums, twenty layers deep, may differ by.
_TOLERANCE = 1e-3


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
    verify: bool = True,
) -> Path:
    """Write a student as ONNX (``.onnx``) or as a ``torch.export`` program (``.pt2``).

    The RawStem becomes standard operators, so the file needs onnxruntime, or torch, and no part of
    this library. It is written whole or not at all, in float32.

    The file's first input is ``mosaic``, ``[N, H, W]`` in sensor units, as the sensor delivers it:
    black level and white balance are the file's own work. Its output is ``logits``. The camera
    comes in one of two ways:

    - ``isp`` given: one camera, built in; ``mosaic`` is the only input. This is the form for a
      product: the pattern reorders the weights and the levels are constants.
    - ``isp=None``: any camera, one per sample; the inputs ``black``, ``white``, ``gain``,
      ``pattern`` and ``ccm`` follow, always all of them. :func:`camera_inputs` makes them.

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
        verify: run the file on random mosaics and compare it with the student. ONNX files are
            compared where onnxruntime is installed.

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
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    view = fixed_view(student, crop, binning, 448)
    crop, binning = view.crop, None if size is None and binning is None else view.binning
    view = View(crop, binning)
    pair = (crop, crop) if size is None else whole_numbers(size, "size (height, width)")
    if len(pair) != 2 or min(pair) < 2 or pair[0] % 2 or pair[1] % 2:
        raise ValueError(f"size {pair}: expected (height, width), even numbers")
    sides = (pair[0], pair[1])
    if min(sides) // crop < (binning or 1):
        raise ValueError(f"size {sides} is too small for a crop of {crop}, binning {binning or 1}")
    if path.suffix == ".onnx":
        _need_onnx()
    # Copied on the CPU: a student on a GPU is not moved away from under its owner.
    original = copy.deepcopy(student).cpu().float().eval()
    trained_at(original, None)  # the crop is the caller's choice
    pupil = as_student(original)
    assert isinstance(pupil, (RawModel, PlanesModel))  # what becomes of a module
    form = AnyCamera if isp is None else OneCamera
    lowered: StandardStudent = form(copy.deepcopy(pupil), view, isp).eval().requires_grad_(False)
    examples = _examples(batch or 2, sides, mosaic_dtype, isp, seed=0)
    names = list(examples)
    program = _traced(lowered, examples, batch is None)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path, suffix=path.suffix) as temporary:
        if path.suffix == ".pt2":
            program.example_inputs = None  # else the random mosaics travel in the file
            torch.export.save(program, temporary)
        else:
            described = _described(view, sides, isp)
            _save_onnx(program, examples, temporary, names, batch is None, opset, described)
        if verify:
            _verify(temporary, path, pupil, view, sides, isp, batch, mosaic_dtype)
    return path


def camera_inputs(isp: ISP, batch: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs of an exported student that describe the camera, for onnxruntime.

    ``session.run(None, {"mosaic": mosaic, **camera_inputs(ISP.from_raw(raw))})``.

    Args:
        isp: one camera for all samples, or one for each.
        batch: number of samples.

    Returns:
        ``black`` float32 ``[N, 4]`` and ``white`` float32 ``[N]`` (sensor units), ``gain`` float32
        ``[N, 4]`` (white balance times exposure, of the planes R, Gr, Gb, B), ``pattern`` int64
        ``[N]`` (0 RGGB, 1 GRBG, 2 GBRG, 3 BGGR), and ``ccm`` float32 ``[N, 3, 3]``.

    Raises:
        ValueError: if a value fits neither one sample nor ``batch`` samples.

    Examples:
        >>> inputs = isp_distill.camera_inputs(isp_distill.ISP(black=64, white=1023), batch=2)
        >>> {name: value.shape for name, value in inputs.items()}
        {'black': (2, 4), 'white': (2,), 'gain': (2, 4), 'pattern': (2,), 'ccm': (2, 3, 3)}
    """
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


def _examples(
    batch: int, sides: tuple[int, int], dtype: torch.dtype, isp: ISP | None, seed: int
) -> dict[str, Tensor]:
    """Random mosaics of random cameras, by input name."""
    draw = torch.Generator().manual_seed(seed)
    black, white = (0.0, 255.0) if dtype == torch.uint8 else (512.0, 16383.0)
    if isp is not None:
        camera = Camera.of(isp, 1)
        black, white = float(camera.black.min()), float(camera.white)
    # Blurred noise: every brightness, from below black to beyond white.
    coarse = torch.rand(batch, 1, 16, 16, generator=draw) * 1.2 - 0.1
    scene = nn.functional.interpolate(coarse, sides, mode="bilinear")[:, 0]
    limit = torch.iinfo(dtype).max if not dtype.is_floating_point else 65535
    mosaic = (black + scene * (white - black)).round().clamp(0, limit)
    # To int32 first: torch has no direct path to uint16 from every type.
    examples = {"mosaic": mosaic.to(torch.int32).to(dtype)}
    if isp is None:
        gain = 1 + torch.rand(batch, 3, generator=draw)
        any_camera = ISP(
            black=torch.full((batch, 4), black),
            white=torch.full((batch,), white),
            pattern=torch.arange(batch) % 4,
            white_balance=gain,
            ccm=(torch.eye(3) * 1.4 - 0.4 / 3).expand(batch, 3, 3),
        )
        camera = Camera.of(any_camera, batch)
        examples |= {name: value.contiguous() for name, value in camera._asdict().items()}
    return examples


def _traced(
    lowered: nn.Module, examples: dict[str, Tensor], open_batch: bool
) -> torch.export.ExportedProgram:
    free = {0: torch.export.Dim("batch")} if open_batch else None
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(
                lowered,
                tuple(examples.values()),
                dynamic_shapes=dict.fromkeys(examples, free),
            )
    except Exception as error:
        hint = "; if the model fixes its batch size, export with batch=1" if open_batch else ""
        raise ValueError(f"torch.export cannot trace the student{hint}: {error}") from error


def _save_onnx(
    program: torch.export.ExportedProgram,
    examples: dict[str, Tensor],
    path: Path,
    names: list[str],
    open_batch: bool,
    opset: int | None,
    described: dict[str, str],
) -> None:
    free = {0: "batch"} if open_batch else None
    with torch.no_grad(), _quiet():
        written = torch.onnx.export(
            program,
            tuple(examples.values()),
            dynamo=True,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(examples, free),
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


def _described(view: View, sides: tuple[int, int], isp: ISP | None) -> dict[str, str]:
    """What a reader of the file wants to know of it."""
    notes = {
        "producer": f"isp-distill {__version__}",
        "mosaic": f"{sides[0]} x {sides[1]} sensor values, black level included",
        "crop": str(view.crop),
        "binning": str(view.factor(*sides, "the exported mosaic")),
    }
    if isp is None:
        notes["pattern"] = ", ".join(f"{code} {name}" for code, name in enumerate(PATTERNS))
        notes["black, gain"] = "of the planes R, Gr, Gb, B; gain is white balance times exposure"
    else:
        camera = Camera.of(isp, 1)
        notes["camera"] = "; ".join(
            [
                f"pattern {PATTERNS[int(camera.pattern[0])]}",
                *(
                    f"{name} {[float(f'{v:.6g}') for v in value.reshape(-1).tolist()]}"
                    for name, value in camera._asdict().items()
                    if name != "pattern"
                ),
            ]
        )
    return {f"isp_distill.{name}": text for name, text in notes.items()}


def _verify(
    written: Path,
    path: Path,
    student: nn.Module,
    view: View,
    sides: tuple[int, int],
    isp: ISP | None,
    batch: int | None,
    dtype: torch.dtype,
) -> None:
    """Compare the file with the student, on another batch size than it was traced with."""
    count = batch or 3
    examples = _examples(count, sides, dtype, isp, seed=1)
    if written.suffix == ".pt2":
        with torch.no_grad():
            actual = torch.export.load(written).module()(*examples.values())
    else:
        try:
            import onnxruntime
        except ImportError:
            return
        session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
        feed = {name: value.numpy() for name, value in examples.items()}
        actual = torch.from_numpy(session.run(None, feed)[0])
    expected = expected_logits(student, examples, view, isp)
    error = float((actual - expected).abs().max())
    limit = _TOLERANCE * max(1.0, float(expected.abs().max()))
    if not error <= limit:  # written so that NaN fails it too
        raise RuntimeError(
            f"{path}: was not written, since it does not compute what the student computes: logits "
            f"differ by {error:.3g}, {limit:.3g} is allowed; please report the model's type"
        )


@torch.no_grad()
def expected_logits(
    student: nn.Module, inputs: dict[str, Tensor], view: View, isp: ISP | None
) -> Tensor:
    """What the student itself makes of a program's inputs."""
    from isp_distill.raw.binning import bin_mosaic

    cut = []
    for mosaic in inputs["mosaic"].float().numpy():
        height, width = mosaic.shape
        small = bin_mosaic(mosaic, view.factor(height, width, "the exported mosaic"))
        top, left = (2 * round(0.5 * ((side - view.crop) // 2)) for side in small.shape)
        cut.append(small[top : top + view.crop, left : left + view.crop].astype(np.float32))
    camera = isp
    if camera is None:
        gain = inputs["gain"][:, [0, 1, 3]]
        black, white, _, pattern, ccm = (inputs[name] for name in Camera._fields)
        camera = ISP(black=black, white=white, pattern=pattern, white_balance=gain, ccm=ccm)
    return logits_of(student(torch.from_numpy(np.stack(cut)), camera))
