"""One picture of what happened: the mosaics, the teacher's pictures, and what both models say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isp_distill.data.batch import RawBatch
from isp_distill.data.device_input import moved
from isp_distill.data.exposure import ShortExposure
from isp_distill.data.item_name import item_name
from isp_distill.data.loader import ViewLoader
from isp_distill.detection.detected import detections
from isp_distill.detection.heads import heads_of
from isp_distill.files.atomic import replaced
from isp_distill.isp.camera import ISP
from isp_distill.models.matching import Matching
from isp_distill.models.output import read_output
from isp_distill.models.teacher import Teacher
from isp_distill.ops import reference
from isp_distill.ops.dense_logits import class_maps
from isp_distill.raw.filters import NAMES, filter_of
from isp_distill.reports.drawn_boxes import draw_boxes, said_of
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

#: How a filter's colours are drawn; infrared, which nobody sees, as violet.
_SHOWN = {
    "R": (1.0, 0.0, 0.0), "G": (0.0, 1.0, 0.0), "B": (0.0, 0.0, 1.0), "C": (1.0, 1.0, 1.0),
    "Y": (1.0, 1.0, 0.0), "Cy": (0.0, 1.0, 1.0), "Ir": (0.5, 0.0, 0.5), "grey": (1.0, 1.0, 1.0),
}  # fmt: skip
_MOST_OF_16_BITS = 65535
_TILE, _TEXT, _GAP = 224, 94, 10
#: Of the student's title, where both models' best class is the same, and where it is another.
_SAME, _OTHER = (0, 120, 40), (190, 20, 20)
#: Of dense logits: classes that are drawn in a colour, and the height of their list with its title
#: and the other classes.
_CLASSES = 6
_LEGEND = LINE * (_CLASSES + 3) + 8


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
    matching: Matching | None = None,
) -> Path | None:
    """Draw the first view of up to ``samples`` files, spread over all of them, into a PNG.

    Every sample shows the mosaic as the sensor saw it (each site in its own colour, brightened by a
    square root, a range above 16 bits by a logarithm), the teacher's picture, and what each model
    makes of them: the three best classes, or, of dense logits, each model's map of classes over
    the picture, and beside them the labels' where the loader makes label maps. Of detectors, each
    model's boxes are drawn over what it saw. Below stand whether both say the same class, and the
    file's name.

    Returns:
        The path, or None where Pillow is not installed (the only thing that draws).
    """
    try:
        from PIL import Image
    except ImportError:
        return None
    tiles = []
    batches = loader.fixed(1, samples)
    with loader.closing(batches):
        for index, whole in enumerate(batches):
            batch = moved(whole, device)
            mosaic, isp = batch.mosaic, batch.isp
            if exposure is not None:
                mosaic, isp = exposure.apply(mosaic, isp, seed=index)
            picture = teacher.picture(batch)
            target = teacher.logits(picture)
            how = None if matching is None else matching.student_output
            predicted = read_output(student(mosaic, isp), how)
            images = [
                _thumbnail(coloured_mosaic(RawBatch(mosaic, isp))[0]),
                _thumbnail(picture[0]),
            ]
            both = (("student", predicted), ("teacher", target))
            embedded = matching is not None and matching.embeds
            if target.dim() == 4 and not embedded:
                labels = None if loader.grid is None else batch.labels
                tile = _dense_tile(images, picture[0], both, labels, teacher.classes)
            else:
                tile = _tile(images, both, teacher, embedded)
            if whole.items is not None:
                _write_name(tile, item_name(loader.source, whole.items[0]))
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


def _tile(
    images: list[Image.Image],
    both: tuple[tuple[str, Tensor], tuple[str, Tensor]],
    teacher: Teacher,
    embedded: bool,
) -> Image.Image:
    """Mosaic and picture, and below each what the model says that saw it; boxes lie over them."""
    from PIL import Image, ImageDraw

    heads, names, target = heads_of(teacher.model), teacher.classes, both[1][1]
    tile = Image.new("RGB", (2 * _TILE, _TILE + _TEXT), "white")
    draw = ImageDraw.Draw(tile)
    for column, (name, logits) in enumerate(both):
        if heads is not None:
            (found,) = detections(logits, heads, name)
            draw_boxes(images[column], found, heads, names)
            said = said_of(found, heads, names)
        else:
            said = _said(logits, target, teacher, embedded)
        tile.paste(images[column], (column * _TILE, 0))
        left, top = column * _TILE + 4, _TILE + 4
        colour: str | tuple[int, int, int] = "black"
        if column == 0 and heads is None and not embedded:
            same = bool(both[0][1].argmax(1)[0] == target.argmax(1)[0])
            name, colour = (
                (f"{name}: same class", _SAME) if same else (f"{name}: another class", _OTHER)
            )
        draw.text((left, top), name, fill=colour, font=legend_font())
        draw.multiline_text((left, top + LINE), "\n".join(said), fill="black", font=legend_font())
    return tile


def _write_name(tile: Image.Image, name: str) -> None:
    """The last part of a file's name in the tile's last line, its middle left out where needed."""
    from PIL import ImageDraw

    draw, font, whole = ImageDraw.Draw(tile), legend_font(), Path(name).name
    text, kept = whole, len(whole)
    while draw.textlength(text, font=font) > tile.width - 8 and kept > 2:
        kept -= 1
        text = f"{whole[: (kept + 1) // 2]}...{whole[len(whole) - kept // 2 :]}"
    draw.text((4, tile.height - LINE - 2), text, fill=(110, 110, 110), font=font)


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
    batch = batch.linear()
    isp: ISP = batch.isp.batched(len(batch.mosaic), batch.mosaic.device)
    pattern = cast(Tensor, isp.pattern)
    planes = reference.pack(batch.mosaic.float(), pattern)
    unit = torch.ones_like(cast(Tensor, isp.black))
    white = cast(Tensor, isp.white)
    planes = reference.normalise(planes, cast(Tensor, isp.black), white, unit, clip=True)
    wide = (white > _MOST_OF_16_BITS)[:, None, None, None]
    planes = torch.where(wide, reference.apply_curve(planes, "log", None), planes.sqrt())
    colours = torch.zeros(len(planes), 3, *batch.mosaic.shape[1:], device=planes.device)
    shown = torch.tensor(
        [[_SHOWN[colour] for colour in filter_of(number).planes] for number in range(len(NAMES))],
        device=planes.device,
    )[pattern]
    for colour in range(3):
        colours[:, colour] = reference.unpack(planes * shown[:, :, colour, None, None], pattern)
    return colours


def top_three(logits: Tensor, classes: object) -> list[str]:
    """The three best classes with their probabilities; dense logits are averaged over pixels."""
    flat = logits.float().reshape(len(logits), -1)
    best = flat.softmax(0).mean(1).topk(min(3, len(flat)))
    lines = []
    for share, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        lines.append(f"{share:4.0%} {class_name(index, classes)}")
    return lines


def _said(logits: Tensor, target: Tensor, teacher: Teacher, embedded: bool) -> list[str]:
    """What stands below a picture: the best classes; of an embedding, how near the teacher's."""
    if not embedded:
        return top_three(logits[0], teacher.classes)
    if teacher.class_embeddings is not None:
        return top_three(teacher.zero_shot(logits)[0], teacher.classes)
    if logits is target or logits.shape != target.shape:
        return [f"an embedding of {logits.shape[1]}"]
    near = F.cosine_similarity(logits.float().flatten(1), target.float().flatten(1))
    return [f"cosine with the teacher's {float(near[0]):.3f}"]


def _thumbnail(picture: Tensor) -> Image.Image:
    from PIL import Image

    array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(np.ascontiguousarray(array))
    # Nearest keeps the colours of single sites where the mosaic is enlarged or kept.
    return image.resize((_TILE, _TILE), Image.Resampling.BOX)
