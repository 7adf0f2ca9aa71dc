"""What the other examples take where you give nothing: photographs, and mosaics made of them.

The photographs come with scikit-image. ``unprocess`` undoes what a camera's ISP does to them, with
a made-up camera for each, and so gives the mosaics that the sensors would have delivered.
"""

import torch
from skimage import data
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop, normalize, resize

from isp_distill import RawImage, unprocess


def photographs(side: int = 448) -> list[Tensor]:
    """Four photographs, uint8 [3, side, side]."""
    found = (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
    rgb = (torch.from_numpy(photograph).permute(2, 0, 1) for photograph in found)
    return [center_crop(resize(picture, [side], antialias=True), [side, side]) for picture in rgb]


def raw_photographs(side: int = 448) -> list[RawImage]:
    """The same photographs as RAW images of four cameras, one of each CFA pattern."""
    raws = []
    patterns = ("RGGB", "GRBG", "GBRG", "BGGR")
    for seed, (rgb, pattern) in enumerate(zip(photographs(side), patterns, strict=True)):
        mosaics, isp = unprocess(rgb[None], pattern=pattern, bits=14, black=512, seed=seed)
        raw = RawImage(
            mosaic=mosaics[0].numpy(),
            pattern=pattern,
            black=512,
            white=2**14 - 1,
            white_balance=isp.white_balance[0],
            ccm=isp.ccm[0],
            baseline_exposure=isp.exposure[0].log2(),
        )
        raws.append(raw)
    return raws


def settle(model: nn.Module, side: int = 224) -> None:
    """Show a model with random weights the photographs, so that its batch norms know them.

    Without that its answer is nearly the same for every picture, and there is nothing to learn.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all that it has seen
    pictures = torch.stack(photographs(side)) / 255
    with torch.no_grad():
        model.train()(normalize(pictures, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    model.eval()
