"""The same from a sensor's bare bytes: 12-bit frames as a camera's bus packs them, no headers.

``python demo/sensor.py [--out demo-output]``: one made-up camera takes 32 photographs of the demo.
Each of its ``.raw`` files holds several frames, two pixels in three bytes, and ``sensor.toml`` says
what they are. The frames are read back bit for bit, a student's stem is trained on the folder by
its path, and measured beside three baselines. Ends with 1 unless training has brought the student
nearer to its teacher.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from comparison import AFTER, BEFORE, compare
from make_raw import TILE, light_of, tile_of
from photographs import Photograph, gather
from PIL import Image
from teacher import load_teacher

from isp_distill import SensorFolder
from isp_distill.raw.packings import pack_rows

BITS, BLACK = 12, 256
WHITE = 2**BITS - 1
#: The whole picture, and a detail of it: two frames of each photograph, in one file.
TILES = ((1.0, 0.5, 0.5), (1.5, 0.6, 0.3))
#: Of the made-up camera, which is the same for all of them.
CAMERA = 3


def write_dumps(photographs: list[Photograph], out: Path) -> tuple[Path, Path]:
    """Write each photograph's frames into one file, and say what they are; read them back.

    Raises:
        RuntimeError: if what is read is not what was written.
    """
    folders = (out / "train", out / "held-out")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.raw"):
            old.unlink()
    for photograph in photographs:
        with Image.open(photograph.path) as image:
            picture = image.convert("RGB")
        folder, frames = folders[photograph.held_out], []
        for scale, down, right in TILES:
            light, isp = light_of(tile_of(picture, TILE, scale, down, right), "RGGB", CAMERA)
            codes = np.rint(BLACK + light * (WHITE - BLACK)).astype(np.uint16)
            frames.append(codes)
        path = folder / f"{photograph.name}.raw"
        path.write_bytes(pack_rows(np.stack(frames), "mipi12").tobytes())
        balance = torch.as_tensor(isp.white_balance).reshape(3).tolist()
        matrix = torch.as_tensor(isp.ccm).reshape(3, 3).tolist()
        (folder / "sensor.toml").write_text(
            f'format = "SRGGB{BITS}_CSI2P"\nwidth = {TILE}\nheight = {TILE}\nblack = {BLACK}\n'
            f'camera = "made-up camera"\nwhite_balance = {balance}\nccm = {matrix}\n'
        )
        own = SensorFolder(folder, files=[path])
        for index, codes in enumerate(frames):
            if not np.array_equal(own[index].mosaic, codes):
                raise RuntimeError(f"{path}: frame {index} is not what was written")
    return folders


def main() -> int:
    """Run the demo; 0 if training has brought the student nearer to its teacher."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--stem-lr", type=float, default=5e-3)
    options = parser.parse_args()
    began = time.perf_counter()

    photographs = gather(options.out / "photographs", few=True)
    out = options.out / "sensor"
    training, held_out = write_dumps(photographs, out)
    files = [len(list(folder.glob("*.raw"))) for folder in (training, held_out)]
    print(
        f"{files[0]} training and {files[1]} held-out files of {len(TILES)} frames, "
        f"{TILE} x {TILE} in {BITS} bits, read back bit for bit",
        flush=True,
    )
    rows, _ = compare(
        load_teacher(),
        training,
        held_out,
        out,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=1e-4,
        stem_lr=options.stem_lr,
        trainable="stem",
    )
    print(f"{time.perf_counter() - began:.0f} s in all")
    if rows[AFTER].kl >= rows[BEFORE].kl:
        print("FAILED: training did not bring the student nearer to its teacher")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
