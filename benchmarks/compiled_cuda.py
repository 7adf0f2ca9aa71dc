"""Compiles csrc/cuda with nvcc for GPUs that are not there, and reads what became of it.

nvcc's warnings are errors. Shared memory is what the host code would ask for at a launch: the same
header (csrc/cuda/raw_conv_call.h), compiled for the CPU, says it.
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
#include "cuda/raw_conv_call.h"
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


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    return None if shutil.which("nvcc") else "nvcc is not on the PATH"


@functools.cache
def compiled(source: str, architecture: int) -> dict[str, Compiled]:
    """The kernels of a source of csrc/cuda for one architecture, by their plain names.

    Raises:
        RuntimeError: with nvcc's output, if it does not compile or warns.
    """
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        command = ["nvcc", *FLAGS, f"-arch=sm_{architecture}", "-cubin", "-o", str(cubin)]
        run = subprocess.run(
            [*command, str(CSRC / "cuda" / source)], capture_output=True, text=True
        )
        if run.returncode:
            raise RuntimeError(f"{source} for sm_{architecture}: {run.stdout}{run.stderr}")
        return {_plain(name): code for name, code in read_cubin(cubin.read_bytes()).items()}


def _plain(mangled: str) -> str:
    """``raw_conv_add_up`` of ``_ZN11isp_distill4cuda15raw_conv_add_upEPKfPfii``."""
    at, name = 3 if mangled.startswith("_ZN") else 2, mangled
    while found := re.match(r"\d+", mangled[at:]):
        begin = at + found.end()
        at = begin + int(found[0])
        name = mangled[begin:at]
    return name


@functools.cache
def plan(
    kernel: int, stride: int, channels: int, size: int, backward: bool
) -> tuple[int, int, int]:
    """Channels of a block, its bytes of shared memory and its places for sums; uint16 mosaics.

    ``size``: bytes of an element of the output.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "plan"
        command = ["g++", "-std=c++20", f"-I{CSRC}", "-x", "c++", "-", "-o", str(program)]
        subprocess.run(command, input=_PLAN, text=True, check=True)
        call = f"{kernel} {stride} {channels} {size} {int(backward)}\n"
        run = subprocess.run([str(program)], input=call, capture_output=True, text=True, check=True)
    fits, group, shared, parts = json.loads(run.stdout)
    assert fits, f"no tile of {call.strip()} fits"
    return group, shared, parts
