"""A RAW file as render makes a picture of it, beside LibRaw's own, and where the two differ.

    python benchmarks/colour_chart.py FILE.dng --out colour_chart.png

Both at full size in sRGB, white balance as shot, no automatic brightness, highlights clipped;
render with Malvar's demosaicing, LibRaw with each of those that its wheel has. Printed: the mean
absolute difference in steps of 8 bits over all channels, and how much of it an average over 8 x 8
pixels leaves, which no demosaicing changes: colours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import rawpy
import torch
import torch.nn.functional as F
from torch import Tensor

from isp_distill import ISP, RawImage, read_raw, render

DEMOSAICINGS = ("LINEAR", "VNG", "PPG", "AHD", "DHT")


def ours(raw: RawImage, demosaic: str = "malvar") -> Tensor:
    """``[1, 3, H, W]`` in [0, 1]."""
    # LibRaw scales so that the smallest white balance is 1.
    isp = ISP.from_raw(raw, demosaic=demosaic, exposure=1 / min(raw.white_balance))
    return render(torch.from_numpy(raw.mosaic)[None], isp)


def libraw(path: Path, demosaicing: str) -> Tensor:
    """The same of LibRaw."""
    with rawpy.imread(str(path)) as decoder:
        picture = decoder.postprocess(
            demosaic_algorithm=rawpy.DemosaicAlgorithm[demosaicing],
            gamma=(2.4, 12.92),
            no_auto_bright=True,
            use_camera_wb=True,
            adjust_maximum_thr=0.0,
            output_bps=16,
        )
    return torch.from_numpy(picture.astype(np.float32) / 65535).movedim(-1, 0)[None]


def compared(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean absolute difference in steps of 8 bits, as they are and of averages over 8 x 8."""
    difference = 255 * (a - b)
    return float(difference.abs().mean()), float(F.avg_pool2d(difference, 8).abs().mean())


def draw(pictures: dict[str, Tensor], difference: Tensor, path: Path) -> None:
    """The pictures above a detail of each; the difference at the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, _, height, width = difference.shape
    shown = [(name, x[0].clamp(0, 1).movedim(0, -1).numpy()) for name, x in pictures.items()]
    shown.append(("difference x 10", (10 * difference[0]).clamp(0, 1).movedim(0, -1).numpy()))
    figure, axes = plt.subplots(
        2, len(shown), figsize=(4.2 * len(shown), 4.2 * (1 + height / width)), layout="constrained"
    )
    top, left, side = int(0.55 * height), int(0.5 * width), height // 6
    for (name, picture), whole, detail in zip(shown, *axes, strict=True):
        whole.imshow(picture)
        whole.set_title(name)
        detail.imshow(picture[top : top + side, left : left + side], interpolation="nearest")
        whole.axis("off"), detail.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("raw", type=Path)
    parser.add_argument("--out", type=Path, default=Path("colour_chart.png"))
    arguments = parser.parse_args()
    raw = read_raw(arguments.raw)
    picture = ours(raw)
    print("| render / LibRaw | mean difference, 8-bit steps | of 8 x 8 averages |\n|---|--:|--:|")
    theirs = {}
    for name in DEMOSAICINGS:
        try:
            theirs[name] = libraw(arguments.raw, name)
        except rawpy.NotSupportedError as error:
            print(f"| {name} | {error} | |")
            continue
        plain, averaged = compared(picture, theirs[name])
        print(f"| Malvar / {name} | {plain:.2f} | {averaged:.2f} |", flush=True)
    plain, averaged = compared(ours(raw, "bilinear"), theirs["LINEAR"])
    print(f"| bilinear / LINEAR | {plain:.2f} | {averaged:.2f} |")
    other = theirs["AHD"]
    draw({"render, Malvar": picture, "LibRaw, AHD": other}, (picture - other).abs(), arguments.out)
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    main()
