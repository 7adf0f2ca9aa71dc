"""The kernels of csrc/cuda in the calls of gpu_cases.py: their tiles, bytes and operations."""

from __future__ import annotations

from dataclasses import dataclass

import compiled_cuda
import torch
from torch import Tensor

# Kernel, stride, padding and channels of the stems of EfficientNet, ResNet and ConvNeXt.
STEMS = {"efficientnet": (3, 2, 1, 32), "resnet": (7, 2, 3, 64), "convnext": (4, 4, 0, 96)}
# Per logit, counted from the formulas: two exponentials for the sums and two for the gradient of
# what is not held; conversions, scaling, two running maxima and sums, and the gradient.
LOGIT = {"special": 2.0, "scalar": 14.0}
# The same of a full-resolution logit; "issue" is counted in the loop over the classes of sm_90's
# machine code, so that these lines promise less than Triton's, which have no such count. The cells'
# kernel computes the patches around its tile as well.
_PIXEL_LOGIT = {"special": 2.0, "scalar": 16.5, "issue": 22.4}
_CELL_LOGIT = {"special": 2.0, "scalar": 10.0, "issue": 17.5}
#: Threads of a block of the loss of logits at their own resolution (csrc/cuda/distill_loss/call.h).
_LOSS_THREADS = 256
#: Blocks of a backward launch, each of which leaves sums to be added up (csrc/cuda).
CUDA_BLOCKS = 256


@dataclass(frozen=True)
class CudaKernel:
    """A kernel of csrc/cuda in a call.

    Attributes:
        source: its file.
        name: as the source has it.
        threads: of a block.
        shared: bytes of a block.
        loaded: bytes that the call reads.
        stored: bytes that it writes.
        operations: as ``gpu_cases.Case`` has them.
        label: what the table calls it, if not by its name.
        tensor_core: whether it must use the matrix units.
    """

    source: str
    name: str
    threads: int
    shared: int
    loaded: int
    stored: int
    operations: dict[str, float]
    label: str = ""
    tensor_core: bool = False


def cuda_conv(stem: str, mosaic: Tensor, out: Tensor, backward: bool) -> CudaKernel:
    """The kernel of csrc/cuda: its tiles are 8 x 32 outputs, each converted once for a group."""
    kernel, stride, _, channels = STEMS[stem]
    half = out.dtype != torch.float32
    group, shared, parts = compiled_cuda.plan(
        kernel, stride, channels, out.element_size(), backward
    )
    weights = channels * (4 * kernel**2 + 1)
    loaded, stored = mosaic.nbytes + 4 * weights, out.nbytes
    positions, padded = -(-(kernel**2) // 4) * 4, -(-channels // 32) * 32
    if backward:
        loaded, stored = mosaic.nbytes + 2 * out.nbytes, 4 * weights * CUDA_BLOCKS * parts
        positions, padded = (kernel**2 + 8) // 8 * 8, -(-channels // group) * group
    periods = (7 * stride + kernel) * (31 * stride + kernel) / 256 * -(-channels // group)
    return CudaKernel(
        f"raw_conv/{'backward' if backward else 'forward'}.cu",
        f"raw_conv_{'backward' if backward else 'forward'}_{str(out.dtype).split('.')[1]}",
        256,
        shared,
        loaded,
        stored,
        {
            "half" if half else "tf32": 2 * 4 * positions * padded / channels * (1 if half else 3),
            "scalar": 6 * 4 * periods / channels,
        },
        tensor_core=True,
    )


def cuda_distill(student: Tensor, size: int) -> tuple[CudaKernel, ...]:
    """The kernels of csrc/cuda for forward KL with its gradient."""
    shape, source = tuple(student.shape), compiled_cuda.DISTILL
    dtype = (torch.float32, torch.bfloat16, torch.float16).index(student.dtype)
    maps, written = 2 * student.nbytes, student.nbytes
    if not size:
        dense = len(shape) > 2
        label, name = {
            (True, True): ("held, few classes", "held<1, 3>"),
            (True, False): ("held, dense", "held<1, 4>"),
            (False, True): ("held, a row a block", "held<1, 1>"),
            (False, False): ("streamed", "streamed<1>"),
        }[dense, shape[1] <= (32 if dense else 4096)]
        (shared,) = compiled_cuda.distill_plan(None, 0, dtype)
        loss = (source, name, _LOSS_THREADS, shared, maps, written, LOGIT, label)
        return (CudaKernel(*loss),)
    _, threads, bytes_, cell_threads, cell_bytes, across, down = compiled_cuda.distill_plan(
        shape, size, dtype
    )
    numbers = 16 * shape[0] * size**2
    again = (across + 1) / across * (down + 1) / down
    of_cells = {kind: again * count for kind, count in _CELL_LOGIT.items()}
    return (
        CudaKernel(
            source, "upsampled_pixels<1>", threads, bytes_, maps, numbers, _PIXEL_LOGIT,
            f"pixels [{threads}]",
        ),
        CudaKernel(
            source, "upsampled_cells<1, 0>", cell_threads, cell_bytes, maps + numbers, written,
            of_cells, f"cells [{across} x {down}]",
        ),
    )  # fmt: skip
