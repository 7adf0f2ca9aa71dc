"""What several commands of the shell take."""

from __future__ import annotations

import argparse
from typing import Protocol

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
    one.add_argument(
        "--labels", action="store_true",
        help="the first folder is a file's class; a packed folder has its own labels",
    )  # fmt: skip
