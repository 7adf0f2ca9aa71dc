"""read_raw on lossless-JPEG DNGs: libjpeg-turbo through the extra ``fast``, beside LibRaw.

    python benchmarks/bench_decode.py                    # 12 megapixels, 14 bits
    pytest benchmarks/bench_decode.py --benchmark-only   # the same calls under pytest-benchmark

The files are written here: a scene under shot noise, in tiles of 256 x 256 or one strip, of one or
two components, as converters and cameras write them. The floor is reading the file's bytes. Beside
wall time stands the thread's own, which other programs on the machine do not lengthen. Two other
decoders of imagecodecs get the same streams; neither says where one ends early.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "cases"))

import dng_bytes
import lossless_jpeg as cases
from microbenchmark import identifier, shape, time_way

from isp_distill import read_raw
from isp_distill.exports.model_card import processor
from isp_distill.raw import tiff
from isp_distill.raw.decoding.pool import DecodePool
from isp_distill.raw.dng import lossless_jpeg

HEIGHT, WIDTH, BITS = 3000, 4000, 14
#: Tile, components, predictor.
KINDS: dict[str, tuple[tuple[int, int] | None, int, int]] = {
    "tiles, 2 components": ((256, 256), 2, 1),
    "tiles, 1 component": ((256, 256), 1, 1),
    "tiles, 2 components, predictor 7": ((256, 256), 2, 7),
    "strip, 2 components": (None, 2, 1),
    "strip, 1 component, predictor 6": (None, 1, 6),
}
WAYS = ("file", "ours", "LibRaw", "liblj92", "jpegsof3")


@functools.cache
def scene() -> np.ndarray:
    """A mosaic, uint16: a smooth scene under a coloured light, with shot noise."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH] / 500
    light = 3000 + 2500 * np.sin(y + 2 * np.sin(x)) * np.cos(1.3 * x)
    light[::2, ::2] *= 0.5
    light[1::2, 1::2] *= 0.7
    noisy = light + draw.standard_normal(light.shape) * np.sqrt(np.maximum(light, 0) / 2 + 20)
    return np.clip(noisy + 512, 0, (1 << BITS) - 1).astype(np.uint16)


def write(path: Path, kind: str) -> None:
    """The scene as a DNG of that kind."""
    from imagecodecs import jpeg8_encode

    tile, components, predictor = KINDS[kind]
    mosaic = scene()
    parts = [mosaic] if tile is None else cases.tiles_of(mosaic, *tile)
    streams = []
    for part in parts:
        samples = np.ascontiguousarray(part)
        if components == 2:
            samples = samples.reshape(len(part), -1, 2)
        streams.append(
            jpeg8_encode(samples, lossless=True, predictor=predictor, bitspersample=BITS)
        )
    dng_bytes.write(path, cases.directory(mosaic, BITS, streams, tile))


def _by(name: str, path: Path) -> None:
    os.environ[lossless_jpeg.ENVIRONMENT] = name
    read_raw(path)


def ways(path: Path) -> dict[str, Callable[[], object]]:
    """Every way to a file's pixels, by name."""
    import imagecodecs

    with path.open("rb") as file:
        layout = lossless_jpeg.layout_of(tiff.read_directories(file))
    assert layout is not None
    data = path.read_bytes()
    streams = [data[offset : offset + count] for offset, count in layout.streams]
    calls = (
        path.read_bytes,
        lambda: _by("auto", path),
        lambda: _by("libraw", path),
        lambda: [imagecodecs.ljpeg_decode(stream) for stream in streams],
        lambda: [imagecodecs.jpegsof3_decode(stream) for stream in streams],
    )
    return dict(zip(WAYS, calls, strict=True))


def times(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """The least wall and thread milliseconds of each, all taking turns."""
    best = dict.fromkeys(calls, (float("inf"), float("inf")))
    for _ in range(rounds + 1):
        for name, run in calls.items():
            wall, thread = time.perf_counter(), time.thread_time()
            run()
            spent = time.perf_counter() - wall, time.thread_time() - thread
            best[name] = (min(best[name][0], 1e3 * spent[0]), min(best[name][1], 1e3 * spent[1]))
    return best


def two_workers(path: Path, name: str, files: int) -> float:
    """Milliseconds a file of a pool of two decode workers that is kept busy."""
    os.environ[lossless_jpeg.ENVIRONMENT] = name

    def read() -> None:
        for _ in range(files // 2):
            pool.read(path)

    with DecodePool(2) as pool:
        spent = []
        for _ in range(2):  # the first time starts the workers
            threads = [threading.Thread(target=read) for _ in range(2)]
            start = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            spent.append(1e3 * (time.perf_counter() - start) / files)
    return spent[-1]


def measure(kinds: list[str], rounds: int) -> None:
    """One row for each kind, printed as it is measured."""
    reason = lossless_jpeg.missing()
    if reason is not None:
        sys.exit(f"there is nothing to compare: {reason}")
    print(
        f"{processor()}, {os.cpu_count()} processors, {lossless_jpeg.version()}; the least of "
        f"{rounds} rounds; wall / thread ms of one file, and ms a file of two workers\n\n"
        "| file | MB | read | ours | LibRaw | LibRaw / ours | two workers: ours | LibRaw "
        "| liblj92 | jpegsof3 | load |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        flush=True,
    )
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.dng"
            write(path, kind)
            found = times(ways(path), rounds)
            pools = [two_workers(path, name, 12) for name in ("auto", "libraw")]
            cells = {way: f"{wall:.0f} / {thread:.0f}" for way, (wall, thread) in found.items()}
            print(
                f"| {kind} | {path.stat().st_size / 1e6:.0f} | {cells['file']} | {cells['ours']} "
                f"| {cells['LibRaw']} | {found['LibRaw'][1] / found['ours'][1]:.1f} "
                f"| {pools[0]:.0f} | {pools[1]:.0f} | {cells['liblj92']} | {cells['jpegsof3']} "
                f"| {os.getloadavg()[0]:.1f} |",
                flush=True,
            )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS, ids=identifier)
def test_decode(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str
) -> None:
    benchmark.group = f"read_raw, lossless JPEG, {shape(1, HEIGHT, WIDTH)} of {BITS} bits, {kind}"
    # What the calls set is undone at the end.
    monkeypatch.setenv(lossless_jpeg.ENVIRONMENT, "auto")
    if (reason := lossless_jpeg.missing()) is not None:
        pytest.skip(reason)
    write(tmp_path / "a.dng", kind)
    time_way(benchmark, ways(tmp_path / "a.dng")[way])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    measure(arguments.kinds, arguments.rounds)


if __name__ == "__main__":
    main()
