"""Detections drawn over the picture that they were made in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isp_distill.detection.detected import Detections
from isp_distill.detection.heads import Heads
from isp_distill.reports.overlay import LINE, class_colour, class_name, legend_font

if TYPE_CHECKING:
    from PIL import Image

# Boxes of a picture, and lines below it.
_MOST, _LINES = 12, 2


def draw_boxes(image: Image.Image, found: Detections, heads: Heads, names: object) -> None:
    """Draw the surest boxes, each in its class's colour with its score.

    Args:
        image: is drawn on.
        found: in it.
        heads: their ``confidence`` is the least score that is drawn.
        names: of the classes.
    """
    from PIL import ImageDraw

    draw, font = ImageDraw.Draw(image), legend_font()
    sure = found.above(heads.confidence)
    each = list(zip(sure.boxes.tolist(), sure.scores.tolist(), sure.classes.tolist(), strict=True))
    # The surest comes last, and lies above the others.
    for box, score, index in reversed(each[:_MOST]):
        left, right = (box[i] * (image.width - 1) for i in (0, 2))
        top, bottom = (box[i] * (image.height - 1) for i in (1, 3))
        colour = class_colour(index)
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        text = f"{class_name(index, names)} {score:.2f}"
        # Above the box, where there is room, so that small ones are seen.
        corner = (left, max(0.0, top - LINE))
        draw.rectangle(draw.textbbox(corner, text, font=font), fill=colour)
        draw.text(corner, text, fill="white", font=font)


def said_of(found: Detections, heads: Heads, names: object) -> list[str]:
    """How many there are, and the surest of them in words."""
    sure = found.above(heads.confidence)
    lines = [f"{len(sure.scores)} above {heads.confidence:g}"]
    for index, score in zip(sure.classes.tolist(), sure.scores.tolist(), strict=True):
        lines.append(f"{score:4.0%} {class_name(index, names)}")
    return lines[: 1 + _LINES]
