"""Decode RAW files in processes that may crash or hang without taking the training along.

LibRaw is C++ that parses files of unknown origin: over a large folder it will meet one that makes
it crash, allocate everything, or never return. ``DecodePool`` gives each file to a worker process
(worker.py), replaces workers that die, stops those that take too long, and turns either into
a ``CorruptRawError`` that names the file.
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
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from isp_distill.errors import CorruptRawError, UnsupportedRawError
from isp_distill.raw.camera_warnings import warn_once
from isp_distill.raw.decoding.worker import (
    BOOTSTRAP,
    MAGIC,
    REPLY,
    REQUEST,
    read_exactly,
    write_all,
)
from isp_distill.raw.image import RawImage, read_raw
from isp_distill.raw.image_json import image_fields
from isp_distill.raw.refusals import MAX_PIXELS

# Importing numpy and rawpy takes a tenth of a second; a cold network disk may take far longer.
_START_TIMEOUT_S = 120.0
_MAX_HEADER_BYTES = 1 << 20
_PIPE_BYTES = 1 << 20
# SIGKILL comes from outside, from the kernel when memory is short or from a person, and says little
# about the file: so many workers are tried before it is blamed.
_KILLED_TRIES = 4


class _WorkerDiedError(Exception):
    """The worker ended, or was stopped, before it had replied in full."""


class _KilledError(RuntimeError):
    """A worker was killed from outside before it was ready."""


class _Worker:
    """One worker process and its pipes; used by one thread at a time."""

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
        except _WorkerDiedError:
            words = os.pread(self._errors.fileno(), 1 << 16, 0).decode("utf-8", "replace").strip()
            ending = self.stop()
            kind = _KilledError if self.killed else RuntimeError
            raise kind(
                f"a decode worker could not start, {ending}: {words or 'it said nothing'}"
            ) from None

    def ask(self, path: str, timeout_s: float) -> tuple[dict[str, Any], np.ndarray | None]:
        """Send one path and wait for the reply.

        Raises:
            _WorkerDiedError: the worker died or was stopped at the deadline.
        """
        name = os.fsencode(path)
        with self._deadline(timeout_s):
            try:
                write_all(self._requests, REQUEST.pack(len(name)) + name)
            except OSError as error:
                raise _WorkerDiedError from error
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
            raise _WorkerDiedError
        magic, length, nbytes = REPLY.unpack(head)
        if magic != MAGIC or length > _MAX_HEADER_BYTES or nbytes > 2 * MAX_PIXELS:
            # Its memory is damaged; whatever else it would say is not to be trusted.
            self.kill()
            raise _WorkerDiedError
        text = bytearray(length)
        if not read_exactly(self._replies, memoryview(text)):
            raise _WorkerDiedError
        header: dict[str, Any] = json.loads(text)
        if not nbytes:
            return header, None
        flat = np.empty(nbytes // 2, dtype=np.uint16)
        if not read_exactly(self._replies, flat.data.cast("B")):
            raise _WorkerDiedError
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


class DecodePool:
    """Worker processes that decode RAW files; thread-safe.

    Workers start when they are first needed (about 0.15 s each) and end with the pool, with this
    process, however it dies, or with ``close()``. A forked copy of this process (a DataLoader
    worker) starts workers of its own.

    Args:
        workers: how many processes at most; further calls of :meth:`read` wait their turn.
        timeout_s: seconds for one file, from the request to the last byte of the mosaic.
        memory_limit_bytes: address space of a worker, where the system can limit it (Linux); a
            decoded 24-megapixel file needs about 0.5 GB with what Python itself takes.
        decoder: the function that decodes, called as ``decoder(path)`` in the worker, which
            imports it by its module and name: a module-level function.

    Raises:
        ValueError: an argument is out of range, or the decoder is not a module-level function.
    """

    def __init__(
        self,
        workers: int = 2,
        timeout_s: float = 60.0,
        memory_limit_bytes: int = 4 << 30,
        *,
        decoder: Callable[[str], RawImage] = read_raw,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, not {timeout_s}")
        if memory_limit_bytes < 256 << 20:
            raise ValueError(
                f"memory_limit_bytes must be at least 256 MiB (Python and LibRaw themselves), "
                f"not {memory_limit_bytes}"
            )
        name = getattr(decoder, "__qualname__", "")
        if not name.isidentifier():
            raise ValueError(f"decoder must be a module-level function, not {decoder!r}")
        self.workers = workers
        self.timeout_s = timeout_s
        self.memory_limit_bytes = memory_limit_bytes
        self._decoder = f"{decoder.__module__}:{name}"
        self._closed = False
        self._stops = 0
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self.workers)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        _pools.add(self)
        # The set is shared with the finaliser, so it is emptied in place and never replaced.
        weakref.finalize(self, _stop_all, self._all)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are running, for diagnosis."""
        with self._lock:
            return sorted(w.process.pid for w in self._all if w.alive)

    def read(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> RawImage:
        """Decode one file in a worker; blocks until it is done, and never longer than it may.

        A worker that dies on a file may have been harmed by the file before, so unless it was fresh
        the file gets a second, fresh one before it is called corrupt; and a few more where it was
        killed from outside: by the system for lack of memory, or by a person.

        Args:
            path: the file.

        Returns:
            What ``read_raw`` returns; its warnings are given again here.

        Raises:
            CorruptRawError: also where the decoder died, took longer than ``timeout_s``, or LibRaw
                reported damaged data (which ``read_raw`` alone cannot see).
            UnsupportedRawError: as for ``read_raw``.
            OSError: the file cannot be opened.
            RuntimeError: the pool is closed, reading was stopped, or no worker can be started.
        """
        name = os.fsdecode(path)
        # The worker keeps the working directory it was started in.
        absolute = os.path.abspath(name)
        stops = self._stops
        with self._slots:
            self._check_stops(stops)
            worker = self._take()
            tries = 0
            while True:
                fresh = worker.files == 0
                try:
                    self._check_stops(stops)
                    header, flat = worker.ask(absolute, self.timeout_s)
                    break
                except _WorkerDiedError:
                    ending = self._discard(worker)
                    if self._closed:
                        raise RuntimeError("the decode pool was closed") from None
                    tries += 1
                    spare = worker.killed and tries < _KILLED_TRIES
                    if worker.expired or (fresh and not spare):
                        raise CorruptRawError(name, ending) from None
                    worker = self._start()
                except BaseException:
                    # Ctrl-C between request and reply: the pipe is out of step.
                    self._discard(worker)
                    raise
            self._give_back(worker)
        return _result(name, header, flat)

    def _take(self) -> _Worker:
        """An idle worker that is alive, or a new one."""
        while True:
            with self._lock:
                if self._closed:
                    raise RuntimeError("the decode pool is closed")
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return self._start()
            if worker.alive:
                return worker
            self._discard(worker)

    def _start(self) -> _Worker:
        """A new worker that is ready; another one where it was killed while it started."""
        for _ in range(_KILLED_TRIES - 1):
            worker = None
            with contextlib.suppress(_KilledError):
                worker = self._start_one()
            if worker is not None:
                return worker
        return self._start_one()

    def _start_one(self) -> _Worker:
        worker = _Worker(self._decoder, self.memory_limit_bytes)
        with self._lock:
            self._all.add(worker)
            if self._closed:  # close() has not seen this one
                worker.kill()
        try:
            worker.wait_until_ready()
        except BaseException:
            self._discard(worker)
            if self._closed:
                raise RuntimeError("the decode pool was closed") from None
            raise
        return worker

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            # Closed, or stopped between the last byte and the end of its deadline.
            keep = not self._closed and not worker.expired
            if keep:
                self._idle.append(worker)
        if not keep:
            self._discard(worker)

    def _discard(self, worker: _Worker) -> str:
        with self._lock:
            self._all.discard(worker)
        return worker.stop()

    def stop_reading(self) -> None:
        """End the files being read, with RuntimeError, and leave the pool as good as new."""
        with self._lock:
            self._stops += 1
            busy = self._all.difference(self._idle)
        for worker in busy:
            worker.kill()

    def _check_stops(self, before: int) -> None:
        if self._stops != before:
            raise RuntimeError("reading was stopped")

    def close(self) -> None:
        """Stop every worker; files being read raise ``RuntimeError``. Safe to call twice."""
        with self._lock:
            self._closed = True
            idle = list(self._idle)
            self._idle.clear()
            busy = self._all.difference(idle)
            self._all.difference_update(idle)
        for worker in busy:
            worker.kill()
        for worker in idle:
            worker.stop()

    def _forget(self) -> None:
        """In a forked child: drop the parent's workers and locks, which no thread here holds."""
        for worker in self._all:
            worker.forget()
        self._all.clear()
        self._idle.clear()
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self.workers)

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _stop_all(workers: set[_Worker]) -> None:
    for worker in workers:
        worker.kill()
    while workers:
        workers.pop().stop()


def _result(name: str, header: dict[str, Any], flat: np.ndarray | None) -> RawImage:
    """The RawImage of a reply, or the exception that it describes."""
    kind = header.get("error")
    if kind == "OSError":
        raise OSError(header["errno"], header["reason"], name)
    if kind is not None:
        error = UnsupportedRawError if kind == "UnsupportedRawError" else CorruptRawError
        raise error(name, header["reason"])
    for note, key in header["warnings"]:
        if key is None:
            warnings.warn(note, stacklevel=3)
        else:
            warn_once(note, key, stacklevel=3)
    assert flat is not None
    fields = image_fields(header["fields"])
    return RawImage(mosaic=flat.reshape(header["shape"]), path=name, **fields)


_pools: weakref.WeakSet[DecodePool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
