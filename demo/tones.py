"""The picture of a scene of 24 bits, in two tones: ``docs/pictures/tones.jpg``.

``python demo/tones.py [--out docs/pictures/tones.jpg]``. Two photographs make a scene that no
exposure holds: a dim room, and a window in it through which the light is a thousand times as
strong. A made-up sensor sees it in 24 bits and sends codes of 12, by a curve of four pieces;
``render`` linearises them and makes one picture by the sRGB curve and one by the logarithm.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from photographs import gather
from PIL import Image, ImageDraw, ImageFont

from isp_distill import ISP, RawImage, SensorFormat, render

SIDE, GAP, TEXT = 384, 8, 22
BLACK = 64.0
KNOTS = [[0, 0], [1024, 1024], [2048, 66560], [3072, 1115136], [4095, 16777215]]
#: Light in the room, of that in the window.
DIM = 1e-3
#: The window: top, left, bottom, right.
WINDOW = (40, 200, 232, 360)
TONES = (("srgb", 'tone="srgb"'), ("log", 'tone="log"'))


def scene(room: Path, outside: Path) -> np.ndarray:
    """Linear light ``[SIDE, SIDE, 3]``, 1 the brightest."""
    top, left, bottom, right = WINDOW
    light = DIM * _light(room, (SIDE, SIDE))
    light[top:bottom, left:right] = _light(outside, (bottom - top, right - left))
    return light


def _light(path: Path, size: tuple[int, int]) -> np.ndarray:
    with Image.open(path) as image:
        picture = image.convert("RGB")
    shorter = min(picture.size)
    corner = [(side - shorter) // 2 for side in picture.size]
    box = (*corner, corner[0] + shorter, corner[1] + shorter)
    x = np.asarray(picture.resize(size[::-1], Image.Resampling.LANCZOS, box=box)) / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def seen(light: np.ndarray) -> RawImage:
    """The sensor's codes of a scene."""
    form = SensorFormat(SIDE, SIDE, "uint16", "RGGB", black=BLACK, bits=12, companding=KNOTS)
    assert form.white is not None
    sites = np.empty((SIDE, SIDE))
    for site, colour in enumerate((0, 1, 1, 2)):
        down, across = divmod(site, 2)
        sites[down::2, across::2] = light[down::2, across::2, colour]
    values = BLACK + sites * (form.white - BLACK)
    codes, linear = np.array(KNOTS, dtype=np.float64).T
    return form.image(np.rint(np.interp(values, linear, codes)).astype(np.uint16))


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/tones.jpg"))
    parser.add_argument("--cache", type=Path, default=Path("demo-output/photographs"))
    out = (arguments := parser.parse_args()).out
    found = {photograph.name: photograph.path for photograph in gather(arguments.cache, few=True)}
    raw = seen(scene(found["scikit-coffee"], found["scikit-astronaut"]))
    mosaic = torch.from_numpy(raw.mosaic)[None]
    sheet = Image.new("RGB", (2 * SIDE + GAP, SIDE + TEXT), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, (tone, text) in enumerate(TONES):
        picture = render(mosaic, ISP.from_raw(raw, tone=tone))[0]
        array = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        left = column * (SIDE + GAP)
        sheet.paste(Image.fromarray(np.ascontiguousarray(array)), (left, TEXT))
        draw.text((left, 2), text, fill="black", font=font)
    sheet.save(out, quality=85, optimize=True)
    print(out)


if __name__ == "__main__":
    main()
