"""How much memory a call needs beyond what was there: the process's peak, as the kernel counts it.

Tensors of more than some megabytes are mapped and unmapped one by one, so the resident peak shows
them exactly, whoever allocated them. Linux only.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

from isp_distill import release_memory

_STATUS = Path("/proc/self/status")


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")


def peak_bytes(run: Callable[[], object]) -> int:
    """Bytes by which the resident set grew at most during one call.

    ``run`` is called twice: the first call loads, compiles and warms what stays. Memory that the
    library kept of it is released, so that what the second one takes is counted whole.

    Raises:
        OSError: where the system has no /proc/self/clear_refs.
    """
    run()
    gc.collect()
    release_memory()
    # "5" resets the peak to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    result = run()
    peak = _resident("VmHWM")
    del result
    return max(0, peak - before)
