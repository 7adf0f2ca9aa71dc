"""``raw_conv`` by the CUDA kernels' source on the CPU, as a backend named "cuda"."""

from __future__ import annotations

import os

import raw_conv_host
import torch

from isp_distill.backends import choice
from isp_distill.ops.raw_conv import cuda as raw_conv_cuda
from isp_distill.ops.raw_conv.operator import Functions, output_like

#: Blocks of a grid: fewer than there are tiles, so that a block takes several.
BLOCKS = 3


def seed() -> int:
    """Of the order in which a block's threads run."""
    return int(os.environ.get("ISP_HOST_SEED", "0"))


def forward(tensors, settings):
    """The output, ``[N, C, h, w]``; unset elements are NaN."""
    out = output_like(tensors.mosaic, tensors.weight, settings).fill_(float("nan"))
    call, keep = raw_conv_cuda.described(tensors, settings, out)
    assert raw_conv_host.forward(call, BLOCKS, seed()), "no tile fits"
    del keep
    return out


def backward(grad, out, tensors, settings, needs):
    """The gradients of weight and bias."""
    grad = raw_conv_cuda.laid_out(grad, settings)
    call, keep = raw_conv_cuda.described(tensors, settings, out, grad)
    of_weight = torch.full(tensors.weight.shape, float("nan"))
    of_bias = torch.full((len(tensors.weight),), float("nan"))
    call |= {"of_weight": of_weight.data_ptr(), "of_bias": of_bias.data_ptr()}
    assert raw_conv_host.backward(call, BLOCKS, seed()), "no tile fits"
    del keep
    return of_weight, of_bias, None, None, None


choice.register(
    choice.Implementation(
        "raw_conv", "cuda", Functions(forward, backward), refuses=raw_conv_cuda.refuses
    )
)
