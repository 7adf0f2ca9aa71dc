"""render beside what it replaces: whole pictures from whole mosaics.

    python benchmarks/bench_render.py                      # the tables
    python benchmarks/bench_render.py --megapixels 12 --tasks display
    pytest benchmarks/bench_render.py --benchmark-only     # the same calls under pytest-benchmark

Five tasks: a 224-pixel picture resized in display values, the same resized in linear light, and
the picture at the sensor's own size (Malvar, sRGB, float32); and the small ones once more with the
bilinear demosaicing, which is what OpenCV's and kornia's chains do in every task. Compared: eager
PyTorch (the reference) and the same under torch.compile; an OpenCV chain in float32; the fastest
OpenCV chain that a careful user would write, 16-bit until the picture is small; LibRaw's
postprocess at full and at half size, of a file that is decoded already; colour-demosaicing; and
kornia's raw_to_rgb with the same steps around it. Every call takes the next of several mosaics,
together larger than the caches. All take turns, and the least time of each counts. Ways that take
seconds take one turn.

The floor is the bytes that must move, mosaic and picture, at the rate of a large copy in the same
run. Quality: see isp_quality.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from floor import Floor, interleaved
from microbenchmark import identifier, shape, time_way, workload

from isp_distill import ISP, render, use_backend, write_dng
from isp_distill.isp.camera import DEMOSAICS
from isp_distill.ops import reference

SIZES = {2: (1216, 1632), 12: (3000, 4000), 48: (6000, 8000)}
TASKS = ("display", "display, bilinear", "linear", "linear, bilinear", "full size")
SMALL = (224, 224)
BLACK, WHITE, BALANCE = 256.0, 4095.0, (1.9, 1.0, 1.5)
CCM = ((1.62, -0.48, -0.14), (-0.21, 1.49, -0.28), (0.02, -0.51, 1.49))
CAMERA = ISP(black=BLACK, white=WHITE, white_balance=BALANCE, ccm=CCM)
CACHES = 96 << 20  # bytes of mosaics that no cache holds
SLOW = ("eager", "LibRaw", "LibRaw half", "colour-demosaicing", "kornia")

Way = Callable[[], object]


def _resized(picture: Tensor) -> Tensor:
    return F.interpolate(picture, SMALL, mode="bilinear", align_corners=False, antialias=True)


class Workload:
    """Mosaics of one size, and every way to make one task's picture of the next one."""

    def __init__(self, task: str, megapixels: int, folder: Path) -> None:
        self.task = task
        self.linear = task.startswith("linear")
        self.resize_in = "linear" if self.linear else "display"
        self.camera = dataclasses.replace(
            CAMERA, demosaic="bilinear" if task.endswith("bilinear") else "malvar"
        )
        self.size = None if task == "full size" else SMALL
        height, width = SIZES[megapixels]
        count = max(2, -(-CACHES // (2 * height * width)))
        # Photographs are smooth: branch prediction and LibRaw's work depend on it.
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(1, 1, height // 32, width // 32, generator=generator)
        scene = F.interpolate(coarse, (height, width), mode="bicubic")[0, 0].clamp(0, 1)
        noisy = scene * 2500 + 100 * torch.rand(height, width, generator=generator) + BLACK
        first = noisy.to(torch.int32).to(torch.uint16)
        self.mosaics = [first[None].clone() for _ in range(count)]
        self.turn = itertools.cycle(self.mosaics)
        out = (1, 3, *(self.size or (height, width)))
        self.ready = torch.zeros(out)
        self.traffic = float(first.nbytes + self.ready.nbytes)
        self.dng = write_dng(
            folder / f"{megapixels}.dng", first.numpy(), black=BLACK, white=WHITE,
            white_balance=BALANCE, ccm=CCM,
        )  # fmt: skip
        settings = CAMERA.batched(1)
        self.tensors: dict[str, Any] = {
            "black": settings.black, "white": settings.white, "pattern": settings.pattern,
            "gain": CAMERA.gain(1), "ccm": settings.ccm, "mean": torch.zeros(3),
            "std": torch.ones(3),
        }  # fmt: skip
        self.compiled = torch.compile(self._reference)

    # ------------------------------------------------------------------ ours and PyTorch

    def ours(self) -> Tensor:
        """The call that a user makes."""
        with use_backend("cpu"):
            return render(next(self.turn), self.camera, size=self.size, resize_in=self.resize_in)

    def kernel(self) -> None:
        """The same into memory that lies ready: without the system's clearing of fresh pages."""
        t, mosaic = self.tensors, next(self.turn)
        torch.ops.isp_distill_cpu.render(
            mosaic, t["black"].contiguous(), t["white"].contiguous(), t["pattern"], t["gain"],
            t["ccm"].contiguous(), t["mean"], t["std"], None,
            DEMOSAICS.index(self.camera.demosaic), 1, 1,
            0, 0, *mosaic.shape[1:], self.linear, 0, mosaic.shape[2], self.ready,
        )  # fmt: skip

    def _reference(self, mosaic: Tensor) -> Tensor:
        height, width = mosaic.shape[1:]
        return reference.render(
            mosaic, **self.tensors, demosaic_method=self.camera.demosaic, tone="srgb",
            orientation=1, crop=(0, 0, height, width), size=self.size or (height, width),
            resize_in=self.resize_in, dtype=torch.float32,
        )  # fmt: skip

    def eager(self) -> Tensor:
        """The reference, operator by operator."""
        return self._reference(next(self.turn))

    def compile(self) -> Tensor:
        """The reference under torch.compile."""
        return self.compiled(next(self.turn))

    # ------------------------------------------------------------------ OpenCV

    def opencv_float(self) -> np.ndarray:
        """Demosaic, white balance, matrix, power and area resize, in float32."""
        import cv2

        rgb = cv2.cvtColor(next(self.turn)[0].numpy(), cv2.COLOR_BayerRG2BGR).astype(np.float32)
        if self.linear:
            rgb = cv2.resize(rgb, SMALL[::-1], interpolation=cv2.INTER_AREA)
        picture = self._colours(rgb)
        if self.task.startswith("display"):
            picture = cv2.resize(picture, SMALL[::-1], interpolation=cv2.INTER_AREA)
        return picture

    def opencv_fastest(self) -> np.ndarray:
        """16-bit demosaicing and area resize, everything else on the small picture."""
        import cv2

        rgb = cv2.cvtColor(next(self.turn)[0].numpy(), cv2.COLOR_BayerRG2BGR)
        if self.size is not None:
            rgb = cv2.resize(rgb, SMALL[::-1], interpolation=cv2.INTER_AREA)
        return self._colours(rgb.astype(np.float32))

    @staticmethod
    def _colours(rgb: np.ndarray) -> np.ndarray:
        import cv2

        gain = np.array(BALANCE) / (WHITE - BLACK)
        scale = np.concatenate([np.diag(gain), -BLACK * gain[:, None]], 1)
        balanced = np.clip(cv2.transform(rgb, scale), 0, 1)
        return cv2.pow(np.clip(cv2.transform(balanced, np.array(CCM)), 0, 1), 1 / 2.2)

    # ------------------------------------------------------------------ others

    def _libraw(self, half: bool) -> Way:
        import rawpy

        raw = rawpy.imread(str(self.dng))
        _ = raw.raw_image.sum()  # decoded now

        def run() -> np.ndarray:
            picture: np.ndarray = raw.postprocess(
                demosaic_algorithm=rawpy.DemosaicAlgorithm.LINEAR, half_size=half,
                use_camera_wb=True, no_auto_bright=True, gamma=(2.4, 12.92),
            )  # fmt: skip
            return picture

        return run

    def colour_demosaicing(self) -> Tensor:
        """Malvar of colour-demosaicing (SciPy convolutions, float64); the rest in PyTorch."""
        from colour_demosaicing import demosaicing_CFA_Bayer_Malvar2004

        x = self._normalised(next(self.turn))[0].numpy()
        rgb = torch.from_numpy(demosaicing_CFA_Bayer_Malvar2004(x, "RGGB"))
        return self._finish(rgb.float().movedim(-1, 0)[None])

    def kornia(self) -> Tensor:
        """kornia's raw_to_rgb (bilinear); the rest in PyTorch."""
        from kornia.color import CFA, raw_to_rgb

        return self._finish(raw_to_rgb(self._normalised(next(self.turn))[:, None], CFA.BG))

    def _normalised(self, mosaic: Tensor) -> Tensor:
        t = self.tensors
        planes = reference.pack(mosaic.float(), t["pattern"])
        planes = reference.normalise(planes, t["black"], t["white"], t["gain"], clip=True)
        return reference.unpack(planes, t["pattern"])

    def _finish(self, rgb: Tensor) -> Tensor:
        rgb = torch.einsum("ij,njhw->nihw", torch.tensor(CCM), rgb)
        if self.linear:
            rgb = _resized(rgb)
        rgb = reference.tone_curve(rgb.clamp(0, 1), "srgb")
        return _resized(rgb) if self.task.startswith("display") else rgb

    def cases(self) -> dict[str, Way]:
        """Every way that is installed, by name; LibRaw makes full pictures only."""
        ways: dict[str, Way] = {
            "ours": self.ours, "kernel": self.kernel, "eager": self.eager, "compile": self.compile
        }  # fmt: skip
        optional: dict[str, tuple[str, Callable[[], Way]]] = {
            "OpenCV float": ("cv2", lambda: self.opencv_float),
            "OpenCV 16-bit": ("cv2", lambda: self.opencv_fastest),
            "LibRaw": ("rawpy", lambda: self._libraw(False)),
            "LibRaw half": ("rawpy", lambda: self._libraw(True)),
            "colour-demosaicing": ("colour_demosaicing", lambda: self.colour_demosaicing),
            "kornia": ("kornia", lambda: self.kornia),
        }
        for name, (module, way) in optional.items():
            try:
                __import__(module)
            except ImportError as error:
                print(f"without {name}: {error}", file=sys.stderr)
                continue
            ways[name] = way()
        return ways


def memory_cases(megabytes: int = 128) -> dict[str, Way]:
    """A copy larger than the caches."""
    source = torch.rand(megabytes * 250_000)
    target = torch.empty_like(source)
    return {"copy": lambda: target.copy_(source)}


def measure(task: str, megapixels: int, rounds: int, folder: Path) -> dict[str, float]:
    """Seconds of each way, and of the floor."""
    torch._dynamo.reset()
    work = Workload(task, megapixels, folder)
    read = {"read": lambda: next(work.turn).view(torch.int64).max()}
    with torch.no_grad():
        cases = work.cases()
        slow = {name: run for name, run in cases.items() if name in SLOW}
        fast = {name: run for name, run in cases.items() if name not in SLOW}
        copy = memory_cases()
        seconds = interleaved({**fast, **copy, **read}, rounds)
        seconds |= interleaved(slow, 1)
    bandwidth = 2 * 128e6 / seconds["copy"]
    seconds["floor"] = work.traffic / bandwidth
    seconds["bandwidth"] = bandwidth
    return seconds


NAMES = (
    "eager", "compile", "OpenCV float", "OpenCV 16-bit", "LibRaw", "LibRaw half",
    "colour-demosaicing", "kornia",
)  # fmt: skip


def print_row(task: str, megapixels: int, seconds: dict[str, float]) -> None:
    """One line of the table: times of ours, then how many times as long the others took."""
    ours = seconds["ours"]
    others = " | ".join(f"{seconds[n] / ours:.1f}" if n in seconds else "" for n in NAMES)
    print(
        f"| {task} | {megapixels} | {1e3 * ours:.2f} | {1 / ours:.0f} "
        f"| {1e3 * seconds['kernel']:.2f} | {others} | {seconds['kernel'] / seconds['read']:.1f} "
        f"| {seconds['floor'] / seconds['kernel']:.2f} | {seconds['bandwidth'] / 1e9:.0f} |",
        flush=True,
    )


HEADER = (
    "| task | MP | ours ms | images/s | ours, ready memory ms | "
    + " | ".join(f"{name} / ours" for name in NAMES)
    + " | ready / one read of the mosaic | floor / ready | copy GB/s |\n"
    + "|---" * (8 + len(NAMES))
    + "|"
)


#: Under pytest-benchmark: way, and the case that it is.
RIVALS = {
    "ours": "ours", "ours, into ready memory": "kernel", "eager": "eager", "compile": "compile",
    "OpenCV float": "OpenCV float", "OpenCV 16-bit": "OpenCV 16-bit", "LibRaw": "LibRaw",
    "kornia": "kornia",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench-render")


#: Megapixels and task. At 12 MP eager, torch.compile and kornia take seconds, so not every task is.
CHOSEN = ((12, "display"), (12, "full size"), (2, "display, bilinear"), (2, "linear"),
          (2, "linear, bilinear"))  # fmt: skip


@pytest.mark.parametrize("way", RIVALS, ids=identifier)
@pytest.mark.parametrize(
    ("megapixels", "task"), CHOSEN, ids=[f"{size}MP-{identifier(task)}" for size, task in CHOSEN]
)
def test_render(
    benchmark: Any, floor: Floor, folder: Path, megapixels: int, task: str, way: str
) -> None:
    height, width = SIZES[megapixels]
    size = (height, width) if task == "full size" else SMALL
    how = task if task == "full size" else f"resized in {task}"
    benchmark.group = (
        f"render, {how}, {shape(1, height, width)} uint16 to {shape(1, 3, *size)} float32"
    )
    work = workload(Workload, task, megapixels, folder)
    cases = work.cases()
    if RIVALS[way] not in cases:
        pytest.skip(f"{way} is not installed")
    with torch.no_grad():
        time_way(benchmark, cases[RIVALS[way]], floor, traffic=work.traffic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--megapixels", nargs="+", type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n\n{HEADER}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for task in arguments.tasks:
            for megapixels in arguments.megapixels:
                seconds = measure(task, megapixels, arguments.rounds, Path(folder))
                print_row(task, megapixels, seconds)


if __name__ == "__main__":
    main()
