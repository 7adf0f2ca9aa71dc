"""The model card beside an exported file: what goes in, what comes out, one example with numbers.

Whoever runs the file in C++ has neither this library nor the person who made it. Everything that
they must know is here, and one input whose output they can compare.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isp_distill.exports.calibration import Measured
from isp_distill.exports.lowering import Camera
from isp_distill.exports.verification import Program, outputs_of
from isp_distill.files.atomic import write_atomically
from isp_distill.isp.camera import ISP
from isp_distill.raw.cfa import PATTERNS, pattern_codes
from isp_distill.raw.filters import name_of
from isp_distill.raw.packings import PACKINGS, row_bytes
from isp_distill.version import __version__

_SHOWN = 5
_MEANING = {
    "mosaic": "sensor values as they are read, black level included; row by row",
    "black": "black level of R, Gr, Gb, B, sensor units",
    "white": "white level, sensor units",
    "gain": "white balance times exposure, of R, Gr, Gb, B; green is 1",
    "pattern": ", ".join(f"{code} is {name}" for code, name in enumerate(PATTERNS)),
    "ccm": "white-balanced camera RGB to linear sRGB, row by row",
}


def card_of(path: Path) -> Path:
    """Where a file's card lies: ``student.model_card.md`` beside ``student.onnx``."""
    return path.with_name(f"{path.stem}.model_card.md")


def example_inputs(program: Program) -> dict[str, Tensor]:
    """The inputs of the worked example: a mosaic that a line of any language makes."""
    black, white = _levels(program)
    height, width = program.sides
    y, x = np.mgrid[:height, :width]
    mosaic = program.of_codes((black + (37 * y + 101 * x) % (white - black))[None])
    batch = program.batch or 1
    found = {"mosaic": mosaic.expand(batch, -1, -1).contiguous()}
    if program.isp is None:
        isp = ISP(black=float(black), white=float(white), white_balance=(2.0, 1.0, 1.5))
        camera = Camera.of(isp, batch)
        found |= {name: value.contiguous() for name, value in camera._asdict().items()}
    return found


def _levels(program: Program) -> tuple[int, int]:
    if program.codes is not None:
        return 0, program.codes - 1
    if program.isp is not None:
        camera = Camera.of(program.isp, 1)
        return int(camera.black.min()), int(camera.white[0])
    if program.packed is not None:
        white = (1 << PACKINGS[program.packed.packing].bits) - 1
        return (white + 1) // 16, white
    return (16, 255) if program.dtype == torch.uint8 else (512, 16383)


def write_card(
    path: Path,
    program: Program,
    precision: str,
    classes: list[str] | None,
    measured: Measured | None,
) -> Path:
    """Write the card of an exported file.

    Args:
        path: of the file, which is there; an ONNX file is run once for the example.
        program: what it takes.
        precision: of its numbers.
        classes: names of what it predicts.
        measured: of int8, what it lost and gained.

    Raises:
        OSError: it cannot be written.
    """
    inputs = example_inputs(program)
    lines = [f"# {path.name}", "", _summary(path, program, precision), "", "## Inputs", ""]
    lines += ["| name | dtype | shape | what it holds |", "| --- | --- | --- | --- |"]
    for name, value in inputs.items():
        shape = [*value.shape]
        batch = str(program.batch or "N")
        sides = ", ".join([batch, *map(str, shape[1:])])
        dtype = str(value.dtype).removeprefix("torch.")
        meaning = _MEANING[name]
        if name == "mosaic" and program.packed is not None:
            meaning = (
                f"the sensor's bytes, packed as {program.packed.packing}, rows without padding; "
                "black level included"
            )
        lines.append(f"| `{name}` | {dtype} | [{sides}] | {meaning} |")
    lines += ["", _camera(program), ""]
    lines += [
        "Nothing must be done before but to cut the mosaic to the size above, beginning at an even "
        "row and an even column, so that the filter's pattern stays the one that it is. Black "
        "level, white balance and everything else is the file's own work.",
        "",
        "## Output",
        "",
        _output(classes),
        "",
    ]
    if measured is not None:
        lines += _int8(measured, signed=precision == "int8_signed")
    lines += _worked(path, program, inputs)
    write_atomically(card_of(path), "\n".join(lines).encode("utf-8", "surrogateescape"))
    return card_of(path)


def _summary(path: Path, program: Program, precision: str) -> str:
    view, (height, width) = program.view, program.sides
    factor = view.factor(height, width, path.name)
    seen = f"the student sees {view.crop} x {view.crop} of it"
    if (height, width) == (view.crop, view.crop):
        seen = "all of which the student sees"
    binned = f", {factor} x {factor} sites of one colour averaged" if factor > 1 else ""
    return (
        f"A student that sees a camera's RAW mosaic, written by isp-distill {__version__} in "
        f"{precision}, {path.stat().st_size / 1e6:.2f} MB. It takes mosaics of {height} rows and "
        f"{width} columns, {seen}{binned}. It needs no part of isp-distill."
    )


def metadata_of(program: Program, precision: str) -> dict[str, str]:
    """What an ONNX file says of itself: the card in short."""
    (height, width), packed = program.sides, program.packed
    notes = {
        "producer": f"isp-distill {__version__}",
        "mosaic": f"{height} x {width} sensor values, black level included",
        "precision": precision,
        "output": "logits, float32, before the softmax; axis 1 is the class",
        "before": "nothing but cutting the mosaic at an even row and an even column",
        "crop": str(program.view.crop),
        "binning": str(program.view.factor(height, width, "the exported mosaic")),
    }
    if packed is not None:
        size = row_bytes(packed.width, packed.packing)
        notes["packing"] = f"{packed.packing}: {height} rows of {size} bytes"
    if program.isp is None:
        notes["pattern"] = _MEANING["pattern"]
        notes["black, gain"] = "of the planes R, Gr, Gb, B; gain is white balance times exposure"
    else:
        notes["camera"] = _built_in(program.isp)
    return {f"isp_distill.{name}": text for name, text in notes.items()}


def _built_in(isp: ISP) -> str:
    """One camera's numbers."""
    camera = Camera.of(isp, 1)
    code = int(pattern_codes(isp.pattern, 1, torch.device("cpu"))[0])
    numbers = (
        f"{name} {[_short(v) for v in value.reshape(-1).tolist()]}"
        for name, value in camera._asdict().items()
        if name != "pattern"
    )
    return "; ".join([f"pattern {name_of(code)}", *numbers, *_curve(isp)])


def _short(value: float) -> float:
    """Whole numbers as they are, since a level may have 24 bits."""
    return value if value == round(value) else float(f"{value:.6g}")


def _curve(isp: ISP) -> list[str]:
    """What companded codes mean; black and white are then linear values."""
    if isp.curves is None:
        return []
    table = isp.curves[0].tolist()
    ends = f"{table[0]:.9g} to {table[-1]:.9g}"
    what = f"a table of {len(table)} values, {ends}"
    return [f"codes are companded, by {what}; levels are linear values"]


def _camera(program: Program) -> str:
    if program.isp is None:
        return "The camera is an input: its numbers stand in the RAW file, or in the sensor's data."
    return (
        "The camera is built in, its pattern as it is from the first row and column: "
        f"{_built_in(program.isp)}."
    )


def _output(classes: list[str] | None) -> str:
    text = "`logits`, float32: before the softmax, axis 1 is the class."
    if classes is None:
        return text
    named = json.dumps(classes, ensure_ascii=False)
    return f"{text} The classes, from 0 on:\n\n```json\n{named}\n```"


def _int8(measured: Measured, signed: bool) -> list[str]:
    before, after = measured.milliseconds
    where = (
        "files that it was not calibrated on"
        if measured.held_out
        else "the files it was calibrated on, for there were few"
    )
    return [
        "## int8 beside float32",
        "",
        f"Agreement of the top class with the float32 file: {measured.agreement:.3f}, over "
        f"{measured.files} {where}.",
        "",
        f"One input in onnxruntime, one thread of {processor()}: {before:.2f} ms in float32, "
        f"{after:.2f} ms in int8. {_sign(signed)}",
        "",
    ]


def _sign(signed: bool) -> str:
    if signed:
        return (
            "The weights have a sign: on x86 processors without VNNI sums overflow, and the "
            "predictions are wrong. Run the file on ARM, or where there is VNNI."
        )
    return (
        "The weights have no sign: right on every processor; in onnxruntime, "
        'precision="int8_signed" is faster on ARM and on x86 processors with VNNI.'
    )


def _worked(path: Path, program: Program, inputs: dict[str, Tensor]) -> list[str]:
    black, white = _levels(program)
    what = "mosaic" if program.packed is None else f"mosaic, packed as {program.packed.packing},"
    lines = [
        "## One example",
        "",
        f"The {what} with `{black} + (37 * row + 101 * column) % {white - black}` at each place"
        + ("." if program.isp is not None else ", and these numbers of its camera:"),
        "",
    ]
    for name, value in inputs.items():
        if name != "mosaic":
            numbers = [float(f"{v:.7g}") for v in value[0].reshape(-1).tolist()]
            lines.append(f"- `{name}` {numbers if len(numbers) > 1 else numbers[0]}")
    made = outputs_of(path, inputs)
    if made is None:
        return [*lines, "", "(onnxruntime was not there to say what comes out.)", ""]
    first = made[0].reshape(-1)
    shown = ", ".join(f"{v:.4f}" for v in first[:_SHOWN].tolist())
    best = f" The largest is class {int(made[0].argmax())}." if made.dim() == 2 else ""
    return [*lines, "", f"gives {list(made.shape)} logits that begin with {shown}.{best}", ""]


def processor() -> str:
    """The name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
