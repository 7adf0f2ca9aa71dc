"""raw_conv beside what it replaces, on the stems of three model families.

    python benchmarks/bench_raw_conv.py                    # the table and the plot
    python benchmarks/bench_raw_conv.py --megapixels 12 --stems efficientnet
    pytest benchmarks/bench_raw_conv.py --benchmark-only   # the same calls under pytest-benchmark

Compared: eager PyTorch (pixel_unshuffle, subtract, divide, clamp, conv2d, activation); the same
under torch.compile; oneDNN's conv2d alone, on a float input that lies ready; and the floor, what
the multiply-adds take at the rate that a large matrix product reaches in this run. All of them
take turns, and the least time of each counts, so the ratios hold where the machine is busy.
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
from microbenchmark import DIRECTIONS, shape, time_way, workload

from isp_distill import raw_conv

BLACK, WHITE = 256.0, 4095.0
SIZES = {0.3: (512, 512), 2: (1216, 1632), 12: (3000, 4000), 48: (6000, 8000)}


@dataclass(frozen=True)
class StemShape:
    """The first convolution of a model family, on the packed grid."""

    channels: int
    kernel: int
    stride: int
    padding: int


STEMS = {
    "resnet": StemShape(64, 7, 2, 3),
    "efficientnet": StemShape(32, 3, 2, 1),
    "convnext": StemShape(96, 4, 4, 0),
}
#: Stems and megapixels under pytest-benchmark: every size of one stem, every stem at one size.
CHOSEN = (("efficientnet", 0.3), ("efficientnet", 2), ("efficientnet", 12), ("resnet", 2),
          ("convnext", 2))  # fmt: skip


class Workload:
    """One stem on one batch of mosaics, and every way to compute it."""

    def __init__(self, stem: StemShape, megapixels: float, batch: int) -> None:
        height, width = SIZES[megapixels]
        self.stem = stem
        self.mosaic = torch.randint(0, 4200, (batch, height, width), dtype=torch.int16)
        self.mosaic = self.mosaic.view(torch.uint16)
        fan_in = 4 * stem.kernel**2
        shape = (stem.channels, 4, stem.kernel, stem.kernel)
        self.weight = (torch.randn(shape) / fan_in**0.5).requires_grad_()
        self.bias = torch.randn(stem.channels).mul(0.1).requires_grad_()
        self.gain = torch.tensor([1.9, 1.0, 1.0, 1.6]).requires_grad_()
        self.mix = (torch.eye(4) + 0.05 * torch.randn(4, 4)).requires_grad_()
        self.gamma = torch.tensor(0.45).requires_grad_()
        self.compiled = torch.compile(self.eager)
        with torch.no_grad():
            out = self.ours()
            self.ready = self._normalised()
        self.cotangent = torch.randn(out.shape)
        self.operations = 2.0 * out.numel() * fan_in
        self.traffic = float(self.mosaic.nbytes + out.nbytes)

    def ours(self) -> Tensor:
        """The fused operator, without the colour steps."""
        s = self.stem
        return raw_conv(
            self.mosaic, self.weight, self.bias, black=BLACK, white=WHITE,
            stride=s.stride, padding=s.padding, activation="relu",
        )  # fmt: skip

    def ours_with_colour(self) -> Tensor:
        """With gain, mix and gamma, all three learnable."""
        s = self.stem
        return raw_conv(
            self.mosaic, self.weight, self.bias, black=BLACK, white=WHITE, gain=self.gain,
            mix=self.mix, curve="gamma", gamma=self.gamma,
            stride=s.stride, padding=s.padding, activation="relu",
        )  # fmt: skip

    def _normalised(self) -> Tensor:
        packed = F.pixel_unshuffle(self.mosaic.float()[:, None], 2)
        return ((packed - BLACK) / (WHITE - BLACK)).clamp(0, 1)

    def eager(self) -> Tensor:
        """What one writes without this library."""
        s = self.stem
        x = self._normalised()
        return F.relu(F.conv2d(x, self.weight, self.bias, s.stride, s.padding))

    def eager_with_colour(self) -> Tensor:
        """The same with gain, mix and gamma, all three learnable."""
        s = self.stem
        x = self._normalised() * self.gain[:, None, None]
        x = torch.einsum("ij,njhw->nihw", self.mix, x.clamp(0, 1)).clamp(1e-8, 1)
        return F.relu(F.conv2d(x**self.gamma, self.weight, self.bias, s.stride, s.padding))

    def convolution_alone(self) -> Tensor:
        """The convolution of a float input that somebody else has made."""
        s = self.stem
        return F.conv2d(self.ready, self.weight, self.bias, s.stride, s.padding)

    def forward(self, function: Callable[[], Tensor]) -> Callable[[], object]:
        """One call without a graph."""

        def run() -> None:
            with torch.no_grad():
                function()

        return run

    def training_step(self, function: Callable[[], Tensor]) -> Callable[[], object]:
        """One call, and its backward pass."""
        return lambda: function().backward(self.cotangent)

    def steps(self) -> dict[str, Callable[[], object]]:
        """As in training, where the output's gradient is made by what follows, for the memory."""

        def step(function: Callable[[], Tensor]) -> Callable[[], object]:
            return lambda: function().backward(torch.ones_like(self.cotangent))

        ways = {"ours": self.ours, "eager": self.eager, "compile": self.compiled}
        return {name: step(function) for name, function in ways.items()}

    def needs(self, backward: bool) -> tuple[float, float]:
        """Operations and bytes: the weight's gradient takes as many as the forward pass."""
        factor = 2 if backward else 1
        return factor * self.operations, factor * self.traffic

    def kept_bytes(self, backward: bool) -> int:
        """The output and, in training, its gradient: what no implementation can do without."""
        return self.cotangent.nbytes * (2 if backward else 1)

    def cases(self, backward: bool) -> dict[str, Callable[[], object]]:
        """Every way to compute it, by name."""
        way = self.training_step if backward else self.forward
        return {
            "ours": way(self.ours),
            "ours, colour": way(self.ours_with_colour),
            "eager": way(self.eager),
            "eager, colour": way(self.eager_with_colour),
            "compile": way(self.compiled),
            "conv2d": way(self.convolution_alone),
        }


def timed(work: Workload, backward: bool, rounds: int) -> dict[str, float]:
    """Seconds of each way, and of the floor."""
    seconds = interleaved({**work.cases(backward), **rate_cases()}, rounds)
    floor: Floor = floor_from(seconds)
    seconds["floor"] = floor.seconds(*work.needs(backward))
    return seconds


HEADER = (
    "| stem | MP | batch | pass | ours ms | eager / ours | compile / ours | conv2d alone / ours "
    "| floor / ours | colour / plain | of eager | peak MB: ours | output + gradient | eager "
    "| compile |\n"
    "|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def measure(
    stems: list[str], sizes: list[float], batches: list[int], rounds: int
) -> list[dict[str, object]]:
    """One row for each workload and pass, printed as it is measured."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n\n{HEADER}", flush=True)
    rows: list[dict[str, object]] = []
    for name in stems:
        for megapixels in sizes:
            for batch in batches:
                if batch > 1 and megapixels > 0.3:
                    continue  # the activations of 32 large images are beyond most machines
                torch._dynamo.reset()
                work = Workload(STEMS[name], megapixels, batch)
                for backward in (False, True):
                    seconds = timed(work, backward, rounds)
                    memory = {**work.cases(backward), **(work.steps() if backward else {})}
                    megabytes = {
                        way: peak_bytes(memory[way]) / 1e6 for way in ("ours", "eager", "compile")
                    }
                    ours = seconds["ours"]
                    row = {
                        "stem": name,
                        "megapixels": megapixels,
                        "batch": batch,
                        "pass": "forward + backward" if backward else "forward",
                        **seconds,
                    }
                    rows.append(row)
                    print(
                        f"| {name} | {megapixels} | {batch} | {row['pass']} | {1e3 * ours:.1f} "
                        f"| {seconds['eager'] / ours:.1f} | {seconds['compile'] / ours:.1f} "
                        f"| {seconds['conv2d'] / ours:.1f} | {seconds['floor'] / ours:.2f} "
                        f"| {seconds['ours, colour'] / ours:.2f} "
                        f"| {seconds['eager, colour'] / seconds['eager']:.2f} "
                        f"| {megabytes['ours']:.0f} | {work.kept_bytes(backward) / 1e6:.0f} "
                        f"| {megabytes['eager']:.0f} | {megabytes['compile']:.0f} |",
                        flush=True,
                    )
    return rows


def plot(rows: list[dict[str, object]], path: Path) -> None:
    """Time against megapixels, one panel for each pass, of the first stem in the rows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stem = rows[0]["stem"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, which in zip(axes, ("forward", "forward + backward"), strict=True):
        chosen = [r for r in rows if r["stem"] == stem and r["batch"] == 1 and r["pass"] == which]
        for name in ("eager", "compile", "conv2d", "ours, colour", "ours", "floor"):
            style = "k--" if name == "floor" else "o-"
            label = "conv2d on ready floats" if name == "conv2d" else name
            axis.plot(
                [r["megapixels"] for r in chosen],
                [1e3 * float(str(r[name])) for r in chosen],
                style,
                label=label,
            )
        axis.set(xscale="log", yscale="log", xlabel="megapixels", title=f"{stem} stem, {which}")
        axis.grid(True, which="both", alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def group(stem: str, megapixels: float, direction: str) -> str:
    """A group's name under pytest-benchmark."""
    s = STEMS[stem]
    return (
        f"raw_conv, {stem} stem {s.kernel}x{s.kernel} stride {s.stride} to {s.channels}, "
        f"{shape(1, *SIZES[megapixels])} uint16 to float32, {direction}"
    )


@pytest.mark.parametrize("way", ["ours", "eager", "compile", "conv2d"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("stem", "megapixels"), CHOSEN, ids=[f"{stem}-{megapixels}MP" for stem, megapixels in CHOSEN]
)
def test_raw_conv(
    benchmark: Any, floor: Floor, stem: str, megapixels: float, direction: str, way: str
) -> None:
    benchmark.group = group(stem, megapixels, direction)
    work = workload(Workload, STEMS[stem], megapixels, 1)
    backward = direction != "forward"
    time_way(benchmark, work.cases(backward)[way], floor, *work.needs(backward))


@pytest.mark.parametrize("way", ["ours", "eager"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_raw_conv_with_colour(benchmark: Any, floor: Floor, direction: str, way: str) -> None:
    benchmark.group = f"{group('efficientnet', 12, direction)}, gain, mix and gamma learnt"
    work = workload(Workload, STEMS["efficientnet"], 12, 1)
    backward = direction != "forward"
    run = work.cases(backward)[f"{way}, colour"]
    time_way(benchmark, run, floor, *work.needs(backward))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    everything = ["efficientnet", "resnet", "convnext"]
    parser.add_argument("--stems", nargs="+", choices=STEMS, default=everything)
    parser.add_argument("--megapixels", nargs="+", type=float, choices=SIZES, default=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--plot", type=Path, default=Path("raw_conv.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = measure(arguments.stems, arguments.megapixels, arguments.batches, arguments.rounds)
    plot(rows, arguments.plot)
    print(f"\nplot: {arguments.plot}")


if __name__ == "__main__":
    main()
