"""``sensor.toml``: what the frames of a folder are, said once for all and again where they differ.

::

    format = "SRGGB10_CSI2P"        # or packing, bits and pattern
    width = 1920
    height = 1080
    black = 64
    white_balance = [2.1, 1.0, 1.6]
    companding = [[0, 0], [512, 512], [1023, 65535]]  # of an HDR sensor; levels are then linear

    [files."night/*.raw"]           # a glob below the folder, or a sub-folder: "night"
    exposure_time = 0.5

Beside a file ``a.raw``, ``a.raw.toml``, ``a.toml`` or their ``.json`` change what is of that shot
alone: exposure, gains, levels, orientation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isp_distill.errors import RawError, UnsupportedRawError
from isp_distill.files.chosen import matches
from isp_distill.files.toml import tomllib
from isp_distill.files.tree import is_file
from isp_distill.raw.sensor_format import SensorFormat, tuples

SENSOR_TOML = "sensor.toml"
#: What a file's own description may say.
OF_A_SHOT = (
    *("exposure_time", "iso", "white_balance", "ccm", "black", "white", "orientation", "camera"),
)
# No description of a shot is larger; a lying one is not read into memory.
_MOST_BYTES = 1 << 20


class SensorDescription:
    """What a ``sensor.toml`` says, or one format for all files.

    Args:
        root: the folder that it describes.
        form: one format for all; None reads ``sensor.toml``.

    Raises:
        FileNotFoundError: there is no ``sensor.toml``.
        ValueError: it is no TOML, or says something that a format has not; the message names the
            file and the key.
    """

    def __init__(self, root: Path, form: SensorFormat | None = None) -> None:
        self._form, self._values, self._sections = form, {}, list[tuple[str, dict[str, Any]]]()
        if form is not None:
            return
        path = root / SENSOR_TOML
        values = _read(path)
        sections = values.pop("files", {})
        if not isinstance(sections, Mapping) or not all(
            isinstance(one, Mapping) for one in sections.values()
        ):
            raise ValueError(f'{path}: files must be tables, such as [files."night/*.raw"]')
        self._values = values
        self._sections = [(name, dict(one)) for name, one in sections.items()]
        # Whatever is wrong in it is said before a file is opened.
        for where, one in [("", values), *((f"[files.{n!r}] ", v) for n, v in self._sections)]:
            try:
                SensorFormat.from_plain({**values, **one})
            except (TypeError, ValueError) as error:
                if where or not self._sections:
                    raise ValueError(f"{path}: {where}{error}") from error

    def of(self, path: Path, name: str) -> SensorFormat:
        """The format of a file.

        Args:
            path: of the file.
            name: below the folder, with forward slashes.

        Raises:
            RawError: nothing says what it is, or what lies beside it cannot be used.
        """
        try:
            form = self._form
            if form is None:
                values = dict(self._values)
                for pattern, section in self._sections:
                    if matches(name, pattern):
                        values.update(section)
                form = SensorFormat.from_plain(values)
            own = _beside(path)
            return form.replace(**own) if own else form
        except RawError:
            raise
        except (TypeError, ValueError) as error:
            raise UnsupportedRawError(path, f"what describes it: {error}") from error


def _beside(path: Path) -> dict[str, Any]:
    """What a file's own description says."""
    for suffix in (".toml", ".json"):
        for beside in (path.with_name(path.name + suffix), path.with_suffix(suffix)):
            if beside.name == SENSOR_TOML or not is_file(beside):
                continue
            values = _read(beside)
            unknown = sorted(set(values) - set(OF_A_SHOT))
            if unknown:
                raise ValueError(
                    f"{beside} says {unknown[0]!r}: of one shot there are {', '.join(OF_A_SHOT)}"
                )
            return {k: tuples(v) for k, v in values.items()}
    return {}


def _read(path: Path) -> dict[str, Any]:
    """A table from TOML or JSON.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none.
    """
    if os.stat(path).st_size > _MOST_BYTES:
        raise ValueError(f"{path}: is larger than any description ({_MOST_BYTES} bytes)")
    try:
        text = path.read_text("utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ValueError(f"{path}: is no {kind} ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: is no table of names and values")
    return values
