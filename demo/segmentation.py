"""A RAW student that predicts a class for every pixel, measured as demo/run.py measures one.

``python demo/segmentation.py [--out demo-output]``: the ImageNet teacher made dense (see
teacher.py) looks at 448-pixel pictures, its student at 896-pixel mosaics; the loss is taken at 112
pixels, where neither's logits ever exist. Ends with 1 unless the student is ahead of all baselines
and nearer to the teacher (KL) than before training.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from make_raw import make_raw
from photographs import gather
from run import linear_teacher
from teacher import load_dense_teacher

from isp_distill import Report, evaluate, rawify, train

PICTURE = 448
MOSAIC = 1024  # leaves room for random crops of twice the picture
LOSS_SIZE = 112
# The whole picture, and two details of it.
TILES = ((1.0, 0.5, 0.5), (1.3, 0.7, 0.2), (1.6, 0.4, 0.9))


def table(rows: dict[str, Report]) -> str:
    """The results as Markdown."""
    width = max(map(len, rows))
    lines = [
        f"| {'on held-out photographs':{width}} | pixel agreement | top-5 | mean IoU | KL (nats) |",
        f"| {'-' * width} | --------------: | ----: | -------: | --------: |",
    ]
    lines += [
        f"| {name:{width}} | {r.agreement_top1:15.3f} | {r.agreement_top5:5.3f} "
        f"| {r.mean_iou:8.3f} | {r.kl:9.3f} |"
        for name, r in rows.items()
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the demo; 0 if the student ends ahead of every baseline, and nearer to the teacher."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-5)
    parser.add_argument("--stem-lr", type=float, default=5e-3)
    options = parser.parse_args()
    began = time.perf_counter()

    photographs = gather(options.out / "photographs")
    out = options.out / "segmentation"
    training, held_out = make_raw(photographs, out / "raw", MOSAIC, TILES)
    counts = [len(list(folder.glob("*.dng"))) for folder in (training, held_out)]
    print(f"{counts[0]} training and {counts[1]} held-out DNG files", flush=True)
    teacher = load_dense_teacher(PICTURE)
    mean, std = teacher.mean, teacher.std
    baselines: dict[str, Callable[..., Any]] = {
        "a: teacher's weights rawified, linear RAW": rawify(
            teacher.model, mean=mean, std=std, curve="linear", white_balance=False
        ),
        "b: the same, white balance and gamma 1/2.2": rawify(
            teacher.model, mean=mean, std=std, curve="gamma"
        ),
        "c: RGB teacher on bilinear linear image": lambda m, i: linear_teacher(teacher, m, i),
    }
    rows: dict[str, Report] = {}
    for name, model in baselines.items():
        rows[name] = evaluate(
            model,
            teacher,
            held_out,
            batch_size=options.batch_size,
            dense_size=LOSS_SIZE,
            device="cpu",
        )
        print(f"baseline {name}: {rows[name]}", flush=True)
    result = train(
        "rawify",
        teacher,
        training,
        out=out / "student",
        steps=options.steps,
        batch_size=options.batch_size,
        dense_size=LOSS_SIZE,
        lr=options.lr,
        stem_lr=options.stem_lr,
        validation=held_out,
        channels_last=True,
        device="cpu",
        resume=False,
    )
    assert result.before is not None
    assert result.after is not None
    rows["student before training"] = result.before
    rows["student after training"] = result.after
    text = table(rows)
    figures = {name: vars(report) for name, report in rows.items()}
    (out / "results.json").write_text(json.dumps(figures, indent=1))
    (out / "results.md").write_text(text + "\n")
    print(f"\n{text}\n")
    print(
        f"pixels of {result.after.samples} held-out files at {LOSS_SIZE} x {LOSS_SIZE}; "
        f"{result.steps} steps of {options.batch_size} in {result.seconds:.0f} s; "
        f"{time.perf_counter() - began:.0f} s in all, {torch.get_num_threads()} threads"
    )
    print(f"class maps over the pictures: {result.out / 'contact_sheet.png'}")
    best = max(rows[name].agreement_top1 for name in baselines)
    if result.after.agreement_top1 <= best:
        print(f"FAILED: the student is not ahead of the best baseline ({best:.3f})")
        return 1
    if result.after.kl >= result.before.kl:
        print("FAILED: training did not bring the student nearer to the teacher")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
