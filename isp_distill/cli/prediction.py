"""The shell's ``predict``: a student that a run left, on files."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from isp_distill.cli.arguments import Command, add_trust
from isp_distill.files.atomic import replaced
from isp_distill.files.listed import common_folder
from isp_distill.students.description import description_of
from isp_distill.students.map_files import save_class_map
from isp_distill.students.predict import predict
from isp_distill.students.prediction import Prediction, Predictions
from isp_distill.students.saved import load


def add_predict(command: Command) -> None:
    """``isp-distill predict``."""
    one = command("predict", _predict, "what a trained student says of RAW files")
    one.add_argument(
        "student", metavar="RUN",
        help="a run's folder, a saved student's, or hf-hub:OWNER/NAME of the hub",
    )  # fmt: skip
    one.add_argument("paths", nargs="+", help="RAW files, or a folder of them")
    one.add_argument("--top", type=int, default=5, help="so many of the best classes")
    form = one.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV, a line for each class or box")
    one.add_argument(
        "--save-maps", metavar="DIR", help="dense students: a PNG of classes for each file, and "
        "one with a legend"
    )  # fmt: skip
    one.add_argument(
        "--save-embeddings", metavar="FILE", help="embedding students: .npy, [N, D], in the order "
        "of the files"
    )  # fmt: skip
    add_trust(one)
    one.add_argument("--batch-size", type=int, default=16)
    one.add_argument("--device", help="default: cpu")
    one.add_argument("--workers", type=int, default=2)
    one.add_argument("--quiet", action="store_true", help="no progress bar, no list of what is "
                     "left out")  # fmt: skip


def _predict(a: argparse.Namespace) -> None:
    student = load(a.student, trust=a.trust, device=a.device)
    described = description_of(student)
    output = "classes" if described is None else described.output
    for flag, given, wanted in (
        ("--save-maps", a.save_maps, "class map"),
        ("--save-embeddings", a.save_embeddings, "embedding"),
    ):
        if given is not None and output != wanted:
            raise ValueError(f"{flag}: this student predicts {output}, no {wanted}")
    found = predict(
        student,
        a.paths if len(a.paths) > 1 else a.paths[0],
        top=a.top,
        batch_size=a.batch_size,
        workers=a.workers,
        progress=not a.quiet,
    )
    if a.save_maps is not None:
        classes = None if described is None else described.classes
        files = map_files([one.name for one in found])
        for one, file in zip(found, files, strict=True):
            assert one.class_map is not None
            save_class_map(Path(a.save_maps) / file, one.class_map, classes)
    if a.save_embeddings is not None:
        _save(Path(a.save_embeddings), found)
        found = found.replace_items([_without_embedding(one) for one in found])
    print(found.json() if a.json else found.csv().rstrip("\n") if a.csv else found)
    if a.save_maps is not None and not (a.json or a.csv):
        print(f"class maps: {a.save_maps}")
    if found.skipped and a.quiet:
        print(f"{len(found.skipped)} files could not be used", file=sys.stderr)


def map_files(names: list[str]) -> list[str]:
    """A file for each name below one folder: the path below the names' common folder."""
    common = common_folder(names)
    return [Path(name).absolute().relative_to(common).as_posix() for name in names]


def _save(path: Path, found: Predictions) -> None:
    with replaced(path, ".npy") as temporary:
        np.save(temporary, found.embeddings())


def _without_embedding(one: Prediction) -> Prediction:
    return dataclasses.replace(one, embedding=None)
