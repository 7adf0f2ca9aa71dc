"""Photographs and cut-out photographs whose class is known, for the rows that have labels.

What each shows: ``labels.toml``. A cut-out is put on a photograph of its own side of the split,
with the light of a made-up camera on both, and becomes a DNG file like the demo's others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from make_raw import TILE, sensor_of, tile_of, write_raw
from photographs import Photograph, debian_folder, tomllib
from PIL import Image, ImageOps
from tqdm import tqdm

_LABELS = Path(__file__).with_name("labels.toml")
_PACKAGE = "tuxpaint-stamps-default"
#: Files of each cut-out, each on another photograph.
EACH = {False: 3, True: 2}


@dataclass(frozen=True)
class CutOut:
    """A thing cut out of a photograph, and the ImageNet classes that are right for it."""

    path: Path
    classes: frozenset[int]
    held_out: bool


def _read() -> dict[str, Any]:
    read: dict[str, Any] = tomllib.loads(_LABELS.read_text())
    return read


def classes_of(text: str) -> frozenset[int]:
    """``"101 385-386"`` as a set of numbers."""
    found: set[int] = set()
    for part in text.split():
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def photograph_classes(photographs: list[Photograph]) -> dict[str, frozenset[int]]:
    """The right classes by the name of each labelled photograph."""
    says = _read()
    words = {word: classes_of(text) for word, text in says["words"].items()}
    named: dict[str, frozenset[int]] = {}
    for photograph in photographs:
        if photograph.source == "foolbox":  # imagenet_<number>_<class>.jpg
            named[photograph.name] = frozenset({int(photograph.path.stem.rpartition("_")[2])})
        for entry, word in says["photographs"].items():
            source, _, file = entry.partition("/")
            if source == photograph.source and photograph.path.as_posix().endswith(f"/{file}"):
                named[photograph.name] = words[word]
    return named


def cut_outs(cache: Path) -> list[CutOut]:
    """All cut-outs that can be had here; none, with a line that says so, where ``apt`` is not.

    Args:
        cache: folder that Debian packages are unpacked into.
    """
    folder = debian_folder(_PACKAGE, cache, "usr/share/tuxpaint/stamps")
    if folder is None:
        return []
    stamps = sorted(_read()["stamps"].items())
    return [
        CutOut(folder / f"{name}.png", classes_of(text), held_out=number % 3 == 1)
        for number, (name, text) in enumerate(stamps)
    ]


def put_on(cut: Image.Image, tile: np.ndarray, place: float) -> np.ndarray:
    """uint8 RGB ``[side, side, 3]``: the cut-out before the photograph.

    Args:
        cut: with transparency.
        tile: the photograph.
        place: 0 to 1, from left to right.
    """
    side = tile.shape[0]
    scale = 0.8 * side / max(cut.size)
    width, height = (max(1, round(length * scale)) for length in cut.size)
    sized = cut.convert("RGBA").resize((width, height), Image.Resampling.LANCZOS)
    picture = Image.fromarray(tile)
    picture.paste(sized, (round(place * (side - width)), (side - height) // 2), sized)
    return np.asarray(picture)


def make_labelled(
    cuts: list[CutOut], photographs: list[Photograph], out: Path
) -> tuple[dict[str, frozenset[int]], dict[str, frozenset[int]]]:
    """Write the DNG files of the cut-outs, into the folders ``train`` and ``held-out``.

    Args:
        cuts: see :func:`cut_outs`.
        photographs: what they are put on, each on its own side; none that has a label itself.
        out: as in :func:`make_raw.make_raw`; files that lie there stay.

    Returns:
        The right classes by the name of each file: of those to train on, and of those held out.
    """
    sides = {held: [p for p in photographs if p.held_out == held] for held in (False, True)}
    named: dict[bool, dict[str, frozenset[int]]] = {False: {}, True: {}}
    for number, cut in enumerate(tqdm(cuts, "labelled RAW files", disable=None)):
        with Image.open(cut.path) as image:
            picture = image.convert("RGBA")
        behind = sides[cut.held_out]
        for copy in range(EACH[cut.held_out]):
            pattern, bits, black = sensor_of(number + 3 * copy)
            with Image.open(behind[(7 * number + 31 * copy) % len(behind)].path) as image:
                tile = tile_of(ImageOps.exif_transpose(image).convert("RGB"), TILE, 1.0, 0.5, 0.5)
            name = f"cut-{cut.path.stem}-{copy}-{pattern}-{bits}.dng"
            path = out / ("held-out" if cut.held_out else "train") / name
            seed = 100_000 + 10 * number + copy
            shown = put_on(picture, tile, place=(number % 5) / 4)
            write_raw(path, shown, pattern, bits, black, seed)
            named[cut.held_out][name] = cut.classes
    return named[False], named[True]
