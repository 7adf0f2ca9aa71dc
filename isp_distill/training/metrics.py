"""Metrics of a run that a kill at any moment leaves whole, line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from isp_distill.files.atomic import write_atomically
from isp_distill.files.disk import naming_disk


class Metrics:
    """JSON lines, and TensorBoard where it is installed.

    Args:
        folder: holds ``metrics.jsonl`` and TensorBoard's files.
        step: steps that are done; lines beyond it, left by a run that was killed, are dropped.
        tensorboard: write TensorBoard's files as well.

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl"
        kept: list[str] = []
        if self.path.exists() and step > 0:
            for line in self.path.read_text(errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    continue  # the line that the kill cut short
        write_atomically(self.path, "".join(f"{line}\n" for line in kept).encode())
        # Without a buffer: a line that a full disk refuses is not tried again on closing.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._board: Any = None
        self._events = folder / "tensorboard"
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError:
                return
            with naming_disk(self._events):
                self._board = SummaryWriter(str(self._events), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add one line: the step and its numbers.

        Raises:
            OSError: it cannot be written.
        """
        rest = memoryview((json.dumps({"step": step, **values}) + "\n").encode())
        with naming_disk(self.path):
            while rest:
                rest = rest[self._file.write(rest) :]
        if self._board is not None:
            with naming_disk(self._events):
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            with naming_disk(self._events):
                self._board.close()
