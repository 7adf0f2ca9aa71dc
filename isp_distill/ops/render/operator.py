"""``isp_distill::render``: the torch operator that every compiled backend of ``render`` shares.

Schema and shapes are written once, here. A backend is one function (see :data:`Forward`),
registered with :mod:`isp_distill.backends.choice` and named in the operator's arguments. The
operator has no gradient: a call that asks for one is served by the reference, which is plain
PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isp_distill.backends import choice
from isp_distill.errors import BackendError


class Tensors(NamedTuple):
    """The tensors of a call, in the operator's order."""

    mosaic: Tensor  # [N, H, W]; [N, H, bytes] where it is packed
    black: Tensor  # [N, 4], R, Gr, Gb, B
    white: Tensor  # [N]
    pattern: Tensor  # [N] int64
    gain: Tensor  # [N, 4]
    ccm: Tensor  # [N, 3, colours]
    mean: Tensor  # [3]
    std: Tensor  # [3]
    linearise: Tensor | None = None  # [N, L] or [1, L]: the linear values of codes


class Settings(NamedTuple):
    """The rest of a call, in the operator's order."""

    demosaic: str
    tone: str
    orientation: int
    crop: Sequence[int]  # top, left, height, width
    size: Sequence[int]  # of the picture, upright
    resize_in: str
    dtype: torch.dtype
    channels_last: bool
    packing: str | None = None
    width: int | None = None  # pixels of a row, where packed

    def pixels(self, mosaic: Tensor) -> int:
        """How many pixels a row of the mosaic has."""
        return mosaic.shape[2] if self.width is None else self.width


#: What a compiled backend provides: the picture, laid out as :func:`output_like` says.
Forward = Callable[[Tensors, Settings], Tensor]

_SCHEMA = (
    "(Tensor mosaic, Tensor black, Tensor white, Tensor pattern, Tensor gain, Tensor ccm, "
    "Tensor mean, Tensor std, Tensor? linearise, str demosaic, str tone, int orientation, "
    "SymInt[] crop, SymInt[] size, str resize_in, ScalarType dtype, bool channels_last, "
    "str? packing, SymInt? width, str backend) -> Tensor"
)
_COUNT = len(Tensors._fields)


def output_like(mosaic: Tensor, settings: Settings) -> Tensor:
    """An empty tensor of the picture's shape, type and layout."""
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    return torch.empty(
        (mosaic.shape[0], 3, *settings.size),
        dtype=settings.dtype,
        device=mosaic.device,
        memory_format=layout,
    )


def functions_of(name: str) -> Forward:
    """What a compiled backend registered.

    Raises:
        BackendError: there is nothing.
    """
    implementation = choice.registered("render", name)
    if implementation is None or name == "reference":
        raise BackendError(f"backend {name!r} has no compiled render")
    forward: Forward = implementation.functions
    return forward


@torch.library.custom_op("isp_distill::render", mutates_args=(), schema=_SCHEMA)
def render(*arguments: Any) -> Tensor:
    """The picture, by the backend that the last argument names."""
    *rest, name = arguments
    return functions_of(name)(Tensors(*rest[:_COUNT]), Settings(*rest[_COUNT:]))


@render.register_fake
def _(*arguments: Any) -> Tensor:
    *rest, _ = arguments
    return output_like(rest[0], Settings(*rest[_COUNT:]))
