"""What a GPU's machine code says: registers, spills, shared memory, widths of accesses, occupancy.

Reads a cubin, from whatever compiler, with the disassembler that Triton's wheel brings. None of it
needs a GPU, and none of it says how fast the code is.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

ARCHITECTURES = (80, 90, 100)
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_RESOURCES = r"Function ([\w.$]+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)"

_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


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

    @property
    def widest_load(self) -> int:
        """Bytes of the widest load from global memory; asynchronous copies count."""
        return self._widest("LDG", "LDGSTS")

    @property
    def widest_store(self) -> int:
        """Bytes of the widest store to global memory."""
        return self._widest("STG")

    def _widest(self, *opcodes: str) -> int:
        widest = 0
        for name in self.instructions:
            opcode, *modifiers = name.split(".")
            if opcode in opcodes:
                # "LTC128B" is about the cache: a width is a modifier of its own, 4 bytes if none.
                width = next((_WIDTHS[m] for m in modifiers if m in _WIDTHS), 4)
                widest = max(widest, width)
        return widest


def read_cubin(content: bytes) -> dict[str, Compiled]:
    """The kernels of a cubin by their (mangled) names; shared memory is what they declare."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(content)
        usage = _run("cuobjdump", "-res-usage", cubin)
        sass = _run("cuobjdump", "-sass", cubin)
    code: dict[str, Counter[str]] = {}
    for part in re.split(r"^\s+Function : ", sass, flags=re.MULTILINE)[1:]:
        opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", part)
        code[part.split(maxsplit=1)[0]] = Counter(opcodes)
    found = {}
    for name, registers, stack, shared in re.findall(_RESOURCES, usage):
        assert code.get(name), f"the disassembler printed no instruction of {name}"
        found[name] = Compiled(int(registers), int(stack), int(shared), code[name])
    assert found, "the disassembler found no kernel"
    return found


def _run(tool: str, *arguments: object) -> str:
    command = [str(_TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
