"""A tiny, complete training run; as a program, the thing that the resume tests kill."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from isp_distill import RawFolder, RawImage, Teacher, train, write_dng


def raw_image(index, side=48):
    rng = np.random.default_rng(index)
    coarse = rng.uniform(600, 15000, (6, 6))
    mosaic = np.kron(coarse, np.ones((side // 6, side // 6)))
    mosaic = np.clip(mosaic + rng.normal(0, 50, (side, side)), 0, 16383).astype(np.uint16)
    return RawImage(
        mosaic=mosaic,
        pattern=("RGGB", "GRBG", "GBRG", "BGGR")[index % 4],
        black=(512.0, 510.0, 514.0, 512.0),
        white=16383.0,
        white_balance=(2.0, 1.0, 1.6),
        ccm=((1.6, -0.4, -0.2), (-0.3, 1.6, -0.3), (0.0, -0.5, 1.5)),
        orientation=1,
        camera="test",
        exposure_time=None,
        iso=None,
        path=f"image-{index}",
    )


def teacher(classes=7, dense=False):
    torch.manual_seed(5)
    head = (
        [nn.Conv2d(16, classes, 1)]
        if dense
        else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, classes)]
    )
    body = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*body, *head)
    with torch.no_grad():
        model[-1].weight *= 10  # opinions strong enough to be worth learning
    return Teacher(model, size=16)


class SlowList(list):
    """A dataset that takes its time, so that a run lasts long enough to be killed in its steps."""

    pause = 0.0

    def __getitem__(self, index):
        time.sleep(self.pause)
        return super().__getitem__(index)


def write_image(path, index):
    """One of the images as a DNG file."""
    raw = raw_image(index)
    write_dng(
        path,
        raw.mosaic,
        pattern=raw.pattern,
        black=raw.black,
        white=raw.white,
        white_balance=raw.white_balance,
        ccm=raw.ccm,
        bits=14,
    )


def files(folder, count=10):
    """The images as DNG files, decoded in other processes, anew for every view."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for index in range(count):
            write_image(folder / f"{index:02}.dng", index)
    return RawFolder(folder)


def run(out, steps=24, data=None, student="rawify", **settings):
    # Dropout on: the random state has to survive the kill as well.
    options = {
        "out": out,
        "steps": steps,
        "batch_size": 4,
        "checkpoint_every": 3,
        "seed": 3,
        "dropout": True,
        "progress": False,
        "ema": 0.9,
        "lr": 1e-3,
        "exposure": 0.5,
        "tensorboard": False,
    }
    data = [raw_image(i) for i in range(10)] if data is None else data
    return train(student, teacher(), data, **{**options, **settings})


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = os.environ.get("RANK", "0")
    if "RUN_PIDS" in os.environ:
        Path(os.environ["RUN_PIDS"], f"rank-{rank}").write_text(str(os.getpid()))
    out = Path(sys.argv[1])
    if "--files" in sys.argv:
        data = files(out.parent / "raw")
    else:
        data = SlowList(raw_image(i) for i in range(10))
        data.pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    run(out, steps=int(sys.argv[2]), data=data)
