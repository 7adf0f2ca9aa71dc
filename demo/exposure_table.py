"""Agreement against exposure: what a short, noisy shot costs, and what distillation wins back.

``python demo/exposure_table.py [--out demo-output]``. The RGB teacher always looks at the clean
shot's picture; its opinion of that is what the others are measured against, all of them on the same
dark shot with the same noise: the RGB teacher itself on what the ISP makes of the dark shot
(brightened to the clean one's level), the RAW model with the teacher's weights and no training, and
a student distilled at that exposure. Photographs, files and split are demo/run.py's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from make_raw import make_raw
from photographs import gather
from teacher import load_teacher
from torch import Tensor

from isp_distill import ISP, NoiseModel, Report, ShortExposure, Teacher, evaluate, render, train
from isp_distill.models.student import student_module

EXPOSURES = (1.0, 1 / 4, 1 / 10, 1 / 30)


def through_the_isp(teacher: Teacher, mosaic: Tensor, isp: ISP) -> Tensor:
    """The RGB teacher on the picture of the dark shot: same ISP, its exposure made good."""
    picture = render(mosaic, isp, size=(teacher.size, teacher.size))
    return teacher.logits(picture)


def table(rows: dict[float, dict[str, Report]]) -> str:
    """Top-1 agreement and KL as Markdown."""
    names = list(next(iter(rows.values())))
    lines = [
        "| exposure | " + " | ".join(f"{name}: top-1 (KL)" for name in names) + " |",
        "|---|" + "--:|" * len(names),
    ]
    for exposure, reports in rows.items():
        cells = [f"{r.agreement_top1:.3f} ({r.kl:.3f})" for r in reports.values()]
        lines.append(f"| 1/{round(1 / exposure)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def asked_for() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--exposures", type=float, nargs="+", default=list(EXPOSURES))
    parser.add_argument("--noise", default="medium", help="low, medium or high sensitivity")
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--stem-lr", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Measure every exposure, print the table after each, and keep it as exposure.json and .md."""
    options = asked_for()
    training, held_out = make_raw(gather(options.out / "photographs"), options.out / "raw")
    teacher = load_teacher()
    rows: dict[float, dict[str, Report]] = {}
    for factor in options.exposures:
        exposure = ShortExposure(factor, NoiseModel.preset(options.noise))

        def measured(student: object, exposure: ShortExposure = exposure) -> Report:
            return evaluate(
                # A teacher's model on the RAW, or a student: what evaluate() takes.
                student,  # type: ignore[arg-type]
                teacher,
                held_out,
                views=options.views,
                batch_size=options.batch_size,
                exposure=exposure,
                device="cpu",
                seed=options.seed,
            )

        result = train(
            "rawify",
            teacher,
            training,
            out=options.out / f"exposure-{round(1 / factor)}",
            steps=options.steps,
            batch_size=options.batch_size,
            lr=options.lr,
            stem_lr=options.stem_lr,
            exposure=exposure,
            channels_last=True,
            device="cpu",
            resume=False,
            seed=options.seed,
        )
        rows[factor] = {
            "RGB teacher on the ISP's output": measured(
                lambda mosaic, isp: through_the_isp(teacher, mosaic, isp)
            ),
            "RAW model, undistilled": measured(student_module("rawify", teacher)),
            "distilled student": measured(result.student),
        }
        print(f"\n{table(rows)}\n", flush=True)
    figures = {f: {n: vars(r) for n, r in reports.items()} for f, reports in rows.items()}
    (options.out / "exposure.json").write_text(json.dumps(figures, indent=1))
    (options.out / "exposure.md").write_text(table(rows) + "\n")
    print(
        f"{NoiseModel.preset(options.noise)}, {options.steps} steps of {options.batch_size}, "
        f"{torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
