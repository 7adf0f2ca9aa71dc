"""Damaged descriptions and damaged frames of sensor dumps."""

from __future__ import annotations

import functools
import io
import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import tomli_w
from PIL import Image

from isp_distill import ISP, RawError, SensorFolder
from isp_distill.raw.packings import pack_rows

from .area import Refused, refusal
from .mutations import damaged_bytes, damaged_json

_HEIGHT, _WIDTH = 16, 24
#: A sound description; each attempt damages it or a frame.
_DESCRIPTION: dict[str, Any] = {
    "packing": "uint16",
    "bits": 10,
    "pattern": "RGGB",
    "width": _WIDTH,
    "height": _HEIGHT,
    "black": [60, 64, 64, 66],
    "white": 1023,
    "white_balance": [2.0, 1.0, 1.5],
    "ccm": [[1.5, -0.3, -0.2], [-0.2, 1.4, -0.2], [0.0, -0.4, 1.4]],
    "header": 0,
    "orientation": 6,
    "files": {"*.raw": {"exposure_time": 0.01}, "night": {"iso": 800}},
}
#: The same of a companding sensor, by knots or by a table.
_COMPANDED = (
    {"companding": [[0, 0], [512, 512], [1023, 1048576]], "white": 1048576},
    {"companding": [(code * code) / 64 for code in range(1024)], "white": 16352},
)


@functools.cache
def _frames() -> dict[str, bytes]:
    """A frame in each kind of file."""
    codes = np.random.default_rng(0).integers(0, 1024, (_HEIGHT, _WIDTH), dtype=np.uint16)
    found = {".raw": pack_rows(codes, "uint16").tobytes()}
    for suffix, write in {
        ".npy": lambda file: np.save(file, codes),
        ".npz": lambda file: np.savez_compressed(file, codes, codes),
        ".png": lambda file: Image.fromarray(codes).save(file, "PNG"),
        ".tif": lambda file: tifffile.imwrite(file, codes),
    }.items():
        file = io.BytesIO()
        write(file)
        found[suffix] = file.getvalue()
    found[".pgm"] = f"P5\n{_WIDTH} {_HEIGHT}\n65535\n".encode() + codes.astype(">u2").tobytes()
    return found


def attempt(number: int, folder: Path) -> None:
    """One damaged folder: sound images, or errors that name a file in it."""
    draw = random.Random(number)
    for old in folder.iterdir():
        old.unlink()
    described, beside, text = _DESCRIPTION, {"iso": 100}, None
    suffix = draw.choice(sorted(_frames()))
    frame = _frames()[suffix]
    kind = draw.randrange(4)
    companded = draw.randrange(4)
    if companded < len(_COMPANDED):
        described = {**described, **_COMPANDED[companded]}
    if kind == 0:
        described = _sayable(damaged_json(described, draw))
    elif kind == 1:
        text = damaged_bytes(tomli_w.dumps(described).encode(), draw)
    elif kind == 2:
        frame = damaged_bytes(frame, draw, early=128)
    else:
        beside = damaged_json(beside, draw)
    (folder / "sensor.toml").write_bytes(text or tomli_w.dumps(described).encode())
    (folder / f"a{suffix}").write_bytes(frame)
    (folder / "a.json").write_text(json.dumps(beside))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            images = list(map(SensorFolder(folder, on_error="raise").__getitem__, range(1)))
        except (RawError, ValueError, OSError) as error:
            raise refusal(error, folder) from error
    raw = images[0]
    assert raw.mosaic.dtype == np.uint16
    assert max(raw.black) < raw.white
    table = ISP.from_raw(raw).linearise
    if table is not None:
        assert float(table.abs().max()) <= 2**24
        assert bool((table.diff() >= 0).all())
    if kind < 2 and raw.mosaic.size > _HEIGHT * _WIDTH:
        raise AssertionError(f"a frame of {raw.mosaic.shape} from a file of {len(frame)} bytes")


def _sayable(value: Any) -> Any:
    """What TOML can say of it."""
    if isinstance(value, dict):
        return {str(k): _sayable(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_sayable(part) for part in value if part is not None]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return float(value)
    return value


__all__ = ["Refused", "attempt"]
