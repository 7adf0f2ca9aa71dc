"""Frames of a 24-bit sensor as 12-bit codes, and the folders that hold them."""

import numpy as np

from isp_distill.raw.companding import curve_of, linear_values
from isp_distill.raw.packings import pack_rows

#: A curve of 12-bit codes for a 24-bit sensor, in whole values.
KNOTS = [[0, 0], [1024, 1024], [2048, 66560], [3072, 1115136], [4095, 16777215]]
CURVE = curve_of(KNOTS)
BLACK = 64


def codes_of(index, height, width):
    """Blobs of light over five orders of magnitude, with some noise."""
    random = np.random.default_rng(index)
    scene = np.kron(random.random((height // 8, width // 8)), np.ones((8, 8)))
    codes = BLACK + (0.9 * scene + 0.1 * random.random((height, width))) * (4095 - BLACK)
    return codes.astype(np.uint16)


def linear(codes):
    """What the codes mean."""
    return linear_values(codes, CURVE)


def hdr_folder(path, packing="mipi12", count=6, height=64, width=64, **said):
    """A folder of dumps with its ``sensor.toml``."""
    path.mkdir(parents=True)
    for index in range(count):
        codes = codes_of(index, height, width)
        (path / f"{index}.raw").write_bytes(pack_rows(codes, packing).tobytes())
    lines = {"packing": packing, "pattern": "GRBG", "width": width, "height": height}
    lines |= {"black": BLACK, "white_balance": [1.9, 1.0, 1.5], "companding": KNOTS, **said}
    if packing == "uint16":
        lines["bits"] = 12
    text = "".join(f"{name} = {value!r}\n".replace("'", '"') for name, value in lines.items())
    (path / "sensor.toml").write_text(text)
    return path
