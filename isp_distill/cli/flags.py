"""The flags of ``isp-distill train``: one for each field of TrainSettings, with its own help.

Names, defaults and help come from the dataclass and its docstring, so that the shell and Python
cannot say different things.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable
from typing import Any

from isp_distill.files.toml import tomllib
from isp_distill.models.match import Match, matches_of
from isp_distill.ops.unprocess.noise import NOISE_PRESETS, NoiseModel
from isp_distill.training.settings import CHOICES, FLAGS, VALUES, WHOLE, TrainSettings


def add_settings(parser: argparse._ArgumentGroup) -> None:
    """A flag for every setting; those that are not given leave no trace in the namespace."""
    said = explained()
    for one in dataclasses.fields(TrainSettings):
        shape = _shape(one.name)
        default = "" if one.default is None else f" (default: {_default(one.default)})"
        parser.add_argument(
            f"--{one.name.replace('_', '-')}",
            dest=one.name,
            default=argparse.SUPPRESS,
            help=(said[one.name] + default).replace("%", "%%"),
            **shape,
        )
    parser.add_argument(
        "--restart", dest="resume", action="store_false", default=argparse.SUPPRESS,
        help="the same as --no-resume: ignore the checkpoint in --out",
    )  # fmt: skip


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags."""
    given = vars(arguments)
    return {f.name: given[f.name] for f in dataclasses.fields(TrainSettings) if f.name in given}


def explained() -> dict[str, str]:
    """What the docstring of :class:`TrainSettings` says of each field, as plain text.

    Empty strings where docstrings are stripped (``python -OO``).
    """
    text = TrainSettings.__doc__ or ""
    part = text.partition("Attributes:")[2].partition("Raises:")[0]
    found: dict[str, str] = {f.name: "" for f in dataclasses.fields(TrainSettings)}
    for name, words in re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", part, re.MULTILINE):
        found[name] = re.sub(r":\w+:`~?([^`]*)`", r"\1", " ".join(words.split())).rstrip(".")
    return found


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)


def _shape(name: str) -> dict[str, Any]:
    """How argparse reads a setting."""
    if name in FLAGS:
        return {"action": argparse.BooleanOptionalAction}
    if name in VALUES:
        return {"type": _reader(name), "metavar": "TOML" if name == "augmentation" else "VALUE"}
    if name in ("crop_area", "crop_ratio"):
        return {"type": float, "nargs": 2, "metavar": ("LEAST", "LARGEST")}
    if name == "dense_size":
        return {"type": _sides, "metavar": "SIDE or HEIGHTxWIDTH"}
    if name == "boxes":
        return {"metavar": "FILE"}
    if name in CHOICES:
        return {"choices": CHOICES[name]}
    if name == "match":
        return {"type": matches, "metavar": "TOML"}
    if name in ("objective", "device", "student_output"):
        return {"metavar": "NAME"}
    return {"type": int if name in WHOLE else float, "metavar": "N" if name in WHOLE else "X"}


def _sides(text: str) -> int | list[int]:
    try:
        sides = [int(side) for side in text.split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(f"{text!r} is no side, and no HEIGHTxWIDTH")
    return sides if len(sides) == 2 else sides[0]


def matches(text: str) -> tuple[Match, ...] | None:
    """A name, an inline table of a match's fields, or an array of both."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if set(text) & set("[{="):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no name, and no array such as "
                '\'["logits", {student = "blocks.8", teacher = "blocks.11", weight = 0.5}]\''
            ) from None
        value = text
    try:
        return matches_of(value)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _reader(name: str) -> Callable[[str], Any]:
    """Reads a setting that is a value of its own: a number, a name, or an inline table of TOML."""

    def read(text: str) -> Any:
        if name == "noise" and text in NOISE_PRESETS:
            return NoiseModel.preset(text)
        if name == "noise" and text == "random":
            return NoiseModel()
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            raise argparse.ArgumentTypeError(f"{text!r} is {_EXPECTED[name]}") from None
        if name == "noise" and isinstance(value, (int, float)):
            value = {"shot": value}
        if not isinstance(value, dict) and not (name == "exposure" and value is not None):
            raise argparse.ArgumentTypeError(f"{text!r} is {_EXPECTED[name]}")
        try:
            return getattr(TrainSettings.from_plain({name: value}), name)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


_EXPECTED = {
    "exposure": "no factor, no pair such as '[0.03, 1]', and no table such as "
    "'{factor = 0.1, noise = {shot = 0.001}}'",
    "noise": f"none of {', '.join(NOISE_PRESETS)}, random, a shot noise, or a table such as "
    "'{shot = 0.001, read = 1e-5}'",
    "augmentation": "no table such as '{exposure_stops = [-1, 1], red = [0.8, 1.2]}'",
}
