"""What the examples of the documentation find: a folder of small files, a small model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import isp_distill

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(
    r"(?:^<!-- run with: (?P<changes>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    Attributes:
        language: what stands behind its fence.
        text: as it is run: with the changes that a comment before it asks for, as in
            ``<!-- run with: steps=500 = steps=1 -->``.
        line: where it begins on its page.
    """

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The blocks of code on a page, in their order.

    Raises:
        ValueError: if a change does not fit what it should change.
    """
    source = page.read_text()
    found = []
    for match in _FENCE.finditer(source):
        text = match["text"]
        for change in filter(None, (match["changes"] or "").split("; ")):
            before, after = change.split(" = ")
            if before not in text:
                raise ValueError(f"{page}: {before!r} is not in the block that it should change")
            text = text.replace(before, after)
        line = source[: match.start("text")].count("\n") + 1
        found.append(Block(match["language"], text, line))
    return found


def small_model() -> nn.Module:
    """An RGB classifier of 4 classes, for pictures of 32 x 32."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


def namespace() -> dict[str, Any]:
    """What every example of a docstring may use."""
    return {"isp_distill": isp_distill, "torch": torch, "np": np, "model": small_model()}


def fill(folder: Path) -> None:
    """Lay out ``photos`` and ``pictures``, as docs/api/index.md describes them."""
    draw = np.random.default_rng(0)
    for number, name in enumerate(
        ("raw/first", "raw/second", "raw/third", "held-out/fourth", "new")
    ):
        path = folder / "photos" / f"{name}.dng"
        path.parent.mkdir(parents=True, exist_ok=True)
        isp_distill.write_dng(
            path,
            draw.integers(512, 16383, (96, 128), dtype=np.uint16),
            pattern="GRBG" if name == "new" else ("RGGB", "BGGR", "GRBG", "GBRG")[number],
            black=512,
            white=16383,
            bits=14,
            white_balance=(2.0, 1.0, 1.5),
            orientation=6 if name == "new" else 1,
        )
        if name.startswith("raw/"):
            _write_jpeg(path, folder / "photos" / f"jpeg/{path.stem}.jpg")
    sound = (folder / "photos" / "new.dng").read_bytes()
    (folder / "photos" / "damaged.dng").write_bytes(sound[: len(sound) // 2])
    (folder / "pictures").mkdir()
    for name in ("one", "two"):
        pixels = draw.integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{name}.png")


def _write_jpeg(raw: Path, path: Path) -> None:
    """The picture that a camera would have made of a RAW file: cut by four pixels a side."""
    read = isp_distill.read_raw(raw)
    isp = isp_distill.ISP.from_raw(read, tone="gamma")
    picture = isp_distill.render(torch.from_numpy(read.mosaic)[None], isp)[0, :, 4:-4, 4:-4]
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (255 * picture).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, quality=95)
