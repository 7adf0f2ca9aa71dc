"""The compiled CUDA kernels: finds and loads their library, or says why it cannot be used here.

It is a library beside :mod:`isp_distill.backends.cpu_library`'s, because it needs torch's own CUDA
library, and is loaded only where torch has one. Loading it registers its kernels as torch operators
of the namespace ``isp_distill_cuda``.
"""

from __future__ import annotations

import functools
import importlib
from importlib.util import find_spec

import torch

_NAME = "isp_distill._cuda"
#: Equal to kInterface in csrc/cuda/library.cu, or the library was built from other sources.
_INTERFACE = 4


def built() -> bool:
    """Whether the library was built when isp-distill was installed."""
    return find_spec(_NAME) is not None


def missing() -> str | None:
    """Why the compiled CUDA kernels cannot be used, in one sentence; None where they can."""
    if not built():
        return (
            "the CUDA kernels were not built when isp-distill was installed "
            "(reinstall with nvcc on PATH or CUDA_HOME set)"
        )
    reason = _unusable()
    return None if reason is None else f"built, not usable here: {reason}"


def _unusable() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the kernels need a GPU of sm_80 or later, and this one is sm_{major}{minor}"
    return _load()


@functools.cache
def _load() -> str | None:
    try:
        library = importlib.import_module(_NAME)
    except ImportError as error:
        first = (str(error).splitlines() or ["no reason given"])[0]
        return f"the library cannot be loaded with torch {torch.__version__}: {first}"
    if library.interface != _INTERFACE:
        return "the library is of another version than the Python sources (build it again)"
    # The library's own runtime: it may need a later driver than torch's.
    problem: str | None = library.problem()
    return problem
