"""The compiled CPU kernels: finds and loads the library, or says in one sentence why it cannot.

Loading the library registers its kernels as torch operators of the namespace ``isp_distill_cpu``.
The operators that users meet, ``isp_distill::...``, are defined in Python (see ``ops/``) and exist
without it.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import cast

# The library's undefined symbols are torch's: torch must be in the process before it is loaded.
import torch

_NAME = "isp_distill._C"
#: Equal to kInterface in csrc/cpu/library.cpp, or the library was built from other sources.
_INTERFACE = 8


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The library and None, or None and why it cannot be used."""
    try:
        library = importlib.import_module(_NAME)
        if getattr(library, "interface", 1) == _INTERFACE:
            return library, None
        return None, (
            "the compiled CPU kernels are of another version than the Python sources "
            "(build them again: pip install . or pip install -e .)"
        )
    except ModuleNotFoundError:
        return None, (
            "the compiled CPU kernels were not built when isp-distill was installed "
            "(reinstall with a C++ compiler and ISP_DISTILL_REQUIRE_EXTENSION=1 to see why)"
        )
    except ImportError as error:
        first = (str(error).splitlines() or ["no reason given"])[0]
        return None, f"the compiled CPU kernels cannot be loaded with torch {_torch()}: {first}"


def _torch() -> str:
    return str(torch.__version__)


def missing() -> str | None:
    """Why the compiled CPU kernels cannot be used, in one sentence; None where they can."""
    return _load()[1]


def instruction_set() -> str:
    """The instruction set in use: "avx512", "avx2" or "generic" (NEON, or the compiler's baseline).

    The environment variable ``ISP_DISTILL_CPU`` overrides the processor's best one.

    Raises:
        RuntimeError: if the kernels are missing, or the override is not one the processor has.
    """
    return cast(str, _library().instruction_set())


def vectors() -> str:
    """What ``instruction_set()`` computes with here: "avx512", "avx2", "generic, NEON" on ARM64.

    Raises:
        RuntimeError: as ``instruction_set()``.
    """
    chosen, baseline = instruction_set(), getattr(_library(), "baseline", "")
    return f"generic, {baseline}" if chosen == "generic" and baseline else chosen


def instruction_sets() -> list[str]:
    """The instruction sets that this processor can run.

    Raises:
        RuntimeError: if the kernels are missing.
    """
    return cast("list[str]", _library().instruction_sets())


def _library() -> ModuleType:
    library, reason = _load()
    if library is None:
        raise RuntimeError(reason)
    return library
