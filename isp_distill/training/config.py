"""``config.toml``: a run in a file, which ``isp-distill train --config`` reads again.

Above stands what the run is made of, in the shell's words (``teacher``, ``data``, ``out``, ...);
the table ``settings`` holds the fields of :class:`isp_distill.TrainSettings`. What is left out has
its default. TOML has no word for nothing: a setting of None is left out too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import tomli_w
from torch import nn

from isp_distill.arguments import nearest, shown
from isp_distill.data.folder import RawFolder
from isp_distill.data.image_folder import ImageFolder
from isp_distill.data.label_file import is_label_file
from isp_distill.data.sensor_folder import SensorFolder
from isp_distill.data.several_folders import SeveralFolders
from isp_distill.files.atomic import write_atomically
from isp_distill.files.listed import is_list_of_files
from isp_distill.files.toml import tomllib
from isp_distill.models.teacher import Teacher
from isp_distill.packs.reader import PackedRaw
from isp_distill.sources import Data
from isp_distill.training.job import Job
from isp_distill.training.settings import TrainSettings
from isp_distill.version import __version__


@dataclass(frozen=True)
class RunConfig:
    """What a run is made of, as far as a file can say it.

    Attributes:
        student: "rawify", or MODULE:FUNCTION.
        teacher: a timm name, or MODULE:FUNCTION; None where it was made in Python.
        data: the path of a folder or a file, or a list of folders or of files; None where it was a
            dataset in Python.
        labels: True: the first folder is a file's class; or the path of a file of labels.
        label_maps: the folder of a class for every pixel.
        picture: the cameras' own pictures, for the teacher: "embedded", "beside" or a folder.
        live_teacher: of packed data, do not use the stored logits.
        validation: like ``data``.
        validation_labels: its file of labels; its folders are classes where ``labels`` is True.
        validation_label_maps: its label maps.
        validation_picture: its pictures.
        out: the run's folder.
        settings: fields of :class:`TrainSettings`, in plain values.
    """

    student: str | None = None
    teacher: str | None = None
    data: str | list[str] | None = None
    labels: bool | str = False
    label_maps: str | None = None
    picture: str | None = None
    live_teacher: bool = False
    validation: str | list[str] | None = None
    validation_labels: str | None = None
    validation_label_maps: str | None = None
    validation_picture: str | None = None
    out: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RunConfig:
        """A run from its file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no TOML, or says something that a run has not; the message names the
                file and the key.
        """
        try:
            with open(path, "rb") as file:
                values = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: is no TOML file ({error})") from error
        for name, value in values.items():
            _check(str(path), name, value)
        config = cls(**values)
        try:
            TrainSettings.from_plain(config.settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: settings: {error}") from error
        return config

    def text(self) -> str:
        """The file's content."""
        values = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if value is not None and value is not False
        }
        head = [f"# isp-distill {__version__}. Again: isp-distill train --config FILE"]
        for name in ("student", "teacher", "data"):
            if getattr(self, name) is None:
                head.append(f"# Its {name} was made in Python, which a file cannot say.")
        return "\n".join([*head, "", tomli_w.dumps(_without_none(values))])


def write_config(
    job: Job,
    student: nn.Module | str,
    teacher: Teacher | nn.Module | str,
    data: Data,
    validation: Data | None,
) -> None:
    """Leave ``config.toml`` in the run's folder.

    Raises:
        OSError: it cannot be written.
    """
    if not job.processes.first:
        return
    seen = _described(data)
    measured = {} if validation is None else _described(validation)
    config = RunConfig(
        student=student if isinstance(student, str) else None,
        teacher=teacher if isinstance(teacher, str) else None,
        **seen,
        validation=measured.get("data"),
        validation_labels=None if isinstance(own := measured.get("labels"), bool) else own,
        validation_label_maps=measured.get("label_maps"),
        validation_picture=measured.get("picture"),
        out=str(job.folder),
        settings=job.settings.plain(),
    )
    write_atomically(job.folder / "config.toml", config.text().encode("utf-8", "surrogateescape"))


def _described(data: Data) -> dict[str, Any]:
    """The fields of a :class:`RunConfig` that say which data these are; none for other datasets."""
    if isinstance(data, (str, os.PathLike)):
        return {"data": str(data)}
    if is_list_of_files(data):
        return {"data": [str(one) for one in cast("Sequence[str | os.PathLike[str]]", data)]}
    if isinstance(data, SeveralFolders):
        return data.stated or {}
    if not isinstance(data, (RawFolder, SensorFolder, ImageFolder, PackedRaw)):
        return {}
    maps = data.label_maps
    found: dict[str, Any] = {"label_maps": None if maps is None else str(maps.root)}
    if isinstance(data, PackedRaw):
        return {**found, "data": str(data.path), "live_teacher": not data.use_stored_teacher}
    if not data.is_whole:
        return {}  # some of its files: a path would say all
    labels = data.labels_from
    if not isinstance(data, ImageFolder) and data.pictures is not None:
        found["picture"] = data.pictures.where
    return {**found, "data": str(data.root), "labels": labels == "folder" or labels or False}


def _check(path: str, name: str, value: Any) -> None:
    """Refuse a key that a run has not, or a value of another type."""
    known = {f.name: f.default for f in dataclasses.fields(RunConfig)}
    if name not in known:
        raise ValueError(f"{path}: has no key {name!r}: {_hint(name, known)}")
    if value == "" or (isinstance(value, list) and "" in value):
        raise ValueError(f"{path}: {name} is empty, which is no path and no name: leave it out")
    if name in ("data", "validation") and isinstance(value, list) and value:
        value = next((part for part in value if not isinstance(part, str)), "")
    kind: type = dict if name == "settings" else bool if known[name] is False else str
    if not isinstance(value, kind) and not (name == "labels" and is_label_file(value)):
        expected = {dict: "a table", bool: "true or false", str: "a string"}[kind]
        expected += ", or a file that ends in .csv or .jsonl" if name == "labels" else ""
        raise ValueError(f"{path}: {name} must be {expected}, got {shown(value)}")


def _hint(name: str, known: Mapping[str, Any]) -> str:
    """What somebody may have meant by a key that there is none of."""
    if near := nearest(name, known):
        return near
    if name in TrainSettings.__dataclass_fields__:
        return "it belongs in [settings]"
    return f"there are {', '.join(known)}"


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(part) for part in value]
    return value
