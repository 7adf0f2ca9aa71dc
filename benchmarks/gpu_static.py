"""What can be known of the GPU kernels without a GPU: a table from their machine code.

    python benchmarks/gpu_static.py                         # everything, Markdown on the screen
    python benchmarks/gpu_static.py --json gpu_static.json --markdown gpu_static.md
    python benchmarks/gpu_static.py --architectures 90 --operations raw_conv

Each case (gpu_cases.py) is a real call at a size that people train with, compiled for sm_80, 90
and 100. Read from the machine code: registers, spills, shared memory, the widest load and store of
global memory, matrix instructions. Computed from them: occupancy. Computed from the call: bytes
read and written for an output, if each tensor goes through memory once. **Predicted**: the least
time that bytes and operations allow at the rates of the data sheets (gpu_rates.py). Nothing was
timed, and a kernel that has to wait for something else takes longer.

The exit status is 1 where a kernel spills, or loads 16 bytes at a time no more, or uses no matrix
unit, though its case says that it must.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import compiled_cuda
from compiled_triton import Launch, compile_launch
from gpu_cases import Case, CudaKernel, cases, traffic
from gpu_rates import GPUS, Gpu
from machine_code import Compiled


@dataclass(frozen=True)
class Row:
    """One kernel of one case on one architecture; times in microseconds."""

    backend: str
    operation: str
    case: str
    size: str
    kernel: str
    architecture: int
    threads: int
    registers: int
    spills: int
    shared: int
    occupancy: float
    unit: str
    loaded: float
    stored: float
    widest_load: int
    widest_store: int
    tensor_core: int
    gpu: str
    predicted_us: float
    limit: str
    failures: tuple[str, ...]


def failures_of(
    kernel: str, code: Compiled, wide: Iterable[str], tensor_core: Iterable[str]
) -> tuple[str, ...]:
    """What is wrong with a kernel's code, in words; see :class:`~gpu_cases.Case`."""
    found = []
    if code.spills or code.stack:
        found.append(f"{code.spills} spills, {code.stack} bytes of stack")
    if kernel in wide and code.widest_load < 16:
        found.append(f"its widest load has {code.widest_load} bytes, not 16")
    if kernel in tensor_core and not code.tensor_core:
        found.append("no matrix instruction")
    return tuple(found)


def row_of(
    case: Case,
    gpu: Gpu,
    code: Compiled,
    kernel: CudaKernel,
    backend: str,
    label: str,
    failures: tuple[str, ...],
) -> Row:
    """A kernel's line of the table."""
    work = {kind: count * case.units for kind, count in kernel.operations.items()}
    seconds, limit = gpu.seconds(kernel.loaded + kernel.stored, work)
    return Row(
        backend=backend,
        operation=case.operation,
        case=case.name,
        size=case.size,
        kernel=label,
        architecture=gpu.architecture,
        threads=kernel.threads,
        registers=code.registers,
        spills=code.spills,
        shared=kernel.shared,
        occupancy=gpu.occupancy(code.registers, kernel.shared, kernel.threads),
        unit=case.unit,
        loaded=kernel.loaded / case.units,
        stored=kernel.stored / case.units,
        widest_load=code.widest_load,
        widest_store=code.widest_store,
        tensor_core=code.tensor_core,
        gpu=gpu.name,
        predicted_us=1e6 * seconds,
        limit=limit,
        failures=failures,
    )


def triton_row(case: Case, launch: Launch, gpu: Gpu, code: Compiled) -> Row:
    """The line of a Triton kernel's launch."""
    name = launch.kernel.__name__
    threads = 32 * launch.warps
    lanes = launch.programs * threads / case.units
    straight = {
        "issue": lanes * code.instructions.total(),
        "special": lanes * code.count(r"MUFU\b.*"),
    }
    operations = case.operations.get(name, straight)
    tiles = ("BLOCK_PIXELS", "BLOCK_ROWS", "PIXELS", "CELLS", "BLOCK")
    tile = next((f" [{launch.arguments[n]}]" for n in tiles if n in launch.arguments), "")
    kernel = CudaKernel("", name, threads, code.shared, *traffic(launch), operations)
    failures = failures_of(name, code, case.wide, case.tensor_core)
    return row_of(case, gpu, code, kernel, "triton", name.removesuffix("_kernel") + tile, failures)


def cuda_row(case: Case, kernel: CudaKernel, gpu: Gpu) -> Row:
    """The line of a kernel of csrc/cuda, all of which load 16 bytes at a time."""
    code = compiled_cuda.compiled(kernel.source, gpu.architecture)[kernel.name]
    tensor_core = (kernel.name,) if kernel.tensor_core else ()
    failures = failures_of(kernel.name, code, (kernel.name,), tensor_core)
    return row_of(case, gpu, code, kernel, "cuda", kernel.label or kernel.name, failures)


def rows(
    architectures: Iterable[int], chosen: Iterable[Case], backends: Iterable[str]
) -> Iterator[Row]:
    """Every line, one compilation after the other.

    Python 3.11's parser, which Triton calls, fails in two threads at once.
    """
    gpus = [gpu for gpu in GPUS if gpu.architecture in set(architectures)]
    for case in chosen:
        for launch in case.launches() if "triton" in backends else ():
            for gpu in gpus:
                yield triton_row(case, launch, gpu, compile_launch(launch, gpu.architecture))
        for kernel in case.cuda if "cuda" in backends else ():
            for gpu in gpus:
                yield cuda_row(case, kernel, gpu)


HEADER = (
    "| operation | case | size | kernel | sm | threads | registers | spills | shared B "
    "| occupancy | B read / unit | B written / unit | unit | widest load B | widest store B "
    "| matrix instructions | predicted least time, µs | limit |\n"
    "|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|---|"
)


def markdown_line(row: Row) -> str:
    """A line of the table; what was predicted, not read, says so in the column's name."""
    return (
        f"| {row.operation} ({row.backend}) | {row.case} | {row.size} | {row.kernel} "
        f"| {row.architecture} | {row.threads} | {row.registers} | {row.spills} | {row.shared} "
        f"| {100 * row.occupancy:.0f} % | {row.loaded:.2f} | {row.stored:.2f} | {row.unit} "
        f"| {row.widest_load} | {row.widest_store} | {row.tensor_core} "
        f"| {row.predicted_us:.1f} ({row.gpu}) | {row.limit} |"
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 where something is wrong with a kernel."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = [gpu.architecture for gpu in GPUS]
    parser.add_argument("--architectures", type=int, nargs="+", choices=known, default=known)
    operations = list(dict.fromkeys(case.operation for case in cases()))
    parser.add_argument("--operations", nargs="+", choices=operations, default=operations)
    parser.add_argument(
        "--backends", nargs="+", choices=("triton", "cuda"), default=("triton", "cuda")
    )
    parser.add_argument("--case", help="only cases whose name contains this")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    options = parser.parse_args(arguments)
    chosen = [
        case
        for case in cases()
        if case.operation in options.operations and (options.case or "") in case.name
    ]
    found: list[Row] = []
    backends = set(options.backends)
    if "cuda" in backends and (reason := compiled_cuda.missing()):
        backends.remove("cuda")
        print(f"without the kernels of csrc/cuda: {reason}", file=sys.stderr)
    print(HEADER, flush=True)
    for row in rows(options.architectures, chosen, backends):
        found.append(row)
        print(markdown_line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text("\n".join([HEADER, *map(markdown_line, found)]) + "\n")
    wrong = [row for row in found if row.failures]
    for row in wrong:
        place = f"{row.operation} {row.case} {row.kernel} sm_{row.architecture}"
        print(f"{place}: {'; '.join(row.failures)}", file=sys.stderr)
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    sys.exit(main())
