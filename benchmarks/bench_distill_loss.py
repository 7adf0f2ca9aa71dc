"""distill_loss with its gradient beside what it replaces: time, and memory beyond the logits.

    python benchmarks/bench_distill_loss.py                      # the table
    python benchmarks/bench_distill_loss.py --tasks "rows 1000"
    pytest benchmarks/bench_distill_loss.py --benchmark-only     # the same calls, pytest-benchmark

Compared: eager PyTorch (log_softmax twice, softmax, kl_div; interpolate before it where the logits
are upsampled), and the same under torch.compile. The peers for language models (Liger-Kernel,
torchtune) run on GPUs only and know no dense maps. The floor is memory: both logits read once and
the gradient written once, at the bandwidth that a large copy reaches in this run; of a linear head
its matrix products. All of them take turns, and the least time of each counts. Gradients are always
computed.
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

from isp_distill import distill_loss, linear_distill_loss, upsampled_distill_loss

TEMPERATURE = 4.0


@dataclass(frozen=True)
class Task:
    """A shape of logits, and the resolution or the features that they come from."""

    shape: tuple[int, ...]
    size: tuple[int, int] | None = None
    features: int | None = None
    objective: str = "forward_kl"


TASKS = {
    "rows 10": Task((65536, 10)),
    "rows 1000": Task((4096, 1000)),
    "rows 32k": Task((512, 32000)),
    "rows 100k": Task((128, 100_000)),
    "dense 150 x 256²": Task((4, 150, 256, 256)),
    "dense 19 x 512 x 1024 (Cityscapes)": Task((1, 19, 512, 1024)),
    "dense 150 x 512² (ADE20K)": Task((1, 150, 512, 512)),
    "upsampled 128² to 512², 150": Task((1, 150, 128, 128), size=(512, 512)),
    "binary 80 x 128² (detection)": Task((8, 80, 128, 128), objective="binary_kl"),
    "linear 768 to 32k": Task((1024, 32000), features=768),
}
#: Under pytest-benchmark.
CHOSEN = (
    "rows 1000", "rows 32k", "dense 150 x 256²", "upsampled 128² to 512², 150",
    "binary 80 x 128² (detection)", "linear 768 to 32k",
)  # fmt: skip


def eager_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """What one writes without this library: KL times T², a mean over rows or pixels."""
    log_q = F.log_softmax(student / TEMPERATURE, 1)
    log_p = F.log_softmax(teacher / TEMPERATURE, 1)
    per_row = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    return TEMPERATURE**2 * per_row.mean()


def eager_binary_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The same of classes that do not exclude each other: a Bernoulli KL each, summed over them."""
    p = torch.sigmoid(teacher / TEMPERATURE)
    cross = F.binary_cross_entropy_with_logits(student / TEMPERATURE, p, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher / TEMPERATURE, p, reduction="none")
    return TEMPERATURE**2 * (cross - entropy).sum(1).mean()


class Workload:
    """One task, and every way to compute its loss and gradient."""

    def __init__(self, task: Task) -> None:
        self.task = task
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.inputs: list[Tensor]
        self.overwritten: Tensor
        if task.features is None:
            self.inputs = [3 * randn(*task.shape)]
            self.teacher = [3 * randn(*task.shape)]
        else:
            rows, classes = task.shape
            self.inputs = [randn(rows, task.features), 0.1 * randn(classes, task.features)]
            self.teacher = [randn(rows, task.features), 0.1 * randn(classes, task.features)]
        for tensor in self.inputs:
            tensor.requires_grad_()
        self.compiled = torch.compile(self.loss_eager)
        self.traffic = 3.0 * sum(t.nbytes for t in self.inputs)
        self.operations = 0.0
        if task.features is not None:
            # Two heads, and the gradients of the student's features and weight.
            self.operations = 4 * 2.0 * task.shape[0] * task.shape[1] * task.features

    def loss_eager(self) -> Tensor:
        """In plain PyTorch."""
        student, teacher = self.inputs, self.teacher
        if self.task.features is not None:
            return eager_loss(F.linear(*student), F.linear(*teacher))
        if self.task.size is not None:
            wide = [F.interpolate(x, self.task.size, mode="bilinear") for x in (*student, *teacher)]
            return eager_loss(*wide)
        if self.task.objective == "binary_kl":
            return eager_binary_loss(*student, *teacher)
        return eager_loss(*student, *teacher)

    def loss_ours(self) -> Tensor:
        """By the fused operators."""
        student, teacher = self.inputs, self.teacher
        if self.task.features is not None:
            loss = linear_distill_loss(
                student[0], student[1], None, teacher[0], teacher[1], None, temperature=TEMPERATURE
            )
        elif self.task.size is not None:
            loss = upsampled_distill_loss(
                student[0], teacher[0], self.task.size, temperature=TEMPERATURE
            )
        else:
            loss = distill_loss(
                student[0],
                teacher[0],
                objective=self.task.objective,
                temperature=TEMPERATURE,
            )
        assert isinstance(loss, Tensor)
        return loss

    def gradient(self, loss: Callable[[], Tensor]) -> Callable[[], object]:
        """Loss and gradient, returned so that the memory they take is counted."""
        return lambda: torch.autograd.grad(loss(), self.inputs)

    def in_place(self) -> object:
        """With the gradient in the logits' own memory, for what it takes beyond them: nothing."""
        student = self.overwritten
        loss = distill_loss(
            student,
            self.teacher[0],
            objective=self.task.objective,
            temperature=TEMPERATURE,
            inplace_grad=True,
        )
        assert isinstance(loss, Tensor)
        return torch.autograd.grad(loss, student)

    def cases(self) -> dict[str, Callable[[], object]]:
        """Every way to compute it, by name."""
        ways = {"ours": self.loss_ours, "eager": self.loss_eager, "compile": self.compiled}
        return {name: self.gradient(loss) for name, loss in ways.items()}


def timed(work: Workload, rounds: int) -> dict[str, float]:
    """Seconds of each way, and of the floor."""
    seconds = interleaved({**work.cases(), **rate_cases()}, rounds)
    seconds["floor"] = floor_from(seconds).seconds(work.operations, work.traffic)
    return seconds


HEADER = (
    "| task | ours ms | eager / ours | compile / ours | floor / ours "
    "| MB beyond the logits: ours | of it gradients | in place | eager | compile |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
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
        in_place = "-"
        if work.task.size is None and work.task.features is None:
            work.overwritten = work.inputs[0] * 1  # a leaf itself needs its values
            in_place = f"{peak_bytes(work.in_place) / 1e6:.0f}"
        ours = seconds["ours"]
        print(
            f"| {name} | {1e3 * ours:.1f} | {seconds['eager'] / ours:.1f} "
            f"| {seconds['compile'] / ours:.1f} | {seconds['floor'] / ours:.2f} "
            f"| {megabytes['ours']:.0f} "
            f"| {sum(t.nbytes for t in work.inputs) / 1e6:.0f} | {in_place} "
            f"| {megabytes['eager']:.0f} "
            f"| {megabytes['compile']:.0f} |",
            flush=True,
        )


def group(task: Task) -> str:
    """A group's name under pytest-benchmark."""
    name, extra = "distill_loss", ""
    if task.features is not None:
        name, extra = "linear_distill_loss", f" of {task.features} features"
    elif task.size is not None:
        name, extra = "upsampled_distill_loss", f" to {shape(*task.size)}"
    return f"{name}, {task.objective}, {shape(*task.shape)}{extra}, float32, forward+backward"


@pytest.mark.parametrize("way", ["ours", "eager", "compile"])
@pytest.mark.parametrize("task", CHOSEN, ids=identifier)
def test_distill_loss(benchmark: Any, floor: Floor, task: str, way: str) -> None:
    benchmark.group = group(TASKS[task])
    work = workload(Workload, TASKS[task])
    time_way(benchmark, work.cases()[way], floor, work.operations, work.traffic)


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
