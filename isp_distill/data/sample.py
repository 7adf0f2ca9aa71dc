"""``Sample``: one view of a file, and what many of them make: a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from isp_distill.data.batch import RawBatch
from isp_distill.data.label_maps import LabelGrid, collate_labels
from isp_distill.isp.camera import ISP
from isp_distill.ops.unprocess.call import unprocess
from isp_distill.ops.unprocess.noise import NoiseModel


class Sample(NamedTuple):
    """One view.

    Attributes:
        array: mosaic, or a picture to make one of.
        camera: of the mosaic.
        label: class, or view of a label map.
        logits: the teacher's, where they are stored.
        picture: the camera's own, where the teacher sees that.
    """

    array: Any
    camera: Any
    label: Any
    logits: Any = None
    picture: Any = None


def batch_of(
    samples: Sequence[Sample],
    grid: LabelGrid | None,
    noise: NoiseModel | None,
    seed: int,
    number: int,
) -> RawBatch:
    """The batch of some views; of pictures, mosaics are made.

    Args:
        samples: all of mosaics, or all of pictures.
        grid: of their label maps, if they have any.
        noise: of the mosaics that are made.
        seed: of the run.
        number: of the batch in it; with the seed it decides the cameras that are made up.

    Raises:
        ValueError: some of them have a camera's picture and others none.
    """
    arrays, cameras, known, stored, pictures = zip(*samples, strict=True)
    labels = collate_labels(known, grid)
    stacked = torch.from_numpy(np.stack(arrays))
    if cameras[0] is not None:
        logits = None if stored[0] is None else torch.from_numpy(np.stack(stored))
        return RawBatch(stacked, ISP.from_raw(list(cameras)), labels, pictures_of(pictures), logits)
    picture = _planes(stacked)
    drawn = int(np.random.default_rng((seed, 2, number)).integers(2**63))
    patterns = torch.from_numpy(np.random.default_rng(drawn).integers(0, 4, len(samples)))
    mosaic, isp = unprocess(picture, pattern=patterns, noise=noise, seed=drawn)
    return RawBatch(mosaic, isp, labels, picture)


def pictures_of(pictures: Sequence[Any]) -> torch.Tensor | None:
    """The cameras' pictures of a batch: float32 ``[N, 3, H, W]``, or None where there are none."""
    missing = sum(picture is None for picture in pictures)
    if missing == len(pictures):
        return None
    if missing:
        raise ValueError(
            f"the dataset gives a camera's picture for some items and none for {missing} of "
            f"{len(pictures)} in a batch: give one for each, or for none"
        )
    return _planes(torch.from_numpy(np.stack(pictures)))


def _planes(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.permute(0, 3, 1, 2).float() / 255
