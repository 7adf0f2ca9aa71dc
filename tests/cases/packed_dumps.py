"""Frames of sensor dumps, packed and not, and the folders that hold them."""

import dataclasses

import numpy as np

from isp_distill import RawImage
from isp_distill.raw.packings import PACKINGS, pack_rows

#: Of a short training.
SETTINGS = {"steps": 3, "batch_size": 2, "progress": False, "tensorboard": False, "seed": 1}


def codes_of(packing, height, width, seed=0):
    most = 1 << PACKINGS[packing].bits
    return np.random.default_rng(seed).integers(0, most, (height, width)).astype(np.uint16)


def both(packing, height=24, width=40, seed=0, **fields):
    """The same image as codes and packed."""
    codes = codes_of(packing, height, width, seed)
    fields = {"pattern": "GBRG", "black": (3, 4, 5, 6), "white": 1000, **fields}
    plain = RawImage(codes, **fields)
    return plain, RawImage(pack_rows(codes, packing), packing=packing, packed_width=width, **fields)


def assert_same(one, other):
    """Two images of the same codes and camera."""
    other = other.unpacked()
    for field in dataclasses.fields(RawImage):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert np.array_equal(a, b) if field.name == "mosaic" else a == b, field.name


def dump_folder(path, packing="mipi12", count=6, height=64, width=64, **said):
    """Frames with blobs of colour, and what describes them."""
    path.mkdir()
    bits = PACKINGS[packing].bits
    black = 1 << bits - 4
    for index in range(count):
        random = np.random.default_rng(index)
        scene = np.kron(random.random((height // 8, width // 8)), np.ones((8, 8)))
        noise = random.random((height, width))
        codes = (black + (0.8 * scene + 0.2 * noise) * ((1 << bits) - 1 - black)).astype(np.uint16)
        (path / f"{index}.raw").write_bytes(pack_rows(codes, packing).tobytes())
    lines = {"packing": packing, "pattern": "GRBG", "width": width, "height": height}
    lines |= {"black": black, "white_balance": [1.9, 1.0, 1.5], **said}
    text = "".join(f"{name} = {value!r}\n".replace("'", '"') for name, value in lines.items())
    (path / "sensor.toml").write_text(text)
    return path
