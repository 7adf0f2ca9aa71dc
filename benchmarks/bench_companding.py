"""raw_conv and render on companded codes, beside looking them up first.

    python benchmarks/bench_companding.py                    # 12-bit codes, 12 megapixels
    pytest benchmarks/bench_companding.py --benchmark-only   # the same calls under pytest-benchmark

Of each operation: with ``linearise``; on float32 linear values, which somebody else has looked up;
and looked up first, by NumPy or by torch, whichever is faster, then the call on float32. The curve
is four straight pieces from 12 bits to 24. All take turns, and the least time of each counts.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_packing import OPERATIONS, Operation, group
from floor import interleaved
from microbenchmark import identifier, time_way, workload

from isp_distill import ISP
from isp_distill.backends import cpu_library
from isp_distill.exports.model_card import processor
from isp_distill.raw.packings import pack_rows

HEIGHT, WIDTH = 3000, 4000
MOSAICS = 4  # 96 MB as uint16
KNOTS = [[0, 0], [1024, 1024], [2048, 66560], [3072, 1115136], [4095, 16777215]]
LEVELS = {"black": 64.0, "white": 16777215.0}
WAYS = ("uint16", "mipi12", "float32", "NumPy first", "torch first")


class Workload:
    """Mosaics, and every way to hand them to one operation."""

    def __init__(self, operation: str) -> None:
        random = np.random.default_rng(0)
        codes = random.integers(64, 4096, (MOSAICS, HEIGHT, WIDTH), np.uint16)
        self.codes = [torch.from_numpy(c)[None] for c in codes]
        self.bytes = [torch.from_numpy(pack_rows(c, "mipi12"))[None] for c in codes]
        knots = np.array(KNOTS, np.float64)
        self.table = np.interp(np.arange(4096), *knots.T).astype(np.float32)
        self.linear = [torch.from_numpy(self.table[c])[None] for c in codes]
        self.turn = itertools.cycle(range(MOSAICS))
        self.call = Operation(operation, LEVELS, ISP(**LEVELS, tone="log"))

    def ways(self) -> dict[str, Callable[[], object]]:
        """Every way, by name."""
        table = torch.from_numpy(self.table)
        packed = {"packing": "mipi12", "width": WIDTH}
        calls = (
            lambda: self.call(self.codes[next(self.turn)], linearise=KNOTS),
            lambda: self.call(self.bytes[next(self.turn)], linearise=KNOTS, **packed),
            lambda: self.call(self.linear[next(self.turn)]),
            lambda: self.call(torch.from_numpy(self.table[self.codes[next(self.turn)].numpy()])),
            lambda: self.call(table[self.codes[next(self.turn)].int()]),
        )
        return dict(zip(WAYS, calls, strict=True))


def measure(operations: list[str], rounds: int) -> None:
    """One row for each operation, printed as it is measured."""
    print(
        f"{processor()}, {cpu_library.instruction_set()}, {torch.get_num_threads()} of "
        f"{os.cpu_count()} processors, torch {torch.__version__}; the least of {rounds} rounds\n\n"
        "| operation | linearise ms | of mipi12 ms | float32 ms | looked up first / linearise | by "
        "| load |\n|---|--:|--:|--:|--:|---|--:|",
        flush=True,
    )
    for operation in operations:
        found = interleaved(Workload(operation).ways(), rounds)
        ms = {way: 1e3 * seconds for way, seconds in found.items()}
        first = min(WAYS[3:], key=lambda way: ms[way])
        print(
            f"| {operation} | {ms['uint16']:.1f} | {ms['mipi12']:.1f} | {ms['float32']:.1f} "
            f"| {ms[first] / ms['uint16']:.1f} | {first.removesuffix(' first')} "
            f"| {os.getloadavg()[0]:.1f} |",
            flush=True,
        )


#: Under pytest-benchmark: way, and what is handed over.
HANDED = {
    "ours": "uint16", "ours, mipi12": "mipi12", "ours, looked up before": "float32",
    "NumPy first": "NumPy first", "torch first": "torch first",
}  # fmt: skip


@pytest.mark.parametrize("way", HANDED, ids=identifier)
@pytest.mark.parametrize("operation", OPERATIONS, ids=identifier)
def test_companding(benchmark: Any, operation: str, way: str) -> None:
    benchmark.group = group(operation, "companded 12-bit codes")
    time_way(benchmark, workload(Workload, operation).ways()[HANDED[way]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure(arguments.operations, arguments.rounds)


if __name__ == "__main__":
    main()
