"""NumPy's arrays in files, read by several threads at once.

NumPy reads an array's header with :func:`ast.literal_eval`. CPython before 3.12 counts the depth of
what is parsed in one place for all threads: two that parse at once may end in "SystemError: AST
constructor recursion depth mismatch" (python/cpython issue 106905; its mend in 3.11.5 left the
count shared). The file is sound then, and reading it again is right. To call it damaged would
leave a good frame out of a dataset, at random.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, Any, TypeVar

import numpy as np

_T = TypeVar("_T")
#: Each try meets the fault about once in ten thousand, and only while other threads parse.
_TRIES = 20


def mapped_array(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of a ``.npy``, mapped and not read yet; numpy compares its size with the file's.

    Raises:
        ValueError: it is no array, or one of objects.
        OSError: it cannot be opened.
    """
    return _again(lambda: np.lib.format.open_memmap(path, mode="r"))


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of the array at the start of an open file.

    Raises:
        ValueError: it is no array, or of a version that is not read.
    """
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"an array of version {version} is not read")
    start = file.tell()

    def header() -> tuple[tuple[int, ...], np.dtype[Any]]:
        file.seek(start)
        shape, _, dtype = read(file)
        return shape, dtype

    return _again(header)


def read_array(file: IO[bytes]) -> np.ndarray:
    """The array at the start of an open file; none of objects.

    Raises:
        ValueError: it is no array.
    """
    start = file.tell()

    def array() -> np.ndarray:
        file.seek(start)
        found: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return found

    return _again(array)


def _again(read: Callable[[], _T]) -> _T:
    """What ``read`` returns, tried again where the interpreter's own count went wrong."""
    for _ in range(_TRIES - 1):
        try:
            return read()
        except SystemError:
            continue
    return read()
