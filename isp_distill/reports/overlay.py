"""Class maps drawn over the picture that they belong to."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
_OPACITY = (0.2, 0.8)
#: Height of a line of a legend, pixels.
LINE = 15


def palette(maps: list[Tensor], count: int) -> dict[int, Colour]:
    """A colour for each of the ``count`` classes with the largest area over several maps.

    Hues are a golden angle apart, so that neighbours in the list differ most.
    """
    area = torch.bincount(torch.cat([m.reshape(-1).cpu() for m in maps]))
    best = [c for c in area.argsort(descending=True)[:count].tolist() if area[c] > 0]
    colours = {}
    for rank, index in enumerate(best):
        colours[index] = class_colour(rank)
    return colours


def class_colour(number: int) -> Colour:
    """The colour of a class, or of a place in a list of them."""
    hue, light = (0.58 + 0.618034 * number) % 1, (0.5, 0.68)[number % 2]
    red, green, blue = colorsys.hls_to_rgb(hue, light, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(
    picture: Tensor, classes: Tensor, confidence: Tensor, colours: dict[int, Colour]
) -> np.ndarray[Any, Any]:
    """The picture, without its colours, under those of its classes, with white lines between them.

    Args:
        picture: ``[3, H, W]`` in [0, 1].
        classes: ``[H, W]``.
        confidence: of each pixel's class, in [0, 1]: the surer, the stronger its colour.
        colours: of classes; the others leave the picture grey.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    grey = picture.float().cpu().mean(0).clamp(0, 1).numpy()[..., None] * 255
    drawn = np.repeat(grey, 3, axis=2)
    labels = classes.cpu().numpy()
    low, high = _OPACITY
    opacity = low + (high - low) * confidence.float().cpu().numpy()
    shown = np.zeros(labels.shape, dtype=bool)
    for index, colour in colours.items():
        inside = labels == index
        share = opacity[inside][:, None]
        drawn[inside] = (1 - share) * drawn[inside] + share * np.array(colour)
        shown |= inside
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= (labels[:, 1:] != labels[:, :-1]) & (shown[:, 1:] | shown[:, :-1])
    edge[1:] |= (labels[1:] != labels[:-1]) & (shown[1:] | shown[:-1])
    drawn[edge] = 255
    result: np.ndarray[Any, Any] = drawn.round().astype(np.uint8)
    return result


def draw_legend(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    title: str,
    classes: Tensor,
    colours: dict[int, Colour],
    names: object,
) -> None:
    """Write a title and the classes that a map holds, with colour and share of the area."""
    left, top = corner
    font = legend_font()
    draw.text((left, top), title, fill="black", font=font)
    flat = classes.reshape(-1).cpu()
    lines = [
        (colour, class_name(index, names), float((flat == index).float().mean()))
        for index, colour in colours.items()
    ]
    # What overlay() leaves grey.
    lines.append(((110, 110, 110), "other classes", 1 - sum(share for _, _, share in lines)))
    y = top
    for colour, name, share in lines:
        if share < 0.005:
            continue
        y += LINE
        draw.rectangle((left, y + 3, left + 9, y + 12), fill=colour)
        draw.text((left + 14, y), f"{share:.0%} {name}", fill="black", font=font)


def legend_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of a sheet's texts; of Pillow's own at its usual size the spaces are lost."""
    from PIL import ImageFont

    return ImageFont.load_default(size=12)


def class_name(index: int, names: object) -> str:
    """The class's name where there is one, cut to what a tile has room for."""
    if isinstance(names, (list, tuple)) and index < len(names):
        return str(names[index])[:28]
    return f"class {index}"


def as_image(array: np.ndarray[Any, Any], side: int) -> Image.Image:
    """A uint8 array as a square picture."""
    from PIL import Image

    return Image.fromarray(array).resize((side, side), Image.Resampling.LANCZOS)
