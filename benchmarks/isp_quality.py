"""How good render's pictures are: photographs mosaicked, rendered, and held against themselves.

    python benchmarks/isp_quality.py                  # the table, and the strip of pictures

Each photograph of scikit-image is brought to linear light, taken to an RGGB mosaic of 14 bits with
unequal gains and a colour matrix, without noise, and rendered again. Compared with the photograph,
in display values, 8 pixels of border left out: CPSNR (the peak signal-to-noise ratio over all three
channels at once) and the mean colour difference (CIE 1976). Superpixel pictures are half as large
and are compared with the photograph reduced to half by averaging.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isp_distill import ISP, render
from isp_distill.ops import reference

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
BLACK, WHITE, BALANCE = 512.0, 16383.0, (1.9, 1.0, 1.5)
CCM = torch.tensor([[1.62, -0.48, -0.14], [-0.21, 1.49, -0.28], [0.02, -0.51, 1.49]])
CAMERA = ISP(black=BLACK, white=WHITE, white_balance=BALANCE, ccm=CCM)
BORDER = 8
PATTERN = torch.zeros(1, dtype=torch.int64)


def photograph(name: str) -> Tensor:
    """``[1, 3, H, W]`` in [0, 1], H and W even, a little less saturated than it was.

    Colours beyond what the camera's matrix can reach would be clipped at the sensor, which is no
    fault of the demosaicing.
    """
    import skimage.data

    image = torch.from_numpy(np.array(getattr(skimage.data, name)())).float() / 255
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    image = image[:height, :width].movedim(-1, 0)[None]
    return 0.05 + 0.9 * (0.7 * image + 0.3 * image.mean(1, keepdim=True))


def mosaicked(image: Tensor) -> Tensor:
    """The uint16 mosaic of a picture: render, backwards."""
    linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    camera = torch.einsum("ij,njhw->nihw", torch.linalg.inv(CCM), linear)
    camera = (camera / torch.tensor(BALANCE)[:, None, None]).clamp(0, 1)
    planes = [reference.pack(camera[:, c], PATTERN)[:, k] for k, c in enumerate((0, 1, 1, 2))]
    levels = reference.unpack(torch.stack(planes, 1), PATTERN) * (WHITE - BLACK) + BLACK
    return levels.round().to(torch.int32).to(torch.uint16)


def balanced(mosaic: Tensor) -> Tensor:
    """Normalised and white-balanced, as every demosaicing here gets it: the filters mix colours."""
    settings = CAMERA.batched(1)
    planes = reference.pack(mosaic.float(), PATTERN)
    planes = reference.normalise(planes, settings.black, settings.white, CAMERA.gain(1), clip=True)
    return reference.unpack(planes, PATTERN)[0]


def with_opencv(code: str) -> Callable[[Tensor], Tensor]:
    """OpenCV's demosaicing, of 16 bits, with this library's colours."""

    def picture(mosaic: Tensor) -> Tensor:
        import cv2

        levels = (balanced(mosaic).numpy() * 65535).round().astype(np.uint16)
        return colours(cv2.cvtColor(levels, getattr(cv2, code)).astype(np.float32) / 65535)

    return picture


def with_colour_demosaicing(name: str) -> Callable[[Tensor], Tensor]:
    """A demosaicing of colour-demosaicing, with this library's colours."""

    def picture(mosaic: Tensor) -> Tensor:
        import colour_demosaicing

        rgb = getattr(colour_demosaicing, name)(balanced(mosaic).double().numpy(), "RGGB")
        return colours(rgb.astype(np.float32))

    return picture


def colours(rgb: np.ndarray) -> Tensor:
    """Camera RGB ``[H, W, 3]`` to a picture."""
    x = torch.from_numpy(np.ascontiguousarray(rgb)).movedim(-1, 0)[None]
    x = torch.einsum("ij,njhw->nihw", CCM, x).clamp(0, 1)
    return reference.tone_curve(x, "srgb")


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "superpixel": lambda mosaic: render(mosaic, CAMERA.replace(demosaic="superpixel")),
    "bilinear": lambda mosaic: render(mosaic, CAMERA.replace(demosaic="bilinear")),
    "malvar": lambda mosaic: render(mosaic, CAMERA),
    "OpenCV bilinear": with_opencv("COLOR_BayerRG2BGR"),
    "OpenCV edge-aware": with_opencv("COLOR_BayerRG2BGR_EA"),
    "colour-demosaicing Malvar": with_colour_demosaicing("demosaicing_CFA_Bayer_Malvar2004"),
    "colour-demosaicing Menon": with_colour_demosaicing("demosaicing_CFA_Bayer_Menon2007"),
}


def compared(picture: Tensor, original: Tensor) -> tuple[float, float]:
    """CPSNR in dB and the mean CIE 1976 difference."""
    from skimage.color import rgb2lab

    if picture.shape != original.shape:
        original = F.avg_pool2d(original, 2)
    inside = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    a, b = picture[inside].clamp(0, 1), original[inside]
    error = float((a - b).square().mean())
    labs = [rgb2lab(x[0].movedim(0, -1).double().numpy()) for x in (a, b)]
    return -10 * math.log10(error), float(np.linalg.norm(labs[0] - labs[1], axis=-1).mean())


def strip(pictures: dict[str, Tensor], path: Path) -> None:
    """The same detail of each picture side by side, enlarged."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(pictures), figsize=(2.2 * len(pictures), 2.6), layout="constrained"
    )
    for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
        height = picture.shape[2]
        top, left, side = int(0.28 * height), int(0.36 * height), int(0.2 * height)
        detail = picture[0, :, top : top + side, left : left + side].clamp(0, 1)
        axis.imshow(detail.movedim(0, -1).numpy(), interpolation="nearest")
        axis.set_title(name.replace(" ", "\n", 1), fontsize=8)
        axis.axis("off")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--strip", type=Path, default=Path("isp_quality.png"))
    parser.add_argument("--of", choices=PHOTOGRAPHS, default="astronaut", help="in the strip")
    arguments = parser.parse_args()
    originals = {name: photograph(name) for name in PHOTOGRAPHS}
    print("| CPSNR dB / mean colour difference | " + " | ".join(PHOTOGRAPHS) + " |")
    print("|---" * (1 + len(PHOTOGRAPHS)) + "|")
    shown = {"original": originals[arguments.of]}
    for way, picture_of in WAYS.items():
        cells = []
        for name, original in originals.items():
            try:
                picture = picture_of(mosaicked(original))
            except ImportError as error:
                print(f"without {way}: {error}", file=sys.stderr)
                break
            if name == arguments.of:
                shown[way] = picture
            psnr, difference = compared(picture, original)
            cells.append(f"{psnr:.1f} / {difference:.2f}")
        else:
            print(f"| {way} | " + " | ".join(cells) + " |", flush=True)
    strip(shown, arguments.strip)
    print(f"\nstrip of pictures: {arguments.strip}")


if __name__ == "__main__":
    main()
