"""One picture of what happened: the mosaics, the teacher's pictures, and both models' top three."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isp_distill.data.batch import RawBatch
from isp_distill.data.exposure import ShortExposure
from isp_distill.data.loader import ViewLoader
from isp_distill.files.atomic import replaced
from isp_distill.isp.camera import ISP
from isp_distill.models.teacher import Teacher, logits_of
from isp_distill.ops import reference
from isp_distill.ops.dense_logits import class_maps
from isp_distill.reports.overlay import (
    LINE,
    as_image,
    class_name,
    draw_legend,
    legend_font,
    overlay,
    palette,
)

if TYPE_CHECKING:
    from PIL import Image

_TILE, _TEXT, _GAP = 224, 78, 10
#: Of dense logits: classes that are drawn in a colour, and the height of their list with its title
#: and the other classes.
_CLASSES = 6
_LEGEND = LINE * (_CLASSES + 2) + 8


@torch.no_grad()
def contact_sheet(
    path: str | Path,
    student: nn.Module,
    teacher: Teacher,
    loader: ViewLoader,
    device: torch.device,
    *,
    exposure: ShortExposure | None = None,
    samples: int = 12,
    columns: int = 3,
) -> Path | None:
    """Draw the first view of up to ``samples`` files, spread over all of them, into a PNG.

    Every sample shows the mosaic as the sensor saw it (each site in its own colour, brightened by a
    square root), the teacher's picture, and what each model makes of them: the three best classes,
    or, of dense logits, each model's map of classes over the picture, and beside them the labels'
    where the loader makes label maps.

    Returns:
        The path, or None where Pillow is not installed (the only thing that draws).
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        return None
    tiles = []
    batches = loader.fixed(1, samples)
    with loader.closing(batches):
        for index, whole in enumerate(batches):
            batch = whole.to(device)
            mosaic, isp = batch.mosaic, batch.isp
            if exposure is not None:
                mosaic, isp = exposure.apply(mosaic, isp, seed=index)
            picture = teacher.picture(batch)
            target, predicted = teacher.logits(picture), logits_of(student(mosaic, isp))
            images = [
                _thumbnail(coloured_mosaic(RawBatch(mosaic, isp))[0]),
                _thumbnail(picture[0]),
            ]
            both = (("student", predicted), ("teacher", target))
            if target.dim() == 4:
                labels = None if loader.grid is None else batch.labels
                tiles.append(_dense_tile(images, picture[0], both, labels, teacher.classes))
                continue
            tile = Image.new("RGB", (2 * _TILE, _TILE + _TEXT), "white")
            draw = ImageDraw.Draw(tile)
            for column, (name, logits) in enumerate(both):
                tile.paste(images[column], (column * _TILE, 0))
                lines = [name, *top_three(logits[0], teacher.classes)]
                corner = (column * _TILE + 4, _TILE + 4)
                draw.multiline_text(corner, "\n".join(lines), fill="black", font=legend_font())
            tiles.append(tile)
    if not tiles:
        return None
    rows = -(-len(tiles) // columns)
    width, height = tiles[0].width + _GAP, tiles[0].height + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet.paste(tile, (_GAP + column * width, _GAP + row * height))
    with replaced(Path(path)) as temporary:
        sheet.save(temporary, format="PNG")
    return Path(path)


def _dense_tile(
    images: list[Image.Image],
    picture: Tensor,
    both: tuple[tuple[str, Tensor], tuple[str, Tensor]],
    labels: Tensor | None,
    names: object,
) -> Image.Image:
    """Mosaic and picture, and below each the map of the model that saw it, with its classes.

    Label maps make a third column.
    """
    from PIL import Image, ImageDraw

    height, width = picture.shape[1:]
    maps = []
    for name, logits in both:
        classes, confidence = class_maps(logits, (height, width))
        maps.append((name, classes[0], confidence[0]))
    agree = float((maps[0][1] == maps[1][1]).float().mean())
    maps[0] = (f"student: {agree:.0%} of the pixels agree", *maps[0][1:])
    if labels is not None:
        enlarged = F.interpolate(labels[:1, None].float(), (height, width), mode="nearest-exact")
        maps.append(("labels", enlarged[0, 0].long(), torch.ones(height, width)))
    colours = palette([classes[classes >= 0] for _, classes, _ in maps], _CLASSES)
    tile = Image.new("RGB", (len(maps) * _TILE, 2 * _TILE + _LEGEND), "white")
    draw = ImageDraw.Draw(tile)
    for column, (title, classes, confidence) in enumerate(maps):
        left = column * _TILE
        if column < len(images):
            tile.paste(images[column], (left, 0))
        drawn = overlay(picture, classes, confidence, colours)
        tile.paste(as_image(drawn, _TILE), (left, _TILE))
        draw_legend(draw, (left + 4, 2 * _TILE + 4), title, classes, colours, names)
    return tile


def coloured_mosaic(batch: RawBatch) -> Tensor:
    """The mosaics with every site in the colour of its filter: ``[N, 3, H, W]`` in [0, 1]."""
    isp: ISP = batch.isp.batched(len(batch.mosaic), batch.mosaic.device)
    pattern = cast(Tensor, isp.pattern)
    planes = reference.pack(batch.mosaic.float(), pattern)
    unit = torch.ones_like(cast(Tensor, isp.black))
    planes = reference.normalise(
        planes, cast(Tensor, isp.black), cast(Tensor, isp.white), unit, clip=True
    ).sqrt()
    colours = torch.zeros(len(planes), 3, *batch.mosaic.shape[1:], device=planes.device)
    for plane, colour in enumerate((0, 1, 1, 2)):
        only = torch.zeros_like(planes)
        only[:, plane] = planes[:, plane]
        colours[:, colour] += reference.unpack(only, pattern)
    return colours


def top_three(logits: Tensor, classes: object) -> list[str]:
    """The three best classes with their probabilities; dense logits are averaged over pixels."""
    flat = logits.float().reshape(len(logits), -1)
    best = flat.softmax(0).mean(1).topk(min(3, len(flat)))
    lines = []
    for share, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        lines.append(f"{share:4.0%} {class_name(index, classes)}")
    return lines


def _thumbnail(picture: Tensor) -> Image.Image:
    from PIL import Image

    array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(np.ascontiguousarray(array))
    # Nearest keeps the colours of single sites where the mosaic is enlarged or kept.
    return image.resize((_TILE, _TILE), Image.Resampling.BOX)
