"""``TrainCallback``: what a run tells others while it goes on, such as a tracker of experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isp_distill.training.result import TrainResult
    from isp_distill.training.settings import TrainSettings


class TrainCallback:
    """Told of the steps, checkpoints and end of a run: ``train(..., callbacks=[yours])``.

    Derive from it and write the methods that you need; each does nothing here. Among several
    processes rank 0 calls them, and they may not use collectives. An exception of a method ends the
    run, in all processes; the last checkpoint is sound. ``signal.raise_signal(signal.SIGINT)``
    stops it as Ctrl-C does, with a checkpoint of the last whole step. A run that goes on from a
    checkpoint calls them for the steps that are left; of one that had ended, for its start and end.

    Example:
        >>> class Losses(isp_distill.TrainCallback):
        ...     def __init__(self):
        ...         self.seen = []
        ...     def on_step(self, step, values):
        ...         self.seen.append((step, round(values["loss"], 6)))
        >>> losses = Losses()
        >>> result = isp_distill.train(
        ...     "rawify", isp_distill.Teacher(model, size=32), "photos/raw", out="runs/first",
        ...     steps=2, batch_size=2, progress=False, resume=False, callbacks=[losses],
        ... )
        >>> len(losses.seen)
        2
    """

    def on_start(self, settings: TrainSettings, step: int) -> None:
        """The run is about to take its first step.

        Args:
            settings: of the run; ``settings.plain()`` is what JSON takes.
            step: steps that are done already, by the run that this one goes on from.
        """

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """A step's numbers are known.

        They are read from the device every ``metrics_every`` steps (1 on the CPU, 10 on a GPU), and
        then it is called once for each of these steps, in order, after ``metrics.jsonl`` has them.

        Args:
            step: steps that were done with it, from 1.
            values: ``loss``, ``agreement`` (of the most likely class, 0..1) or ``cosine``, ``lr``,
                ``stem_lr``, ``images_per_second``; of several matches each one's loss and figure.
        """

    def on_checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint was written, and is whole; also the last one of a run that is stopped.

        Args:
            step: steps that it holds.
            path: of the file. The next checkpoint replaces it.
        """

    def on_end(self, result: TrainResult) -> None:
        """The run is finished and has left all of its files; not called for one that was stopped.

        Args:
            result: what :func:`isp_distill.train` returns.
        """


class Callbacks(TrainCallback):
    """All of a run's callbacks as one, in the order in which they were given.

    Args:
        callbacks: as given to :func:`isp_distill.train`.

    Raises:
        TypeError: one of them is no :class:`TrainCallback`.
    """

    def __init__(self, callbacks: Sequence[TrainCallback] = ()) -> None:
        if isinstance(callbacks, TrainCallback) or not isinstance(callbacks, Sequence):
            raise TypeError(
                f"callbacks is a list of TrainCallback, got {callbacks!r}: pass callbacks=[yours]"
            )
        for callback in callbacks:
            if not isinstance(callback, TrainCallback):
                raise TypeError(
                    f"{callback!r} is no TrainCallback: derive its class from "
                    "isp_distill.TrainCallback, and pass an instance"
                )
        self._each = tuple(callbacks)

    def on_start(self, settings: TrainSettings, step: int) -> None:
        """Tell each of them."""
        for callback in self._each:
            callback.on_start(settings, step)

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Tell each of them; each gets numbers of its own."""
        for callback in self._each:
            callback.on_step(step, dict(values))

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Tell each of them."""
        for callback in self._each:
            callback.on_checkpoint(step, path)

    def on_end(self, result: TrainResult) -> None:
        """Tell each of them."""
        for callback in self._each:
            callback.on_end(result)
