"""Checkpoints and metrics that a kill at any moment leaves whole."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from isp_distill.atomic import only_writer, replaced, write_atomically

# A killed run's process may take a moment to be gone.
_LOCK_TIMEOUT_S = 10.0


def only_run(folder: Path) -> AbstractContextManager[None]:
    """Make the folder and hold its lock, so that no two runs mix their files; clear leftovers.

    Raises:
        RuntimeError: on entry, if another run holds it.
    """
    return only_writer(
        folder,
        "another run is writing there: wait for it, end it, or train into another folder",
        _LOCK_TIMEOUT_S,
    )


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint (tensors, numbers, strings, containers of them) atomically."""
    with replaced(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; nothing in it is executed.

    Raises:
        ValueError: if the file is damaged or no checkpoint; the message names it and the fix.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path}: not a readable checkpoint ({error}); delete it, or train with resume=False"
        ) from error
    return state


class Metrics:
    """JSON lines, and TensorBoard where it is installed.

    Args:
        folder: holds ``metrics.jsonl`` and TensorBoard's files.
        step: steps that are done; lines beyond it, left by a run that was killed, are dropped.
        tensorboard: write TensorBoard's files as well.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        path = folder / "metrics.jsonl"
        kept: list[str] = []
        if path.exists() and step > 0:
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    continue  # the line that the kill cut short
        write_atomically(path, "".join(f"{line}\n" for line in kept).encode())
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - closed by close()
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError:
                return
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add one line: the step and its numbers."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()
