"""How fast this machine could be: the rates that the microbenchmarks are held against.

Both are measured in the run that uses them, since they change with the machine, its load and its
clock: multiply-adds as a large float32 matrix product reaches them, memory as a large copy does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

#: Seconds that a turn of :func:`interleaved` lasts at least.
_TURN = 0.02


def interleaved(
    cases: Mapping[str, Callable[[], object]], rounds: int, rest: float = 0.0
) -> dict[str, float]:
    """The least seconds that each case took, all of them taking turns.

    Taking turns spreads what else the machine does over all cases; the least is what remains when
    it did nothing else. Each case runs once before, so that what is compiled or cached is. Short
    cases run several times in a turn: the first pays for the caches that the case before filled.
    Where several libraries with threads of their own take turns, ``rest`` are the seconds that each
    waits for the others' threads to fall asleep: they spin for a while after their work.
    """
    best = dict.fromkeys(cases, float("inf"))
    for run in cases.values():
        run()
    for _ in range(rounds):
        for name, run in cases.items():
            spent = 0.0
            time.sleep(rest)
            while spent < _TURN:
                start = time.perf_counter()
                run()
                seconds = time.perf_counter() - start
                best[name], spent = min(best[name], seconds), spent + seconds
    return best


@dataclass(frozen=True)
class Floor:
    """What the machine can do.

    Attributes:
        operations: operations a second in the product's dtype (a multiply-add is two).
        bandwidth: bytes read plus bytes written a second.
    """

    operations: float
    bandwidth: float

    def seconds(self, operations: float, traffic: float) -> float:
        """The least time for so many operations and bytes: whichever of them takes longer."""
        return max(operations / self.operations, traffic / self.bandwidth)


def rate_cases(
    size: int = 2048,
    megabytes: int = 256,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Callable[[], object]]:
    """The two measurements, for :func:`interleaved` to time beside what they are held against."""
    a, b, product = (torch.rand(size, size, device=device).to(dtype) for _ in range(3))
    source = torch.rand(megabytes * 250_000, device=device)
    target = torch.empty_like(source)
    return {
        "matrix product": lambda: torch.mm(a, b, out=product),
        "copy": lambda: target.copy_(source),
    }


def floor_from(seconds: Mapping[str, float], size: int = 2048, megabytes: int = 256) -> Floor:
    """The rates, from what :func:`interleaved` measured of :func:`rate_cases`."""
    return Floor(
        operations=2 * size**3 / seconds["matrix product"],
        bandwidth=2 * megabytes * 1e6 / seconds["copy"],
    )


def measure_floor(rounds: int = 5) -> Floor:
    """Both rates, measured now."""
    return floor_from(interleaved(rate_cases(), rounds))
