"""``collate``: RAW images as ``torch.utils.data.DataLoader`` gives them, made one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data._utils.collate import default_collate_fn_map

from isp_distill.data.batch import RawBatch
from isp_distill.data.cut_view import cut_view
from isp_distill.data.label_maps import IGNORED
from isp_distill.data.stacking import stacked
from isp_distill.data.views import View
from isp_distill.raw.image import RawImage


def collate(
    samples: Sequence[Any],
    *,
    view: View | nn.Module | None = None,
) -> RawBatch:
    """A list of RAW images, with or without classes, as one batch.

    ``DataLoader(RawFolder(...))`` uses it by itself, for files of one size. For any sizes, and for
    what a student sees of them, give a view, as in the example.

    A folder's own labels come along where they are paired with its files:
    ``StackDataset(folder, [folder.label(i) for i in range(len(folder))])``, with
    ``collate_fn=isp_distill.collate``. ``train`` and ``evaluate`` take the folder itself and need
    no DataLoader.

    Args:
        samples: RawImages, or pairs of one and its class (None or -100 where it has none).
        view: cut each file's middle view, as :func:`cut_view` does; a :class:`View` or a trained
            student. None: whole mosaics, which must then be of one size and orientation.

    Returns:
        The :class:`~isp_distill.data.batch.RawBatch`: ``mosaic`` uint16 ``[N, H, W]``, or packed
        bytes where all images are packed alike; ``isp`` with every sample's camera; ``labels``
        int64 ``[N]`` or None. It can be pinned and moved to a device.

    Raises:
        ValueError: for mosaics of different sizes or orientations, or an empty list.
        TypeError: for a sample of another kind, or a label that is no class.

    Examples:
        >>> import functools
        >>> loader = torch.utils.data.DataLoader(
        ...     isp_distill.RawFolder("photos/raw"),
        ...     batch_size=3,
        ...     collate_fn=functools.partial(isp_distill.collate, view=isp_distill.View(64)),
        ... )
        >>> student = isp_distill.rawify(model)
        >>> for batch in loader:
        ...     print(student(batch.mosaic, batch.isp).shape)
        torch.Size([3, 4])
    """
    pairs = [sample if isinstance(sample, (tuple, list)) else (sample, None) for sample in samples]
    if not pairs:
        raise ValueError("collate: the list of samples is empty")
    raws, labels = [], []
    for pair in pairs:
        if len(pair) != 2 or not isinstance(pair[0], RawImage):
            kinds = " and ".join(type(part).__name__ for part in pair if part is not None)
            raise TypeError(f"collate takes RawImages, alone or with a class each, not {kinds}")
        raws.append(pair[0])
        labels.append(_class(pair[1]))
    known = torch.tensor(labels) if any(label != IGNORED for label in labels) else None
    if view is not None:
        mosaic, isp = cut_view(raws, view)
        return RawBatch(mosaic.cpu(), isp.to("cpu"), known)
    sizes = sorted({(raw.height, raw.width) for raw in raws})
    if len(sizes) > 1:
        named = ", ".join(f"{height} x {width}" for height, width in sizes)
        raise ValueError(
            f"the mosaics of a batch differ in size ({named}): cut views of one size, "
            "collate_fn=functools.partial(isp_distill.collate, view=isp_distill.View(448)), or "
            "take them one by one, collate_fn=list"
        )
    return RawBatch(*stacked([raw.mosaic for raw in raws], raws), known)


def _class(label: Any) -> int:
    if label is None:
        return IGNORED
    try:
        # Not int(): a label of 3.7 is a mistake.
        return int(label.__index__())
    except (AttributeError, TypeError, ValueError):
        raise TypeError(
            f"collate: a label must be a class, an int, not a {type(label).__name__}; label maps "
            "are read by train() and evaluate()"
        ) from None


def _by_default(samples: Any, *, collate_fn_map: Any = None) -> RawBatch:
    return collate(samples)


# As torch documents it for types of one's own: a DataLoader without collate_fn finds it here.
default_collate_fn_map[RawImage] = _by_default
