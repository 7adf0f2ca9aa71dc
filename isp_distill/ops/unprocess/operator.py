"""The torch operators that every compiled backend of ``unprocess`` and ``expose`` shares.

Schemas and shapes are written once, here. A backend is a pair of functions (:class:`Functions`),
registered with :mod:`isp_distill.backends.choice` and named in the operators' arguments. Neither
operator has a gradient: a mosaic is made of integers. The reference is not behind them: it is plain
PyTorch.

The random camera is an operator too, so that ``torch.compile`` cannot round it in another way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isp_distill.backends import choice
from isp_distill.backends.kernel_arguments import plain
from isp_distill.errors import BackendError
from isp_distill.ops import reference_unprocess


class UnprocessCall(NamedTuple):
    """A call of ``unprocess``, in the operator's order."""

    rgb: Tensor  # [N, 3, H, W], uint8 or float
    rgb_to_camera: Tensor  # [N, 3, 3]
    gains: Tensor  # [N, 3]
    pattern: Tensor  # [N] int64
    black: Tensor  # [N, 4], R, Gr, Gb, B
    white: Tensor  # [N]
    shot: Tensor | None  # [N]
    read: Tensor | None  # [N]
    seed: int  # as a signed number of 64 bits


class ExposeCall(NamedTuple):
    """A call of ``expose``, in the operator's order."""

    mosaic: Tensor  # [N, H, W]
    factor: Tensor  # [N]
    shot: Tensor  # [N]
    read: Tensor  # [N]
    pattern: Tensor  # [N] int64
    black: Tensor  # [N, 4]
    white: Tensor  # [N]
    seed: int


def kernel_arguments(call: UnprocessCall | ExposeCall) -> tuple[Any, ...]:
    """A call as compiled kernels take it, in the same order: the output follows."""
    settings: tuple[Any, ...] = call[1:-1]
    tensors = (x.contiguous() if x is call.pattern else plain(x) for x in settings)
    return (call[0].detach(), *tensors, call.seed)


@dataclass(frozen=True)
class Functions:
    """What a compiled backend provides: two functions that return uint16 mosaics ``[N, H, W]``."""

    unprocess: Callable[[UnprocessCall], Tensor]
    expose: Callable[[ExposeCall], Tensor]


def signed(seed: int) -> int:
    """The seed as an operator takes it: the same 64 bits, as a signed number."""
    return seed - 2**64 if seed >= 2**63 else seed


def mosaic_like(image: Tensor) -> Tensor:
    """An empty mosaic for a picture ``[N, 3, H, W]`` or a mosaic ``[N, H, W]``."""
    shape = (image.shape[0], *image.shape[-2:])
    return torch.empty(shape, dtype=torch.uint16, device=image.device)


def functions_of(name: str) -> Functions:
    """What a compiled backend registered.

    Raises:
        BackendError: there is nothing.
    """
    implementation = choice.registered("unprocess", name)
    if implementation is None or not isinstance(implementation.functions, Functions):
        raise BackendError(f"backend {name!r} has no compiled unprocess")
    return implementation.functions


@torch.library.custom_op(
    "isp_distill::unprocess",
    mutates_args=(),
    schema="(Tensor rgb, Tensor rgb_to_camera, Tensor gains, Tensor pattern, Tensor black, "
    "Tensor white, Tensor? shot, Tensor? read, SymInt seed, str backend) -> Tensor",
)
def unprocess(*arguments: Any) -> Tensor:
    """The mosaics, by the backend that the last argument names."""
    *call, name = arguments
    return functions_of(name).unprocess(UnprocessCall(*call))


@unprocess.register_fake
def _(*arguments: Any) -> Tensor:
    return mosaic_like(arguments[0])


@torch.library.custom_op(
    "isp_distill::expose",
    mutates_args=(),
    schema="(Tensor mosaic, Tensor factor, Tensor shot, Tensor read, Tensor pattern, "
    "Tensor black, Tensor white, SymInt seed, str backend) -> Tensor",
)
def expose(*arguments: Any) -> Tensor:
    """The short exposures, by the backend that the last argument names."""
    *call, name = arguments
    return functions_of(name).expose(ExposeCall(*call))


@expose.register_fake
def _(*arguments: Any) -> Tensor:
    return mosaic_like(arguments[0])


_CAMERA = ("rgb_gain", "red_gain", "blue_gain", "shot", "read")


@torch.library.custom_op(
    "isp_distill::random_camera",
    mutates_args=(),
    schema="(SymInt batch, SymInt seed, Device device) -> Tensor",
)
def _random_camera(batch: int, seed: int, device: torch.device) -> Tensor:
    camera = reference_unprocess.random_camera(batch, seed % 2**64, torch.device("cpu"))
    columns = [camera["rgb_to_camera"].reshape(batch, 9), *(camera[c][:, None] for c in _CAMERA)]
    # One small copy, of memory that may be paged: nobody waits for the device.
    return torch.cat(columns, 1).to(device, non_blocking=True)


@_random_camera.register_fake
def _(batch: int, seed: int, device: torch.device) -> Tensor:
    return torch.empty(batch, 9 + len(_CAMERA), device=device)


def random_camera(batch: int, seed: int, device: torch.device) -> dict[str, Tensor]:
    """As :func:`isp_distill.ops.reference_unprocess.random_camera`, in one operator."""
    drawn = _random_camera(batch, signed(seed), device)
    camera = {"rgb_to_camera": drawn[:, :9].reshape(batch, 3, 3)}
    camera.update({name: drawn[:, 9 + i] for i, name in enumerate(_CAMERA)})
    return camera
