"""Ctrl-C and SIGTERM: a run stops between two whole steps, saves, and says how to go on."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from isp_distill.jobs.processes import Processes

# Within it, a second Ctrl-C of several processes is torchrun's, which hands on the terminal's.
_SAME_S = 1.0
# How long the last words wait for a reader.
_LAST_WORDS_S = 0.5
_LAST_WORDS_BYTES = 4096


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a run; the text says what was saved and how to go on."""


class Terminated(SystemExit):
    """SIGTERM ended a run: a SystemExit of status 143; the text says what was saved."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 128 + signal.SIGTERM

    def __str__(self) -> str:
        return str(self.args[0])


class StopSignals:
    """While it is entered, Ctrl-C and SIGTERM raise KeyboardInterrupt where that does no harm.

    A block under :meth:`deferred` is never cut in two: the exception comes at its end. A second
    signal raises at once, wherever that is. Handlers that the caller has set are left alone, and
    outside of the main thread, where Python allows none, nothing is changed.

    On leaving, the KeyboardInterrupt becomes an :class:`Interrupted` or a :class:`Terminated` with
    ``message`` for its text, and no traceback of what was interrupted.

    Args:
        several: the run has several processes, which are signalled twice at a time.

    Attributes:
        received: the first signal, if any.
        message: what was saved, and how to go on.
    """

    def __init__(self, several: bool = False) -> None:
        self.received: int | None = None
        self.several = several
        self.message = "stopped before the first step: nothing was saved"
        self._depth = 0
        self._at = 0.0
        self._cut = self._agreed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
            for number, handler in usual.items():
                if signal.getsignal(number) is handler:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if not isinstance(error, KeyboardInterrupt):
            return
        # The frames that were interrupted hold models and batches, and nobody asks for them.
        error.with_traceback(None)
        error.__context__ = None
        if self.received == signal.SIGTERM:
            raise Terminated(self.message) from None
        raise Interrupted(self.message) from None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None
        now = time.monotonic()
        # torchrun ends all processes when one has ended, and Ctrl-C reaches them twice.
        if again and self.several and (number == signal.SIGTERM or now - self._at < _SAME_S):
            return
        if not again:
            self.received, self._at = number, now
        if again or not self._depth:
            self._cut = self._cut or self._depth > 0
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that a first signal does not cut; it is answered at the end of the block."""
        came_before = self.received
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if not self._depth and self.received is not None and came_before is None:
            raise KeyboardInterrupt

    def check(self, processes: Processes) -> None:
        """Between two steps: raise KeyboardInterrupt if a signal came, in all processes or in none.

        Also where one came earlier and its exception was swallowed, as in a finaliser.
        """
        if processes.count == 1:
            if self.received is not None:
                raise KeyboardInterrupt
            return
        # A signal may come while they ask one another: it then counts after the next step.
        found = processes.largest(self.received or 0)
        if found:
            self._agreed = True
            if self.received is None:
                self.received, self._at = found, time.monotonic()
            raise KeyboardInterrupt

    @property
    def between_steps(self) -> bool:
        """Whether the state is that of a whole step, the same one in all processes.

        Not where the signal was handled by somebody else, nor where a second one cut a block.
        """
        return self.received is not None and not self._cut and (self._agreed or not self.several)


def last_words(text: str) -> None:
    """Write a line to standard error, unless nobody reads what is written there."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = sys.stderr.fileno()
        # A pipe that is ready takes this much without waiting.
        if select.select([], [descriptor], [], _LAST_WORDS_S)[1]:
            os.write(descriptor, f"{text}\n".encode()[:_LAST_WORDS_BYTES])


def end_process(status: int) -> None:
    """End this process now: no thread is waited for, and no full pipe for its reader."""
    os._exit(status)
