"""A folder of pictures as a folder of DNG files: what ``isp-distill unprocess`` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from isp_distill.data.image_folder import ImageFolder
from isp_distill.errors import RawError
from isp_distill.ops.unprocess.call import unprocess
from isp_distill.ops.unprocess.noise import NoiseModel
from isp_distill.raw.cfa import PATTERNS
from isp_distill.raw.dng.writer import write_dng


def unprocess_folder(
    pictures: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    pattern: str = "all",
    bits: int = 14,
    black: float = 512,
    noise: NoiseModel | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, str]:
    """Write ``OUT/a/x.dng`` for every picture ``PICTURES/a/x.jpg``, each of a made-up camera.

    Args:
        pictures: searched recursively, see :class:`isp_distill.ImageFolder`.
        out: made where it is missing; a DNG file of the same name is written over.
        pattern: "RGGB", "GRBG", "GBRG", "BGGR", or "all" for each in turn.
        bits: of a sample, 8 to 16.
        black: black level, sensor units.
        noise: sensor noise to add.
        seed: of the cameras and of the noise; each picture has its own.
        progress: show a progress bar.

    Returns:
        The pictures that were left out, with reasons.

    Raises:
        FileNotFoundError: the folder is missing or holds no picture.
        ValueError: two pictures would become one DNG file (nothing is written then), or an unknown
            pattern.
    """
    if pattern != "all" and pattern not in PATTERNS:
        raise ValueError(f"unknown pattern {pattern!r}: expected {', '.join(PATTERNS)} or all")
    folder = ImageFolder(Path(pictures))
    names = [path.relative_to(folder.root).with_suffix(".dng") for path in folder.paths]
    _refuse_collisions(folder.paths, names)
    for index, name in enumerate(tqdm(names, desc="unprocess", disable=not progress)):
        try:
            rgb = folder[index]
        except RawError:
            continue
        height, width = (side - side % 2 for side in rgb.shape[:2])
        if min(height, width) < 22:
            # LibRaw reads no smaller DNG.
            folder.skipped[str(folder.paths[index])] = (
                f"it has {rgb.shape[1]} x {rgb.shape[0]} pixels, and a DNG needs at least 22 x 22"
            )
            continue
        tensor = torch.from_numpy(rgb[:height, :width].copy()).permute(2, 0, 1)[None]
        chosen = PATTERNS[index % 4] if pattern == "all" else pattern
        mosaic, isp = unprocess(
            tensor, pattern=chosen, bits=bits, black=black, noise=noise, seed=seed + index
        )
        settings = isp.batched(1)
        assert isinstance(settings.white_balance, torch.Tensor)
        assert isinstance(settings.ccm, torch.Tensor)
        target = Path(out) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_dng(
            target,
            mosaic[0].numpy(),
            pattern=chosen,
            black=black,
            white=2**bits - 1,
            white_balance=tuple(settings.white_balance[0].tolist()),
            ccm=settings.ccm[0].tolist(),
            bits=bits,
        )
    return dict(folder.skipped)


def _refuse_collisions(paths: Sequence[Path], names: Sequence[Path]) -> None:
    """Two sources of one name are an error before anything is written."""
    first: dict[str, Path] = {}
    for path, name in zip(paths, names, strict=True):
        # Some disks hold X.dng and x.dng for one name.
        other = first.setdefault(str(name).casefold(), path)
        if other is not path:
            raise ValueError(
                f"{other} and {path} would both become {name}: rename one, or unprocess them into "
                "different folders; nothing was written"
            )
