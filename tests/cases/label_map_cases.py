"""Scenes of coloured rectangles: the class of every pixel can be read off the picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from isp_distill import RawImage, write_dng
from isp_distill.raw.cfa import PATTERNS

# What turns the upright picture into what the sensor saw, by Pillow's names (EXIF, tag 274).
LAID = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def patches(height, width, seed):
    """Classes 0 red, 1 green, 2 blue: a scene of rectangles, every edge on a multiple of 8."""
    rng = np.random.default_rng(seed)
    scene = np.zeros((height, width), np.uint8)
    for number in range(30):
        top, left = (8 * rng.integers(0, side // 8) for side in scene.shape)
        scene[top : top + 8 * rng.integers(2, 6), left : left + 8 * rng.integers(2, 6)] = number % 3
    return scene


def seen(scene, pattern, orientation=1):
    """The mosaic of a scene; ``orientation`` is that of the camera."""
    laid = Image.fromarray(scene)
    laid = np.asarray(laid if orientation == 1 else laid.transpose(LAID[orientation]))
    letters = np.tile(np.array(list(pattern)).reshape(2, 2), np.array(laid.shape) // 2)
    return np.where(letters == np.array(["R", "G", "B"])[laid], 3000, 200).astype(np.uint16)


def raw_of(scene, index=0):
    """The scene as an upright RawImage, of one pattern after the other."""
    pattern = PATTERNS[index % 4]
    return RawImage(seen(scene, pattern), pattern, (100.0,) * 4, 3500.0, path=f"scene-{index}")


def write_scene(root, name, scene, pattern="RGGB", orientation=1):
    """``root/raw/<name>.dng``."""
    path = root / f"raw/{name}.dng"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dng(
        path, seen(scene, pattern, orientation), pattern=pattern, white=3500, black=100, bits=12,
        orientation=orientation,
    )  # fmt: skip


def write_map(root, name, label_map):
    """``root/maps/<name>.png``."""
    path = root / f"maps/{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label_map).save(path)
