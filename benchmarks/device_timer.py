"""Time on a device: CUDA events on a GPU, the processor's clock otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

#: Written before every measurement on a GPU, so that no call finds its inputs in the cache: twice
#: the largest level-2 cache there is (B200: 126 MB).
_CACHE_BYTES = 256 << 20
#: A turn repeats a call until it has taken this long, seconds; the least counts.
_TURN = 0.005


class DeviceTimer:
    """Times calls on one device.

    Args:
        device: "cuda" or "cpu".
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.gpu = device.type == "cuda"
        size = _CACHE_BYTES if self.gpu else 1
        self._flush = torch.empty(size, dtype=torch.int8, device=device)

    def once(self, run: Callable[[], object]) -> float:
        """Seconds of one call, with a cold cache on a GPU; what the processor does is included
        only as far as the GPU waits for it."""
        if not self.gpu:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The GPU is busy with this while the processor queues what follows, so that a launch's own
        # time does not count: it overlaps with the kernels before it in any real step.
        self._flush.zero_()
        torch.cuda._sleep(1_000_000)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def interleaved(
        self, cases: Mapping[str, Callable[[], object]], rounds: int
    ) -> dict[str, float]:
        """The least seconds of each call, all of them taking turns; each runs twice before."""
        for run in cases.values():
            run()
            run()
        best = dict.fromkeys(cases, float("inf"))
        for _ in range(rounds):
            for name, run in cases.items():
                spent = 0.0
                while spent < _TURN:
                    seconds = self.once(run)
                    best[name], spent = min(best[name], seconds), spent + seconds
        return best

    def peak_bytes(self, run: Callable[[], object]) -> int | None:
        """Memory that a call needs at most beyond what was there; None where nobody counts."""
        if not self.gpu:
            return None
        run()
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


def captured(run: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """What a call returns when it is captured in a CUDA graph and replayed.

    Raises:
        RuntimeError: if it cannot be captured: it waits for the GPU, or copies from paged memory.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    for result in results:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return results
