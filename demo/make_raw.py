"""Photographs into DNG files of made-up cameras: four CFA patterns, two bit depths, read back.

Each photograph gives five tiles, from the whole picture to details, and each tile one file; over
the photographs every pattern at every bit depth gets each of them. ``unprocess`` draws a random
camera (colour matrix, white balance) for each. LibRaw reads every file back, and what it reads must
be what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from photographs import Photograph
from PIL import Image, ImageOps
from tqdm import tqdm

from isp_distill import ISP, read_raw, unprocess
from isp_distill.raw.cfa import PATTERNS
from isp_distill.raw.dng.writer import write_dng

#: Side of a mosaic in sensor pixels: room for random crops of 448, twice the teacher's 224.
TILE = 512
#: Bits and black level of the two sensors.
SENSORS = ((12, 128), (14, 512))
# The picture's shorter side in tiles, and the places of the tiles (0 is top or left, 1 the other
# end). In a square picture that is one tile high, places along one side coincide.
TILES = (
    (1.0, 0.5, 0.5),
    (1.25, 0.0, 0.0),
    (1.25, 1.0, 0.7),
    (1.4, 0.3, 1.0),
    (1.4, 0.5, 0.5),
)
#: So many of them for a held-out photograph: different photographs say more than more of the same.
HELD_OUT_TILES = 2


def make_raw(
    photographs: list[Photograph],
    out: Path,
    side: int = TILE,
    tiles: Sequence[tuple[float, float, float]] = TILES,
    held_out_tiles: int = HELD_OUT_TILES,
) -> tuple[Path, Path]:
    """Write the DNG files of all photographs and check each by reading it back.

    Args:
        photographs: see :func:`photographs.gather`.
        out: gets the folders ``train`` and ``held-out``.
        side: of the mosaics, sensor pixels.
        tiles: of each photograph: its shorter side in tiles, and the tile's place down and right.
        held_out_tiles: only so many, the first, of a held-out photograph.

    Returns:
        These two folders.

    Raises:
        RuntimeError: if LibRaw does not read what was written.
    """
    folders = (out / "train", out / "held-out")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.dng"):
            old.unlink()
    for number, photograph in enumerate(tqdm(photographs, "RAW files", disable=None)):
        with Image.open(photograph.path) as image:
            picture = ImageOps.exif_transpose(image).convert("RGB")
        chosen = tiles[:held_out_tiles] if photograph.held_out else tiles
        for index, (scale, down, right) in enumerate(chosen):
            # Shifted by the photograph's number, so that no pattern always gets the same tile.
            pattern, bits, black = sensor_of(index + number)
            path = folders[photograph.held_out] / f"{photograph.name}-{index}-{pattern}-{bits}.dng"
            tile = tile_of(picture, side, scale, down, right)
            write_raw(path, tile, pattern, bits, black, seed=len(tiles) * number + index)
    return folders


def sensor_of(number: int) -> tuple[str, int, int]:
    """Pattern, bits and black level: each of the eight sensors in turn."""
    bits, black = SENSORS[number % 8 // 4]
    return PATTERNS[number % 4], bits, black


def tile_of(picture: Image.Image, side: int, scale: float, down: float, right: float) -> np.ndarray:
    """uint8 RGB ``[side, side, 3]`` of the picture with its shorter side at ``scale`` tiles."""
    factor = side * scale / min(picture.size)
    width, height = (max(side, round(length * factor)) for length in picture.size)
    # A large picture is first averaged down to thrice the size: a quarter of the time, and the
    # averages of so many pixels hide what that changes.
    small = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    resized = np.asarray(small)
    top, left = round(down * (height - side)), round(right * (width - side))
    return resized[top : top + side, left : left + side]


def light_of(tile: np.ndarray, pattern: str, seed: int) -> tuple[np.ndarray, ISP]:
    """The light of a tile on a made-up sensor, 0 to 1, float64 ``[H, W]``, and its camera."""
    rgb = torch.from_numpy(tile.copy()).movedim(-1, 0)[None].float() / 255
    # unprocess undoes a smoothstep tone curve that the file's reader does not know of: with that
    # curve put on first, what arrives in the mosaic is the linear light of the picture itself.
    mosaic, isp = unprocess(rgb * rgb * (3 - 2 * rgb), pattern=pattern, bits=16, black=0, seed=seed)
    # Nor does a file's reader know of its exposure: it goes into the mosaic.
    exposure = torch.as_tensor(isp.exposure).item()
    light = mosaic[0].numpy().astype(np.float64) / 65535 * exposure
    return light.clip(0, 1), isp


def write_raw(path: Path, tile: np.ndarray, pattern: str, bits: int, black: int, seed: int) -> None:
    """Write a tile as the DNG file of a made-up camera, and read it back.

    Raises:
        RuntimeError: if LibRaw does not read what was written.
    """
    light, isp = light_of(tile, pattern, seed)
    white = 2**bits - 1
    sensor = np.rint(black + light * (white - black)).astype(np.uint16)
    balance = torch.as_tensor(isp.white_balance).reshape(3).tolist()
    ccm = torch.as_tensor(isp.ccm).reshape(3, 3).tolist()
    write_dng(
        path,
        sensor,
        pattern=pattern,
        black=black,
        white=white,
        white_balance=balance,
        ccm=ccm,
        bits=bits,
        camera=f"made-up camera {bits}-bit {pattern}",
    )
    raw = read_raw(path)
    same = (
        np.array_equal(raw.mosaic, sensor)
        and (raw.pattern, raw.white, raw.black) == (pattern, white, (black,) * 4)
        and np.allclose(raw.white_balance, balance, atol=1e-4)
        and np.allclose(raw.ccm, ccm, atol=1e-3)
    )
    if not same:
        raise RuntimeError(f"{path}: LibRaw does not read what was written")


def picture_of(path: Path) -> Image.Image:
    """The file as the teacher's ISP renders it, full size."""
    from isp_distill import render

    raw = read_raw(path)
    mosaic = torch.from_numpy(raw.mosaic)[None]
    rgb = render(mosaic, ISP.from_raw(raw))[0].clamp(0, 1).movedim(0, -1)
    return Image.fromarray((rgb * 255).round().byte().numpy())
