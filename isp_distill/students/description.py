"""``config.json``: what a saved student is, beside its weights.

It is data and nothing else: nothing in it is executed but a function that the caller of
:func:`isp_distill.load` allowed by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from isp_distill.arguments import shown
from isp_distill.models.trained_view import students_in
from isp_distill.raw.sensor_format import SensorFormat
from isp_distill.storage.field_checks import (
    Check,
    any_object,
    listed,
    one_of,
    optional,
    text,
    whole,
)
from isp_distill.students.architecture import Architecture
from isp_distill.version import __version__

FORMAT = "isp-distill student"
VERSION = 1
#: What a student may predict of a view.
OUTPUTS = ("classes", "class map", "embedding", "boxes")

_POSITIVE = whole(1, 1 << 40)
_FIELDS: dict[str, Check] = {
    "weights": text,
    "library": text,
    "output": one_of(*OUTPUTS),
    "shape": listed(_POSITIVE, 1, 3),
    "reads": optional(text),
    "crop": optional(_POSITIVE),
    "binning": optional(_POSITIVE),
    "classes": optional(listed(text, 0, 1 << 24)),
    "exposure": optional(any_object),
    "training": optional(any_object),
    "sensor": optional(any_object),
}


@dataclass(frozen=True)
class StudentDescription:
    """What a saved student is.

    Attributes:
        architecture: how its modules are made.
        weights: BLAKE2b of ``model.safetensors``, hexadecimal.
        output: "classes", "class map", "embedding" or "boxes".
        shape: of one view's output: ``[C]`` or ``[C, h, w]``; of a detector's heads, ``[places,
            K + 4]``.
        reads: which part of what the model returns: a key, or MODULE:FUNCTION; None for the usual.
        crop: side of the mosaics that it sees, sensor pixels; None where it was never trained.
        binning: see :class:`isp_distill.View`.
        classes: their names, or None.
        exposure: the short exposure that it was trained at, as plain values, or None.
        sensor: the sensor format of the frames that it was trained on, where all had one.
        training: how it was trained: steps, objective, temperature, its teacher's fingerprint, and
            its agreement; empty where it was not by ``train``.
        library: version that wrote it.
    """

    architecture: Architecture
    weights: str
    output: str
    shape: tuple[int, ...]
    reads: str | None = None
    crop: int | None = None
    binning: int | None = None
    classes: tuple[str, ...] | None = None
    exposure: dict[str, Any] | None = None
    sensor: SensorFormat | None = None
    training: dict[str, Any] | None = None
    library: str = __version__

    def text(self) -> str:
        """The file's content."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["architecture"] = self.architecture.plain()
        values["sensor"] = None if self.sensor is None else asdict(self.sensor)
        return json.dumps({"format": FORMAT, "version": VERSION, **values}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> StudentDescription:
        """From its file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not ours, of a later version, or says something that no student has.
        """
        try:
            values = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: is no JSON ({error})") from error
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise ValueError(f"{path}: describes no student that isp-distill saved")
        if values.get("version") != VERSION:
            raise ValueError(
                f"{path}: is of version {shown(values.get('version'))}, this library reads "
                f"{VERSION}: install the version of isp-distill that wrote it "
                f"({shown(values.get('library'))})"
            )
        try:
            return cls._checked({k: v for k, v in values.items() if k not in ("format", "version")})
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _checked(cls, values: dict[str, Any]) -> StudentDescription:
        unknown = sorted({f.name for f in fields(cls)} ^ set(values))
        if unknown:
            raise ValueError(f"{unknown[0]} is {'missing' if unknown[0] not in values else 'new'}")
        for name, check in _FIELDS.items():
            check(values[name], name)
        axes = (2,) if values["output"] == "boxes" else (1, 3)
        if len(values["shape"]) not in axes:
            raise ValueError(f"shape is {shown(values['shape'])}")
        sensor = values["sensor"]
        return cls(
            **{
                **values,
                "architecture": Architecture.from_plain(values["architecture"]),
                "shape": tuple(values["shape"]),
                "classes": None if values["classes"] is None else tuple(values["classes"]),
                "sensor": None if sensor is None else SensorFormat.from_plain(sensor),
            }
        )


def description_of(student: object) -> StudentDescription | None:
    """What the files of a student say of it, if it was saved or loaded."""
    found = (module.description for module in students_in(student))
    return next((one for one in found if isinstance(one, StudentDescription)), None)
