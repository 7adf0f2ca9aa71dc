"""The shell's ``train``, ``evaluate`` and ``export``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from isp_distill.cli.arguments import (
    TEACHER,
    Command,
    add_json,
    add_labels,
    add_picture,
    add_trust,
    chosen_labels,
)
from isp_distill.cli.flags import add_settings, given_settings
from isp_distill.data.sensor_files import is_sensor_folder
from isp_distill.data.sensor_folder import SensorFolder
from isp_distill.data.source import Source
from isp_distill.exports.export import export
from isp_distill.exports.model_card import card_of
from isp_distill.exports.precision import PRECISIONS
from isp_distill.files.disk import check_writable
from isp_distill.isp.camera import ISP
from isp_distill.models.loaded_weights import load_weights
from isp_distill.models.student import student_module
from isp_distill.models.teacher import Teacher, as_teacher
from isp_distill.models.trained_view import fixed_view
from isp_distill.raw.image import RawImage, read_raw
from isp_distill.raw.packings import PACKED
from isp_distill.reports.evaluation import evaluate
from isp_distill.sources import open_source
from isp_distill.students.description import description_of
from isp_distill.students.saved import load
from isp_distill.training.checkpoint import load_checkpoint
from isp_distill.training.config import RunConfig
from isp_distill.training.settings import TrainSettings
from isp_distill.training.train import train

_OUT = "runs/isp-distill"
_DATA = "folder of RAW files, sensor dumps or pictures, or a packed one"


def add_train(command: Command) -> None:
    """``isp-distill train``."""
    one = command("train", _train, "distil an RGB teacher into a RAW student")
    one.add_argument(
        "data", nargs="*", help=f"{_DATA}; several, one after another, are one dataset"
    )
    one.add_argument(
        "--config", metavar="FILE",
        help="a run as TOML, such as the config.toml that each run leaves; flags come before it",
    )  # fmt: skip
    one.add_argument("--teacher", help=TEACHER)
    one.add_argument(
        "--student",
        help="MODULE:FUNCTION of yours that returns one; default: rawify, which makes it of the "
        "teacher",
    )
    one.add_argument("--out", help=f"folder of the run; default: {_OUT}")
    one.add_argument("--validation", help="folder to measure agreement on")
    one.add_argument("--validation-labels", metavar="FILE", help="its file of labels")
    one.add_argument("--validation-label-maps", metavar="FOLDER", help="its label maps")
    add_labels(one)
    add_picture(one)
    add_picture(one, "validation-picture", " of the validation")
    one.add_argument(
        "--live-teacher", action="store_true", help="packed data: do not use its stored logits"
    )
    settings = one.add_argument_group("settings", "the fields of isp_distill.TrainSettings")
    add_settings(settings)
    add_json(one)
    one.add_argument(
        "--quiet", action="store_const", const=False, dest="progress", default=argparse.SUPPRESS,
        help="no progress bars, as --no-progress",
    )  # fmt: skip


def add_evaluate(command: Command) -> None:
    """``isp-distill evaluate``."""
    text = "agreement of a RAW student with its teacher"
    one = command("evaluate", _evaluate, text)
    one.add_argument("data", nargs="+", help=f"{_DATA}; several are one dataset")
    one.add_argument("--teacher", required=True, help=TEACHER)
    add_labels(one)
    add_picture(one)
    student = one.add_mutually_exclusive_group()
    student.add_argument(
        "--run", dest="saved", help="the student of a run's folder, or a saved student's"
    )
    student.add_argument(
        "--checkpoint", help="of isp-distill train, or its folder; with neither: the untrained "
        "student"
    )  # fmt: skip
    add_trust(one)
    _add_output(one)
    one.add_argument("--views", type=int, default=1, help="crops a file, 1 to 5")
    one.add_argument(
        "--dense-size", type=int, metavar="SIDE",
        help="side at which dense logits are compared; default: the teacher's own",
    )  # fmt: skip
    one.add_argument(
        "--boxes", metavar="FILE", help="of detectors: the true boxes of the data, a COCO JSON"
    )
    one.add_argument("--batch-size", type=int, default=16)
    one.add_argument(
        "--crop", type=int, help="side of the mosaics; default: what the student was trained with, "
        "or twice the teacher's"
    )  # fmt: skip
    one.add_argument("--exposure", type=float, help="the student sees this share of the light")
    one.add_argument("--device", help="default: cuda if there is one")
    one.add_argument("--workers", type=int, default=2)
    one.add_argument("--seed", type=int, default=0)
    add_json(one)
    one.add_argument("--quiet", action="store_true", help="no progress bar")


def add_export(command: Command) -> None:
    """``isp-distill export``."""
    one = command("export", _export, "write a student as ONNX or as a torch.export program")
    one.add_argument("out", help="ends in .onnx or .pt2")
    one.add_argument("--run", dest="student", help="a run's folder, or a saved student's")
    add_trust(one)
    one.add_argument("--teacher", help=f"in place of --run: {TEACHER}")
    one.add_argument(
        "--checkpoint", help="with --teacher: of isp-distill train, or its folder; without: the "
        "untrained student"
    )  # fmt: skip
    _add_output(one)
    one.add_argument(
        "--camera", metavar="RAW",
        help="build in the camera of this file, or of a folder of sensor dumps with its "
        "sensor.toml; without: it is an input",
    )  # fmt: skip
    one.add_argument(
        "--crop", type=int, help="side of the mosaics that it sees; default: what it was trained "
        "with"
    )  # fmt: skip
    one.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"),
        help="of the mosaics that come in, if larger than the crop: the middle is binned and used",
    )  # fmt: skip
    one.add_argument("--batch", type=int, help="a fixed batch size; default: any")
    one.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="int8_signed is fast in onnxruntime on ARM and x86 with VNNI, and wrong on other x86",
    )
    one.add_argument(
        "--calibration",
        metavar="FOLDER",
        help="of both int8 forms: RAW files like those that it will see",
    )
    one.add_argument(
        "--packing", choices=PACKED, help="take the sensor's bytes, whose codes are packed so"
    )


def _add_output(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--student-output", metavar="NAME",
        help="the part of what the student returns that counts; default: what it was trained with",
    )  # fmt: skip


def _train(a: argparse.Namespace) -> None:
    run = _chosen(a)
    first = os.environ.get("RANK", "0") == "0"  # of several processes, torchrun's first one speaks
    out = run.out or _OUT
    if first:
        check_writable(Path(out))  # before a teacher is fetched
    assert run.data is not None
    assert run.teacher is not None
    settings = TrainSettings.from_plain(run.settings)
    data = source(
        run.data, run.label_maps, run.labels, picture=run.picture,
        use_stored_teacher=not run.live_teacher,
    )  # fmt: skip
    validation = None
    if run.validation is not None:
        # Their label maps and files of labels are given apart; folders are classes in both.
        labels = run.validation_labels or (run.labels is True and run.validation_label_maps is None)
        validation = source(
            run.validation, run.validation_label_maps, labels, picture=run.validation_picture
        )
    result = train(
        run.student or "rawify",
        run.teacher,
        data,
        out=out,
        validation=validation,
        settings=settings,
    )
    if not first:
        return
    reports = {"before": result.before, "after": result.after}
    if a.json:
        figures = {k: None if v is None else dataclasses.asdict(v) for k, v in reports.items()}
        more = {"steps": result.steps, "seconds": result.seconds, "out": str(result.out)}
        print(json.dumps({**figures, **more, "skipped": result.skipped}, indent=1))
        return
    for name, report in reports.items():
        if report is not None:
            print(f"{name}: {report}")
    print(f"report, checkpoint and pictures: {result.out}")


def _chosen(a: argparse.Namespace) -> RunConfig:
    """The run that flags and the file of ``--config`` describe together.

    Raises:
        ValueError: neither names a teacher, or the data.
    """
    config = RunConfig() if a.config is None else RunConfig.read(a.config)
    names = ("student", "teacher", "label_maps", "picture", "out")
    measured = ("validation", "validation_labels", "validation_label_maps", "validation_picture")
    given: dict[str, Any] = {
        name: value for name in (*names, *measured) if (value := getattr(a, name)) is not None
    }
    if a.data:
        given["data"] = a.data if len(a.data) > 1 else a.data[0]
    for name in ("labels", "live_teacher"):
        given[name] = getattr(a, name) or getattr(config, name)
    run = dataclasses.replace(config, **given, settings={**config.settings, **given_settings(a)})
    for name, how in (("data", "the folder to train on"), ("teacher", f"--teacher, {TEACHER}")):
        if getattr(run, name) is None:
            where = "" if a.config is None else f", or {name} = ... in {a.config}"
            raise ValueError(f"train: {name} is missing: give {how}{where}")
    return run


def source(
    data: str | list[str],
    label_maps: str | None,
    labels: bool | str,
    *,
    picture: str | None = None,
    use_stored_teacher: bool = True,
) -> Source:
    """The dataset of a folder, or of several, with labels; see ``open_source``.

    Args:
        data: paths of RAW files, of pictures, or packed.
        label_maps: the folder of label maps, if any.
        labels: the first folder below it is a file's class; or a file of labels.
        picture: the cameras' own pictures, if any.
        use_stored_teacher: see :class:`isp_distill.PackedRaw`.

    Raises:
        ValueError: classes are asked for, and cannot be had.
        FileNotFoundError: a folder is missing, or not packed where it must be.
    """
    if labels and label_maps is not None:
        raise ValueError("--labels are classes of whole files, --label-maps of pixels: give one")
    return open_source(
        data, label_maps, labels=chosen_labels(labels), picture=picture,
        use_stored_teacher=use_stored_teacher,
    )  # fmt: skip


def _trained(
    name: str, checkpoint: str | None, output: str | None
) -> tuple[Teacher, nn.Module, str | None]:
    """A teacher, the student that ``isp-distill train`` made of it, and which output counts.

    The untrained student without a checkpoint, which is read before the teacher is fetched.
    """
    if checkpoint and (Path(checkpoint) / "checkpoint.pt").is_file():  # a run's folder
        checkpoint = str(Path(checkpoint) / "checkpoint.pt")
    state = load_checkpoint(Path(checkpoint)) if checkpoint else None
    settings = {} if state is None else state["settings"]
    teacher = as_teacher(name)
    if (tone := settings.get("tone")) is not None:
        teacher = dataclasses.replace(teacher, tone=tone)
    # Checkpoints from before there was a choice hold students that began with superpixels.
    demosaic = None if state is None else settings.get("demosaic", "superpixel")
    student = student_module("rawify", teacher, settings.get("curve"), demosaic)
    if checkpoint and state is not None:
        load_weights(Path(checkpoint), student, state.get("average") or state["student"])
        output = output or settings.get("student_output")
    return teacher, student, output


def _saved(
    run: str, output: str | None, trust: list[str], model: nn.Module | None = None
) -> tuple[nn.Module, str | None]:
    """The student of a run, and which output counts; ``model`` is the one that it was made of."""
    try:
        student = load(run, trust=trust)
    except ValueError:
        # Neither timm's nor a trusted function's: perhaps the teacher's own architecture.
        if model is None:
            raise
        student = load(run, model=model, trust=trust)
    described = description_of(student)
    return student, output or (None if described is None else described.reads)


def _evaluate(a: argparse.Namespace) -> None:
    given = a.data if len(a.data) > 1 else a.data[0]
    data = source(given, a.label_maps, a.labels, picture=a.picture)
    if a.saved is None:
        teacher, student, output = _trained(a.teacher, a.checkpoint, a.student_output)
    else:
        teacher = as_teacher(a.teacher)
        student, output = _saved(a.saved, a.student_output, a.trust, teacher.module)
        described = description_of(student)
        trained = None if described is None else described.training
        if trained is not None and trained.get("tone") is not None:
            teacher = dataclasses.replace(teacher, tone=trained["tone"])
    report = evaluate(
        student,
        teacher,
        data,
        views=a.views,
        crop=a.crop,
        dense_size=a.dense_size,
        exposure=a.exposure,
        batch_size=a.batch_size,
        device=a.device,
        workers=a.workers,
        seed=a.seed,
        student_output=output,
        boxes=a.boxes,
        progress=not a.quiet,
    )
    print(json.dumps(dataclasses.asdict(report), indent=1) if a.json else report)


def _export(a: argparse.Namespace) -> None:
    raw = None if a.camera is None else _camera(Path(a.camera))
    if (a.student is None) == (a.teacher is None):
        raise ValueError("export: give --run, a run's folder, or --teacher, but not both")
    output: str | None = a.student_output
    if a.student is not None:
        student, output = _saved(a.student, output, a.trust)
        usual = 448
    else:
        teacher, student, output = _trained(a.teacher, a.checkpoint, output)
        usual = 2 * teacher.size
    view = fixed_view(student, a.crop, None, usual)
    written = export(
        student,
        a.out,
        isp=None if raw is None else ISP.from_raw(raw),
        crop=view.crop,
        size=a.size,
        binning=None if a.size is None else view.binning,
        batch=a.batch,
        packing=a.packing,
        precision=a.precision,
        calibration=a.calibration,
        output=output,
    )
    print(written)
    print(card_of(written))


def _camera(path: Path) -> RawImage:
    """A file's image, or the first frame of a folder of sensor dumps."""
    return SensorFolder(path)[0] if is_sensor_folder(path) else read_raw(path)
