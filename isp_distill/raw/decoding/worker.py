"""The process that decodes: it reads paths, replies with mosaics, and is allowed to die.

``DecodePool`` (pool.py) starts it. It must start in a blink and hold nothing but numpy, rawpy
and this library's few RAW modules, so ``BOOTSTRAP`` puts an empty package in the place of
``isp_distill``, whose own ``__init__`` imports torch (seconds, and gigabytes of address space that
would count against the memory limit). Imports and pickled class names work as usual.

The protocol, little-endian. To the worker: length (uint32), path (file system bytes). From it:
``REPLY`` (magic, JSON length, mosaic length), JSON, mosaic (uint16, row by row). The first reply
says only that the worker is ready. JSON rather than pickle, because the process on the other side
may have been damaged by the file it read.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from isp_distill.errors import CorruptRawError, RawError
from isp_distill.raw.embedded_picture import EmbeddedPicture
from isp_distill.raw.image_json import fields_of

BOOTSTRAP = """
import json, sys, types
setup = json.loads(sys.argv[1])
sys.path[:] = setup["sys_path"]
package = types.ModuleType("isp_distill")
package.__path__ = [setup["package"]]
sys.modules["isp_distill"] = package
from isp_distill.raw.decoding.worker import serve
serve(setup["decoder"], setup["memory_limit"], setup["lifeline"])
"""

REQUEST = struct.Struct("<I")
REPLY = struct.Struct("<4sIQ")
MAGIC = b"ISPD"

# What LibRaw prints, and only prints, when the data ends early or does not decode.
_LIBRAW_COMPLAINTS = ("data corrupted", "unexpected end of file")


def read_exactly(stream: IO[bytes], buffer: memoryview) -> bool:
    """Fill the buffer from an unbuffered stream; False where the stream ends first."""
    done = 0
    while done < len(buffer):
        # IO knows no readinto, which every raw stream has.
        count = stream.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True


def write_all(stream: IO[bytes], data: bytes | memoryview) -> None:
    """Write everything to an unbuffered stream, whose write() may be partial."""
    rest = memoryview(data)
    while len(rest):
        rest = rest[stream.write(rest) :]


def serve(decoder: str, memory_limit: int, lifeline: int | None) -> None:
    """Decode until the request pipe closes.

    Args:
        decoder: "module:function", the function that turns a path into a RawImage.
        memory_limit: address space in bytes; more is refused by the system.
        lifeline: file descriptor of a pipe whose other end the parent holds open, or None.
    """
    # Ctrl-C reaches every process of the terminal; the parent decides when we stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if lifeline is not None:
        _die_with(lifeline)
    requests = os.fdopen(0, "rb", buffering=0)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a print from a library must not land among the replies
    module, _, name = decoder.partition(":")
    decode: Callable[[str], Any] = getattr(importlib.import_module(module), name)
    _limit(memory_limit)
    _reply(replies, {"ready": True}, None)
    head = bytearray(REQUEST.size)
    while read_exactly(requests, memoryview(head)):
        path = bytearray(REQUEST.unpack(head)[0])
        if not read_exactly(requests, memoryview(path)):
            return
        _reply(replies, *_decode(decode, os.fsdecode(bytes(path))))


def _die_with(lifeline: int) -> None:
    """Let the kernel end this process when the parent's end of ``lifeline`` closes.

    Not PR_SET_PDEATHSIG: that signal comes when the *thread* that started us ends, and readers are
    often short-lived threads. A closing pipe raises SIGIO here, whose default action is to end the
    process, without any Python code: it works while LibRaw, or a hang, holds the interpreter lock.
    """
    if sys.platform == "linux":
        import fcntl

        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)


def _limit(memory: int) -> None:
    """Bound the address space, so that a lying header fails here and not in the whole machine."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    # A crash is expected now and then; nobody reads its core file.
    for what, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(what, (soft, hard))
        except (ValueError, OSError):  # macOS refuses RLIMIT_AS
            continue


def _decode(decode: Callable[[str], Any], path: str) -> tuple[dict[str, Any], np.ndarray | None]:
    """The reply for one file: JSON and mosaic. Every Exception becomes a reply."""
    _complaint()  # of the file before, if any
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            raw = decode(path)
            complaint = _complaint()
            if complaint:
                raise CorruptRawError(path, f"LibRaw says: {complaint}; copy the file again")
        except RawError as error:
            return {"error": type(error).__name__, "reason": error.reason}, None
        except OSError as error:
            return {"error": "OSError", "reason": error.strerror, "errno": error.errno}, None
        except MemoryError:
            return {"error": "CorruptRawError", "reason": "decoding it ran out of memory"}, None
        except Exception as error:
            reason = f"the decoder failed with {type(error).__name__}: {error}"
            return {"error": "CorruptRawError", "reason": reason}, None
    if isinstance(raw, EmbeddedPicture):
        # Payloads are whole uint16; an odd byte more is cut off by the reader.
        padded = np.frombuffer(raw.jpeg + bytes(len(raw.jpeg) % 2), np.uint16)
        return {"bytes": len(raw.jpeg), "orientation": raw.orientation}, padded
    mosaic = np.ascontiguousarray(raw.mosaic)
    # There are several workers, and each would warn once. The parent gets the key, and warns once.
    notes = [
        (str(w.message), getattr(w.message, "key", None))
        for w in caught
        if issubclass(w.category, UserWarning)
    ]
    return {"fields": fields_of(raw), "shape": mosaic.shape, "warnings": notes}, mosaic


def _complaint() -> str:
    """What LibRaw printed about damaged data since the last call; "" if nothing.

    Standard error is a file that the pool opened for this worker; it is emptied here.
    """
    try:
        size = os.fstat(2).st_size
        if not size:
            return ""
        text = os.pread(2, min(size, 4096), 0).decode("utf-8", "replace")
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)
    except OSError:  # not a file: someone runs this by hand
        return ""
    for line in text.splitlines():
        if any(c in line.lower() for c in _LIBRAW_COMPLAINTS):
            return line.rpartition(": ")[2].strip()
    return ""


def _reply(stream: IO[bytes], header: dict[str, Any], mosaic: np.ndarray | None) -> None:
    """Send one reply."""
    text = json.dumps(header).encode()
    nbytes = 0 if mosaic is None else mosaic.nbytes
    write_all(stream, REPLY.pack(MAGIC, len(text), nbytes) + text)
    if mosaic is not None:
        write_all(stream, mosaic.data.cast("B"))
