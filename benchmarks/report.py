"""Every operation on this machine, as a file of results, a column of the docs' table and a plot.

    make bench-report
    ISP_DISTILL_CPU=avx2 .venv/bin/python benchmarks/report.py     # held to other instructions

Writes ``benchmarks/results/PROCESSOR-INSTRUCTIONS.json``, and makes ``benchmarks/results/table.md``
and ``docs/pictures/speed.png`` anew of all such files. ``--only-table`` measures nothing. The tasks
are a choice of those of bench_raw_conv.py, bench_render.py, bench_distill_loss.py,
bench_feature_loss.py and bench_unprocess.py, where each is explained. It takes up to 20 minutes on
two cores, which should have nothing else to do.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import bench_distill_loss
import bench_feature_loss
import bench_raw_conv
import bench_render
import bench_unprocess
import torch
from results import (
    FOLDER,
    Results,
    Row,
    all_results,
    generation,
    load,
    row_of,
    table,
    torch_version,
)
from tqdm import tqdm

from isp_distill.backends import cpu_library
from isp_distill.exports.model_card import processor

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "speed.png"
PYTORCH = ("eager", "compile")
#: Stem, megapixels, views, with the backward pass.
CONVOLUTIONS = (
    ("efficientnet", 12, 1, False),
    ("efficientnet", 12, 1, True),
    ("convnext", 12, 1, False),
    ("resnet", 12, 1, False),
    ("efficientnet", 0.3, 32, False),
)
LOSSES = (
    "rows 10", "rows 1000", "rows 32k", "dense 150 x 256²", "dense 19 x 512 x 1024 (Cityscapes)",
    "upsampled 128² to 512², 150", "binary 80 x 128² (detection)", "linear 768 to 32k",
)  # fmt: skip
FEATURES = (
    "tokens 64 x 257 x 768, cosine",
    "maps 8 x 256 x 64², cosine",
    "maps 8 x 256 x 32² at 64², cosine",
)
NOISY = ("12 MP", "float32, noise")

Measure = Callable[[int], Row]


def _raw_conv(stem: str, megapixels: float, batch: int, backward: bool) -> tuple[str, Measure]:
    s = bench_raw_conv.STEMS[stem]
    size = f"{megapixels} MP" if batch == 1 else f"{batch} x 512²"
    kernel = f"{s.kernel}x{s.kernel} stride {s.stride} to {s.channels}"
    task = f"{kernel}, {size}, forward{' and backward' if backward else ''}"

    def run(rounds: int) -> Row:
        work = bench_raw_conv.Workload(s, megapixels, batch)
        seconds = bench_raw_conv.timed(work, backward, rounds)
        return row_of("raw_conv", task, seconds, (*PYTORCH, "conv2d", "ours, colour"))

    return task, run


def _render(task: str, folder: Path) -> tuple[str, Measure]:
    name = "12 MP at full size" if task == "full size" else f"12 MP to 224, {task}"
    peers = ("OpenCV float", "OpenCV 16-bit", "LibRaw", "kornia")

    def run(rounds: int) -> Row:
        return row_of(
            "render", name, bench_render.measure(task, 12, rounds, folder), (*PYTORCH, *peers)
        )

    return name, run


def _loss(task: str) -> tuple[str, Measure]:
    operation = task.split(" ", 1)[0]
    name = {"linear": "linear_distill_loss", "upsampled": "upsampled_distill_loss"}
    chosen = name.get(operation, "distill_loss")

    def run(rounds: int) -> Row:
        work = bench_distill_loss.Workload(bench_distill_loss.TASKS[task])
        return row_of(chosen, task, bench_distill_loss.timed(work, rounds), PYTORCH)

    return task, run


def _features(task: str) -> tuple[str, Measure]:
    def run(rounds: int) -> Row:
        work = bench_feature_loss.Workload(bench_feature_loss.TASKS[task])
        return row_of("feature_loss", task, bench_feature_loss.timed(work, rounds), PYTORCH)

    return task, run


def _unprocess(size: str, kind: str) -> tuple[str, Measure]:
    # Without torch.compile: the noise's random numbers take it more than nine minutes on some
    # machines (two cores of a Zen 3).
    def run(rounds: int) -> Row:
        work = bench_unprocess.Workload(bench_unprocess.SIZES[size], kind)
        seconds = bench_unprocess.timed(work, rounds, 1, ("ours", "eager"))
        return row_of("unprocess", f"{size}, {kind}", seconds, PYTORCH)

    return f"{size}, {kind}", run


def tasks(folder: Path) -> Iterator[tuple[str, Measure]]:
    """Every task with its name."""
    yield from (_raw_conv(*case) for case in CONVOLUTIONS)
    yield from (_render(task, folder) for task in bench_render.TASKS)
    yield from (_loss(task) for task in LOSSES)
    yield from (_features(task) for task in FEATURES)
    yield _unprocess(*NOISY)


def this_machine(threads: int) -> Results:
    """Without a row yet."""
    cpuinfo = Path("/proc/cpuinfo")
    return Results(
        processor=generation(processor(), cpuinfo.read_text() if cpuinfo.exists() else ""),
        instructions=cpu_library.instruction_set(),
        chosen="ISP_DISTILL_CPU" in os.environ,
        threads=threads,
        torch=torch_version(),
        day=datetime.date.today().isoformat(),
        load=load(),
        rows=(),
    )


def measured(rounds: int, only: str = "") -> Iterator[Row]:
    """All tasks on this machine, or those whose name holds ``only``, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        every = [one for one in tasks(Path(folder)) if only in one[0]]
        with tqdm(every) as bar:
            for name, measure in bar:
                bar.set_postfix_str(name)
                torch._dynamo.reset()
                yield measure(rounds)


def renewed(old: Results, new: Results) -> Results:
    """Results with the rows that were measured anew in place of the old ones."""
    fresh = {(row.operation, row.task): row for row in new.rows}
    kept = [fresh.pop((row.operation, row.task), row) for row in old.rows]
    return dataclasses.replace(new, rows=(*kept, *fresh.values()))


def plot(results: list[Results], path: Path) -> None:
    """How many times as long eager PyTorch and torch.compile take, on every machine."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(13, 7), sharey=True, layout="constrained")
    names = list(dict.fromkeys(f"{r.operation}: {r.task}" for one in results for r in one.rows))
    height = 0.8 / max(1, len(results))
    for axis, way in zip(axes, PYTORCH, strict=True):
        for number, one in enumerate(results):
            rows = [r for r in one.rows if way in r.ratios]
            places = [names.index(f"{r.operation}: {r.task}") + number * height for r in rows]
            axis.barh(places, [r.ratios[way] for r in rows], height, label=one.machine)
        axis.set(xscale="log", title=f"{way} / ours", yticks=range(len(names)))
        axis.axvline(1, color="black", linewidth=1)
        axis.grid(True, axis="x", which="both", alpha=0.3)
    axes[0].set_yticklabels(names, fontsize=8)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Measure, then make table and plot anew."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument(
        "--only", default="", metavar="TEXT",
        help="measure the tasks whose name holds this, and keep the machine's other rows",
    )  # fmt: skip
    parser.add_argument("--only-table", action="store_true", help="of the files that are there")
    arguments = parser.parse_args()
    if not arguments.only_table:
        torch.set_num_threads(arguments.threads)
        found = this_machine(arguments.threads)
        path = found.path(arguments.results)
        old = Results.read(path) if path.exists() else found
        for row in measured(arguments.rounds, arguments.only):
            found = dataclasses.replace(found, rows=(*found.rows, row))
            # As they come, so that a run that is broken off leaves what it has measured.
            renewed(old, found).write(arguments.results)
        if not found.rows:
            parser.error(f"no task's name holds {arguments.only!r}")
        if not arguments.only:
            found.write(arguments.results)
        print(f"results: {path}")
    results = all_results(arguments.results)
    if not results:
        print(f"{arguments.results}: holds no results: measure some first", file=sys.stderr)
        return 2
    (arguments.results / "table.md").write_text(table(results))
    plot(results, arguments.picture)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
