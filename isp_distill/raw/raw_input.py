"""What ``read_raw`` may be given: a path, the bytes of a file, or a file that is open."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from isp_distill.errors import CorruptRawError

# No path is longer.
_LONGEST_PATH = 4096


class BinaryReader(Protocol):
    """A binary file that is open: ``open(path, "rb")``, ``io.BytesIO``, a member of a zip."""

    def read(self, size: int = -1, /) -> bytes:
        """All bytes that are left."""
        ...


#: A path, a file's bytes, or an open file.
RawInput = (
    str | os.PathLike[str] | os.PathLike[bytes] | bytes | bytearray | memoryview | BinaryReader
)


@dataclass(frozen=True)
class Located:
    """Where the bytes of an input lie.

    Attributes:
        file: the path to read.
        name: what messages call the input.
        path: what its RawImage says it came from; "" where nothing is known.
    """

    file: str
    name: str
    path: str


@contextlib.contextmanager
def located(source: RawInput) -> Iterator[Located]:
    """An input as a file; one in memory is written to a temporary file for the while.

    LibRaw's own stream from memory misses files that are a little too short, so it is not used.

    Raises:
        TypeError: it is none of the kinds, or a file that was opened as text.
        ValueError: it is bytes that are a path.
        CorruptRawError: it holds no bytes.
        OSError: it cannot be read, or there is no room for the temporary file.
    """
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        yield Located(name, name, name)
        return
    data, name, path = _content(source)
    if len(data) == 0:
        raise CorruptRawError(name, "there are no bytes in it (an open file is read from where it "
                                    "stands: seek(0) goes to its beginning)")  # fmt: skip
    handle, file = tempfile.mkstemp(prefix="isp-distill-", suffix=".raw")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
        yield Located(file, name, path)
    finally:
        os.unlink(file)


def _content(source: object) -> tuple[bytes | bytearray | memoryview, str, str]:
    """The bytes, what to call them, and the path that an open file knows."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        short = bytes(source) if len(source) < _LONGEST_PATH else b""
        if short and os.path.exists(short):
            raise ValueError(
                f"{short!r} is taken for the content of a file, and is the path of one: give "
                "os.fsdecode(path)"
            )
        size = source.nbytes if isinstance(source, memoryview) else len(source)
        return source, f"<{size} bytes>", ""
    read = getattr(source, "read", None)
    if read is None:
        raise TypeError(
            "read_raw takes a path, the bytes of a file or a binary file that is open, not "
            f"{type(source).__name__}"
        )
    given = getattr(source, "name", "")
    path = os.fsdecode(given) if isinstance(given, (str, bytes, os.PathLike)) else ""
    data = read()
    name = path or f"<{type(source).__name__}>"
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f'{name}: reading gives {type(data).__name__}: open the file with "rb"')
    return data, name, path
