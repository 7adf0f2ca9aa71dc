"""feature_loss with its gradient beside what it replaces.

    python benchmarks/bench_feature_loss.py                      # the table
    python benchmarks/bench_feature_loss.py --tasks "tokens 64 x 257 x 768, cosine"
    pytest benchmarks/bench_feature_loss.py --benchmark-only     # the same calls, pytest-benchmark

Compared: eager PyTorch as one writes it (cosine_similarity, smooth_l1_loss, layer_norm), and the
same under torch.compile. The floor is memory: both features read once and the gradient written
once, at the bandwidth that a large copy reaches in this run. All of them take turns, and the least
time of each counts. Gradients are always computed, and the mean cosine beside them, which one wants
to see in training.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from floor import Floor, floor_from, interleaved, rate_cases
from memory import peak_bytes
from microbenchmark import identifier, shape, time_way, workload

from isp_distill import feature_loss


@dataclass(frozen=True)
class Task:
    """A shape of features and what is computed of them; ``student``: its own grid, if another."""

    shape: tuple[int, ...]
    objective: str
    normalise: str = "none"
    dtype: torch.dtype = torch.float32
    student: tuple[int, ...] | None = None

    @property
    def channels(self) -> int:
        """Which axis holds the channels."""
        return 2 if len(self.shape) == 3 else 1


TOKENS, MAPS = (64, 257, 768), (8, 256, 64, 64)
TASKS = {
    "tokens 64 x 257 x 768, cosine": Task(TOKENS, "cosine"),
    "tokens 64 x 257 x 768, mse": Task(TOKENS, "mse"),
    "tokens 64 x 257 x 768, cosine and smooth L1": Task(TOKENS, "cosine_smooth_l1"),
    "tokens 64 x 257 x 768, mse of layer norm": Task(TOKENS, "mse", "layer"),
    "tokens 64 x 257 x 768, cosine, bfloat16": Task(TOKENS, "cosine", dtype=torch.bfloat16),
    "maps 8 x 256 x 64², cosine": Task(MAPS, "cosine"),
    "maps 8 x 256 x 64², mse": Task(MAPS, "mse"),
    "maps 8 x 256 x 64², cosine and smooth L1": Task(MAPS, "cosine_smooth_l1"),
    "maps 8 x 256 x 64², mse of layer norm": Task(MAPS, "mse", "layer"),
    "maps 8 x 256 x 32² at 64², cosine": Task(MAPS, "cosine", student=(8, 256, 32, 32)),
    "maps 8 x 768 x 16² at 37², cosine": Task((8, 768, 37, 37), "cosine", student=(8, 768, 16, 16)),
}


def eager_loss(student: Tensor, teacher: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """What one writes without this library."""
    channels = task.channels
    if task.student is not None:
        student = F.interpolate(student, task.shape[2:], mode="bilinear")
    if task.normalise == "layer":
        student, teacher = (
            F.layer_norm(x.movedim(channels, -1), (x.shape[channels],)) for x in (student, teacher)
        )
        channels = -1
    cosine = F.cosine_similarity(student, teacher, channels).mean()
    if task.objective == "cosine":
        loss = 1 - cosine
    elif task.objective == "mse":
        loss = F.mse_loss(student, teacher)
    else:
        loss = 0.9 * (1 - cosine) + 0.1 * F.smooth_l1_loss(student, teacher)
    return loss, cosine.detach()


class Workload:
    """One task, and every way to compute its loss, its gradient and the mean cosine."""

    def __init__(self, task: Task) -> None:
        self.task = task
        generator = torch.Generator().manual_seed(0)
        student, teacher = (
            torch.randn(of, generator=generator).to(task.dtype)
            for of in (task.student or task.shape, task.shape)
        )
        self.student, self.teacher = student.requires_grad_(), teacher
        self.compiled = torch.compile(self.eager)
        self.traffic = 2.0 * student.nbytes + teacher.nbytes

    def eager(self) -> tuple[Tensor, Tensor]:
        """In plain PyTorch."""
        return eager_loss(self.student, self.teacher, self.task)

    def ours(self) -> tuple[Tensor, Tensor]:
        """By the fused operator."""
        result = feature_loss(
            self.student,
            self.teacher,
            objective=self.task.objective,
            normalise=self.task.normalise,
            size=None if self.task.student is None else self.task.shape[2:],
            return_similarity=True,
        )
        assert isinstance(result, tuple)
        return result

    def cases(self) -> dict[str, Callable[[], object]]:
        """Every way to compute it, by name; what each returns is counted as its memory."""
        ways = {"ours": self.ours, "eager": self.eager, "compile": self.compiled}

        def run(way: Callable[[], tuple[Tensor, Tensor]]) -> object:
            loss, cosine = way()
            return *torch.autograd.grad(loss, self.student), cosine

        return {name: (lambda way=way: run(way)) for name, way in ways.items()}


def timed(work: Workload, rounds: int) -> dict[str, float]:
    """Seconds of each way, and of the floor."""
    seconds = interleaved({**work.cases(), **rate_cases()}, rounds)
    seconds["floor"] = floor_from(seconds).seconds(0.0, work.traffic)
    return seconds


HEADER = (
    "| task | ours ms | eager / ours | compile / ours | floor / ours "
    "| MB beyond the features: ours | eager | compile |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|"
)


def measure(tasks: list[str], rounds: int) -> None:
    """One row for each task, printed as it is measured."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n\n{HEADER}")
    for name in tasks:
        torch._dynamo.reset()
        work = Workload(TASKS[name])
        cases = work.cases()
        seconds = timed(work, rounds)
        megabytes = {way: peak_bytes(run) / 1e6 for way, run in cases.items()}
        ours = seconds["ours"]
        print(
            f"| {name} | {1e3 * ours:.1f} | {seconds['eager'] / ours:.1f} "
            f"| {seconds['compile'] / ours:.1f} | {seconds['floor'] / ours:.2f} "
            f"| {megabytes['ours']:.0f} "
            f"| {megabytes['eager']:.0f} | {megabytes['compile']:.0f} |",
            flush=True,
        )


#: Under pytest-benchmark.
CHOSEN = (
    "tokens 64 x 257 x 768, cosine",
    "tokens 64 x 257 x 768, cosine, bfloat16",
    "maps 8 x 256 x 64², cosine",
    "maps 8 x 256 x 32² at 64², cosine",
)


@pytest.mark.parametrize("way", ["ours", "eager", "compile"])
@pytest.mark.parametrize("task", CHOSEN, ids=identifier)
def test_feature_loss(benchmark: Any, floor: Floor, task: str, way: str) -> None:
    chosen = TASKS[task]
    dtype = str(chosen.dtype).removeprefix("torch.")
    of = "" if chosen.student is None else f" from {shape(*chosen.student)}"
    benchmark.group = (
        f"feature_loss, {chosen.objective}, {shape(*chosen.shape)}{of}, {dtype}, forward+backward"
    )
    work = workload(Workload, chosen)
    time_way(benchmark, work.cases()[way], floor, traffic=work.traffic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure(arguments.tasks, arguments.rounds)


if __name__ == "__main__":
    main()
