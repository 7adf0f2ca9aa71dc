"""What bench_gpu.py measures: each operation on shapes of real use."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gpu_feature_tasks import feature_task
from gpu_loss_tasks import linear_task, loss_task
from gpu_task import Sizes, Task, random, random_mosaic, with_gradients
from torch import Tensor

from isp_distill import ISP, NoiseModel, expose, raw_conv, render, unprocess, use_backend
from isp_distill.ops import reference

BLACK, WHITE = 256.0, 4095.0
CCM = ((1.62, -0.48, -0.14), (-0.21, 1.49, -0.28), (0.02, -0.51, 1.49))


class Stem(NamedTuple):
    """A first convolution, on the packed grid."""

    family: str
    channels: int
    kernel: int
    stride: int
    padding: int

    def output(self, mosaic: Tensor) -> tuple[int, ...]:
        """The shape of what it makes of ``[N, H, W]``: ``(N, C, h, w)``."""
        height, width = (
            (side // 2 + 2 * self.padding - self.kernel) // self.stride + 1
            for side in mosaic.shape[1:]
        )
        return len(mosaic), self.channels, height, width


STEMS = (
    Stem("resnet", 64, 7, 2, 3),
    Stem("efficientnet", 32, 3, 2, 1),
    Stem("convnext", 96, 4, 4, 0),
)


def tasks(device: torch.device, sizes: Sizes, compiler: str) -> Iterator[Task]:
    """Every task, its inputs made when its turn comes.

    Args:
        device: where.
        sizes: FULL, or SMALL for a dry run.
        compiler: torch.compile's backend.
    """
    compile = partial(torch.compile, backend=compiler, dynamic=False)
    half = (torch.float32, torch.bfloat16)
    for stem in STEMS:
        for dtype in half:
            for backward in (False, True):
                yield _raw_conv(device, sizes, compile, stem, dtype, backward)
    for shape in (*sizes.rows, *sizes.dense):
        for dtype in half:
            yield loss_task(device, compile, shape, None, dtype)
    for dtype in half:
        shape, size = sizes.upsampled
        yield loss_task(device, compile, shape, size, dtype)
    yield linear_task(device, sizes, compile)
    for shape in sizes.features:
        for dtype in half:
            yield feature_task(device, compile, shape, dtype)
    for resize_in in ("display", "linear", "none"):
        yield _render(device, sizes, compile, resize_in)
    yield _unprocess(device, sizes)
    yield _expose(device, sizes)


def _raw_conv(
    device: torch.device,
    sizes: Sizes,
    compile: Any,
    stem: Stem,
    dtype: torch.dtype,
    backward: bool,
) -> Task:
    family, channels, kernel, stride, padding = stem
    mosaic = random_mosaic(device, sizes.batch, *sizes.mosaic)
    weight = random(device, channels, 4, kernel, kernel) / (2 * kernel)
    bias = random(device, channels) / 10
    leaves = [weight.requires_grad_(), bias.requires_grad_()] if backward else []
    out = stem.output(mosaic)
    cotangent = random(device, *out, dtype=dtype) if backward else None
    settings = {
        "black": BLACK, "white": WHITE, "stride": stride, "padding": padding, "activation": "relu",
    }  # fmt: skip

    def call(out_dtype: torch.dtype = dtype) -> tuple[Tensor, ...]:
        g = None if cotangent is None else cotangent.to(out_dtype)
        return with_gradients(
            lambda: raw_conv(mosaic, weight, bias, out_dtype=out_dtype, **settings), leaves, g
        )

    def truth() -> tuple[Tensor, ...]:
        with use_backend("reference"):
            return call(torch.float32)

    def steps(mosaic: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        packed = F.pixel_unshuffle(mosaic.float()[:, None], 2)
        planes = ((packed - BLACK) / (WHITE - BLACK)).clamp(0, 1).to(dtype)
        return F.relu(F.conv2d(planes, weight.to(dtype), bias.to(dtype), stride, padding))

    fast = compile(steps)
    size = torch.finfo(dtype).bits // 8
    count = float(torch.Size(out).numel())
    passes = 2 if backward else 1
    return Task(
        "raw_conv",
        f"{family} stem, {len(mosaic)} x {mosaic.shape[1]}x{mosaic.shape[2]}"
        f"{', with gradients' if backward else ''}",
        dtype,
        call,
        truth,
        {
            "eager": lambda: with_gradients(lambda: steps(mosaic, weight, bias), leaves, cotangent),
            "compile": lambda: with_gradients(
                lambda: fast(mosaic, weight, bias), leaves, cotangent
            ),
        },
        # The backward reads the mosaic again, the output (for its activation) and the cotangent.
        traffic=passes * float(mosaic.nbytes) + (3 if backward else 1) * size * count,
        operations=passes * 2 * count * 4 * kernel**2,
        # Half precision rounds the normalised input in the peers, and not in ours.
        unlike=frozenset({"eager", "compile"}) if dtype != torch.float32 else frozenset(),
    )


def _render(device: torch.device, sizes: Sizes, compile: Any, resize_in: str) -> Task:
    mosaic = random_mosaic(device, 1, *sizes.frame)
    size = None if resize_in == "none" else (sizes.picture, sizes.picture)
    camera = ISP(black=BLACK, white=WHITE, white_balance=(1.9, 1.0, 1.5), ccm=CCM)
    camera = camera.batched(1, device)
    kind = "display" if size is None else resize_in

    def call() -> tuple[Tensor, ...]:
        return (render(mosaic, camera, size=size, resize_in=kind),)

    def truth() -> tuple[Tensor, ...]:
        with use_backend("reference"):
            return call()

    arguments: dict[str, Any] = {
        "black": camera.black, "white": camera.white, "pattern": camera.pattern,
        "gain": camera.gain(1, device), "ccm": camera.ccm, "demosaic_method": "malvar",
        "tone": "srgb", "orientation": 1, "crop": (0, 0, *sizes.frame),
        "size": size or sizes.frame, "resize_in": kind, "dtype": torch.float32,
        "mean": torch.zeros(3, device=device), "std": torch.ones(3, device=device),
    }  # fmt: skip
    fast = compile(reference.render)
    out = 3 * 4 * (size or sizes.frame)[0] * (size or sizes.frame)[1]
    return Task(
        "render",
        f"{sizes.frame[0]}x{sizes.frame[1]} "
        f"{'at its own size' if size is None else f'to {size[0]}, resized in {resize_in}'}",
        torch.float32,
        call,
        truth,
        {
            "eager": lambda: (reference.render(mosaic, **arguments),),
            "compile": lambda: (fast(mosaic, **arguments),),
        },
        traffic=float(mosaic.nbytes + out),
        # The curve is thirteen times as steep near black as the light that comes in.
        tolerance=1e-4,
    )


def _unprocess(device: torch.device, sizes: Sizes) -> Task:
    height, width = sizes.mosaic
    rgb = (random(device, sizes.batch, 3, height, width).sigmoid() * 255).to(torch.uint8)

    def call() -> tuple[Tensor, ...]:
        return (unprocess(rgb, noise=NoiseModel(), seed=3)[0],)

    def truth() -> tuple[Tensor, ...]:
        with use_backend("reference"):
            return call()

    return Task(
        "unprocess", f"unprocess {sizes.batch} x {height}x{width}, noise", torch.uint16, call,
        truth, {"eager": truth}, traffic=float(rgb.nbytes) + 2 * rgb[:, 0].numel(),
        capturable=False,
    )  # fmt: skip


def _expose(device: torch.device, sizes: Sizes) -> Task:
    mosaic = random_mosaic(device, sizes.batch, *sizes.mosaic)
    noise = NoiseModel.preset("medium")

    def call() -> tuple[Tensor, ...]:
        return (expose(mosaic, 0.1, noise, black=BLACK, white=WHITE, seed=3),)

    def truth() -> tuple[Tensor, ...]:
        with use_backend("reference"):
            return call()

    return Task(
        "unprocess", f"expose {sizes.batch} x {sizes.mosaic[0]}x{sizes.mosaic[1]}", torch.uint16,
        call, truth, {"eager": truth}, traffic=2.0 * mosaic.nbytes,
    )  # fmt: skip
