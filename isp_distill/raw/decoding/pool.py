"""Decode RAW files in processes that may crash or hang without taking the training along.

LibRaw is C++ that parses files of unknown origin: over a large folder it will meet one that makes
it crash, allocate everything, or never return. ``DecodePool`` gives each file to a worker process
(process.py here, worker.py on the other side of the pipe), replaces workers that die, stops those
that take too long, and turns either into a ``CorruptRawError`` that names the file.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from isp_distill.errors import CorruptRawError, UnsupportedRawError
from isp_distill.raw.camera_warnings import warn_once
from isp_distill.raw.decoding.process import KilledError, WorkerDiedError, WorkerProcess
from isp_distill.raw.dng import lossless_jpeg
from isp_distill.raw.embedded_picture import EmbeddedPicture
from isp_distill.raw.image import RawImage, read_raw
from isp_distill.raw.image_json import image_fields

# SIGKILL comes from outside: from the kernel when memory is short, or from a person. It says little
# about the file, so this many workers are tried before the file is blamed.
_KILLED_TRIES = 4


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
        ValueError: an argument is out of range, the decoder is not a module-level function, or
            ``ISP_DISTILL_DECODER`` is no decoder's name.
    """

    def __init__(
        self,
        workers: int = 2,
        timeout_s: float = 60.0,
        memory_limit_bytes: int = 4 << 30,
        *,
        decoder: Callable[[str], RawImage | EmbeddedPicture] = read_raw,
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
        lossless_jpeg.requested()  # or each file would be called damaged
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
        self._idle: list[WorkerProcess] = []
        self._all: set[WorkerProcess] = set()
        _pools.add(self)
        # The set is shared with the finaliser, so it is emptied in place and never replaced.
        weakref.finalize(self, _stop_all, self._all)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are running, for diagnosis."""
        with self._lock:
            return sorted(w.process.pid for w in self._all if w.alive)

    def read(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> RawImage:
        """Decode one file in a worker; blocks until it is done, or its time is up.

        A worker that dies on a file may have been harmed by the file before. So unless the worker
        was fresh, the file gets a fresh one before it is called corrupt. It gets a few more where
        workers were killed from outside: by the system for lack of memory, or by a person.

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
        return _result(name, *self._ask(name))

    def read_picture(self, path: str | os.PathLike[str]) -> EmbeddedPicture:
        """The same of a pool whose decoder is :func:`embedded_picture`: the JPEG in a file.

        Raises:
            RawError, OSError, RuntimeError: as for :meth:`read`.
        """
        name = os.fsdecode(path)
        header, flat = self._ask(name)
        _raise_error(name, header)
        assert flat is not None
        return EmbeddedPicture(flat.tobytes()[: header["bytes"]], header["orientation"])

    def _ask(self, name: str) -> tuple[dict[str, Any], np.ndarray | None]:
        """A worker's reply about one file."""
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
                except WorkerDiedError:
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
        return header, flat

    def _take(self) -> WorkerProcess:
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

    def _start(self) -> WorkerProcess:
        """A new worker that is ready; another one where it was killed while it started."""
        for _ in range(_KILLED_TRIES - 1):
            worker = None
            with contextlib.suppress(KilledError):
                worker = self._start_one()
            if worker is not None:
                return worker
        return self._start_one()

    def _start_one(self) -> WorkerProcess:
        worker = WorkerProcess(self._decoder, self.memory_limit_bytes)
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

    def _give_back(self, worker: WorkerProcess) -> None:
        with self._lock:
            # Closed, or stopped between the last byte and the end of its deadline.
            keep = not self._closed and not worker.expired
            if keep:
                self._idle.append(worker)
        if not keep:
            self._discard(worker)

    def _discard(self, worker: WorkerProcess) -> str:
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


def _stop_all(workers: set[WorkerProcess]) -> None:
    for worker in workers:
        worker.kill()
    while workers:
        workers.pop().stop()


def _result(name: str, header: dict[str, Any], flat: np.ndarray | None) -> RawImage:
    """The RawImage of a reply, or the exception that it describes."""
    _raise_error(name, header)
    for note, key in header["warnings"]:
        if key is None:
            warnings.warn(note, stacklevel=3)
        else:
            warn_once(note, key, stacklevel=3)
    assert flat is not None
    fields = image_fields(header["fields"])
    return RawImage(mosaic=flat.reshape(header["shape"]), path=name, **fields)


def _raise_error(name: str, header: dict[str, Any]) -> None:
    """The exception that a reply describes, if it does."""
    kind = header.get("error")
    if kind == "OSError":
        raise OSError(header["errno"], header["reason"], name)
    if kind is not None:
        error = UnsupportedRawError if kind == "UnsupportedRawError" else CorruptRawError
        raise error(name, header["reason"])


_pools: weakref.WeakSet[DecodePool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
