"""What every ``bench_*.py`` needs of pytest-benchmark: one way to compute a task, timed.

A group is one task and has a name that says operation, shape, dtype and direction. Its members are
the ways to compute it, so pytest-benchmark's own column of ratios compares like with like. The
parameter ``way`` says who: ``ours``, ``eager`` (PyTorch), ``compile`` (torch.compile of it), or a
peer by its name.

How long and how often is pytest-benchmark's affair: ``--benchmark-max-time`` and
``--benchmark-min-rounds`` count for every way.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from floor import Floor

Made = TypeVar("Made")

DIRECTIONS = ("forward", "forward+backward")

_kept: dict[tuple[Any, ...], Any] = {}


def identifier(value: object) -> str:
    """A parameter as a test's id: ASCII without spaces, so that ``-k`` can name it.

    >>> identifier("dense 150 x 256², cosine (ADE20K)")
    'dense-150x256x256-cosine-ADE20K'
    """
    text = re.sub(r"(\d+)²", r"\1x\1", str(value))
    text = re.sub(r"(?<=\d) x (?=\d)", "x", text)
    text = re.sub(r"(?<=\d) MP", "MP", text)
    return re.sub(r"[^A-Za-z0-9+_.]+", "-", text).strip("-")


def shape(*sizes: int) -> str:
    """Sizes as a group's name has them: ``1x3000x4000``."""
    return "x".join(map(str, sizes))


def workload(make: Callable[..., Made], *arguments: Any) -> Made:
    """``make(*arguments)``, the same object for all ways of a group.

    Only the last one is kept: its tensors go before the next are made.
    """
    key = (make, *arguments)
    if key not in _kept:
        _kept.clear()
        gc.collect()
        torch._dynamo.reset()
        _kept[key] = make(*arguments)
    made: Made = _kept[key]
    return made


def time_way(
    benchmark: Any,
    run: Callable[[], object],
    floor: Floor | None = None,
    operations: float = 0.0,
    traffic: float = 0.0,
) -> None:
    """Time ``run`` as pytest-benchmark does, warm.

    Args:
        benchmark: pytest-benchmark's fixture, its group set.
        run: one call.
        floor: the machine's rates in this session. With them ``extra_info`` says how many bytes the
            task has to move, how many operations it takes, the least milliseconds for both, and
            these as a share of the least time measured.
        operations: of the task, a multiply-add being two.
        traffic: bytes that the task has to read and write.
    """
    if benchmark.enabled:
        # What is compiled or cached at the first call must not decide how many rounds there are.
        run()
    benchmark(run)
    if floor is None or benchmark.stats is None:
        return
    least = floor.seconds(operations, traffic)
    benchmark.extra_info |= {
        "bytes": int(traffic),
        "operations": int(operations),
        "floor_milliseconds": round(1e3 * least, 4),
        "share_of_floor": round(least / benchmark.stats.stats.min, 4),
    }
