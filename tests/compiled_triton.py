"""Compiles Triton kernels for GPUs that are not there, and reads what became of them.

Triton's code generator and ptxas need no GPU, and its wheel brings NVIDIA's disassembler. What this
shows: registers, spills, shared memory, the width of loads, tensor-core instructions. What it
cannot show: that the kernel is right (tests/gpu_kernels do that) or fast.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 100)
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """One kernel's machine code for one architecture.

    Attributes:
        registers: per thread.
        stack: bytes of local memory per thread; a spill needs some.
        shared: bytes per block.
        instructions: how often each opcode stands in the code, with its modifiers.
    """

    registers: int
    stack: int
    shared: int
    instructions: Counter[str]

    def count(self, pattern: str) -> int:
        """How many instructions have an opcode that the regular expression matches whole."""
        return sum(n for name, n in self.instructions.items() if re.fullmatch(pattern, name))

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return self.count(r"(LDL|STL)\b.*")

    @property
    def wide_loads(self) -> int:
        """Loads of 16 bytes or more from global memory (asynchronous copies count)."""
        return self.count(r"(LDG|LDGSTS)\b.*\.(128|256).*")

    @property
    def tensor_core(self) -> int:
        """Matrix instructions: HMMA (Ampere), HGMMA (Hopper), UTCHMMA and its like (Blackwell)."""
        return self.count(r"(HMMA|HGMMA|QGMMA|UTC\w*MMA|IMMA|DMMA)\b.*")


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
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run("cuobjdump", "-res-usage", cubin)
        sass = _run("cuobjdump", "-sass", cubin)
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass)
    assert opcodes, "the disassembler printed no instruction"
    return Compiled(registers, stack, compiled.metadata.shared, Counter(opcodes))


def _run(tool: str, *arguments: object) -> str:
    command = [str(_TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
