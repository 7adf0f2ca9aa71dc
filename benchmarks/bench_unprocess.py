"""unprocess and expose beside the same steps in eager PyTorch and under torch.compile.

    python benchmarks/bench_unprocess.py                     # the table
    pytest benchmarks/bench_unprocess.py --benchmark-only    # the same calls under pytest-benchmark

The floor is the time in which a large copy moves as many bytes as the pictures and mosaics have.
All cases take turns and the least time of each counts, so the ratios hold where the machine is
busy.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from floor import Floor, floor_from, interleaved, rate_cases
from microbenchmark import identifier, shape, time_way, workload

from isp_distill import NoiseModel, expose, unprocess, use_backend
from isp_distill.ops import reference_unprocess

SIZES = {"8 x 512 x 512": (8, 512, 512), "12 MP": (1, 3000, 4000)}
WORKLOADS = ("float32", "float32, noise", "uint8", "uint8, noise", "expose")
BLACK, WHITE = 512.0, 16383.0


class Workload:
    """One batch, and every way to compute it."""

    def __init__(self, size: tuple[int, int, int], kind: str) -> None:
        batch, height, width = size
        self.exposes = kind == "expose"
        self.noise = NoiseModel() if "noise" in kind or self.exposes else None
        if self.exposes:
            values = torch.randint(0, 16384, size, dtype=torch.int16)
            self.image = values.view(torch.uint16)
        elif kind.startswith("uint8"):
            self.image = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
        else:
            self.image = torch.rand(batch, 3, height, width)
        self.traffic = float(self.image.nbytes + 2 * batch * height * width)
        camera = reference_unprocess.random_camera(batch, 0, torch.device("cpu"))
        noise: dict[str, Tensor | None] = {"shot": None, "read": None}
        if self.noise is not None:
            noise = {name: camera[name] for name in ("shot", "read")}
        self.arguments: dict[str, Any] = {
            "pattern": torch.zeros(batch, dtype=torch.int64),
            "black": torch.full((batch, 4), BLACK),
            "white": torch.full((batch,), WHITE),
            "seed": 0,
            **noise,
        }
        if self.exposes:
            self.arguments["factor"] = torch.full((batch,), 0.1)
        else:
            gains = (camera[name] for name in ("rgb_gain", "red_gain", "blue_gain"))
            self.arguments["rgb_to_camera"] = camera["rgb_to_camera"]
            self.arguments["gains"] = reference_unprocess.inverse_gains(*gains)
        self.steps: Callable[..., Tensor] = (
            reference_unprocess.expose if self.exposes else reference_unprocess.unprocess
        )
        self.compiled_steps = torch.compile(self.steps)

    def ours(self) -> object:
        """The operator as users call it, the drawing of the cameras with it."""
        with use_backend("cpu"):
            if self.noise is not None and self.exposes:
                return expose(self.image, 0.1, self.noise, black=BLACK, white=WHITE)
            return unprocess(self.image, black=BLACK, noise=self.noise)

    def eager(self) -> object:
        """The steps one by one."""
        return self.steps(self.image, **self.arguments)

    def compiled(self) -> object:
        """The steps under torch.compile."""
        return self.compiled_steps(self.image, **self.arguments)

    def cases(self) -> dict[str, Callable[[], object]]:
        """Every way to compute it, by name."""
        return {"ours": self.ours, "eager": self.eager, "compile": self.compiled}


def timed(
    work: Workload,
    rounds: int,
    slow_rounds: int,
    ways: tuple[str, ...] = ("ours", "eager", "compile"),
) -> dict[str, float]:
    """Seconds of each way, and of the floor."""
    fast = interleaved({"ours": work.ours, **rate_cases(512)}, rounds)
    cases = work.cases()
    seconds = interleaved({way: cases[way] for way in ways}, slow_rounds)
    seconds["ours"] = min(fast["ours"], seconds["ours"])
    seconds["floor"] = work.traffic / floor_from(fast, 512).bandwidth
    return seconds


HEADER = (
    "| size | input | ours ms | eager / ours | compile / ours | ours / floor |\n"
    "|---|---|---|---|---|---|"
)


def measure(sizes: list[str], kinds: list[str], rounds: int, slow_rounds: int) -> None:
    """One row for each workload, printed as it is measured."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n\n{HEADER}", flush=True)
    for size in sizes:
        for kind in kinds:
            torch._dynamo.reset()
            seconds = timed(Workload(SIZES[size], kind), rounds, slow_rounds)
            ours = seconds["ours"]
            print(
                f"| {size} | {kind} | {1e3 * ours:.2f} | {seconds['eager'] / ours:.0f} "
                f"| {seconds['compile'] / ours:.1f} | {ours / seconds['floor']:.2f} |",
                flush=True,
            )


#: Under pytest-benchmark. The noise's random numbers take torch.compile minutes to compile: the
#: script above waits for them.
CHOSEN = tuple(
    (kind, way)
    for kind in WORKLOADS
    for way in ("ours", "eager", "compile")
    if way != "compile" or kind in ("float32", "uint8")
)


@pytest.mark.parametrize(("kind", "way"), CHOSEN, ids=identifier)
def test_unprocess(benchmark: Any, floor: Floor, kind: str, way: str) -> None:
    size = SIZES["8 x 512 x 512"]
    batch, *sides = size
    exposes = kind == "expose"
    dtype, _, noise = ("uint16", "", "noise") if exposes else kind.partition(", ")
    wide = shape(batch, *sides) if exposes else shape(batch, 3, *sides)
    benchmark.group = (
        f"{'expose' if exposes else 'unprocess'}, {noise or 'no noise'}, {wide} {dtype} to uint16"
    )
    work = workload(Workload, size, kind)
    time_way(benchmark, work.cases()[way], floor, traffic=work.traffic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--inputs", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--slow-rounds", type=int, default=2, help="of eager and torch.compile")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure(arguments.sizes, arguments.inputs, arguments.rounds, arguments.slow_rounds)


if __name__ == "__main__":
    main()
