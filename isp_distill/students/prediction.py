"""What a student says of one shot, and of many: values that print, and that files can hold."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Boxes that are printed of a shot; files hold all of them.
_SAID = 5


@dataclass(frozen=True)
class ClassScore:
    """A class and how probable it is.

    Attributes:
        index: of the class.
        name: of it, or "class 7" where it has none.
        probability: 0 to 1.
    """

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class DetectedBox:
    """One detection.

    Attributes:
        index: of the class.
        name: of it, or "class 7" where it has none.
        score: 0 to 1.
        box: left, top, right and bottom, in pixels of the file's upright mosaic; of a picture, in
            its own.
    """

    index: int
    name: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Prediction:
    """What a student says of one shot.

    Attributes:
        name: of the file, or "item 3" of what has no file.
        top: the best classes, the best first; of a class map, those with the largest area, whose
            ``probability`` is their share of it. Empty for an embedding.
        class_map: of dense logits, the class of each place, ``[h, w]``, at the logits' own
            resolution, as :func:`isp_distill.evaluate` compares them. uint8, or uint16 beyond 256
            classes.
        embedding: float32 ``[D]``.
        boxes: of a detector, what it detects, the best first; else None.

    Examples:
        >>> student = isp_distill.rawify(model)
        >>> raw = isp_distill.read_raw("photos/new.dng")
        >>> (found,) = isp_distill.predict(student, raw, crop=64, progress=False)
        >>> found.name, len(found.top), found.class_map
        ('photos/new.dng', 4, None)
    """

    name: str
    top: tuple[ClassScore, ...] = ()
    class_map: np.ndarray[Any, Any] | None = None
    embedding: np.ndarray[Any, Any] | None = None
    boxes: tuple[DetectedBox, ...] | None = None

    def __str__(self) -> str:
        if self.embedding is not None:
            return f"{self.name}: embedding of {len(self.embedding)}"
        if self.boxes is not None:
            found = [f"{b.score:.0%} {b.name} at {_rounded(b.box)}" for b in self.boxes]
            more = [f"and {len(found) - _SAID} more"] if len(found) > _SAID else []
            return f"{self.name}: {', '.join(found[:_SAID] + more) or 'nothing'}"
        return f"{self.name}: " + ", ".join(f"{s.probability:.0%} {s.name}" for s in self.top)

    def plain(self) -> dict[str, Any]:
        """What JSON can hold; maps and embeddings are arrays, and have files of their own."""
        found: dict[str, Any] = {
            "name": self.name,
            "top": [dataclasses.asdict(s) for s in self.top],
        }
        if self.class_map is not None:
            found["class_map"] = list(self.class_map.shape)
        if self.embedding is not None:
            found["embedding"] = self.embedding.tolist()
        if self.boxes is not None:
            found["boxes"] = [dataclasses.asdict(b) for b in self.boxes]
        return found


@dataclass(frozen=True)
class Predictions(Sequence[Prediction]):
    """What :func:`isp_distill.predict` returns: a sequence of :class:`Prediction`.

    Attributes:
        items: of every shot that could be read, in their order.
        skipped: files left out, with reasons.

    Examples:
        >>> student = isp_distill.rawify(model)
        >>> found = isp_distill.predict(student, "photos/held-out", crop=64, progress=False)
        >>> len(found), len(found[0].top)
        (1, 4)
    """

    items: tuple[Prediction, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.items)

    def __str__(self) -> str:
        return "\n".join(map(str, self.items))

    def json(self) -> str:
        """Everything, as JSON."""
        items = [one.plain() for one in self.items]
        return json.dumps({"predictions": items, "skipped": self.skipped}, indent=1)

    def csv(self) -> str:
        """As CSV: name, rank, index, class and probability of the best classes.

        Of embeddings, name and embedding; of detectors name, index, class, score, left, top, right
        and bottom of each box.
        """
        written = io.StringIO()
        table = csv.writer(written, lineterminator="\n")
        if any(one.embedding is not None for one in self.items):
            table.writerow(["name", "embedding"])
            for one in self.items:
                assert one.embedding is not None
                table.writerow([one.name, " ".join(f"{v:.7g}" for v in one.embedding)])
            return written.getvalue()
        if any(one.boxes is not None for one in self.items):
            table.writerow(["name", "index", "class", "score", "left", "top", "right", "bottom"])
            for one in self.items:
                for box in one.boxes or ():
                    sides = [f"{side:.2f}" for side in box.box]
                    table.writerow([one.name, box.index, box.name, f"{box.score:.6f}", *sides])
            return written.getvalue()
        table.writerow(["name", "rank", "index", "class", "probability"])
        for one in self.items:
            for rank, score in enumerate(one.top, 1):
                row = [one.name, rank, score.index, score.name, f"{score.probability:.6f}"]
                table.writerow(row)
        return written.getvalue()

    def embeddings(self) -> np.ndarray[Any, Any]:
        """All embeddings, float32 ``[N, D]``, as ``np.save`` takes them.

        Raises:
            ValueError: the student gives none.
        """
        found = [one.embedding for one in self.items if one.embedding is not None]
        if len(found) != len(self.items) or not found:
            raise ValueError("the student predicts no embeddings")
        return np.stack(found)

    def replace_items(self, items: Sequence[Prediction]) -> Predictions:
        """The same with other items."""
        return dataclasses.replace(self, items=tuple(items))


def _rounded(box: tuple[float, ...]) -> str:
    return f"({', '.join(f'{side:.0f}' for side in box)})"
