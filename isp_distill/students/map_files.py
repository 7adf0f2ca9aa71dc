"""Class maps as files: a PNG whose values are the classes, and beside it a legend for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isp_distill.files.atomic import replaced
from isp_distill.files.pillow import pillow
from isp_distill.reports.overlay import LINE, draw_legend, palette

#: Classes that get a colour of their own and a line in the legend.
_CLASSES = 12
_SIDE, _WIDTH = 448, 300
_GREY = (110, 110, 110)


def save_class_map(
    path: Path, class_map: np.ndarray[Any, Any], classes: Sequence[str] | None
) -> tuple[Path, Path]:
    """Write a class map, and a picture of it with its legend.

    The map itself is a PNG whose values are class indices, as ``label_maps=`` reads them: with a
    palette up to 256 classes, of 16 bits beyond.

    Args:
        path: without its suffix; folders above it are made.
        class_map: ``[h, w]``, uint8 or uint16.
        classes: their names.

    Returns:
        The two files, ``PATH.png`` and ``PATH.legend.png``.

    Raises:
        ImportError: Pillow is missing.
        OSError: a file cannot be written.
    """
    image = pillow("writing class maps needs")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = torch.from_numpy(class_map.astype(np.int64))
    colours = palette([whole], _CLASSES)
    table = np.array([colours.get(i, _GREY) for i in range(int(whole.max()) + 1)], np.uint8)
    drawn = image.fromarray(class_map)
    if class_map.dtype == np.uint8:
        drawn.putpalette(table.tobytes())
    plain, legend = (path.with_name(path.name + end) for end in (".png", ".legend.png"))
    with replaced(plain) as temporary:
        drawn.save(temporary, format="PNG")
    with replaced(legend) as temporary:
        _with_legend(table[class_map], whole, colours, classes).save(temporary, format="PNG")
    return plain, legend


def _with_legend(
    coloured: np.ndarray[Any, Any], whole: torch.Tensor, colours: Any, classes: Any
) -> Any:
    from PIL import Image, ImageDraw

    scale = max(1, _SIDE // max(coloured.shape[:2]))
    size = (coloured.shape[1] * scale, coloured.shape[0] * scale)
    shown = Image.fromarray(coloured).resize(size, Image.Resampling.NEAREST)
    height = max(size[1], LINE * (_CLASSES + 3))
    sheet = Image.new("RGB", (size[0] + _WIDTH, height), "white")
    sheet.paste(shown, (0, 0))
    draw = ImageDraw.Draw(sheet)
    draw_legend(draw, (size[0] + 10, 6), "share of the area", whole, colours, classes)
    return sheet
