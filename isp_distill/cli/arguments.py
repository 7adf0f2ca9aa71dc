"""What several commands of the shell take."""

from __future__ import annotations

import argparse
from typing import Protocol

from isp_distill.data.label_file import is_label_file

TEACHER = "a pretrained timm model, or MODULE:FUNCTION of yours that returns a Teacher"


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that names a default where there is something to name."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class Command(Protocol):
    """Makes the parser of one command."""

    def __call__(self, name: str, run: object, text: str) -> argparse.ArgumentParser:
        """The parser of a command of this name, which runs ``run`` and is described by ``text``."""
        ...


def add_labels(one: argparse.ArgumentParser) -> None:
    """The flags of labels in files and folders."""
    one.add_argument(
        "--label-maps", metavar="FOLDER",
        help="a class for every pixel: FOLDER/a/b.png (or .npy) for a/b.dng of the data",
    )  # fmt: skip
    add_classes(one, "; a packed folder has its own labels")


def add_picture(one: argparse.ArgumentParser, name: str = "picture", of: str = "") -> None:
    """The flag of the cameras' own pictures."""
    one.add_argument(
        f"--{name}", metavar="WHERE",
        help=f"the cameras' own pictures{of}, which the teacher sees: embedded (in the RAW file), "
        "beside (it), or a folder where a/b.jpg is that of a/b.dng",
    )  # fmt: skip


def add_classes(one: argparse.ArgumentParser, more: str = "") -> None:
    """The flag of classes of whole files: alone, or with a file of them."""
    one.add_argument(
        "--labels", nargs="?", const=True, default=False, type=_label_file, metavar="FILE",
        help="alone: the first folder is a file's class; or a CSV with the header path,label, or "
        f"JSON lines with these keys{more}",
    )  # fmt: skip


def add_trust(one: argparse.ArgumentParser) -> None:
    """The flag that allows a saved student to call a function."""
    one.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE",
        help="call this package's function that makes the model, where a saved student names one",
    )  # fmt: skip


def add_json(one: argparse.ArgumentParser) -> None:
    """The flag of what prints its figures for another program."""
    one.add_argument("--json", action="store_true", help="print the figures as JSON")


def _label_file(text: str) -> str:
    if not is_label_file(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} does not end in .csv or .jsonl, as a file of labels does (where --labels "
            "stands alone, give the data first)"
        )
    return text


def chosen_labels(given: bool | str) -> str | None:
    """What ``--labels`` says, as folders take it."""
    return given if isinstance(given, str) else "folder" if given else None
