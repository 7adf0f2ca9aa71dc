"""Compiles csrc/cuda with nvcc for GPUs that are not there, and reads what became of it.

nvcc's warnings are errors. Shared memory and threads are what the host code would ask for at a
launch: the same headers (csrc/cuda/*_call.h), compiled for the CPU, say it.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from machine_code import Compiled, read_cubin

CSRC = Path(__file__).resolve().parents[1] / "csrc"
FLAGS = ["-std=c++20", "-O3", f"-I{CSRC}", "-Xcompiler=-Wall,-Wextra,-Werror"]
FLAGS += ["-Werror=all-warnings"]

_PLAN = """
#include <cstdio>
#include "cuda/raw_conv/call.h"
using namespace isp_distill::cuda;
int main() {
  RawConvCall c = {};
  c.sensor = Sensor::uint16;
  int bytes, backward;
  while (std::scanf("%d %d %d %d %d", &c.kernel, &c.stride, &c.channels, &bytes, &backward) == 5) {
    Layout l;
    const bool fits = backward ? plan_backward(c, bytes, l) : plan_forward(c, bytes, l);
    const int parts = fits && backward ? parts_of_block(c) : 0;
    std::printf("[%d, %d, %d, %d]\\n", fits, c.group, l.total, parts);
  }
}
"""

#: The kernels of the distillation loss in the cases: forward KL, as the templates' numbers name it.
DISTILL = "distill_forward_kl"
_SOURCES = {
    DISTILL: """
#include "cuda/distill_loss/upsampled.h"
namespace isp_distill::cuda {
template __global__ void held<Objective::forward_kl, Shape::block_row>(const LossCall);
template __global__ void held<Objective::forward_kl, Shape::few_dense>(const LossCall);
template __global__ void held<Objective::forward_kl, Shape::dense>(const LossCall);
template __global__ void streamed<Objective::forward_kl>(const LossCall);
template __global__ void upsampled_pixels<Objective::forward_kl>(ISP_CONSTANT UpsampledLoss);
template __global__ void upsampled_cells<Objective::forward_kl, false>(ISP_CONSTANT UpsampledLoss);
}
"""
}
_DISTILL_PLAN = """
#include <cstdio>
#include "cuda/distill_loss/kernels.h"
#include "cuda/distill_loss/upsampled_call.h"
using namespace isp_distill;
using namespace isp_distill::cuda;
int main() {
  UpsampledLoss up = {};
  long classes, h, w, size;
  int dtype;
  std::printf("[%d", kLossShared);
  while (std::scanf("%d %ld %ld %ld %ld %d", &up.batch, &classes, &h, &w, &size, &dtype) == 6) {
    up.call.classes = classes, up.height = up.width = size;
    up.call.student.dtype = up.call.teacher.dtype = Dtype(dtype);
    if (!plan_upsampled(up, {h, w}, {h, w}, false, Objective::forward_kl)) return 1;
    std::printf(", %d, %d, %d, %d, %d, %d", up.pixels.width, up.pixels.bytes, up.cells.threads,
                up.cells.bytes, up.cells.width, up.cells.height);
  }
  std::printf("]\\n");
}
"""


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    return None if shutil.which("nvcc") else "nvcc is not on the PATH"


@functools.cache
def compiled(source: str, architecture: int) -> dict[str, Compiled]:
    """The kernels of a source of csrc/cuda, or of :data:`DISTILL`, for one architecture.

    By their plain names, which templates' numbers follow: ``held<1, 3>``.

    Raises:
        RuntimeError: with nvcc's output, if it does not compile or warns.
    """
    with tempfile.TemporaryDirectory() as folder:
        cubin, path = Path(folder) / "kernel.cubin", CSRC / "cuda" / source
        if source in _SOURCES:
            path = Path(folder) / f"{source}.cu"
            path.write_text(_SOURCES[source])
        command = ["nvcc", *FLAGS, f"-arch=sm_{architecture}", "-cubin", "-o", str(cubin)]
        run = subprocess.run([*command, str(path)], capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"{source} for sm_{architecture}: {run.stdout}{run.stderr}")
        return {_plain(name): code for name, code in read_cubin(cubin.read_bytes()).items()}


def _plain(mangled: str) -> str:
    """``raw_conv_add_up`` of ``_ZN11isp_distill4cuda15raw_conv_add_upEPKfPfii``, ``held<1, 3>`` of
    ``_ZN11isp_distill4cuda4heldILNS_9ObjectiveE1ELNS0_5ShapeE3EEEvNS0_8LossCallE``."""
    at, name = 3 if mangled.startswith("_ZN") else 2, mangled
    while found := re.match(r"\d+", mangled[at:]):
        begin = at + found.end()
        at = begin + int(found[0])
        name = mangled[begin:at]
    if mangled[at] != "I":
        return name
    numbers = re.match(r"I(?:L(?:N\w+?E|b|i)\d+E)+E", mangled[at:])
    assert numbers is not None, mangled
    return f"{name}<{', '.join(re.findall('([0-9]+)E(?=[LE])', numbers[0]))}>"


@functools.cache
def plan(
    kernel: int, stride: int, channels: int, size: int, backward: bool
) -> tuple[int, int, int]:
    """Channels of a block, its bytes of shared memory and its places for sums; uint16 mosaics.

    ``size``: bytes of an element of the output.
    """
    call = f"{kernel} {stride} {channels} {size} {int(backward)}\n"
    fits, group, shared, parts = _printed(_PLAN, call)
    assert fits, f"no tile of {call.strip()} fits"
    return group, shared, parts


@functools.cache
def distill_plan(shape: tuple[int, ...] | None, size: int, dtype: int) -> tuple[int, ...]:
    """Bytes of shared memory of a block of the loss of logits at their own resolution.

    With a shape ``[N, C, h, w]`` (of both maps, upsampled to a square of a size) also threads and
    bytes of a block of the pixels, the same of the cells, and the cells' tile, across and down.
    ``dtype``: of the logits, as ``Dtype`` numbers it.
    """
    call = "" if shape is None else " ".join(map(str, (*shape, size, dtype)))
    return tuple(_printed(_DISTILL_PLAN, call))


def _printed(program: str, given: str) -> list[int]:
    """What a C++ program prints, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan"
        command = ["g++", "-std=c++20", f"-I{CSRC}", "-x", "c++", "-", "-o", str(path)]
        subprocess.run(command, input=program, text=True, check=True)
        run = subprocess.run([str(path)], input=given, capture_output=True, text=True, check=True)
    found: list[int] = json.loads(run.stdout)
    return found
