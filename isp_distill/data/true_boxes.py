"""True boxes: a COCO JSON of annotated pictures, and what a view of a picture shows of it.

::

    {"images": [{"id": 1, "file_name": "a/1.jpg", "height": 3000, "width": 4000}],
     "annotations": [{"image_id": 1, "category_id": 2, "bbox": [LEFT, TOP, WIDTH, HEIGHT]}],
     "categories": [{"id": 2, "name": "bicycle"}]}

An image is a file's by its path below the folder of the data, or by its bare name, whatever its
ending: ``a/1.jpg`` may stand for ``a/1.dng``. Boxes lie over the upright picture, as label maps do
(:mod:`isp_distill.data.label_maps` says over which part of the mosaic), in pixels of the ``height``
and ``width`` that the JSON gives.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np

from isp_distill.arguments import shown as told
from isp_distill.data.label_maps import Shown, laid_over
from isp_distill.data.source import Source
from isp_distill.files.listed import common_folder

Array = np.ndarray[Any, Any]

#: Columns of a view's boxes: class, left, top, right, bottom (0 to 1 over the view), ignored.
COLUMNS = 6
# Of a box whose larger part lies outside of a view nobody can say whether it should be found there.
_LEAST_SEEN = 0.5
# No picture has so many pixels a side; not a number is not below it either.
_FAR = 1e9
# How far boxes may lie outside of their picture: they are rounded.
_SLACK = 1.0


@dataclass(frozen=True)
class _Image:
    """An annotated picture: its sides, and rows of class, left, top, right, bottom, crowd."""

    name: str
    height: int
    width: int
    rows: Array


@dataclass(frozen=True)
class TrueBoxes:
    """The boxes of the files of a dataset, in their order.

    Attributes:
        path: of the JSON.
        images: of each file.
    """

    path: Path
    images: Sequence[_Image]

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        source: Source,
        count: int,
        classes: Sequence[str] | None = None,
    ) -> TrueBoxes:
        """The boxes of a dataset's files.

        Args:
            path: of the JSON.
            source: the dataset; of files.
            count: how many classes the detector knows, its background among them.
            classes: their names: then a category is the class of its name, else of its ``id``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no COCO JSON, lacks a file of the dataset, or has a category that the
                detector has not; the message names file, value and fix.
        """
        file = Path(path)
        content = _Content.of(file)
        numbers = content.numbers(count, classes)
        images = content.images(numbers)
        return cls(file, _in_order(file, images, source))

    def view(self, index: int, shown: Shown) -> Array:
        """What a view shows of the i-th file's boxes: float32 ``[M, 6]``, see :data:`COLUMNS`.

        Boxes are cut to the view and turned over with it. One of which less than half is seen is to
        be ignored, as a crowd is.

        Raises:
            ValueError: the annotated picture's aspect ratio is not the file's.
        """
        image = self.images[index]
        name = f"{self.path}: {image.name}"
        first_row, first_column, rows, columns = laid_over(
            (image.height, image.width), shown, name, "an annotated picture"
        )
        top, left, height, width = shown.window
        boxes: Array = image.rows.copy()
        boxes[:, 1:5:2] = (first_column + boxes[:, 1:5:2] * columns / image.width - left) / width
        boxes[:, 2:5:2] = (first_row + boxes[:, 2:5:2] * rows / image.height - top) / height
        if shown.draw.mirror:
            boxes[:, [1, 3]] = 1 - boxes[:, [3, 1]]
        if shown.draw.flip:
            boxes[:, [2, 4]] = 1 - boxes[:, [4, 2]]
        whole = _areas(boxes)
        boxes[:, 1:5] = boxes[:, 1:5].clip(0, 1)
        seen = _areas(boxes)
        boxes[:, 5] = np.maximum(boxes[:, 5], seen < _LEAST_SEEN * whole)
        shown_ones: Array = boxes[seen > 0].astype(np.float32)
        return shown_ones


def _areas(boxes: Array) -> Array:
    sides: Array = (boxes[:, 3:5] - boxes[:, 1:3]).clip(0).prod(1)
    return sides


@dataclass(frozen=True)
class _Content:
    """A COCO JSON, as it was read."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path) -> _Content:
        try:
            values = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: there is no such file of boxes") from None
        except IsADirectoryError:
            raise ValueError(f"{path}: is a folder: give the COCO JSON itself") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: is no JSON ({error})") from None
        parts = ("images", "annotations", "categories")
        wrong = [
            part
            for part in parts
            if not isinstance(values, Mapping) or not isinstance(values.get(part), list)
        ]
        if wrong:
            raise ValueError(
                f"{path}: has no list of {wrong[0]}: a COCO JSON is an object with images, "
                "annotations and categories"
            )
        return cls(path, values)

    def refuse(self, what: str) -> NoReturn:
        raise ValueError(f"{self.path}: {what}")

    def numbers(self, count: int, classes: Sequence[str] | None) -> dict[int, int]:
        """The class of each category that an annotation names."""
        annotations = (one for one in self.values["annotations"] if isinstance(one, Mapping))
        # Whatever else stands there is refused where the annotation is read.
        used = {of for one in annotations if _is_whole(of := one.get("category_id"))}
        found: dict[int, int] = {}
        for place, one in enumerate(self.values["categories"]):
            number: Any = one.get("id") if isinstance(one, Mapping) else None
            if not _is_whole(number):
                self.refuse(f"categories[{place}] has the id {told(number)}: give a whole number")
            if number in found:
                self.refuse(f"categories[{place}] has the id {number}, as another one: number anew")
            found[number] = self._class_of(one, number, count, classes) if number in used else -1
        return found

    def _class_of(
        self, category: Mapping[str, Any], number: int, count: int, classes: Sequence[str] | None
    ) -> int:
        name: Any = category.get("name")
        if classes is None:
            if 0 <= number < count:
                return number
            self.refuse(
                f"the category {number} ({name}) is none of the detector's {count} classes (0 to "
                f"{count - 1}): number it as they are, or give the teacher its classes' names"
            )
        if name in classes:
            return list(classes).index(name)
        self.refuse(
            f"the category {told(name)} (id {number}) is no class of the teacher "
            f"({', '.join(list(classes)[:5])}, ...): rename it as the teacher does, or leave out "
            "its annotations"
        )

    def images(self, numbers: Mapping[int, int]) -> list[_Image]:
        """The pictures with their boxes."""
        sides: dict[Any, tuple[str, int, int]] = {}
        for place, one in enumerate(self.values["images"]):
            where = f"images[{place}]"
            path = one.get("file_name") if isinstance(one, Mapping) else None
            if not isinstance(path, str) or not PurePosixPath(path).name:
                self.refuse(f"{where} has no file_name: give the path of its picture")
            height: Any = one.get("height")
            width: Any = one.get("width")
            number = one.get("id")
            if not all(_is_whole(side) and 0 < side < _FAR for side in (height, width)):
                self.refuse(
                    f"{where} ({one['file_name']}) is {told(height)} high and {told(width)} wide: "
                    "give the sides of the picture that was annotated, in pixels"
                )
            if not _is_id(number) or number in sides:
                self.refuse(f"{where} has the id {told(number)}: give each image one of its own")
            sides[number] = one["file_name"], height, width
        rows: dict[Any, list[list[float]]] = {number: [] for number in sides}
        for place, one in enumerate(self.values["annotations"]):
            where = f"annotations[{place}]"
            of = one.get("image_id") if isinstance(one, Mapping) else None
            if not _is_id(of) or of not in sides:
                self.refuse(f"{where} is of the image {told(of)}, which images does not list")
            category = one.get("category_id")
            if not _is_whole(category) or category not in numbers:
                self.refuse(
                    f"{where} is of the category {told(category)}, which categories does not list"
                )
            box = self._box(one.get("bbox"), where, sides[of])
            crowd = one.get("iscrowd")
            if crowd not in (None, 0, 1):
                self.refuse(f"{where} has iscrowd {told(crowd)}: it is 0 or 1")
            rows[of].append([numbers[category], *box, float(bool(crowd))])
        return [
            _Image(*of, np.array(rows[number], np.float64).reshape(-1, COLUMNS))
            for number, of in sides.items()
        ]

    def _box(self, box: Any, where: str, image: tuple[str, int, int]) -> list[float]:
        """Left, top, right and bottom, within the picture."""
        name, height, width = image
        numbers = isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))
        if not numbers or min(box[2:]) <= 0:
            self.refuse(
                f"{where} ({name}) has the bbox {told(box)}: give [left, top, width, height] in "
                "pixels, sides above 0, or leave the annotation out"
            )
        left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
        out = max(-left, -top, right - width, bottom - height)
        if out > _SLACK:
            self.refuse(
                f"{where} ({name}) has the bbox {told(box)}, which leaves its picture of {width} x "
                f"{height}: give [left, top, width, height] in pixels of that size"
            )
        return [max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _FAR


def _in_order(path: Path, images: Sequence[_Image], source: Source) -> list[_Image]:
    """The image of each file of a dataset."""
    files: Sequence[Any] | None = getattr(source, "paths", None)
    root = getattr(source, "root", None)
    if root is not None and (names := getattr(source, "names", None)) is not None:
        files = [Path(root) / name for name in names]  # frames of a file have names of their own
    if files is None:
        raise ValueError(
            f"{path}: its images are told by the names of files, and the data are no files: give a "
            "folder, or a list of files"
        )
    by_path: dict[str, list[_Image]] = {}
    by_name: dict[str, list[_Image]] = {}
    for image in images:
        name = PurePosixPath(image.name).with_suffix("")
        by_path.setdefault(name.as_posix(), []).append(image)
        by_name.setdefault(name.name, []).append(image)
    if root is None:
        root = common_folder([Path(file) for file in files])
    found = []
    for file in files:
        below = Path(os.path.relpath(file, root)).with_suffix("")
        listed = by_path.get(below.as_posix()) or by_name.get(below.name) or []
        if len(listed) != 1:
            problem = "lists no image" if not listed else f"lists {len(listed)} images"
            raise ValueError(
                f"{file}: {path} {problem} of this name: list each file once, also where it shows "
                "nothing (an image without annotations)"
            )
        found.append(listed[0])
    return found
