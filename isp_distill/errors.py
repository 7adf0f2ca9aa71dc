"""The exceptions a user of isp-distill can meet beside ValueError and TypeError."""

from __future__ import annotations

import os


class RawError(Exception):
    """A RAW file could not be used; ``path`` names the file and ``reason`` says why.

    Args:
        path: the file.
        reason: one sentence, in plain words.

    Examples:
        >>> try:
        ...     raw = isp_distill.read_raw("photos/damaged.dng")
        ... except isp_distill.RawError as error:
        ...     print(error.path)
        photos/damaged.dng
    """

    def __init__(self, path: str | bytes | os.PathLike[str], reason: str) -> None:
        self.path = os.fsdecode(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")

    def __reduce__(self) -> tuple[type[RawError], tuple[str, str]]:
        # Exceptions cross from decode workers to the trainer; the default would pass one argument.
        return type(self), (self.path, self.reason)


class CorruptRawError(RawError):
    """The file is damaged: truncated, zeroed, not the size it says, or LibRaw died on it.

    Examples:
        >>> try:
        ...     raw = isp_distill.read_raw("photos/damaged.dng")
        ... except isp_distill.CorruptRawError as error:
        ...     print("damaged:", error.path)
        damaged: photos/damaged.dng
    """


class UnsupportedRawError(RawError):
    """The file is sound but holds no Bayer mosaic: X-Trans, Foveon, monochrome, demosaiced DNG.

    Examples:
        >>> with open("notes.dng", "w") as file:
        ...     length = file.write("These are words, and no photograph. " * 100)
        >>> try:
        ...     raw = isp_distill.read_raw("notes.dng")
        ... except isp_distill.UnsupportedRawError as error:
        ...     print("nothing to train on:", error.path)
        nothing to train on: notes.dng
    """


class DamagedPackError(ValueError):
    """A packed folder's manifest is damaged, was edited, or is of a version that is not read.

    Args:
        folder: the packed folder.
        record: the file whose record is wrong; None where it is something about all of them.
        field: which part of it is wrong, such as ``"shape"`` or ``"fields.black"``.
        reason: one sentence, in plain words.
        advice: what to do.

    Examples:
        >>> report = isp_distill.pack("photos/raw", "packed", progress=False)
        >>> with open("packed/isp-distill.json", "w") as file:
        ...     length = file.write("{}")
        >>> try:
        ...     packed = isp_distill.PackedRaw("packed")
        ... except isp_distill.DamagedPackError as error:
        ...     print(error.folder, error.advice, sep=": ")
        packed: restore it, or pack into an empty folder
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        record: str | None,
        field: str,
        reason: str,
        advice: str = "pack again: what is damaged is packed anew",
    ) -> None:
        self.folder, self.record, self.field = os.fspath(folder), record, field
        self.reason, self.advice = reason, advice
        of = "" if record is None else f" of {record}"
        # That of another version is sound.
        what = "its manifest" if field == "version" else "its manifest is damaged"
        super().__init__(f"{self.folder}: {what}: {field}{of} {reason}; {advice}")

    def __reduce__(self) -> tuple[type[DamagedPackError], tuple[str, str | None, str, str, str]]:
        return type(self), (self.folder, self.record, self.field, self.reason, self.advice)


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve this call; the message says why.

    Examples:
        >>> student, teacher = torch.randn(2, 3), torch.randn(2, 3)
        >>> try:
        ...     with isp_distill.use_backend("cuda"):
        ...         loss = isp_distill.distill_loss(student, teacher)
        ... except isp_distill.BackendError as error:
        ...     print(str(error).split(":")[0])
        backend 'cuda' cannot serve distill_loss here
    """
