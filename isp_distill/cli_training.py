"""The shell's ``train``, ``evaluate`` and ``export``: what they hand to the Python functions."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import nn

    from isp_distill.data.source import Source
    from isp_distill.models.teacher import Teacher


def source(
    path: str, label_maps: str | None, labels: bool, *, use_stored_teacher: bool = True
) -> Source:
    """The dataset of a folder, with its labels.

    Args:
        path: of RAW files, of pictures, or packed.
        label_maps: the folder of its label maps, if any.
        labels: the first folder below it is a file's class.
        use_stored_teacher: see :class:`isp_distill.PackedRaw`.

    Raises:
        ValueError: classes are asked for, and cannot be had.
        FileNotFoundError: the folder is missing, or not packed where it must be.
    """
    from isp_distill.data.folder import RawFolder
    from isp_distill.data.image_folder import ImageFolder
    from isp_distill.packs.reader import PackedRaw, is_packed
    from isp_distill.sources import open_source

    if labels and label_maps is not None:
        raise ValueError("--labels are classes of whole files, --label-maps of pixels: give one")
    if not use_stored_teacher:
        found: Source = PackedRaw(path, label_maps=label_maps, use_stored_teacher=False)
    else:
        found = open_source(path, label_maps)
    if not labels:
        return found
    if isinstance(found, ImageFolder):
        raise ValueError(f"{path}: holds pictures, and --labels are for RAW files")
    if is_packed(Path(path)):
        if isinstance(found, PackedRaw) and found.label(0) is None:
            raise ValueError(
                f"{path}: was packed without labels: pack it again with --labels (nothing is "
                "decoded anew)"
            )
        return found
    return cast("Source", RawFolder(path, labels="folder"))


def train(a: argparse.Namespace) -> None:
    """``isp-distill train``."""
    from isp_distill.files.disk import check_writable
    from isp_distill.models.teacher import teacher_by_name
    from isp_distill.training import train as training

    if os.environ.get("RANK", "0") == "0":
        check_writable(Path(a.out))  # before a teacher is fetched
    data = source(a.data, a.label_maps, a.labels, use_stored_teacher=not a.live_teacher)
    validation = None
    if a.validation is not None:
        # Their label maps are given apart; classes are the training data's.
        labels = a.labels and a.validation_label_maps is None
        validation = source(a.validation, a.validation_label_maps, labels)
    result = training.train(
        "rawify",
        teacher_by_name(a.teacher),
        data,
        out=a.out,
        steps=a.steps,
        batch_size=a.batch_size,
        validation=validation,
        objective=a.objective,
        temperature=a.temperature,
        alpha=a.alpha,
        dense_size=a.dense_size,
        lr=a.lr,
        stem_lr=a.stem_lr,
        trainable=a.trainable,
        exposure=a.exposure,
        crop=a.crop,
        crop_area=None if a.crop_area is None else tuple(a.crop_area),
        vertical_flip=a.vertical_flip,
        checkpoint_every=a.checkpoint_every,
        resume=not a.restart,
        profile=a.profile,
        device=a.device,
        workers=a.workers,
        seed=a.seed,
    )
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes, torchrun's first one speaks
    for name, report in (("before", result.before), ("after", result.after)):
        if report is not None:
            print(f"{name}: {report}")
    print(f"report, checkpoint and pictures: {result.out}")


def _trained(name: str, checkpoint: str | None) -> tuple[Teacher, nn.Module]:
    """A teacher, and the student that ``isp-distill train`` made of it.

    The untrained student without a checkpoint, which is read before the teacher is fetched.
    """
    from isp_distill.models.student import student_module
    from isp_distill.models.teacher import teacher_by_name
    from isp_distill.training.checkpoint import load_checkpoint, load_weights

    state = load_checkpoint(Path(checkpoint)) if checkpoint else None
    teacher = teacher_by_name(name)
    student = student_module("rawify", teacher)
    if checkpoint and state is not None:
        load_weights(Path(checkpoint), student, state.get("average") or state["student"])
    return teacher, student


def evaluate(a: argparse.Namespace) -> None:
    """``isp-distill evaluate``."""
    from isp_distill.reports import evaluation

    data = source(a.data, a.label_maps, a.labels)
    teacher, student = _trained(a.teacher, a.checkpoint)
    print(
        evaluation.evaluate(
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
        )
    )


def export(a: argparse.Namespace) -> None:
    """``isp-distill export``."""
    from isp_distill.isp.camera import ISP
    from isp_distill.models.export import export as exported
    from isp_distill.models.trained_view import fixed_view
    from isp_distill.raw.image import read_raw

    raw = None if a.camera is None else read_raw(a.camera)
    teacher, student = _trained(a.teacher, a.checkpoint)
    view = fixed_view(student, a.crop, None, 2 * teacher.size)
    print(
        exported(
            student,
            a.out,
            isp=None if raw is None else ISP.from_raw(raw),
            crop=view.crop,
            size=a.size,
            binning=None if a.size is None else view.binning,
            batch=a.batch,
        )
    )
