"""What views are cut from: folders of RAW files, folders of pictures, datasets of either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from isp_distill.data.camera_picture import is_picture
from isp_distill.data.label_maps import LabelGrid, LabelMaps, as_label_map
from isp_distill.errors import RawError
from isp_distill.raw.framing import Rectangle
from isp_distill.raw.image import RawImage


class Source(Protocol):
    """What a view can be cut from: a sequence of RAW images or of RGB pictures."""

    def __len__(self) -> int:
        """The number of files."""
        ...

    def __getitem__(self, index: int) -> Any:
        """A RawImage or a uint8 RGB array ``[H, W, 3]``, alone or with its label.

        A pair ``(RawImage, uint8 [H, W, 3])`` is a RawImage and the camera's own picture of it,
        upright as it is; the teacher then sees that. With its label it is a tuple of three.

        A label is an int, or a label map: integers ``[h, w]`` over the upright picture, see
        :mod:`isp_distill.data.label_maps`.
        """
        ...


@runtime_checkable
class RowReader(Protocol):
    """A source that reads the rows of a view without the rest of its file, as packed ones do."""

    @property
    def paths(self) -> Sequence[Path]:
        """Of every file, for messages."""
        ...

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width of a file's mosaic."""
        ...

    def rows(self, index: int, top: int, bottom: int) -> RawImage:
        """The rows ``top .. bottom - 1`` of it, with its camera; ``top`` is even."""
        ...

    def packed_rows(self, index: int, top: int, bottom: int) -> RawImage:
        """The same rows, packed where they are stored so."""
        ...

    def reads_rows(self, index: int) -> bool:
        """Whether a file's rows can be read alone; a file of which they cannot is read whole."""
        ...

    def default_crop(self, index: int) -> Rectangle | None:
        """What the camera shows of the whole mosaic."""
        ...


# Items that may be damaged before none is looked at.
_FIRST_ITEMS = 8


def has_label_maps(source: Source) -> bool:
    """Whether the labels are maps; a dataset that is no folder is asked for its first item."""
    maps = getattr(source, "label_maps", False)
    if maps is None or isinstance(maps, LabelMaps):  # one of our folders
        return maps is not None
    for index in range(len(source)):
        try:
            item = source[index]
        except RawError:
            continue
        pair = item_and_label(item, index)
        if pair is not None:
            label = pair[1]
            if label is None:
                continue  # some have none
        else:
            label = source.label(index) if hasattr(source, "label") else None
        return as_label_map(label, f"the label of dataset item {index}") is not None
    return False


def check_first_label(source: Source) -> None:
    """Refuse what is no label before a run begins, even where the loss would not look at it."""
    for index in range(min(len(source), _FIRST_ITEMS)):
        try:
            pair = item_and_label(source[index], index)
        except RawError:
            continue
        if pair is not None:
            as_label_map(pair[1], f"the label of dataset item {index}")
        elif hasattr(source, "label"):
            as_label_map(source.label(index), f"the label of dataset item {index}")
        return


def item_and_label(item: Any, index: int) -> tuple[Any, Any] | None:
    """An item and its label, where the dataset gives both; None where the item has none.

    A picture of a pair is left out: see :func:`item_and_picture`.

    Raises:
        ValueError: it is a tuple of another kind.
    """
    item, _ = item_and_picture(item)
    if not isinstance(item, tuple):
        return None
    if len(item) != 2:
        raise ValueError(
            f"dataset item {index} is a tuple of {len(item)}: expected a RawImage or a picture, "
            "alone or with its label, or (RawImage, the camera's picture) or (RawImage, the "
            "camera's picture, label), the picture uint8 [H, W, 3]"
        )
    return item[0], item[1]


def item_and_picture(item: Any) -> tuple[Any, Any]:
    """An item without the camera's picture of it, and that picture, or None where it has none.

    Args:
        item: of a dataset. ``(RawImage, picture)``, ``(RawImage, picture, label)`` and
            ``((RawImage, picture), label)`` have one: uint8 ``[H, W, 3]``.
    """
    if not isinstance(item, tuple) or not item:
        return item, None
    if isinstance(item[0], tuple):
        inner, picture = item_and_picture(item[0])
        return (item, None) if picture is None else ((inner, *item[1:]), picture)
    if len(item) in (2, 3) and isinstance(item[0], RawImage) and is_picture(item[1]):
        return (item[0] if len(item) == 2 else (item[0], item[2])), item[1]
    return item, None


def label_grid(
    source: Source, output_shape: Callable[[], Sequence[int]], size: int | Sequence[int] | None
) -> LabelGrid | None:
    """What a dataset's label maps are to be made for; None where it has none.

    Args:
        source: the dataset.
        output_shape: the shape of a view's logits; asked only where there are label maps.
        size: at which dense logits are compared; their own where None.

    Raises:
        ValueError: there are label maps, and the logits are not dense.
    """
    return LabelGrid.of(output_shape(), size) if has_label_maps(source) else None
