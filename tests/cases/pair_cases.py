"""Pairs of a RAW file and a camera's picture of it that nothing of this library made.

The picture is LibRaw's: its AHD demosaicing, then a curve of our own making, a cut by some pixels a
side, a scale, and JPEG of quality 90.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import rawpy
from PIL import Image
from skimage import data

import isp_distill


def photograph(name, side=1000):
    """A photograph of scikit-image, uint8 RGB, its longer side so long."""
    picture = Image.fromarray(getattr(data, name)()[..., :3])
    factor = side / max(picture.size)
    size = [round(factor * length / 2) * 2 for length in picture.size]
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))


def mosaic_of(picture, seed=0):
    """What a sensor of 14 bits, RGGB, sees of a photograph, with the noise of ISO 400 or so."""
    light = (picture / 255.0) ** 2.2 * np.array((0.5, 1.0, 1 / 1.5))
    sites = np.empty(picture.shape[:2])
    for row in (0, 1):
        for column in (0, 1):
            sites[row::2, column::2] = light[row::2, column::2, row + column]
    sites = 15000 * sites
    noise = np.random.default_rng(seed).normal(size=sites.shape)
    sites += np.sqrt(0.3 * sites + 30) * noise
    return np.clip(np.rint(512 + sites), 0, 16383).astype(np.uint16)


def write_raw(path, picture, orientation=1, seed=0):
    """The DNG of a photograph that was laid on the sensor as it is."""
    return isp_distill.write_dng(
        path, mosaic_of(picture, seed), white=16383, black=512, bits=14,
        white_balance=(2.0, 1.0, 1.5), orientation=orientation, camera="Pair One",
    )  # fmt: skip


def camera_jpeg(path, cut=(0, 0, 0, 0), scale=1.0, exif=None):
    """The bytes of a camera's JPEG of a RAW file, upright.

    Args:
        path: the RAW file.
        cut: pixels of the upright mosaic that it lacks: above, left, below, right.
        scale: its pixels for one of the mosaic, exactly.
        exif: of the JPEG.
    """
    with rawpy.imread(str(path)) as decoder:
        linear = decoder.postprocess(
            demosaic_algorithm=rawpy.DemosaicAlgorithm.AHD, use_camera_wb=True, gamma=(1, 1),
            no_auto_bright=True, output_bps=16,
        )  # fmt: skip
    light = np.clip(1.6 * linear / 65535.0, 0, 1) ** 0.45
    toned = np.clip(light - np.sin(2 * np.pi * light) / 25, 0, 1)
    height, width = toned.shape[:2]
    above, left, below, right = cut
    size = int((width - left - right) * scale), int((height - above - below) * scale)
    box = (left, above, left + size[0] / scale, above + size[1] / scale)
    picture = Image.fromarray((255 * toned + 0.5).astype(np.uint8))
    picture = picture.resize(size, Image.Resampling.LANCZOS, box=box)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90, **({} if exif is None else {"exif": exif}))
    return file.getvalue()


def pixels(jpeg):
    """A JPEG's pixels, uint8 ``[H, W, 3]``."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def with_embedded(path, out, jpeg):
    """A copy of a little-endian TIFF file, such as a DNG, with a JPEG in a last directory of it."""
    file = bytearray(path.read_bytes())
    (place,) = struct.unpack_from("<I", file, 4)
    while place:
        (count,) = struct.unpack_from("<H", file, place)
        link = place + 2 + 12 * count
        (place,) = struct.unpack_from("<I", file, link)
    file += bytes(len(file) % 2)
    where = len(file)
    file += jpeg + bytes(len(jpeg) % 2)
    struct.pack_into("<I", file, link, len(file))
    height, width = pixels(jpeg).shape[:2]
    # NewSubfileType, sides, compression (JPEG), photometric (YCbCr), strip, samples.
    tags = [(254, 1), (256, width), (257, height), (258, 8), (259, 7), (262, 6), (273, where),
            (277, 3), (278, height), (279, len(jpeg))]  # fmt: skip
    file += struct.pack("<H", len(tags))
    for code, value in tags:
        file += struct.pack("<HHII", code, 4, 1, value)
    file += bytes(4)
    out.write_bytes(file)
