"""Whether packed bytes and companded codes go to the kernels that codes go to."""

from __future__ import annotations

from typing import Any

import torch

from isp_distill.backends import choice
from isp_distill.errors import BackendError
from isp_distill.ops.raw_conv.call import Request


def takes(device: torch.device, packing: str | None = None, linearise: bool = False) -> bool:
    """Whether ``raw_conv`` and ``render`` serve such mosaics on a device as they serve codes.

    Where they do not, as where a GPU's kernels read codes alone, it is better to unpack a batch, or
    to look its codes up, once on the device.

    Args:
        device: of the mosaics.
        packing: one of :data:`isp_distill.raw.packings.PACKED`, or None.
        linearise: whether their codes are companded.
    """
    mosaic = torch.uint16 if packing is None else torch.uint8
    asked = {"mosaic": mosaic, "packing": packing, "linearise": linearise}
    request = Request(
        kernel=3,
        batch=1,
        out_dtype=torch.float32,
        weight=torch.float32,
        mosaic=torch.uint8,
        stride=2,
        activation="none",
        learnt=True,
        colour=True,
        only_reference=None,
        packing=None,
        linearise=False,
    )._asdict()
    picture = {
        "mosaic": torch.uint8,
        "dtype": torch.float32,
        "needs_gradient": False,
        "only_reference": None,
        "packing": None,
        "linearise": False,
    }
    return all(
        _backend(operation, device, {**call, **asked})
        == _backend(operation, device, {**call, "mosaic": torch.uint16})
        for operation, call in (("raw_conv", request), ("render", picture))
    )


def _backend(operation: str, device: torch.device, call: dict[str, Any]) -> str:
    """Who serves a call; "" where the backend that was asked for cannot."""
    try:
        return choice.choose(operation, device, **call).backend
    except BackendError:
        return ""
