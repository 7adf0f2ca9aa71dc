"""One decoding process as the pool sees it: started, asked for a file, stopped.

What runs in it is worker.py, where the protocol is described.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np

from isp_distill.raw.decoding.worker import (
    BOOTSTRAP,
    MAGIC,
    REPLY,
    REQUEST,
    read_exactly,
    write_all,
)
from isp_distill.raw.tiff import MAX_PIXELS

# Importing numpy and rawpy takes a tenth of a second; a cold network disk may take far longer.
_START_TIMEOUT_S = 120.0
_MAX_HEADER_BYTES = 1 << 20
_PIPE_BYTES = 1 << 20


class WorkerDiedError(Exception):
    """The worker ended, or was stopped, before it had replied in full."""


class KilledError(RuntimeError):
    """A worker was killed from outside before it was ready."""


class WorkerProcess:
    """One worker process and its pipes; used by one thread at a time.

    Args:
        decoder: "module:function", which the process imports and calls with each path.
        memory_limit: its address space in bytes, where the system can limit it.
    """

    def __init__(self, decoder: str, memory_limit: int) -> None:
        package = Path(__file__).resolve().parents[2]
        lifeline: int | None = None
        self._lifeline: int | None = None
        if sys.platform == "linux":
            lifeline, self._lifeline = os.pipe()
        setup = {
            "sys_path": sys.path,
            "package": str(package),
            "decoder": decoder,
            "memory_limit": memory_limit,
            "lifeline": lifeline,
        }
        # The pool is the parallelism; thread pools inside a worker only cost memory and time.
        threads = {f"{p}_NUM_THREADS": "1" for p in ("OMP", "OPENBLAS", "MKL")}
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in stop)
        self._lock = threading.Lock()
        self._busy = False
        self._stopped_after: float | None = None
        self.files = 0
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", BOOTSTRAP, json.dumps(setup)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                pass_fds=() if lifeline is None else (lifeline,),
                env={**os.environ, **threads},
            )
        finally:
            if lifeline is not None:
                os.close(lifeline)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._requests, self._replies = self.process.stdin, self.process.stdout
        if sys.platform == "linux":
            import fcntl

            # Fewer, larger pieces; the system may refuse, which only costs time.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._replies, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def wait_until_ready(self) -> None:
        """Wait for the first reply.

        Raises:
            RuntimeError: the worker could not start; the message has its last words.
        """
        try:
            with self._deadline(_START_TIMEOUT_S):
                self._receive()
        except WorkerDiedError:
            words = os.pread(self._errors.fileno(), 1 << 16, 0).decode("utf-8", "replace").strip()
            ending = self.stop()
            kind = KilledError if self.killed else RuntimeError
            raise kind(
                f"a decode worker could not start, {ending}: {words or 'it said nothing'}"
            ) from None

    def ask(self, path: str, timeout_s: float) -> tuple[dict[str, Any], np.ndarray | None]:
        """Send one path and wait for the reply.

        Raises:
            WorkerDiedError: the worker died or was stopped at the deadline.
        """
        name = os.fsencode(path)
        with self._deadline(timeout_s):
            try:
                write_all(self._requests, REQUEST.pack(len(name)) + name)
            except OSError as error:
                raise WorkerDiedError from error
            reply = self._receive()
        self.files += 1
        return reply

    @contextlib.contextmanager
    def _deadline(self, seconds: float) -> Any:
        """Kill the worker if the block lasts longer: its pipes close, so every read returns."""
        timer = threading.Timer(seconds, self._expire, (seconds,))
        timer.daemon = True
        with self._lock:
            self._busy = True
        timer.start()
        try:
            yield
        finally:
            # Under the lock, so that a timer that fires now either comes first or does nothing.
            with self._lock:
                self._busy = False
            timer.cancel()

    def _expire(self, seconds: float) -> None:
        with self._lock:
            if self._busy:
                self._stopped_after = seconds
                self.process.kill()

    def _receive(self) -> tuple[dict[str, Any], np.ndarray | None]:
        head = bytearray(REPLY.size)
        if not read_exactly(self._replies, memoryview(head)):
            raise WorkerDiedError
        magic, length, nbytes = REPLY.unpack(head)
        if magic != MAGIC or length > _MAX_HEADER_BYTES or nbytes > 2 * MAX_PIXELS:
            # Its memory is damaged; whatever else it would say is not to be trusted.
            self.kill()
            raise WorkerDiedError
        text = bytearray(length)
        if not read_exactly(self._replies, memoryview(text)):
            raise WorkerDiedError
        header: dict[str, Any] = json.loads(text)
        if not nbytes:
            return header, None
        flat = np.empty(nbytes // 2, dtype=np.uint16)
        if not read_exactly(self._replies, flat.data.cast("B")):
            raise WorkerDiedError
        return header, flat

    @property
    def expired(self) -> bool:
        """Whether it was stopped at a deadline."""
        return self._stopped_after is not None

    @property
    def killed(self) -> bool:
        """Whether it ended by a SIGKILL that did not come from here; known once stopped."""
        return self._stopped_after is None and self.process.returncode == -signal.SIGKILL

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self.process.poll() is None

    def stop(self) -> str:
        """End the process, reap it, close the pipes; how it ended, in words. Safe to call twice."""
        if not self._requests.closed:
            # Closing its input ends an idle worker; one that is dying by itself has a moment to do
            # so, because its own signal says more than ours.
            self._requests.close()
            try:
                self.process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self._close()
        if self._stopped_after is not None:
            return f"decoding took longer than {self._stopped_after:g} s and was stopped"
        code = self.process.returncode
        if code >= 0:
            return f"the decoder ended with status {code}"
        try:
            return f"the decoder died with signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            return f"the decoder died with signal {-code}"

    def kill(self) -> None:
        """Kill the process; the thread that waits for it wakes up and does the rest."""
        self.process.kill()

    def forget(self) -> None:
        """Close this process's copies of the pipes, in a fork that does not own the worker."""
        # It is not our child: without a return code, Popen would warn and try to reap it.
        self.process.returncode = 0
        self._close()

    def _close(self) -> None:
        for stream in (self._requests, self._replies, self._errors):
            stream.close()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
