"""A dataset of your own: arrays straight from a sensor whose numbers you know, and no RAW files.

Anything with ``__len__`` and ``__getitem__`` is data for ``train`` and ``evaluate``, as long as it
gives RawImages: a mosaic, its colour filters, its levels, and what is known of its colours.

    python examples/sensor_arrays.py                          # on four photographs
    python examples/sensor_arrays.py frames --weights DEFAULT  # on your sensor's frames

``frames`` holds ``.npy`` files, uint16 [H, W], as the sensor delivers them. Put its numbers into
``camera``.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import stand_ins
import torchvision
from torch.utils.data import Dataset

from isp_distill import RawImage, Teacher, evaluate, train, unprocess


class SensorArrays(Dataset[RawImage]):
    """The frames of one camera, each read when it is asked for."""

    def __init__(self, folder: str | Path, camera: dict[str, Any]) -> None:
        self.files = sorted(Path(folder).glob("*.npy"))
        self.camera = camera

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> RawImage:
        return RawImage(np.load(self.files[index]), **self.camera)


def save_frames(folder: str, camera: dict[str, Any]) -> None:
    """Photographs as frames of one made-up sensor, whose colours are added to ``camera``."""
    for number, rgb in enumerate(stand_ins.photographs()):
        mosaics, isp = unprocess(rgb[None], pattern="GRBG", bits=12, black=240, seed=1)
        np.save(Path(folder, f"frame-{number}.npy"), mosaics[0].numpy())
    camera.update(white_balance=isp.white_balance[0], ccm=isp.ccm[0])


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("folder", nargs="?", help="of .npy files")
parser.add_argument("--weights", help="of the teacher, e.g. DEFAULT; random ones if not given")
parser.add_argument("--size", type=int, default=224, help="side of the teacher's pictures")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--out", default="runs/sensor-arrays")
options = parser.parse_args()

camera = {"pattern": "GRBG", "black": 240, "white": 4095}  # white_balance and ccm, if known
if options.folder is None:
    options.folder = tempfile.mkdtemp()
    save_frames(options.folder, camera)
frames = SensorArrays(options.folder, camera)
model = torchvision.models.mobilenet_v3_small(weights=options.weights)
if options.weights is None:
    stand_ins.settle(model, options.size)
teacher = Teacher(model, size=options.size)
result = train("rawify", teacher, frames, out=options.out, steps=options.steps, batch_size=4)
print(f"{len(frames)} frames:", evaluate(result.student, teacher, frames))
