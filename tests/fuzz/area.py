"""What an area of the fuzzer is: inputs by number, and what may come of one."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tally:
    """How many inputs were tried, what became of them, and what was wrong.

    Attributes:
        tried: inputs.
        refused: those that ended in one of this library's own errors.
        faults: by the input's number, what was wrong.
    """

    tried: int = 0
    refused: int = 0
    faults: dict[int, str] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818 - not an error: what should become of a damaged input
    """The input was refused as it should be."""


def refusal(error: Exception, path: Path) -> Exception:
    """What an error of this library is: a refusal where it names the file, else a fault."""
    if str(path) in str(error):
        return Refused()
    return AssertionError(f"the error does not name {path.name}: {error!r}")


#: Tries one input, by its number, with a folder to work in; raises Refused, or what is wrong.
Attempt = Callable[[int, Path], None]


def attempt_one(attempt: Attempt, number: int, folder: Path, tally: Tally) -> None:
    """Try one input and count what became of it."""
    tally.tried += 1
    try:
        attempt(number, folder)
    except Refused:
        tally.refused += 1
    except Exception:
        tally.faults[number] = traceback.format_exc()
