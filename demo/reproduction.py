"""What distillation adds to training on labels, over several seeds.

``python demo/reproduction.py [--out demo-output]``, after ``demo/run.py``: it takes its files. The
claim of ISP Distillation's abstract, as far as data that can be had here shows it: a RAW model that
learns the teacher's predictions comes nearer to the RGB model than the same RAW model trained on
labels. There are no labelled RAW files here, so the label of a file is its class as the RGB teacher
names it: both students get the same teacher's knowledge, one as a class a file, the other as the
distribution of each view. Everything else is the same: start, views, steps, learning rates.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from comparison import LINEAR, baselines
from run import BATCH
from teacher import load_teacher

from isp_distill import ISP, RawFolder, Report, Teacher, evaluate, render, train


def classes_of(folder: RawFolder, teacher: Teacher) -> dict[str, int]:
    """The teacher's class of each whole file."""
    found = {}
    for path, raw in zip(folder.paths, folder, strict=True):
        isp = ISP.from_raw(raw)
        picture = render(torch.from_numpy(raw.mosaic)[None], isp, size=teacher.size)
        with torch.no_grad():
            found[str(path.relative_to(folder.root))] = int(teacher.logits(picture).argmax())
    return found


def spread(values: list[float]) -> str:
    """Mean and the range over the seeds."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Train both students with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=110)
    options = parser.parse_args()
    training, held_out = options.out / "raw" / "train", options.out / "raw" / "held-out"
    if not training.is_dir():
        parser.error(f"{training} is missing: run demo/run.py --out {options.out} first")
    teacher = load_teacher()
    teacher.model.eval()
    labels = classes_of(RawFolder(training), teacher)
    shared = {
        "steps": options.steps, "batch_size": BATCH, "lr": 1e-4, "stem_lr": 5e-3,
        "validation": held_out, "channels_last": True, "device": "cpu", "resume": False,
        "tensorboard": False,
    }  # fmt: skip
    ways = {"labels (cross entropy)": 0.0, "distilled (no labels)": 1.0}
    after: dict[str, list[Report]] = {name: [] for name in ways}
    before = None
    for seed in range(options.seeds):
        for name, alpha in ways.items():
            result = train(
                "rawify", teacher, RawFolder(training, labels=labels), alpha=alpha, seed=seed,
                out=options.out / "reproduction" / f"{name.split()[0]}-{seed}", **shared,
            )  # fmt: skip
            assert result.after is not None
            before = result.before
            after[name].append(result.after)
            print(f"seed {seed}, {name}: {result.after}", flush=True)
    rows = {
        "teacher's weights on linear RAW": [
            evaluate(baselines(teacher)[LINEAR], teacher, held_out, batch_size=BATCH, device="cpu")
        ],
        "RAW student before training": [before],
        **after,
    }
    print(f"\n| {options.seeds} seeds: mean (least to most) | top-1 agreement | KL (nats) |")
    print("| --- | --: | --: |")
    for name, reports in rows.items():
        top = [r.agreement_top1 for r in reports if r is not None]
        kl = [r.kl for r in reports if r is not None]
        print(f"| {name} | {spread(top)} | {spread(kl)} |")
    figures = {name: [vars(r) for r in reports if r is not None] for name, reports in rows.items()}
    (options.out / "reproduction.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
