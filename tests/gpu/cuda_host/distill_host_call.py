"""The distillation loss's CUDA operators, on the CPU: their own schemas, served by host modules."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from isp_distill.backends import choice
from isp_distill.ops.distill_loss.cuda import CudaKernels, refuses

SOURCES = Path(__file__).resolve().parents[3] / "csrc" / "cuda"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]  # in the order of Dtype


class Blocks:
    """Copies of tensors in blocks of the heap of exactly their size."""

    def __init__(self, module) -> None:
        self.module = module
        self.held: list[tuple[torch.Tensor, int, int, int]] = []

    def of(self, tensor: torch.Tensor | None) -> int:
        """Address of a copy of a tensor's memory, gaps included; a tensor in place of another is
        the same copy."""
        if tensor is None:
            return 0
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        size = span * tensor.element_size()
        for _, block, address, held in self.held:
            if address == tensor.data_ptr() and held == size:
                return block
        block = self.module.allocate(size)
        self.module.copy(block, tensor.data_ptr(), size)
        self.held.append((tensor, block, tensor.data_ptr(), size))
        return block

    def bring_back(self) -> None:
        """Whatever the kernels wrote, to the tensors; the blocks go."""
        for _, block, address, size in self.held:
            self.module.copy(address, block, size)
            self.module.release(block)


class Operator:
    """An operator of ``isp_distill_cuda``, whose schema is read from its source.

    Calls go through the library's own launcher to the kernels' source on the CPU, each block's
    threads in an order shuffled from ``seed``. ``sizes`` gives the host module's ``run`` what it
    needs beside ``distill_call_of.h``; ``taken`` receives what it tells of each call.
    """

    def __init__(self, source, module, sizes) -> None:
        text = (SOURCES / source).read_text()
        definition = re.search(r"library\.def\(([^;]*)\);", text)
        schema = "".join(re.findall(r'"([^"]*)"', definition[1]))
        self.names = re.findall(r"(\w+)[,)]", schema.split("->")[0])
        self.module, self.sizes, self.taken, self.seed = module, sizes, [], 0
        self.library = torch.library.Library("isp_distill_cuda", "FRAGMENT")
        self.library.define(schema)
        self.library.impl(schema.split("(")[0], self.run, "CPU")
        choice.register(
            choice.Implementation("distill_loss", "cuda", CudaKernels(), refuses=refuses)
        )

    def run(self, *arguments):
        """Loss and agreements as tensors of one value; what has to be written is NaN before."""
        given = dict(zip(self.names, arguments, strict=True))
        blocks = Blocks(self.module)
        student, gradient, row_losses = (
            given[name] for name in ("student", "gradient", "row_losses")
        )
        if gradient is not None and gradient.data_ptr() != student.data_ptr():
            gradient.fill_(float("nan"))
        if row_losses is not None:
            row_losses.fill_(float("nan"))

        def logits(x):
            if x is None:
                return (0, 0, 0, 0, 0, 0)
            steps = (x.stride(1), x.stride(0), x.stride(2), x.stride(3))
            return (blocks.of(x), DTYPES.index(x.dtype), *steps)

        call = given | self.sizes(given)
        call |= {name: logits(given[name]) for name in ("student", "teacher", "gradient")}
        for name in ("labels", "mask", "weight", "factors", "row_losses"):
            call[name] = blocks.of(given[name])
        self.seed += 1
        loss, agreed, *told = self.module.run(call, given["objective"], self.seed)
        blocks.bring_back()
        self.taken.append(tuple(told))
        return torch.tensor([loss], dtype=torch.float64), torch.tensor([agreed])
