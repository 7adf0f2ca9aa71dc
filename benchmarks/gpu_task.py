"""A task of bench_gpu.py: one call, every way to compute it, and the sizes of all tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isp_distill import use_backend
from isp_distill.backends import choice

Way = Callable[[], tuple[Tensor, ...]]
#: Largest difference from the reference, as a share of its largest value. Half-precision results
#: are rounded once; in between everything is float32 (tf32x3 in the convolution).
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.uint16: 0.0}


@dataclass
class Task:
    """One call, and every way to compute it.

    Attributes:
        operation: as :mod:`isp_distill.backends.choice` calls it.
        name: what the table says.
        dtype: of the results.
        call: the library's call, under whatever backend is in force; its results and gradients.
        truth: the reference's, in float32.
        peers: other ways, by name; they must agree with the reference too.
        traffic: bytes that must be read and written.
        operations: floating-point operations (a multiply-add is two), in ``dtype``.
        capturable: whether nothing of it is drawn on the processor.
        unlike: peers that round elsewhere, and so are only roughly alike.
        tolerance: of the backends, see :data:`TOLERANCE`; the dtype's if None.
    """

    operation: str
    name: str
    dtype: torch.dtype
    call: Way
    truth: Way
    peers: dict[str, Way]
    traffic: float
    operations: float = 0.0
    capturable: bool = True
    unlike: frozenset[str] = field(default_factory=frozenset)
    tolerance: float | None = None

    def backends(self) -> dict[str, str | None]:
        """Every backend but the reference, and why it cannot run here, or None."""
        found: dict[str, str | None] = {}
        for name in ("cpu", "triton", "cuda"):
            implementation = choice.registered(self.operation, name)
            if implementation is None:
                found[name] = "there is no such implementation"
                continue
            found[name] = None
            try:
                with use_backend(name):
                    self.call()
            except Exception as error:
                found[name] = f"{error}".split("\n")[0]
        return found

    def by(self, name: str) -> Way:
        """The call by one backend."""

        def run() -> tuple[Tensor, ...]:
            with use_backend(name):
                return self.call()

        return run


@dataclass(frozen=True)
class Sizes:
    """How large the tasks are; see :data:`FULL` and :data:`SMALL`."""

    mosaic: tuple[int, int]
    batch: int
    rows: tuple[tuple[int, int], ...]
    dense: tuple[tuple[int, int, int, int], ...]
    upsampled: tuple[tuple[int, int, int, int], int]
    linear: tuple[int, int, int]  # rows, features, classes
    features: tuple[tuple[int, ...], ...]
    picture: int
    frame: tuple[int, int]


FULL = Sizes(
    mosaic=(448, 448),
    batch=64,
    rows=((65536, 10), (8192, 1000), (4096, 32000), (1024, 100_000)),
    dense=((8, 19, 512, 1024), (8, 150, 512, 512)),
    upsampled=((8, 150, 128, 128), 512),
    linear=(4096, 2048, 32000),
    features=((64, 257, 768), (8, 256, 64, 64)),
    picture=224,
    frame=(3000, 4000),
)
SMALL = Sizes(
    mosaic=(32, 48),
    batch=2,
    rows=((16, 10), (4, 300)),
    dense=((1, 5, 8, 12),),
    upsampled=((1, 5, 6, 8), 12),
    linear=(8, 16, 50),
    features=((2, 5, 24), (1, 6, 4, 8)),
    picture=16,
    frame=(48, 64),
)


def random(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values that depend on the shape alone."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def random_mosaic(device: torch.device, batch: int, height: int, width: int) -> Tensor:
    """Sensor values between 0 and a little over white, uint16 ``[batch, height, width]``."""
    generator = torch.Generator().manual_seed(height)
    values = torch.randint(0, 4200, (batch, height, width), generator=generator, dtype=torch.int32)
    return values.to(torch.uint16).to(device)


def with_gradients(
    run: Callable[[], Tensor], leaves: list[Tensor], cotangent: Tensor | None
) -> tuple[Tensor, ...]:
    """A result and the gradients of some leaves, for an upstream gradient of it."""
    out = run()
    if not leaves:
        return (out.detach(),)
    return (out.detach(), *torch.autograd.grad(out, leaves, cotangent))
