"""raw_conv and render on a sensor's packed bytes, beside unpacking first.

    python benchmarks/bench_packing.py                       # mipi10, 12 megapixels
    python benchmarks/bench_packing.py --packings mipi10 mipi14 --threads 1
    pytest benchmarks/bench_packing.py --benchmark-only      # the same calls under pytest-benchmark

Of each operation three ways: on the packed bytes; on the codes as uint16, which somebody else has
unpacked; and unpacked first, by NumPy or by torch, whichever is faster, then the call on uint16.
Every call takes the next of several mosaics, together larger than the caches. All take turns, and
the least time of each counts, so the ratios hold where the machine is busy; its load is printed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from floor import interleaved

from isp_distill import ISP, raw_conv, render
from isp_distill.backends import cpu_library
from isp_distill.ops.reference_packing import unpacked
from isp_distill.raw.packings import PACKED, PACKINGS, pack_rows, unpack_rows

HEIGHT, WIDTH = 3000, 4000
MOSAICS = 4  # 96 MB as uint16
WAYS = ("packed", "uint16", "NumPy first", "torch first")


def torch_codes(packed: Tensor, packing: str) -> Tensor:
    """The codes as somebody writes it who cares for speed: 16 bits throughout, each byte once."""
    if packing != "mipi10":
        return unpacked(packed, packing, WIDTH).to(torch.int16).view(torch.uint16)
    groups = packed.view(*packed.shape[:-1], -1, 5)
    codes = groups[..., :4].to(torch.int16) << 2
    low = groups[..., 4:].to(torch.int16)
    codes |= (low >> torch.tensor([0, 2, 4, 6], dtype=torch.int16)) & 3
    return codes.flatten(-2).view(torch.uint16)


class Workload:
    """Mosaics of one packing, and every way to hand them to one operation."""

    def __init__(self, packing: str, operation: str) -> None:
        self.packing, self.operation = packing, operation
        bits = PACKINGS[packing].bits
        random = np.random.default_rng(0)
        # Between black and white, as most of a photograph is.
        codes = random.integers(2 ** (bits - 4), 2**bits - 9, (MOSAICS, HEIGHT, WIDTH), np.uint16)
        self.bytes = [torch.from_numpy(pack_rows(c, packing))[None] for c in codes]
        self.codes = [torch.from_numpy(c)[None] for c in codes]
        self.turn = itertools.cycle(range(MOSAICS))
        self.levels = {"black": float(2 ** (bits - 4)), "white": float(2**bits - 1)}
        self.weight = torch.randn(32, 4, 3, 3) / 6
        self.weight.requires_grad_(operation == "raw_conv, forward and backward")
        self.ready: Tensor | None = None

    def call(self, mosaic: Tensor, **how: Any) -> object:
        """The operation on bytes or on codes."""
        if self.operation.startswith("render"):
            linear = self.operation == "render to 224, linear"
            size = None if self.operation == "render, full size" else (224, 224)
            camera = ISP(**self.levels)
            return render(
                mosaic, camera, size=size, resize_in="linear" if linear else "display", **how
            )
        settings = {"stride": 2, "padding": 1, "activation": "relu"}
        out = raw_conv(mosaic, self.weight, **self.levels, **settings, **how)
        if out.requires_grad:
            if self.ready is None:
                self.ready = torch.randn(out.shape)
            out.backward(self.ready)
        return out

    def ways(self) -> dict[str, Callable[[], object]]:
        """Every way, by name."""

        def packed() -> object:
            return self.call(self.bytes[next(self.turn)], packing=self.packing, width=WIDTH)

        def numpy_first() -> object:
            codes = unpack_rows(self.bytes[next(self.turn)].numpy(), WIDTH, self.packing)
            return self.call(torch.from_numpy(codes))

        def torch_first() -> object:
            return self.call(torch_codes(self.bytes[next(self.turn)], self.packing))

        def uint16() -> object:
            return self.call(self.codes[next(self.turn)])

        return dict(zip(WAYS, (packed, uint16, numpy_first, torch_first), strict=True))


OPERATIONS = (
    "raw_conv",
    "raw_conv, forward and backward",
    "render to 224, linear",
    "render to 224, display",
    "render, full size",
)


def processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def measure(packings: list[str], operations: list[str], rounds: int) -> None:
    """One row for each packing and operation, printed as it is measured."""
    print(
        f"{processor()}, {cpu_library.instruction_set()}, {torch.get_num_threads()} of "
        f"{os.cpu_count()} processors, torch {torch.__version__}; the least of {rounds} rounds\n\n"
        "| packing | operation | packed ms | uint16 ms | packed / uint16 | unpacked first / packed "
        "| by | load |\n|---|---|--:|--:|--:|--:|---|--:|",
        flush=True,
    )
    for packing in packings:
        for operation in operations:
            ms = {
                way: 1e3 * seconds
                for way, seconds in interleaved(Workload(packing, operation).ways(), rounds).items()
            }
            first = min(WAYS[2:], key=lambda way: ms[way])
            print(
                f"| {packing} | {operation} | {ms['packed']:.1f} | {ms['uint16']:.1f} "
                f"| {ms['packed'] / ms['uint16']:.2f} | {ms[first] / ms['packed']:.1f} "
                f"| {first.removesuffix(' first')} | {os.getloadavg()[0]:.1f} |",
                flush=True,
            )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_packing(benchmark: Any, operation: str, way: str) -> None:
    benchmark.group = f"mipi10, {operation}"
    benchmark.pedantic(Workload("mipi10", operation).ways()[way], rounds=5, warmup_rounds=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--packings", nargs="+", choices=PACKED, default=["mipi10"])
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure(arguments.packings, arguments.operations, arguments.rounds)


if __name__ == "__main__":
    main()
