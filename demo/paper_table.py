"""The claim as one table: distilled RAW students beside every other way to a RAW model.

``python demo/paper_table.py [--out demo-output] [--seeds 0 1 2 3 4]``: five seeds of every trained
row, each measured at four exposures, for classes, a class for every pixel, and an embedding. A
trained row is trained once for all light: every view draws its exposure between 1/30 and 1; but
for one, which sees full exposure alone. Every result is a file of its own below
``OUT/paper/results``: a run that was stopped goes on, and two runs of different seeds may share the
work. What is there is written as ``demo/paper_table.json``, printed, and written as
``demo/paper_table.md``.

What the labels are: real ones, of 57 held-out photographs (twenty of ImageNet, the rest named by
their files, or by looking), and of cut-out photographs on others. Rows that learn from labels learn
from the cut-outs of the training side; no held-out label is ever trained on. For pixels and
embeddings there are no labels here: the teacher on the clean shot is the measure.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelled import cut_outs, make_labelled, photograph_classes
from make_raw import make_raw
from paper_measured import NOISE, measured, remembering
from paper_rows import BY_DAY, DISTILLED, EXPOSURES, printed
from photographs import gather
from teacher import load_dense_teacher, load_embedding_teacher, load_teacher
from torch import nn

from isp_distill import ShortExposure, Teacher, pack, rawify, render, train
from isp_distill.files.atomic import only_writer, write_atomically
from isp_distill.models.student import student_module

STEPS = {"classes": 110, "pixels": 80, "embedding": 60}
#: Views of every file whose logits are stored, so that training never runs the teacher.
VIEWS = 4
LOSS_SIZE = 56
NO_LABEL = -100
#: What a trained row sees: every view has its own share of the light.
LIGHT = ShortExposure((min(EXPOSURES.values()), max(EXPOSURES.values())), NOISE)
DAYLIGHT = ShortExposure(1.0, NOISE)
#: Seconds that a run waits for another one to make the files, or to pack them.
PATIENCE = 3600.0


@dataclass(frozen=True)
class Data:
    """The files, and what is known of them."""

    training: Path
    held_out: Path
    labels: dict[str, frozenset[int]]
    right: dict[str, frozenset[int]]


def prepared(out: Path) -> Data:
    """Photographs, cut-outs and their classes; made once."""
    raw = out / "paper" / "raw"
    known = raw / "classes.json"
    if not known.exists():
        photographs = gather(out / "photographs")
        make_raw(photographs, raw)
        named = photograph_classes(photographs)
        plain = [photograph for photograph in photographs if photograph.name not in named]
        labels, right = make_labelled(cut_outs(out / "photographs"), plain, raw)
        for path in sorted((raw / "held-out").glob("*-0-*.dng")):  # whole pictures, not details
            name = path.name.rsplit("-0-", 1)[0]
            if name in named:
                right[path.name] = named[name]
        written = {
            "labels": {n: sorted(c) for n, c in labels.items()},
            "right": {n: sorted(c) for n, c in right.items()},
        }
        known.write_text(json.dumps(written))
    read = json.loads(known.read_text())
    return Data(
        raw / "train", raw / "held-out",
        *({n: frozenset(c) for n, c in read[key].items()} for key in ("labels", "right")),
    )  # fmt: skip


def from_scratch(teacher: Teacher) -> nn.Module:
    """A student of the teacher's architecture, with weights of chance."""
    model = copy.deepcopy(teacher.model)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return rawify(model, mean=teacher.mean, std=teacher.std, curve="gamma", white_balance=True)


@dataclass(frozen=True)
class Row:
    """A row of the table: how its model is made of a seed and a folder, and whether by training."""

    make: Callable[[int, Path], Any]
    trained: bool = True


def rows_of(task: str, teacher: Teacher, data: Data) -> dict[str, Row]:
    """The rows of a task, by their names."""

    def through_the_isp(mosaic: Any, isp: Any) -> Any:
        return teacher.logits(render(mosaic, isp, size=(teacher.size, teacher.size)))

    def trained(source: Any, student: Callable[[], Any] = lambda: "rawify", **settings: Any) -> Row:
        chosen = {"batch_size": 16, "exposure": LIGHT, **settings}

        def one(seed: int, out: Path) -> Any:
            result = train(
                student(), teacher, source, out=out, steps=STEPS[task], seed=seed, device="cpu",
                channels_last=True, resume=False, tensorboard=False, **chosen,
            )  # fmt: skip
            return result.student

        return Row(one)

    untrained = {
        "RGB teacher, the ISP's picture": Row(lambda *_: through_the_isp, trained=False),
        "RGB weights on RAW, untrained": Row(
            lambda *_: student_module("rawify", teacher), trained=False
        ),
    }
    if task == "pixels":
        dense = {"dense_size": LOSS_SIZE, "temperature": 1.0, "batch_size": 8}
        return {**untrained, DISTILLED: trained(data.training, **dense)}
    # Of some cut-outs any of several classes is right: there is no one to learn.
    single = {n: next(iter(c)) for n, c in data.labels.items() if len(c) == 1}

    def packed(folder: Path) -> Path:
        out = data.training.parent / f"packed-{task}-{folder.name}"
        pack(
            folder, out, teacher=teacher, views=VIEWS, device="cpu",
            labels=lambda path: single.get(path.name, NO_LABEL),
        )  # fmt: skip
        return out

    stored = packed(data.training)
    if task == "embedding":
        return {**untrained, DISTILLED: trained(stored)}
    alone = data.training.parent / "labelled"
    alone.mkdir(exist_ok=True)
    for name in single:
        if not (alone / name).exists():
            os.link(data.training / name, alone / name)
    labelled = packed(alone)
    return {
        **untrained,
        "RAW, labels, from the RGB weights": trained(labelled, alpha=0.0),
        "RAW, labels, from scratch": trained(
            labelled, lambda: from_scratch(teacher), alpha=0.0, lr=1e-3, freeze_batch_norm=False
        ),
        DISTILLED: trained(stored),
        BY_DAY: trained(stored, exposure=DAYLIGHT),
        "RAW, distilled, and labels": trained(stored, alpha=0.8),
    }


def figures(task: str, student: Any, teacher: Teacher, data: Data) -> dict[str, Any]:
    """The figures of one row at every exposure."""
    files = [path.name for path in sorted(data.held_out.glob("*.dng"))]
    row: dict[str, Any] = {}
    for exposure, factor in EXPOSURES.items():
        report, said, clean = measured(
            student, teacher, data.held_out, factor,
            dense_size=LOSS_SIZE if task == "pixels" else None,
        )  # fmt: skip
        cell: dict[str, Any] = {
            name: value for name, value in vars(report).items() if isinstance(value, float)
        }
        if task == "classes":
            cell["agrees"] = (said == clean).int().tolist()
            answers = dict(zip(files, said.tolist(), strict=True))
            right = {n: answers[n] in classes for n, classes in data.right.items()}
            for kind, of in (("photographs", False), ("cut-outs", True)):
                chosen = [ok for n, ok in right.items() if n.startswith("cut-") == of]
                cell[f"accuracy, {kind}"] = sum(chosen) / len(chosen)
        row[exposure] = cell
    return row


def main() -> None:
    """Fill in what is missing of the table, and print it when it is whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tasks", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--kept", type=Path, default=Path(__file__).with_name("paper_table.json"))
    options = parser.parse_args()
    paper = options.out / "paper"
    # Of two runs side by side one makes the files, and packs them.
    preparing = functools.partial(only_writer, paper / "raw", wait=PATIENCE)
    with preparing():
        data = prepared(options.out)
    results = paper / "results"
    results.mkdir(exist_ok=True)
    loaders = {
        "classes": load_teacher,
        "pixels": lambda: load_dense_teacher(224),
        "embedding": load_embedding_teacher,
    }
    for task in options.tasks:
        teacher = loaders[task]()
        watching = remembering(teacher)
        with preparing():
            rows = rows_of(task, teacher, data)
        for number, (name, row) in enumerate(rows.items()):
            for seed in options.seeds if row.trained else [0]:
                path = results / f"{task}; {name}; {seed if row.trained else 'none'}.json"
                run = paper / "runs" / f"{task}-{number}-{seed}"
                if not path.exists():
                    began = time.perf_counter()
                    result = figures(task, row.make(seed, run), watching, data)
                    result["seconds"] = time.perf_counter() - began
                    write_atomically(path, json.dumps(result).encode())
                    print(f"{path.stem}: {result['seconds']:.0f} s", flush=True)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    lines = [f"{json.dumps(name)}: {json.dumps(one)}" for name, one in found.items()]
    options.kept.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    text = printed(found)
    options.kept.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
