"""raw_conv and render on a sensor's packed bytes, beside unpacking first.

    python benchmarks/bench_packing.py                       # mipi10, 12 megapixels
    python benchmarks/bench_packing.py --packings mipi10 mipi14 --threads 1
    pytest benchmarks/bench_packing.py --benchmark-only      # the same calls under pytest-benchmark

Of each operation three ways: on the packed bytes; on the codes as uint16, which somebody else has
unpacked; and unpacked first, by NumPy or by torch, whichever is faster, then the call on uint16.
Every call takes the next of several mosaics, together larger than the caches.

At the end all of the way: frames read from dumps and from packs, collated, and convolved; once as
the bytes that they are, once unpacked by whoever reads them.

All ways take turns in one process, round after round, and the least time of each counts. Rounds go
on until none of the least times has fallen for a while, so the ratios hold where the machine is
busy; how many there were, and its load, are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from floor import interleaved
from microbenchmark import identifier, shape, time_way, workload

from isp_distill import ISP, PackedRaw, SensorFolder, collate, pack, raw_conv, render
from isp_distill.backends import cpu_library
from isp_distill.exports.model_card import processor
from isp_distill.ops.reference_packing import unpacked
from isp_distill.raw.packings import PACKED, PACKINGS, pack_rows, unpack_rows

HEIGHT, WIDTH = 3000, 4000
MOSAICS = 4  # 96 MB as uint16
FRAMES = 3  # of the whole way
# A round's gain below this is none; so many rounds without one end a measurement.
GAIN = 0.01
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


class Operation:
    """One of :data:`OPERATIONS` on mosaics, however their codes lie and whatever they mean.

    Args:
        name: of it.
        levels: black and white.
        camera: of the mosaics, for ``render``.
    """

    def __init__(self, name: str, levels: dict[str, float], camera: ISP) -> None:
        self.name, self.levels, self.camera = name, levels, camera
        self.weight = torch.randn(32, 4, 3, 3) / 6
        self.weight.requires_grad_(name == "raw_conv, forward and backward")
        self.ready: Tensor | None = None

    def __call__(self, mosaic: Tensor, **how: Any) -> object:
        """Run it; ``how`` says how the mosaic is read."""
        if self.name.startswith("render"):
            resize_in = "linear" if self.name == "render to 224, linear" else "display"
            size = None if self.name == "render, full size" else (224, 224)
            return render(mosaic, self.camera, size=size, resize_in=resize_in, **how)
        settings = {"stride": 2, "padding": 1, "activation": "relu"}
        out = raw_conv(mosaic, self.weight, **self.levels, **settings, **how)
        if out.requires_grad:
            if self.ready is None:
                self.ready = torch.randn(out.shape)
            out.backward(self.ready)
        return out


class Workload:
    """Mosaics of one packing, and every way to hand them to one operation."""

    def __init__(self, packing: str, operation: str) -> None:
        self.packing = packing
        bits = PACKINGS[packing].bits
        random = np.random.default_rng(0)
        # Between black and white, as most of a photograph is.
        codes = random.integers(2 ** (bits - 4), 2**bits - 9, (MOSAICS, HEIGHT, WIDTH), np.uint16)
        self.bytes = [torch.from_numpy(pack_rows(c, packing))[None] for c in codes]
        self.codes = [torch.from_numpy(c)[None] for c in codes]
        self.turn = itertools.cycle(range(MOSAICS))
        self.levels = {"black": float(2 ** (bits - 4)), "white": float(2**bits - 1)}
        self.call = Operation(operation, self.levels, ISP(**self.levels))

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


def settled(cases: Mapping[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], int]:
    """The least seconds of each case, once ``rounds`` rounds in a row made none of them less.

    Returns:
        The seconds, and how many rounds it took; ten times ``rounds`` at most.
    """
    best = interleaved(cases, 1)
    count = since = 1
    while since < rounds and count < 10 * rounds:
        found = interleaved(cases, 1)
        count, since = count + 1, since + 1
        if any(found[name] < (1 - GAIN) * best[name] for name in cases):
            since = 0
        best = {name: min(best[name], found[name]) for name in cases}
    return best, count


@contextlib.contextmanager
def whole_ways(packing: str) -> Iterator[dict[str, Callable[[], object]]]:
    """From files to features: of dumps and of packs, packed and not."""
    bits = PACKINGS[packing].bits
    weight = torch.randn(32, 4, 3, 3) / 6
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "dumps"
        root.mkdir()
        random = np.random.default_rng(0)
        for index in range(FRAMES):
            codes = random.integers(2 ** (bits - 4), 2**bits - 9, (HEIGHT, WIDTH), np.uint16)
            (root / f"{index}.raw").write_bytes(pack_rows(codes, packing).tobytes())
        (root / "sensor.toml").write_text(
            f'packing = "{packing}"\npattern = "RGGB"\nblack = {2 ** (bits - 4)}\n'
            f"width = {WIDTH}\nheight = {HEIGHT}\n"
        )
        stored = {kind: Path(place) / f"packed-{kind}" for kind in (True, False)}
        for kind, out in stored.items():
            pack(root, out, packed=kind, progress=False)
        folders = {
            "dumps, bytes": SensorFolder(root, packed=True),
            "dumps, unpacked": SensorFolder(root),
            "pack of bytes": PackedRaw(stored[True], packed=True),
            "pack of uint16": PackedRaw(stored[False]),
        }

        def way(folder: SensorFolder | PackedRaw) -> Callable[[], object]:
            turn = itertools.cycle(range(FRAMES))

            def run() -> object:
                batch = collate([folder[next(turn)]])
                how = {"packing": batch.isp.packing, "width": batch.isp.width}
                isp = batch.isp
                return raw_conv(
                    batch.mosaic, weight, black=isp.black, white=isp.white, pattern=isp.pattern,
                    stride=2, padding=1, activation="relu", **how,
                )  # fmt: skip

            return run

        yield {name: way(folder) for name, folder in folders.items()}


def measure_whole_way(packing: str, rounds: int) -> None:
    """Read, collate, raw_conv: one row for each way to keep frames."""
    print(
        f"\n{packing}, a frame of {HEIGHT} x {WIDTH} read from the page cache, collated, raw_conv"
        "\n\n| from | ms a frame | to that of dumps, bytes |\n|---|--:|--:|",
        flush=True,
    )
    with whole_ways(packing) as ways:
        seconds, count = settled(ways, rounds)
    for name, found in seconds.items():
        print(f"| {name} | {1e3 * found:.1f} | {found / seconds['dumps, bytes']:.2f} |")
    print(f"\n{count} rounds, load {os.getloadavg()[0]:.1f}", flush=True)


def measure(packings: list[str], operations: list[str], rounds: int) -> None:
    """One row for each packing and operation, printed as it is measured."""
    print(
        f"{processor()}, {cpu_library.instruction_set()}, {torch.get_num_threads()} of "
        f"{os.cpu_count()} processors, torch {torch.__version__}; the least until {rounds} rounds "
        "brought no less\n\n"
        "| packing | operation | packed ms | uint16 ms | packed / uint16 | unpacked first / packed "
        "| by | rounds | load |\n|---|---|--:|--:|--:|--:|---|--:|--:|",
        flush=True,
    )
    for packing in packings:
        for operation in operations:
            seconds, count = settled(Workload(packing, operation).ways(), rounds)
            ms = {way: 1e3 * least for way, least in seconds.items()}
            first = min(WAYS[2:], key=lambda way: ms[way])
            print(
                f"| {packing} | {operation} | {ms['packed']:.1f} | {ms['uint16']:.1f} "
                f"| {ms['packed'] / ms['uint16']:.2f} | {ms[first] / ms['packed']:.1f} "
                f"| {first.removesuffix(' first')} | {count} | {os.getloadavg()[0]:.1f} |",
                flush=True,
            )
        measure_whole_way(packing, rounds)


#: Under pytest-benchmark: way, and what it is here.
READ = {"ours": "dumps, bytes", "unpacked when read": "dumps, unpacked"}
HANDED = {"ours": "packed", "ours, unpacked before": "uint16", "NumPy first": "NumPy first",
          "torch first": "torch first"}  # fmt: skip


def group(operation: str, codes: str) -> str:
    """A group's name under pytest-benchmark."""
    name, _, how = operation.partition(", ")
    if name == "raw_conv":
        how = how.replace(" and ", "+") or "forward"
    return ", ".join(filter(None, (name, f"{shape(1, HEIGHT, WIDTH)} {codes} to float32", how)))


@pytest.fixture(scope="module")
def read() -> Iterator[dict[str, Callable[[], object]]]:
    with whole_ways("mipi10") as ways:
        yield ways


@pytest.mark.parametrize("way", READ, ids=identifier)
def test_whole_way(benchmark: Any, read: dict[str, Callable[[], object]], way: str) -> None:
    benchmark.group = (
        f"read, collate, raw_conv, {shape(1, HEIGHT, WIDTH)} mipi10 to float32, forward"
    )
    time_way(benchmark, read[READ[way]])


@pytest.mark.parametrize("way", HANDED, ids=identifier)
@pytest.mark.parametrize("operation", OPERATIONS, ids=identifier)
def test_packing(benchmark: Any, operation: str, way: str) -> None:
    benchmark.group = group(operation, "mipi10")
    time_way(benchmark, workload(Workload, "mipi10", operation).ways()[HANDED[way]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--packings", nargs="+", choices=PACKED, default=["mipi10"])
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure(arguments.packings, arguments.operations, arguments.rounds)


if __name__ == "__main__":
    main()
