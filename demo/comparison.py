"""A student beside three baselines, all measured the same way: what both demos are about."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isp_distill import (
    ISP,
    Report,
    Teacher,
    TrainResult,
    TrainSettings,
    evaluate,
    rawify,
    render,
    train,
)

LINEAR = "a: teacher's weights rawified, linear RAW"
BEFORE, AFTER = "student before training", "student after training"


def training_options(
    description: str | None, steps: int, batch_size: int
) -> argparse.ArgumentParser:
    """The options of a demo that trains.

    Args:
        description: of the demo.
        steps: unless another number is asked for.
        batch_size: likewise.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--lr", type=float, default=TrainSettings.lr)
    parser.add_argument("--stem-lr", type=float, default=TrainSettings.stem_lr)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def linear_teacher(teacher: Teacher, mosaic: Tensor, isp: ISP) -> Tensor:
    """The RGB teacher on a linear picture: bilinear, white-balanced, right colours, no tone curve.

    The strongest form of this baseline: without the white balance and matrix it is far worse.
    """
    bare = isp.replace(demosaic="bilinear", tone="linear")
    picture = render(mosaic, bare, size=teacher.size, mean=teacher.mean, std=teacher.std)
    logits: Tensor = teacher.model(picture)
    return logits


def baselines(teacher: Teacher) -> dict[str, Callable[[Tensor, ISP], Any]]:
    """What one can do with the teacher's weights and no training."""
    weights, mean, std = teacher.model, teacher.mean, teacher.std
    bare = rawify(weights, mean=mean, std=std, curve="linear", white_balance=False)
    adapted = rawify(weights, mean=mean, std=std, curve="gamma", white_balance=True)
    return {
        LINEAR: bare,
        "b: the same, white balance and gamma 1/2.2": adapted,
        "c: RGB teacher on bilinear linear image": lambda m, i: linear_teacher(teacher, m, i),
    }


def table(rows: dict[str, Report]) -> str:
    """The results as Markdown, with the columns of what the teacher predicts."""
    columns: dict[str, Callable[[Report], float | None]] = {
        "top-1 agreement": lambda r: r.agreement_top1,
        "top-5": lambda r: r.agreement_top5,
        "KL (nats)": lambda r: r.kl,
    }
    if all(r.cosine is not None for r in rows.values()):
        columns = {
            "retrieval top-1": lambda r: r.retrieval_top1,
            "top-5": lambda r: r.retrieval_top5,
            "mean cosine": lambda r: r.cosine,
        }
    if all(r.teacher_detections is not None for r in rows.values()):
        columns = {"mAP": lambda r: r.mean_ap, "at IoU 0.5": lambda r: r.mean_ap50}
    if all(r.mean_iou is not None for r in rows.values()):
        columns = {
            "pixel agreement": columns.pop("top-1 agreement"),
            **columns,
            "mean IoU": lambda r: r.mean_iou,
            "where the teacher is confident": lambda r: r.agreement_confident,
        }
    width = max(map(len, rows))
    lines = [
        f"| {'on held-out photographs':{width}} | {' | '.join(columns)} |",
        f"| {'-' * width} | {' | '.join('-' * (len(c) - 1) + ':' for c in columns)} |",
    ]
    for name, report in rows.items():
        cells = [f"{column(report):{len(title)}.3f}" for title, column in columns.items()]
        lines.append(f"| {name:{width}} | {' | '.join(cells)} |")
    return "\n".join(lines)


def not_ahead(rows: dict[str, Report], ahead: Callable[[Report, Report], bool]) -> int:
    """A demo's exit status: 1 unless the trained student is ahead of every other row.

    Args:
        rows: of the table.
        ahead: whether the first report is better than the second.
    """
    after, failed = rows[AFTER], 0
    for name, report in rows.items():
        if name != AFTER and not ahead(after, report):
            failed = 1
            print(f"FAILED: the student is not ahead of {name}: {after}; {report}")
    return failed


def compare(
    teacher: Teacher,
    training: Path,
    held_out: Path,
    out: Path,
    *,
    batch_size: int,
    dense_size: int | None = None,
    **settings: Any,
) -> tuple[dict[str, Report], TrainResult]:
    """Measure the baselines, train a student, print the table, write results.json and results.md.

    On the CPU everywhere, so that the demo's figures can be compared between machines.

    Args:
        teacher: also gives the student its weights.
        training: folder of RAW files.
        held_out: another, that everything is measured on.
        out: gets the results, and the student's run in its folder ``student``.
        batch_size: views a forward pass.
        dense_size: of dense logits, see :func:`isp_distill.train`.
        settings: the other arguments of :func:`isp_distill.train`.

    Returns:
        The rows of the table, and the run.
    """
    began = time.perf_counter()
    shared: dict[str, Any] = {
        "batch_size": batch_size,
        "dense_size": dense_size,
        "device": "cpu",
    }
    rows: dict[str, Report] = {}
    for name, model in baselines(teacher).items():
        rows[name] = evaluate(model, teacher, held_out, **shared)
        print(f"baseline {name}: {rows[name]}", flush=True)
    result = train(
        "rawify",
        teacher,
        training,
        out=out / "student",
        validation=held_out,
        channels_last=True,  # halves a step on a CPU: most of this network is depthwise
        resume=False,
        **shared,
        **settings,
    )
    assert result.before is not None
    assert result.after is not None
    rows[BEFORE], rows[AFTER] = result.before, result.after
    text = table(rows)
    figures = {name: vars(report) for name, report in rows.items()}
    (out / "results.json").write_text(json.dumps(figures, indent=1))
    (out / "results.md").write_text(text + "\n")
    print(f"\n{text}\n")
    print(
        f"{result.after.samples} held-out files; {result.steps} steps of {batch_size} "
        f"in {result.seconds:.0f} s; {time.perf_counter() - began:.0f} s with all measurements, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"report:        {result.out / 'report.json'}")
    print(f"contact sheet: {result.out / 'contact_sheet.png'}")
    return rows, result
