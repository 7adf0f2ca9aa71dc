"""Where the time of a training step goes: ``train(profile=True)``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


class Stages:
    """Adds up the time between the entry and the exit of named stages.

    Args:
        device: on a GPU every stage ends with a synchronisation, so that its own work is counted:
            a profiled run is slower than one that is not.
        enabled: False for no effect at all.
    """

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.enabled = enabled
        self._gpu = device.type == "cuda"
        #: Seconds by stage, in the order in which the stages were first entered.
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what happens inside the ``with`` to a stage."""
        if not self.enabled:
            yield
            return
        began = time.perf_counter()
        yield
        if self._gpu:
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def table(self, steps: int) -> str:
        """Milliseconds a step and share of each stage, as text."""
        total = sum(self.seconds.values())
        width = max(map(len, self.seconds), default=0)
        lines = [f"{'stage':{width}}  ms a step   share"]
        for name, seconds in self.seconds.items():
            lines.append(f"{name:{width}}  {1e3 * seconds / steps:9.1f}  {seconds / total:6.1%}")
        return "\n".join(lines)
