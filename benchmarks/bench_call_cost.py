"""What a single call costs on the CPU, without a gradient: its fixed part, and small frames.

    python benchmarks/bench_call_cost.py                     # the table
    pytest benchmarks/bench_call_cost.py --benchmark-only    # the same calls under pytest-benchmark

The fixed part is the time of a call on a mosaic of 4 x 4, whose arithmetic is nothing. Compared are
conv2d on a float input of the packed size that lies ready, and, for the loss, eager PyTorch. All
cases take turns, one call at a time, and the least time of each counts: others who use the machine
make calls longer, never shorter. The script asks for nothing that an older version has not, so it
shows a profile of before and after: run it with PYTHONPATH at either checkout.
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
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from floor import interleaved
from microbenchmark import DIRECTIONS, identifier, shape, time_way, workload

from isp_distill import ISP, RawModel, RawStem, distill_loss, raw_conv, render

SIDES = (4, 64, 448)
BLACK, WHITE = 64.0, 4095.0
CHANNELS = 32
ROWS, CLASSES = 16, 1000


class Frame:
    """One frame of a camera, and what is called with it."""

    def __init__(self, side: int) -> None:
        self.mosaic = torch.randint(0, 4095, (1, side, side), dtype=torch.int16).view(torch.uint16)
        self.ready = torch.rand(1, 4, side // 2, side // 2)
        self.weight, self.bias = torch.randn(CHANNELS, 4, 3, 3) / 6, torch.randn(CHANNELS)
        self.isp = ISP(black=BLACK, white=WHITE, white_balance=(2.0, 1.0, 1.5)).batched(1)
        self.gain = self.isp.gain(1)
        self.student = _student()
        self.coloured = _student(colour_matrix=True, learn_camera=True, curve="gamma")
        self.plain = nn.Sequential(nn.Conv2d(4, CHANNELS, 3, 2, 1), nn.Identity()).eval()

    def cases(self) -> dict[str, Callable[[], object]]:
        """Every call, by name; the first is what the others are held against."""
        convolution = {"stride": 2, "padding": 1}
        camera: dict[str, Any] = {
            "black": self.isp.black, "white": self.isp.white, "pattern": self.isp.pattern
        }  # fmt: skip
        return {
            "conv2d": lambda: F.conv2d(self.ready, self.weight, self.bias, 2, 1),
            "the same in a model": lambda: self.plain(self.ready),
            "raw_conv, levels as numbers": lambda: raw_conv(
                self.mosaic, self.weight, self.bias, black=BLACK, white=WHITE, **convolution
            ),
            "raw_conv, a camera's tensors": lambda: raw_conv(
                self.mosaic, self.weight, self.bias, gain=self.gain, **camera, **convolution
            ),
            "RawStem in a model, camera kept": lambda: self.student(self.mosaic),
            "RawStem in a model, camera given": lambda: self.student(self.mosaic, self.isp),
            "the same with colour matrix and gamma": lambda: self.coloured(self.mosaic, self.isp),
            "render": lambda: render(self.mosaic, self.isp, size=4),
        }


def _student(**settings: Any) -> RawModel:
    model = RawModel(nn.Sequential(RawStem(CHANNELS, 3, 2, 1, **settings), nn.Identity())).eval()
    model.calibrate(ISP(black=BLACK, white=WHITE))
    return model


def _inferring(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            call()

    return run


def loss_cases() -> dict[str, Callable[[], object]]:
    """The loss of a small batch; with a gradient: forward alone, and both passes."""
    student, teacher = torch.randn(ROWS, CLASSES), torch.randn(ROWS, CLASSES)
    leaf = student.clone().requires_grad_()

    def eager(logits: Tensor) -> Tensor:
        log_p = F.log_softmax(teacher, 1)
        return F.kl_div(F.log_softmax(logits, 1), log_p, log_target=True, reduction="batchmean")

    def ours(logits: Tensor) -> Tensor:
        loss = distill_loss(logits, teacher)
        assert isinstance(loss, Tensor)
        return loss

    return {
        "eager, no gradient": _inferring(lambda: eager(student)),
        "ours, no gradient": _inferring(lambda: ours(student)),
        "eager, forward": lambda: eager(leaf),
        "ours, forward": lambda: ours(leaf),
        "eager, forward + backward": lambda: eager(leaf).backward(),
        "ours, forward + backward": lambda: ours(leaf).backward(),
    }


def measure(threads: int, rounds: int) -> None:
    """The tables, for so many threads."""
    torch.set_num_threads(threads)
    print(f"\n{threads} threads, torch {torch.__version__}\n")
    with torch.no_grad():
        seconds = {side: interleaved(Frame(side).cases(), rounds) for side in SIDES}
    print("| call, us | " + " | ".join(f"{side} x {side}" for side in SIDES) + " | of conv2d |")
    print("|---|" + "--:|" * (len(SIDES) + 1))
    for name in seconds[SIDES[0]]:
        times = " | ".join(f"{1e6 * seconds[side][name]:.0f}" for side in SIDES)
        ratio = seconds[SIDES[-1]][name] / seconds[SIDES[-1]]["conv2d"]
        print(f"| {name} | {times} | {ratio:.1f} |", flush=True)
    loss = interleaved(loss_cases(), rounds)
    print(f"\n| distill_loss, {ROWS} x {CLASSES}, us | ours | eager | ours / eager |")
    print("|---|--:|--:|--:|")
    for way in ("no gradient", "forward", "forward + backward"):
        ours, eager = loss[f"ours, {way}"], loss[f"eager, {way}"]
        print(f"| {way} | {1e6 * ours:.0f} | {1e6 * eager:.0f} | {ours / eager:.2f} |", flush=True)


#: Under pytest-benchmark: way, and the call that it is.
CALLS = {
    "conv2d": "conv2d",
    "conv2d in a model": "the same in a model",
    "ours, levels as numbers": "raw_conv, levels as numbers",
    "ours, a camera's tensors": "raw_conv, a camera's tensors",
    "ours, RawStem, camera kept": "RawStem in a model, camera kept",
    "ours, RawStem, camera given": "RawStem in a model, camera given",
    "ours, RawStem, colour and gamma": "the same with colour matrix and gamma",
    "ours, render to 4x4": "render",
}


@pytest.mark.parametrize("way", CALLS, ids=identifier)
@pytest.mark.parametrize("side", SIDES, ids="{0}x{0}".format)
@torch.no_grad()
def test_call(benchmark: Any, side: int, way: str) -> None:
    benchmark.group = (
        f"one call, raw_conv 3x3 stride 2 to {CHANNELS}, {shape(1, side, side)} uint16 to float32, "
        "forward"
    )
    time_way(benchmark, workload(Frame, side).cases()[CALLS[way]])


@pytest.mark.parametrize("way", ["ours", "eager"])
@pytest.mark.parametrize("direction", ["no gradient", *DIRECTIONS], ids=identifier)
def test_loss(benchmark: Any, direction: str, way: str) -> None:
    benchmark.group = f"one call, distill_loss, {shape(ROWS, CLASSES)} float32, {direction}"
    case = f"{way}, {direction.replace('+', ' + ')}"
    time_way(benchmark, workload(loss_cases)[case])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, os.cpu_count() or 1])
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    for threads in arguments.threads:
        measure(threads, arguments.rounds)


if __name__ == "__main__":
    main()
