"""An exported file beside its student: random mosaics through both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isp_distill.data.views import View
from isp_distill.exports.lowering import Bytes, Camera
from isp_distill.isp.camera import ISP
from isp_distill.models.output import EXPORT_OPTION, Output, read_output
from isp_distill.ops.reference_companding import linearised
from isp_distill.ops.reference_packing import unpacked
from isp_distill.raw.packings import PACKINGS, pack_rows

#: Of the largest logit: what two orders of the same sums, twenty layers deep, may differ by; and
#: what numbers of 11 bits leave of them. int8 has no bound: its agreement is measured instead.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2}


@dataclass(frozen=True)
class Program:
    """What an exported file takes.

    Attributes:
        view: what of the mosaic the student sees.
        sides: height and width of the mosaics that come in.
        isp: the camera that is built in, or None.
        batch: a fixed batch size, or None.
        dtype: of the mosaics.
        packed: how they are packed, if they are.
        output: which part of what the student returns.
    """

    view: View
    sides: tuple[int, int]
    isp: ISP | None
    batch: int | None
    dtype: torch.dtype
    packed: Bytes | None = None
    output: Output = None

    @property
    def codes(self) -> int | None:
        """How many codes the built-in camera's curve tells apart; None where it has none."""
        curve = None if self.isp is None else self.isp.curves
        return None if curve is None else curve.shape[1]

    def of_codes(self, codes: np.ndarray[Any, Any]) -> Tensor:
        """The mosaic input of codes, integers ``[N, H, W]``: packed, or of the program's type."""
        if self.packed is not None:
            rows = pack_rows(codes.astype(np.int32), self.packed.packing)
            return torch.from_numpy(rows)
        # By int32: torch has no direct path to uint16 from every type.
        return torch.from_numpy(codes.astype(np.int32)).to(self.dtype)


def examples(program: Program, batch: int, seed: int) -> dict[str, Tensor]:
    """Random mosaics of random cameras, by input name."""
    draw = torch.Generator().manual_seed(seed)
    isp, dtype = program.isp, program.dtype
    black, white = (0.0, 255.0) if dtype == torch.uint8 else (512.0, 16383.0)
    if program.packed is not None:
        white = 2.0 ** PACKINGS[program.packed.packing].bits - 1
        black = (white + 1) / 16
    most = white
    if isp is not None:
        camera = Camera.of(isp, 1)
        black, white = float(camera.black.min()), float(camera.white)
    if (codes := program.codes) is not None:
        black, white = 0.0, codes - 1.0
    # Blurred noise: every brightness, from below black to beyond white.
    coarse = torch.rand(batch, 1, 16, 16, generator=draw) * 1.2 - 0.1
    scene = nn.functional.interpolate(coarse, program.sides, mode="bilinear")[:, 0]
    limit = torch.iinfo(dtype).max if not dtype.is_floating_point else max(65535, white)
    if program.packed is not None:
        limit = int(most)
    mosaic = (black + scene * (white - black)).round().clamp(0, limit)
    found = {"mosaic": program.of_codes(mosaic.numpy())}
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
        found |= {name: value.contiguous() for name, value in camera._asdict().items()}
    return found


def outputs_of(file: Path, inputs: dict[str, Tensor]) -> Tensor | None:
    """What a file makes of its inputs; None of an ONNX file where onnxruntime is missing."""
    if file.suffix == ".pt2":
        with torch.no_grad():
            made: Tensor = torch.export.load(file).module()(*inputs.values())
        return made
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feed = {name: value.numpy() for name, value in inputs.items()}
    return torch.from_numpy(session.run(None, feed)[0])


def check_outputs(
    written: Path, path: Path, student: nn.Module, program: Program, tolerance: float
) -> None:
    """Compare a file with the student, on another batch size than it was traced with.

    Args:
        written: the file.
        path: its name in errors.
        student: that it was made of.
        program: what it takes.
        tolerance: largest difference of logits, as a share of the largest one.

    Raises:
        RuntimeError: it computes something else.
    """
    inputs = examples(program, program.batch or 3, seed=1)
    actual = outputs_of(written, inputs)
    if actual is None:
        return
    expected = expected_logits(student, inputs, program)
    error = float((actual - expected).abs().max())
    limit = tolerance * max(1.0, float(expected.abs().max()))
    if not error <= limit:  # written so that NaN fails it too
        raise RuntimeError(
            f"{path}: was not written, since it does not compute what the student computes: logits "
            f"differ by {error:.3g}, {limit:.3g} is allowed; please report the model's type"
        )


@torch.no_grad()
def expected_logits(student: nn.Module, inputs: dict[str, Tensor], program: Program) -> Tensor:
    """What the student itself makes of a program's inputs."""
    from isp_distill.raw.binning import bin_mosaic

    view, packed, camera = program.view, program.packed, program.isp
    cut = []
    mosaics = inputs["mosaic"]
    if packed is not None:
        mosaics = unpacked(mosaics, packed.packing, packed.width)
    values = mosaics.float()
    curve = None if camera is None else camera.curves
    if curve is not None:
        values = linearised(mosaics, curve[:1].cpu(), torch.float32)
    if camera is not None:  # the values are its codes no longer
        camera = camera.replace(linearise=None, packing=None, width=None)
    for mosaic in values.numpy():
        height, width = mosaic.shape
        small = bin_mosaic(mosaic, view.factor(height, width, "the exported mosaic"))
        small = np.rint(small) if curve is None else small
        top, left = (2 * round(0.5 * ((side - view.crop) // 2)) for side in small.shape)
        cut.append(small[top : top + view.crop, left : left + view.crop].astype(np.float32))
    if camera is None:
        gain = inputs["gain"][:, [0, 1, 3]]
        black, white, _, pattern, ccm = (inputs[name] for name in Camera._fields)
        camera = ISP(black=black, white=white, pattern=pattern, white_balance=gain, ccm=ccm)
    returned = student(torch.from_numpy(np.stack(cut)), camera)
    return read_output(returned, program.output, EXPORT_OPTION)
