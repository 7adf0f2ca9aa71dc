"""Training end to end, beside the loop that one would write by hand: images/s and where time goes.

    python benchmarks/bench_train.py                       # the tables; makes its RAW files first
    pytest benchmarks/bench_train.py --benchmark-only      # smaller files, one batch a contender

Both sides train the same student from the same teacher on the same 12-megapixel DNG files, batch
16, float32: a MobileNetV3-small whose first convolution takes the four planes of the mosaic, a
ResNet-18 teacher at 224 pixels (weights do not change the speed), AdamW, KL at temperature 2.

By hand: a Dataset that runs rawpy's postprocess for the teacher's picture and packs the mosaic into
four float planes for the student, both cut to the same random square and resized to 224;
torchvision transforms; a DataLoader with two workers; F.kl_div. "half size" is the same loop with
LibRaw's half_size, which whoever looks for speed finds first.

The files lie in the page cache, are uncompressed (LibRaw decodes lossless-JPEG ones several times
slower, in both loops), and show scikit-image's photographs enlarged, with sensor noise.

Steps are counted from the first one on, so that a run's input wait includes that for its first
batch, which nothing can hide: 16 files have to be decoded. The loop by hand takes fewer steps.

Beside images/s stands the processor time of an image, of all processes and threads: on a machine
that does other things as well it is the figure to trust. Set OMP_WAIT_POLICY=passive there, or
threads that wait for their turn are counted as if they worked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rawpy
import torch
import torch.nn.functional as F
import torchvision
from microbenchmark import identifier
from torch import Tensor, nn
from torchvision.transforms import v2

import isp_distill

SIZE = 224
BATCH = 16
TEMPERATURE = 2.0
#: The square that is cut from a mosaic, as a multiple of what the student sees of it.
CROP = 2 * SIZE


def make_files(folder: Path, count: int, height: int, width: int) -> None:
    """DNG files of photographs enlarged to the sensor's size, with the noise of a low ISO."""
    import skimage.data
    from PIL import Image

    if len(list(folder.glob("*.dng"))) == count:
        return
    folder.mkdir(parents=True, exist_ok=True)
    names = ("astronaut", "coffee", "chelsea", "rocket")
    pictures = [Image.fromarray(getattr(skimage.data, name)()) for name in names]
    for number in range(count):
        random = np.random.default_rng(number)
        picture = pictures[number % len(pictures)]
        wide = min(picture.width, picture.height * width / height) * random.uniform(0.6, 1)
        box = (*(random.random(2) * (np.array(picture.size) - (wide, wide * height / width))),)
        box = (*box, box[0] + wide, box[1] + wide * height / width)
        rgb = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
        tensor = torch.from_numpy(np.asarray(rgb).copy()).permute(2, 0, 1)[None]
        noise = isp_distill.NoiseModel(2e-4, 1e-6)
        mosaic, isp = isp_distill.unprocess(tensor, bits=14, black=512, noise=noise, seed=number)
        settings = isp.batched(1)
        isp_distill.write_dng(
            folder / f"{number:03}.dng",
            mosaic[0].numpy(),
            black=512,
            white=16383,
            white_balance=torch.as_tensor(settings.white_balance)[0].tolist(),
            ccm=torch.as_tensor(settings.ccm)[0].tolist(),
            bits=14,
        )


def teacher_model() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


def student_model() -> nn.Module:
    torch.manual_seed(1)
    return torchvision.models.mobilenet_v3_small(weights=None)


class ByHand(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A file as the teacher's picture and the student's four planes."""

    def __init__(self, folder: Path, half_size: bool) -> None:
        self.paths, self.half_size = sorted(folder.glob("*.dng")), half_size
        self.to_picture = v2.Compose(
            [
                v2.Resize((SIZE, SIZE), antialias=True),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with rawpy.imread(str(self.paths[index])) as raw:
            mosaic = raw.raw_image_visible.copy()
            black, white = raw.black_level_per_channel[0], raw.white_level
            gains = np.array(raw.camera_whitebalance[:3]) / raw.camera_whitebalance[1]
            rgb = raw.postprocess(use_camera_wb=True, half_size=self.half_size)
        planes = np.stack([mosaic[y::2, x::2] for y in (0, 1) for x in (0, 1)])
        planes = (planes.astype(np.float32) - black) / (white - black)
        planes *= gains[[0, 1, 1, 2], None, None].astype(np.float32)
        picture = torch.from_numpy(rgb).permute(2, 0, 1)
        side = min(mosaic.shape) // CROP * CROP
        top, left = (2 * int(torch.randint((whole - side) // 2 + 1, ())) for whole in mosaic.shape)
        scale = picture.shape[1] / mosaic.shape[0]
        at = [round(v * scale) for v in (top, left, side, side)]
        picture = self.to_picture(v2.functional.crop(picture, *at))
        cut = torch.from_numpy(planes)[
            :, top // 2 : (top + side) // 2, left // 2 : (left + side) // 2
        ]
        cut = F.interpolate(cut[None], (SIZE, SIZE), mode="bilinear", antialias=True)[0]
        if torch.rand(()) < 0.5:
            picture, cut = picture.flip(-1), cut.flip(-1)
        return picture, cut.clamp(0, 1)


@dataclass(frozen=True)
class Figures:
    """One run: images, seconds, processor seconds of all processes, seconds by stage."""

    images: int
    seconds: float
    processor: float
    stages: dict[str, float]

    @property
    def speed(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def processor_seconds() -> float:
    """Of this process and of those it has waited for."""
    return sum(os.times()[:4])


def by_hand(folder: Path, steps: int, half_size: bool = False) -> Figures:
    """The loop written by hand."""
    teacher, student = teacher_model().requires_grad_(False), student_model()
    first = student.features[0][0]
    student.features[0][0] = nn.Conv2d(4, first.out_channels, 3, 2, 1, bias=False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-5)
    sampler = torch.utils.data.RandomSampler(
        range(len(list(folder.glob("*.dng")))), replacement=True, num_samples=steps * BATCH
    )
    stages = dict.fromkeys(("wait for input", "teacher", "student and loss", "optimiser"), 0.0)
    student.train()
    before = processor_seconds()
    began = last = time.perf_counter()

    def stage(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        stages[name] += now - last
        last = now

    data = ByHand(folder, half_size)
    for picture, planes in torch.utils.data.DataLoader(data, BATCH, sampler=sampler, num_workers=2):
        stage("wait for input")
        with torch.no_grad():
            target = teacher(picture)
        stage("teacher")
        loss = F.kl_div(
            F.log_softmax(student(planes) / TEMPERATURE, -1),
            F.softmax(target / TEMPERATURE, -1),
            reduction="batchmean",
        )
        (loss * TEMPERATURE**2).backward()
        stage("student and loss")
        optimizer.step()
        optimizer.zero_grad()
        stage("optimiser")
    seconds = time.perf_counter() - began
    return Figures(steps * BATCH, seconds, processor_seconds() - before, stages)


def ours(data: Any, steps: int, out: Path) -> Figures:
    """``train()``, at its defaults."""
    before = processor_seconds()
    student = isp_distill.rawify(student_model(), curve="linear", white_balance=True)
    result = isp_distill.train(
        student,
        isp_distill.Teacher(teacher_model(), size=SIZE),
        data,
        out=out,
        steps=steps,
        batch_size=BATCH,
        temperature=TEMPERATURE,
        freeze_batch_norm=False,
        resume=False,
        tensorboard=False,
        progress=False,
        profile=True,
        checkpoint_every=steps,
        device="cpu",
    )
    data.close()  # ends the decoding processes, whose time is counted then
    return Figures(steps * BATCH, result.seconds, processor_seconds() - before, result.stages)


def contenders(
    folder: Path, work: Path, steps: int, alike: bool = False
) -> dict[str, Callable[[], Figures]]:
    """What is compared, by name; the packed folders are made here.

    Args:
        folder: of RAW files.
        work: where packed folders and runs go.
        steps: of ``train()``.
        alike: whether all take as many; else the slow take fewer and the fast more.
    """
    few, many = (steps, steps) if alike else (max(1, steps // 8), 2 * steps)
    teacher = isp_distill.Teacher(teacher_model(), size=SIZE)
    report = isp_distill.pack(folder, work / "packed", progress=False)
    print(report)
    print(isp_distill.pack(folder, work / "zstd", compression="zstd", progress=False))
    began = time.perf_counter()
    isp_distill.pack(folder, work / "packed", teacher=teacher, views=4, progress=False)
    files = len(isp_distill.PackedRaw(work / "packed"))
    stored = sum(p.stat().st_size for p in (work / "packed" / "teachers").rglob("*.safetensors"))
    print(
        f"stored teacher: 4 views a file in {(time.perf_counter() - began) / files:.2f} s a file, "
        f"{stored / files / 1e3:.1f} kB a file"
    )

    packed = isp_distill.PackedRaw
    out = work / "run"
    return {
        "by hand": lambda: by_hand(folder, few),
        "by hand, half size": lambda: by_hand(folder, few, half_size=True),
        "train(), RAW files": lambda: ours(isp_distill.RawFolder(folder), steps, out),
        "train(), packed": lambda: ours(
            packed(work / "packed", use_stored_teacher=False), steps, out
        ),
        "train(), packed, zstd": lambda: ours(packed(work / "zstd"), steps, out),
        "train(), stored teacher": lambda: ours(packed(work / "packed"), many, out),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-train"))
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every round's figures there")
    options = parser.parse_args()
    folder = options.work / "raw"
    make_files(folder, options.files, 3000, 4000)
    runs: dict[str, list[Figures]] = {}
    chosen = contenders(folder, options.work, options.steps)
    for _ in range(options.rounds):
        for name, run in chosen.items():
            runs.setdefault(name, []).append(run())
            last = runs[name][-1]
            print(
                f"{name}: {last.speed:.2f} images/s, {1e3 * last.processor / last.images:.0f} ms "
                "of processor an image",
                flush=True,
            )
    if options.json:
        plain = {name: [dataclasses.asdict(one) for one in all_] for name, all_ in runs.items()}
        options.json.write_text(json.dumps(plain))
    fastest = {name: max(one.speed for one in all_) for name, all_ in runs.items()}
    least = {name: min(one.processor / one.images for one in all_) for name, all_ in runs.items()}
    print(f"\n{torch.get_num_threads()} threads, best of {options.rounds} rounds\n")
    print("| 12 MP files, batch 16 | images/s | x | processor ms an image | x | waits for input |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    best = {name: max(all_, key=lambda one: one.speed) for name, all_ in runs.items()}
    for name, one in best.items():
        wait = one.stages["wait for input"] / sum(one.stages.values())
        print(
            f"| {name} | {fastest[name]:.1f} | {fastest[name] / fastest['by hand']:.1f} "
            f"| {1e3 * least[name]:.0f} | {least['by hand'] / least[name]:.1f} | {wait:.0%} |"
        )
    for name, one in best.items():
        total = sum(one.stages.values())
        shares = ", ".join(f"{key} {value / total:.0%}" for key, value in one.stages.items())
        print(f"\n{name}: {shares}")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    work = tmp_path_factory.mktemp("bench-train")
    make_files(work / "raw", 8, 1200, 1600)
    made = contenders(work / "raw", work, 1, alike=True)
    yield made
    shutil.rmtree(work)


#: Under pytest-benchmark: way, and the contender that it is.
RIVALS = {
    "ours, RAW files": "train(), RAW files", "ours, packed": "train(), packed",
    "ours, stored teacher": "train(), stored teacher", "by hand": "by hand",
}  # fmt: skip


@pytest.mark.parametrize("way", RIVALS, ids=identifier)
def test_train(benchmark: Any, small: dict[str, Any], way: str) -> None:
    benchmark.group = f"train, one step of {BATCH} files of 1200x1600, MobileNetV3-small, float32"
    # One round: a run makes its model, optimiser and loader anew, and takes seconds.
    figures = benchmark.pedantic(small[RIVALS[way]], rounds=1)
    benchmark.extra_info["images_a_second"] = round(figures.speed, 2)


if __name__ == "__main__":
    main()
