"""The exceptions a user of isp-distill can meet beside ValueError and TypeError."""

from __future__ import annotations

import os


class RawError(Exception):
    """A RAW file could not be used; ``path`` names the file and ``reason`` says why.

    Args:
        path: the file.
        reason: one sentence, in plain words.
    """

    def __init__(self, path: str | bytes | os.PathLike[str], reason: str) -> None:
        self.path = os.fsdecode(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")

    def __reduce__(self) -> tuple[type[RawError], tuple[str, str]]:
        # Exceptions cross from decode workers to the trainer; the default would pass one argument.
        return type(self), (self.path, self.reason)


class CorruptRawError(RawError):
    """The file is damaged: truncated, zeroed, not the size it says, or LibRaw died on it."""


class UnsupportedRawError(RawError):
    """The file is sound but holds no Bayer mosaic: X-Trans, Foveon, monochrome, demosaiced DNG."""


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve this call; the message says why."""
