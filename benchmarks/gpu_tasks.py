"""What bench_gpu.py measures: each operation on shapes of real use, and every way to compute it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isp_distill import (
    ISP,
    NoiseModel,
    backend,
    distill_loss,
    expose,
    linear_distill_loss,
    raw_conv,
    render,
    unprocess,
    upsampled_distill_loss,
    use_backend,
)
from isp_distill.ops import reference

Way = Callable[[], tuple[Tensor, ...]]
BLACK, WHITE = 256.0, 4095.0
TEMPERATURE = 4.0
CCM = ((1.62, -0.48, -0.14), (-0.21, 1.49, -0.28), (0.02, -0.51, 1.49))
#: Largest difference from the reference, as a share of its largest value. Half-precision results
#: are rounded once; in between everything is float32 (tf32x3 in the convolution).
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.uint16: 0.0}


@dataclass
class Task:
    """One call, and every way to compute it.

    Attributes:
        operation: as :mod:`isp_distill.backend` calls it.
        name: what the table says.
        dtype: of the results.
        call: the library's call, under whatever backend is in force; its results and gradients.
        truth: the reference's, in float32.
        peers: other ways, by name; they must agree with the reference too.
        traffic: bytes that must be read and written.
        operations: floating-point operations (a multiply-add is two), in ``dtype``.
        capturable: whether nothing of it is drawn on the processor.
        alike: whether the peers compute the same numbers.
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

    def backends(self) -> dict[str, str | None]:
        """Every backend but the reference, and why it cannot run here, or None."""
        found: dict[str, str | None] = {}
        for name in ("cpu", "triton", "cuda"):
            implementation = backend.registered(self.operation, name)
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
    picture: int
    frame: tuple[int, int]


FULL = Sizes(
    mosaic=(448, 448),
    batch=64,
    rows=((65536, 10), (8192, 1000), (4096, 32000), (1024, 100_000)),
    dense=((8, 19, 512, 1024), (8, 150, 512, 512)),
    upsampled=((8, 150, 128, 128), 512),
    linear=(4096, 2048, 32000),
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
    picture=16,
    frame=(48, 64),
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
    for stem in (("resnet", 64, 7, 2, 3), ("efficientnet", 32, 3, 2, 1), ("convnext", 96, 4, 4, 0)):
        for dtype in half:
            for backward in (False, True):
                yield _raw_conv(device, sizes, compile, stem, dtype, backward)
    for shape in (*sizes.rows, *sizes.dense):
        for dtype in half:
            yield _loss(device, compile, shape, None, dtype)
    for dtype in half:
        shape, size = sizes.upsampled
        yield _loss(device, compile, shape, size, dtype)
    yield _linear(device, sizes, compile)
    for resize_in in ("display", "linear", "none"):
        yield _render(device, sizes, compile, resize_in)
    yield _unprocess(device, sizes)
    yield _expose(device, sizes)


def _random(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def _mosaic(device: torch.device, batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    values = torch.randint(0, 4200, (batch, height, width), generator=generator, dtype=torch.int32)
    return values.to(torch.uint16).to(device)


def _with_gradients(
    run: Callable[[], Tensor], leaves: list[Tensor], cotangent: Tensor | None
) -> tuple[Tensor, ...]:
    out = run()
    if not leaves:
        return (out.detach(),)
    return (out.detach(), *torch.autograd.grad(out, leaves, cotangent))


def _raw_conv(
    device: torch.device,
    sizes: Sizes,
    compile: Any,
    stem: tuple[str, int, int, int, int],
    dtype: torch.dtype,
    backward: bool,
) -> Task:
    family, channels, kernel, stride, padding = stem
    mosaic = _mosaic(device, sizes.batch, *sizes.mosaic)
    weight = _random(device, channels, 4, kernel, kernel) / (2 * kernel)
    bias = _random(device, channels) / 10
    leaves = [weight.requires_grad_(), bias.requires_grad_()] if backward else []
    shape = [
        (side // 2 + 2 * padding - kernel) // stride + 1
        for side in (mosaic.shape[1], mosaic.shape[2])
    ]
    out = (len(mosaic), channels, *shape)
    cotangent = _random(device, *out, dtype=dtype) if backward else None
    settings = {
        "black": BLACK, "white": WHITE, "stride": stride, "padding": padding, "activation": "relu",
    }  # fmt: skip

    def call(out_dtype: torch.dtype = dtype) -> tuple[Tensor, ...]:
        g = None if cotangent is None else cotangent.to(out_dtype)
        return _with_gradients(
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
            "eager": lambda: _with_gradients(
                lambda: steps(mosaic, weight, bias), leaves, cotangent
            ),
            "compile": lambda: _with_gradients(
                lambda: fast(mosaic, weight, bias), leaves, cotangent
            ),
        },
        # The backward reads the mosaic again, the output (for its activation) and the cotangent.
        traffic=passes * float(mosaic.nbytes) + (3 if backward else 1) * size * count,
        operations=passes * 2 * count * 4 * kernel**2,
        # Half precision rounds the normalised input in the peers, and not in ours.
        unlike=frozenset({"eager", "compile"}) if dtype != torch.float32 else frozenset(),
    )


def _eager_loss(student: Tensor, teacher: Tensor, size: int | None) -> Tensor:
    if size is not None:
        student, teacher = (
            F.interpolate(x, (size, size), mode="bilinear") for x in (student, teacher)
        )
    log_q = F.log_softmax(student / TEMPERATURE, 1)
    log_p = F.log_softmax(teacher / TEMPERATURE, 1)
    per_row = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    return TEMPERATURE**2 * per_row.mean()


def _loss(
    device: torch.device, compile: Any, shape: tuple[int, ...], size: int | None, dtype: torch.dtype
) -> Task:
    student = (3 * _random(device, *shape, dtype=dtype)).requires_grad_()
    teacher = 3 * _random(device, *shape, dtype=dtype).flip(0)
    accurate = student.detach().float().requires_grad_()

    def ours(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        def run() -> Tensor:
            if size is not None:
                loss = upsampled_distill_loss(
                    student, teacher, (size, size), temperature=TEMPERATURE
                )
            else:
                loss = distill_loss(student, teacher, temperature=TEMPERATURE)
            assert isinstance(loss, Tensor)
            return loss

        return _with_gradients(run, [student], None)

    def truth() -> tuple[Tensor, ...]:
        with use_backend("reference"):
            return ours(accurate, teacher.float())

    fast = compile(_eager_loss)
    peers: dict[str, Way] = {
        "eager": lambda: _with_gradients(
            lambda: _eager_loss(student, teacher, size), [student], None
        ),
        "compile": lambda: _with_gradients(lambda: fast(student, teacher, size), [student], None),
    }
    if len(shape) == 2 and _liger(device):
        from liger_kernel.transformers import LigerKLDIVLoss

        kl = LigerKLDIVLoss(reduction="batchmean", log_target=True)

        def liger() -> Tensor:
            log_q = F.log_softmax(student / TEMPERATURE, 1)
            return TEMPERATURE**2 * kl(log_q, F.log_softmax(teacher / TEMPERATURE, 1))

        peers["Liger"] = lambda: _with_gradients(liger, [student], None)
    kind = "rows" if len(shape) == 2 else "dense" if size is None else "upsampled"
    upsampled = "" if size is None else f" to {size}x{size}"
    return Task(
        "distill_loss",
        f"{kind} {'x'.join(map(str, shape))}{upsampled}, loss and gradient",
        dtype,
        lambda: ours(student, teacher),
        truth,
        peers,
        traffic=3.0 * student.nbytes,
        unlike=frozenset(peers) if dtype != torch.float32 else frozenset(),
    )


def _liger(device: torch.device) -> bool:
    """Whether Liger's Triton kernels can run; they know GPUs only."""
    return device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None


def _linear(device: torch.device, sizes: Sizes, compile: Any) -> Task:
    """Two heads and the Jensen-Shannon divergence between them: what language models distil by."""
    rows, features, classes = sizes.linear
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x, y = (_random(device, rows, features, dtype=dtype) for _ in range(2))
    w, v = (_random(device, classes, features, dtype=dtype) / features**0.5 for _ in range(2))
    v = v.flip(0)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    accurate = [leaf.detach().float().requires_grad_() for leaf in leaves]

    def ours(x: Tensor, w: Tensor, y: Tensor, v: Tensor) -> Tensor:
        loss = linear_distill_loss(x, w, None, y, v, None, objective="jsd")
        assert isinstance(loss, Tensor)
        return loss

    def truth() -> tuple[Tensor, ...]:
        with use_backend("reference"):
            return _with_gradients(lambda: ours(*accurate, y.float(), v.float()), accurate, None)

    def steps(x: Tensor, w: Tensor, y: Tensor, v: Tensor) -> Tensor:
        log_q, log_p = (
            F.log_softmax(F.linear(x, w).float(), 1),
            F.log_softmax(F.linear(y, v).float(), 1),
        )
        log_m = torch.logaddexp(log_q, log_p) - 0.6931471805599453
        parts = [
            F.kl_div(log_m, log, reduction="batchmean", log_target=True) for log in (log_q, log_p)
        ]
        return 0.5 * (parts[0] + parts[1])

    fast = compile(steps)
    peers: dict[str, Way] = {
        "eager": lambda: _with_gradients(lambda: steps(x, w, y, v), leaves, None),
        "compile": lambda: _with_gradients(lambda: fast(x, w, y, v), leaves, None),
    }
    if _liger(device):
        from liger_kernel.transformers import LigerFusedLinearJSD

        fused = LigerFusedLinearJSD(jsd_beta=0.5)
        peers["Liger"] = lambda: _with_gradients(lambda: fused(x, w, y, v), leaves, None)
    return Task(
        "distill_loss",
        f"linear {features} to {classes}, {rows} rows, JSD, loss and gradients",
        dtype,
        lambda: _with_gradients(lambda: ours(x, w, y, v), leaves, None),
        truth,
        peers,
        traffic=float(2 * (x.nbytes + w.nbytes) + y.nbytes + v.nbytes),
        # Two heads, and the gradients of the student's features and weight.
        operations=4 * 2.0 * rows * features * classes,
        unlike=frozenset(peers) if dtype != torch.float32 else frozenset(),
    )


def _render(device: torch.device, sizes: Sizes, compile: Any, resize_in: str) -> Task:
    mosaic = _mosaic(device, 1, *sizes.frame)
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
        f"{sizes.frame[0]}x{sizes.frame[1]} to {'its own size' if size is None else size[0]}, "
        f"resized in {resize_in}",
        torch.float32,
        call,
        truth,
        {
            "eager": lambda: (reference.render(mosaic, **arguments),),
            "compile": lambda: (fast(mosaic, **arguments),),
        },
        traffic=float(mosaic.nbytes + out),
    )


def _unprocess(device: torch.device, sizes: Sizes) -> Task:
    height, width = sizes.mosaic
    rgb = (_random(device, sizes.batch, 3, height, width).sigmoid() * 255).to(torch.uint8)

    def call() -> tuple[Tensor, ...]:
        return (unprocess(rgb, noise=NoiseModel(), seed=3)[0],)

    def truth() -> tuple[Tensor, ...]:
        with use_backend("reference"):
            return call()

    return Task(
        "unprocess", f"unprocess {sizes.batch} x {height}x{width}, noise", torch.uint16, call, truth,
        {"eager": truth}, traffic=float(rgb.nbytes) + 2 * rgb[:, 0].numel(), capturable=False,
    )  # fmt: skip


def _expose(device: torch.device, sizes: Sizes) -> Task:
    mosaic = _mosaic(device, sizes.batch, *sizes.mosaic)
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
