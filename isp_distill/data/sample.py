"""``Sample``: one view of a file, and what many of them make: a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from isp_distill.data.batch import RawBatch
from isp_distill.data.label_maps import LabelGrid, collate_labels
from isp_distill.data.stacking import stacked
from isp_distill.isp.camera import ISP
from isp_distill.ops.unprocess.call import unprocess
from isp_distill.ops.unprocess.noise import NoiseModel


class Sample(NamedTuple):
    """One view.

    Attributes:
        array: mosaic, or a picture to make one of.
        camera: of the mosaic; it says how that is packed.
        label: class, or view of a label map.
        logits: the teacher's, where they are stored.
        picture: the camera's own, where the teacher sees that.
        item: which of the dataset's it is a view of.
        features: the teacher's by name, where they are stored.
        window: top, left, height and width in the file, in its own pixels.
        boxes: the true ones that it shows, where there are some.
    """

    array: Any
    camera: Any
    label: Any
    logits: Any = None
    picture: Any = None
    item: int = -1
    features: Any = None
    window: Any = None
    boxes: Any = None


def batch_of(
    samples: Sequence[Sample],
    grid: LabelGrid | None,
    noise: NoiseModel | None,
    seed: int,
    number: int | None,
) -> RawBatch:
    """The batch of some views; of pictures, mosaics are made.

    Args:
        samples: all of mosaics, or all of pictures.
        grid: of their label maps, if they have any.
        noise: of the mosaics that are made.
        seed: of the run.
        number: of the batch in it; with the seed it decides the cameras that are made up. None: a
            view's item and place decide its camera, whatever else is in the batch.

    Raises:
        ValueError: some of them have a camera's picture and others none.
    """
    arrays, cameras, known, stored, pictures, items, features, windows, boxes = zip(
        *samples, strict=True
    )
    placed: dict[str, Any] = {"items": items, "windows": windows}
    if boxes[0] is not None:
        placed["boxes"] = tuple(map(torch.from_numpy, boxes))
    labels = collate_labels(known, grid)
    if cameras[0] is not None:
        logits = None if stored[0] is None else torch.from_numpy(np.stack(stored))
        held = None
        if features[0] is not None:
            names = features[0].keys()
            held = {n: torch.from_numpy(np.stack([one[n] for one in features])) for n in names}
        mosaics, camera = stacked(arrays, cameras)
        shown = pictures_of(pictures)
        return RawBatch(mosaics, camera, labels, shown, logits, features=held, **placed)
    picture = _planes(torch.from_numpy(np.stack(arrays)))
    if number is not None:
        return RawBatch(*_made(picture, noise, (seed, 2, number)), labels, picture, **placed)
    each = [
        _made(one[None], noise, (seed, 3, item, *map(int, window)))
        for one, item, window in zip(picture, items, windows, strict=True)
    ]
    mosaic, isp = torch.cat([mosaic for mosaic, _ in each]), _joined([isp for _, isp in each])
    return RawBatch(mosaic, isp, labels, picture, **placed)


def _made(
    picture: torch.Tensor, noise: NoiseModel | None, entropy: tuple[int, ...]
) -> tuple[torch.Tensor, ISP]:
    """Mosaics of pictures, by made-up cameras."""
    drawn = int(np.random.default_rng(entropy).integers(2**63))
    patterns = torch.from_numpy(np.random.default_rng(drawn).integers(0, 4, len(picture)))
    return unprocess(picture, pattern=patterns, noise=noise, seed=drawn)


def _joined(isps: Sequence[ISP]) -> ISP:
    """Made-up cameras of one picture each as those of a batch."""
    found = {}
    for field in dataclasses.fields(isps[0]):
        values = [getattr(isp, field.name) for isp in isps]
        if isinstance(values[0], torch.Tensor):
            found[field.name] = torch.cat([value.reshape(1, *value.shape[1:]) for value in values])
    return isps[0].replace(**found)


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
