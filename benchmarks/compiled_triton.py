"""Compiles Triton kernels for GPUs that are not there, and reads what became of them.

Triton's code generator and ptxas need no GPU, and its wheel brings NVIDIA's disassembler. What this
shows: registers, spills, shared memory, the width of loads, tensor-core instructions. What it
cannot show: that the kernel is right (tests/gpu/gpu_kernels do that) or fast.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from machine_code import ARCHITECTURES, Compiled, read_cubin
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

__all__ = ["ARCHITECTURES", "Compiled", "Launch", "compile_for", "compile_launch", "recorded"]

_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.uint16: "u16",
    torch.uint8: "u8",
}
_OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


def compile_for(
    kernel: object,
    architecture: int,
    signature: dict[str, str],
    constants: dict[str, object],
    divisible: tuple[str, ...] = (),
    **options: int,
) -> Compiled:
    """Compile a ``@triton.jit`` function ahead of time.

    Args:
        kernel: the function.
        architecture: 80, 90 or 100.
        signature: the type of every argument, e.g. ``{"x_ptr": "*fp32", "n": "i32"}``.
        constants: the values of its ``constexpr`` arguments.
        divisible: arguments that are multiples of 16, as the launcher finds out of aligned
            pointers and of numbers.
        **options: ``num_warps``, ``num_stages``.
    """
    order = list(kernel.arg_names)
    full = {name: "constexpr" if name in constants else signature[name] for name in order}
    attributes = {(order.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = ASTSource(fn=kernel, signature=full, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    (found,) = read_cubin(compiled.asm["cubin"]).values()
    return replace(found, shared=compiled.metadata.shared)


@dataclass(frozen=True)
class Launch:
    """What a kernel was launched with; tensors are without memory.

    Attributes:
        kernel: the ``@triton.jit`` function, without its autotuner.
        arguments: by name, those that were given by position too.
        options: ``num_warps`` and its like.
        programs: how many blocks.
    """

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]
    programs: int

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return self.options.get("num_warps", 4)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name; one that stands for several arguments counts once."""
        by_identity: dict[int, tuple[str, torch.Tensor]] = {}
        for name, value in self.arguments.items():
            if isinstance(value, torch.Tensor):
                by_identity.setdefault(id(value), (name, value))
        return dict(by_identity.values())


class _Recorder:
    """Stands in for a kernel and keeps what it is launched with, in every configuration."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.tuned = getattr(kernel, "configs", None)
        self.prune = getattr(kernel, "early_config_prune", None)
        self.kernel, self.launches = kernel.fn if self.tuned else kernel, launches

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*positional: Any, **named: Any) -> None:
            arguments = {**dict(zip(self.kernel.arg_names, positional, strict=False)), **named}
            for configuration in self.configurations(arguments):
                given = {**arguments, **configuration}
                programs = math.prod(grid(given) if callable(grid) else grid)
                options = {name: given.pop(name) for name in _OPTIONS if name in given}
                self.launches.append(Launch(self.kernel, given, options, programs))

        return launch

    def configurations(self, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not self.tuned:
            yield {}
            return
        chosen = self.prune(self.tuned, arguments, **arguments) if self.prune else self.tuned
        for c in chosen:
            yield {**c.kwargs, "num_warps": c.num_warps, "num_stages": c.num_stages}


@contextlib.contextmanager
def recorded(*kernels: tuple[ModuleType, str]) -> Iterator[list[Launch]]:
    """While this lasts, launches of the kernels (module, name) are kept and none happens.

    Tensors without memory (``device="meta"``) then tell the tiles and the assumptions about
    alignment that a GPU's would get.
    """
    launches: list[Launch] = []
    with contextlib.ExitStack() as stack:
        for module, name in kernels:
            recorder = _Recorder(getattr(module, name), launches)
            stack.enter_context(mock.patch.object(module, name, recorder))
        yield launches


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """A launch's code, specialised to its arguments as Triton's launcher does it."""
    kernel = launch.kernel
    constexprs = {p.name for p in kernel.params if p.is_constexpr}
    constants, signature, divisible = {}, {}, []
    for name in kernel.arg_names:
        value = launch.arguments[name]
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if name in constexprs or value is None or (is_number and value == 1):
            constants[name] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
            divisible.append(name)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                divisible.append(name)
    options = launch.options
    return compile_for(kernel, architecture, signature, constants, tuple(divisible), **options)
