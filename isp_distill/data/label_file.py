"""Classes in a file: a CSV with the header ``path,label``, or JSON lines with the same two keys.

::

    path,label                          {"path": "a/1.dng", "label": "cat"}
    a/1.dng,cat                         {"path": "a/2.dng", "label": "dog"}
    a/2.dng,dog

Paths are below the folder of the data, with forward slashes. Classes are all whole numbers, or all
names, which are numbered in sorted order. Other columns and keys are passed over.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

CSV = (".csv",)
JSON_LINES = (".jsonl", ".ndjson")
# What int64 holds.
_MOST = (1 << 63) - 1


def is_label_file(labels: object) -> bool:
    """Whether something is the path of a file of labels, by its ending."""
    if not isinstance(labels, (str, os.PathLike)):
        return False
    return os.fsdecode(labels).lower().endswith((*CSV, *JSON_LINES))


@dataclass(frozen=True)
class LabelFile:
    """The classes that a file gives.

    Attributes:
        path: of the file.
        labels: class and line number by the name of a picture.
        classes: the class names, sorted; empty where classes are numbers.
    """

    path: Path
    labels: Mapping[str, tuple[int, int]]
    classes: Sequence[str]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LabelFile:
        """The file, read whole.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a line says no class, or one of another kind than the line before; or a path
                comes twice. The message names the line.
        """
        file = Path(path)
        found: dict[str, tuple[int | str, int]] = {}
        try:
            with open(file, encoding="utf-8-sig", newline="") as text:
                rows = _csv(text) if file.suffix.lower() in CSV else _json_lines(text)
                for line, where, label in rows:
                    name = _name(line, where)
                    if name in found:
                        raise _LineError(
                            line, f"{name} has a label already, on line {found[name][1]}"
                        )
                    found[name] = _label(line, label, found), line
        except FileNotFoundError:
            raise FileNotFoundError(f"{file}: there is no such file of labels") from None
        except _LineError as error:
            raise ValueError(f"{file}, line {error.line}: {error}") from None
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: cannot be read as labels ({error})") from error
        if not found:
            raise ValueError(f"{file}: holds no label")
        names = sorted({label for label, _ in found.values() if isinstance(label, str)})
        number = {name: i for i, name in enumerate(names)}
        labels = {
            name: (number[label] if isinstance(label, str) else label, line)
            for name, (label, line) in found.items()
        }
        return cls(file, labels, names)

    def below(self, folder: PurePosixPath) -> LabelFile:
        """The labels of the files below a folder, by their names there; the classes stay."""
        start = "" if folder == PurePosixPath(".") else f"{folder}/"
        own = {n[len(start) :]: one for n, one in self.labels.items() if n.startswith(start)}
        return LabelFile(self.path, own, self.classes)

    def of(self, root: Path, names: Sequence[str]) -> list[int]:
        """The classes of files, by their names below a folder.

        Raises:
            ValueError: a file has none.
        """
        missing = [name for name in names if name not in self.labels]
        if missing:
            known = set(names)
            strays = [
                (line, name)
                for name, (_, line) in self.labels.items()
                if name not in known and not (root / name).exists()
            ]
            hint = ""
            if strays:
                line, name = min(strays)
                hint = f"; line {line} names {name}, which is not there"
            raise ValueError(
                f"{root / missing[0]}: no label for it in {self.path}; {len(missing)} of "
                f"{len(names)} files have none (paths are below {root}, with forward slashes{hint})"
            )
        return [self.labels[name][0] for name in names]


class _LineError(ValueError):
    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def _csv(text: Any) -> Iterator[tuple[int, str, Any]]:
    """Line, path and label of every row."""
    reader = csv.reader(text, strict=True)
    header = [column.strip() for column in next(reader, [])]
    for column in ("path", "label"):
        if header.count(column) != 1:
            raise _LineError(1, f"its header is {','.join(header)!r}: expected path,label")
    path, label = header.index("path"), header.index("label")
    for row in reader:
        if not row:
            continue
        if len(row) != len(header):
            raise _LineError(
                reader.line_num, f"has {len(row)} fields, and the header {len(header)}"
            )
        value = row[label].strip()
        number = re.fullmatch(r"[+-]?[0-9]{1,19}", value)
        yield reader.line_num, row[path], value if number is None else int(value)


def _json_lines(text: Any) -> Iterator[tuple[int, str, Any]]:
    for line, words in enumerate(text, 1):
        if not words.strip():
            continue
        try:
            row = json.loads(words)
        except (ValueError, RecursionError) as error:
            raise _LineError(line, f"is no JSON ({error})") from None
        if not isinstance(row, dict) or not {"path", "label"} <= set(row):
            raise _LineError(line, 'must be an object such as {"path": "a.dng", "label": 3}')
        if not isinstance(row["path"], str):
            raise _LineError(line, f"path is {row['path']!r}: expected a text")
        yield line, row["path"], row["label"]


def _name(line: int, path: str) -> str:
    """A path as names are compared: ``./a//b.dng`` is ``a/b.dng``."""
    name = PurePosixPath(path.strip())
    if name.is_absolute() or ".." in name.parts or not name.parts or "\0" in path:
        raise _LineError(line, f"path is {path!r}: expected one below the folder of the data")
    return name.as_posix()


def _label(line: int, label: Any, found: Mapping[str, tuple[int | str, int]]) -> int | str:
    """A class, of the kind of those before it."""
    if isinstance(label, bool) or not isinstance(label, (int, str)) or label == "":
        raise _LineError(line, f"label is {label!r}: expected a whole number or a name")
    if isinstance(label, int) and abs(label) > _MOST:
        raise _LineError(line, f"label is {label}: no class is so large")
    if found:
        first, its_line = next(iter(found.values()))
        if isinstance(first, str) != isinstance(label, str):
            raise _LineError(
                line,
                f"label is {label!r}, and line {its_line} has {first!r}: classes are all whole "
                "numbers, or all names",
            )
    return label
