"""Decoders for DecodePool that do what LibRaw does on a bad day; imported in its workers."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import stat
import sys
import time
from pathlib import Path

import numpy as np

from isp_distill.errors import UnsupportedRawError
from isp_distill.raw.image import RawImage, read_raw


def by_name(path):
    """Do what the file's name says."""
    what = Path(path).stem
    if what == "hang":
        time.sleep(600)
    if what == "hang-locked":
        # PyDLL keeps the interpreter lock: no Python code of this process runs meanwhile.
        ctypes.PyDLL(None).sleep(600)
    if what == "segfault":
        ctypes.string_at(0)
    if what == "abort":
        os.abort()
    if what == "killed":
        with open(Path(path).with_suffix(".txt"), "a") as file:
            file.write("tried\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(3)
    if what == "allocate":
        np.ones(1 << 40, dtype=np.uint8)
    if what == "bug":
        raise KeyError("a bug")
    if what == "unsupported":
        raise UnsupportedRawError(path, "no mosaic")
    if what == "complain":
        os.write(2, b"/some/x.dng: data corrupted at 123\n")
    if what == "chatter":
        print("a library prints on standard output", flush=True)
        os.write(1, b"and so does C")
        os.write(2, b"a harmless note\n")
    if what == "nonsense":
        os.write(_reply_pipe(), b"\xff" * 4096)
        time.sleep(600)
    if what == "slow":
        time.sleep(1)
    if what == "grudge" and hasattr(sys, "a_file_was_read"):
        os.kill(os.getpid(), signal.SIGSEGV)
    sys.a_file_was_read = True
    return RawImage(np.full((4, 6), 7, np.uint16), "GBRG", (1.5, 2, 3, 4), 99.0, path=path)


def slowly(path):
    """Decode, but take long enough to be killed meanwhile."""
    time.sleep(0.1)
    return read_raw(path)


def _reply_pipe():
    """The pipe that this worker writes to."""
    for fd in range(3, 30):
        try:
            is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
        except OSError:
            continue
        if is_pipe and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            return fd
    raise AssertionError("no pipe to the parent")
