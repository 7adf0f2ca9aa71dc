"""``doctor()``: what this machine has, and which backend serves what on it, or why not."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Sequence
from functools import partial

from isp_distill.backends import choice, cpu_library, cuda_library
from isp_distill.raw.dng import lossless_jpeg
from isp_distill.version import __version__


def doctor() -> str:
    """Print, and return, what serves each operation on this machine and what is missing.

    A table of versions (Python, torch and its CUDA, the GPUs, triton, rawpy and its LibRaw, what
    decodes lossless JPEG, the compiled kernels), the backend in force, and for each operation and
    backend the types of device it serves here, or one sentence on why it serves none. A call may
    still be refused for its own arguments; the exception then says why.

    Returns:
        The text that was printed. Nothing is raised: what cannot be found out is said in its place.

    Examples:
        >>> text = isp_distill.doctor()  # doctest: +ELLIPSIS
        isp-distill  ...
        >>> "raw_conv" in text
        True
    """
    versions = [
        ("isp-distill", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", _answer(_torch)),
        ("CUDA", _answer(_cuda)),
        ("triton", _answer(lambda: str(importlib.import_module("triton").__version__))),
        ("rawpy", _answer(_rawpy)),
        ("DNG pixels", _answer(_lossless_jpeg)),
        ("CPU kernels", _answer(_extension)),
        ("GPU kernels", _answer(lambda: cuda_library.missing() or "built, usable")),
        ("backend", _answer(choice.requested)),
    ]
    rows = [("operation", "backend", "served here")]
    for operation in choice.OPERATIONS:
        # Importing an operation registers its implementations.
        problem = _import_problem(f"isp_distill.ops.{operation}")
        for name in choice.BACKENDS:
            rows.append((operation, name, _answer(partial(_served, operation, name, problem))))
    text = "\n\n".join((_aligned(versions), _aligned(rows)))
    print(text)
    return text


def _served(operation: str, name: str, import_problem: str | None) -> str:
    implementation = choice.registered(operation, name)
    if implementation is None:
        return f"no: {import_problem or choice.NOT_THERE}"
    reason = implementation.missing()
    if reason is not None:
        return f"no: {reason}"
    if not implementation.devices:
        return "yes, any device"
    present = [device for device in implementation.devices if _has(device)]
    if present:
        return f"yes, {', '.join(present)}"
    return (
        f"no: it takes tensors on {' or '.join(implementation.devices)}, and torch sees none here"
    )


def _has(device: str) -> bool:
    import torch

    return device == "cpu" or bool(torch.get_device_module(device).is_available())


def _torch() -> str:
    import torch

    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _cuda() -> str:
    import torch

    if torch.version.cuda is None:
        return "torch was built without it"
    if not torch.cuda.is_available():
        return f"torch was built with {torch.version.cuda}, and sees no GPU"
    found = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        found.append(f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})")
    return f"{torch.version.cuda}, {', '.join(found)}"


def _rawpy() -> str:
    rawpy = importlib.import_module("rawpy")
    return f"{rawpy.__version__}, LibRaw {'.'.join(str(part) for part in rawpy.libraw_version)}"


def _lossless_jpeg() -> str:
    reason = lossless_jpeg.missing()
    return f"LibRaw: {reason}" if reason else f"lossless JPEG by {lossless_jpeg.version()}"


def _extension() -> str:
    reason = cpu_library.missing()
    if reason is not None:
        return reason
    able = ", ".join(cpu_library.instruction_sets())
    return f"{cpu_library.vectors()} (this processor can run: {able})"


def _import_problem(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as error:
        return _sentence(error)
    return None


def _answer(question: Callable[[], str]) -> str:
    """What a question answers, or what went wrong in asking it."""
    try:
        return question()
    except ModuleNotFoundError as error:
        return f"no: {error.name} is not installed"
    # A broken installation fails in any way it likes, and that is what this report is for.
    except Exception as error:
        return f"no: {_sentence(error)}"


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as columns; the last column is as long as it likes."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )
