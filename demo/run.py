"""The whole of isp-distill on real photographs, measured on photographs it never trained on.

``python demo/run.py [--out demo-output]``: makes the RAW files, measures three baselines, trains a
student on the mosaics and measures it the same way. Ends with 1 unless the student is ahead of all
three.
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
from make_raw import make_raw, picture_of
from photographs import gather
from teacher import load_teacher
from torch import Tensor

from isp_distill import ISP, Report, Teacher, evaluate, rawify, render, train

VIEWS = 1
BATCH = 16


def linear_teacher(teacher: Teacher, mosaic: Tensor, isp: ISP) -> Tensor:
    """The RGB teacher on a linear picture: bilinear, white-balanced, right colours, no tone curve.

    The strongest form of this baseline: without the white balance and matrix it is far worse.
    """
    bare = isp.replace(demosaic="bilinear", tone="linear")
    picture = render(mosaic, bare, size=teacher.size, mean=teacher.mean, std=teacher.std)
    logits: Tensor = teacher.model(picture)
    return logits


def table(rows: dict[str, Report]) -> str:
    """The results as Markdown."""
    width = max(map(len, rows))
    lines = [
        f"| {'on held-out photographs':{width}} | top-1 agreement | top-5 | KL (nats) |",
        f"| {'-' * width} | --------------: | ----: | --------: |",
    ]
    lines += [
        f"| {name:{width}} | {r.agreement_top1:15.3f} | {r.agreement_top5:5.3f} | {r.kl:9.3f} |"
        for name, r in rows.items()
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the demo; 0 if the student ends ahead of every baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--stem-lr", type=float, default=5e-3)
    options = parser.parse_args()
    began = time.perf_counter()

    photographs = gather(options.out / "photographs")
    held = [p.name for p in photographs if p.held_out]
    print(f"{len(photographs)} photographs, {len(held)} of them held out: {', '.join(held)}")
    training, held_out = make_raw(photographs, options.out / "raw")
    counts = [len(list(folder.glob("*.dng"))) for folder in (training, held_out)]
    print(
        f"{counts[0]} training and {counts[1]} held-out DNG files (4 CFA patterns, 12 and 14 bits)"
        f" written, and read back bit for bit by LibRaw: {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    picture_of(sorted(held_out.glob("*.dng"))[0]).save(options.out / "rendered.png")

    teacher = load_teacher()
    bare = rawify(
        teacher.model,
        mean=teacher.mean,
        std=teacher.std,
        curve="linear",
        white_balance=False,
    )
    adapted = rawify(
        teacher.model,
        mean=teacher.mean,
        std=teacher.std,
        curve="gamma",
        white_balance=True,
    )
    baselines: dict[str, Callable[[Tensor, ISP], Any]] = {
        "a: teacher's weights rawified, linear RAW": bare,
        "b: the same, white balance and gamma 1/2.2": adapted,
        "c: RGB teacher on bilinear linear image": lambda m, i: linear_teacher(teacher, m, i),
    }
    rows: dict[str, Report] = {}
    for name, model in baselines.items():
        rows[name] = evaluate(model, teacher, held_out, views=VIEWS, batch_size=BATCH, device="cpu")
        print(f"baseline {name}: {rows[name]}", flush=True)
    # On the CPU everywhere, so that the demo's figures can be compared between machines.
    result = train(
        "rawify",
        teacher,
        training,
        out=options.out / "student",
        steps=options.steps,
        batch_size=BATCH,
        lr=options.lr,
        stem_lr=options.stem_lr,
        validation=held_out,
        validation_views=VIEWS,
        channels_last=True,  # halves a step on a CPU: most of this network is depthwise
        device="cpu",
        resume=False,
    )
    assert result.before is not None
    assert result.after is not None
    rows["student before training"] = result.before
    rows["student after training"] = result.after
    text = table(rows)
    seconds = time.perf_counter() - began
    figures = {name: vars(report) for name, report in rows.items()}
    (options.out / "results.json").write_text(json.dumps(figures, indent=1))
    (options.out / "results.md").write_text(text + "\n")
    print(f"\n{text}\n")
    print(
        f"{result.after.samples} views of {counts[1]} held-out files; {result.steps} steps of "
        f"{BATCH} in {result.seconds:.0f} s; {seconds:.0f} s in all, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"report:        {result.out / 'report.json'}")
    print(f"contact sheet: {result.out / 'contact_sheet.png'}")
    print(f"a RAW file as the teacher sees it: {options.out / 'rendered.png'}")
    best = max(rows[name].agreement_top1 for name in baselines)
    if result.after.agreement_top1 <= best:
        print(f"FAILED: the student is not ahead of the best baseline ({best:.3f})")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
