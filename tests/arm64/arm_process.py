"""The CPU library's operators, computed by a process for ARM64 under qemu-user."""

from __future__ import annotations

import functools
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import torch

# The order of the numbers in torch_functions.cpp.
DTYPES = [
    torch.uint8, torch.uint16, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64, torch.bool,
]  # fmt: skip


class ArmOperators:
    """Stands in for ``torch.ops.isp_distill_cpu``: each call goes through the process's pipes.

    Tensors keep their strides, their aliases and where they lie in a cache line. The driver
    answers with what an operator wrote, or with its error, which is raised as torch would.
    """

    def __init__(self, command: list[str], library: Path, environment: dict[str, str]):
        self._process = subprocess.Popen(
            [*command, str(library)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        count = self._number("I")
        schemas = [torch._C.parse_schema(self._text()) for _ in range(count)]
        self.schemas = {schema.name: schema for schema in schemas}
        self.calls = dict.fromkeys(self.schemas, 0)

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._call, name)

    def close(self) -> int:
        """End the process; its exit status."""
        self._process.stdin.close()
        return self._process.wait(timeout=60)

    def _call(self, name: str, *arguments: Any) -> Any:
        schema = self.schemas[name]
        if len(arguments) != len(schema.arguments):
            raise TypeError(f"{name} takes {len(schema.arguments)} arguments, not {len(arguments)}")
        storages: dict[int, torch.UntypedStorage] = {}
        written: set[int] = set()
        encoded = []
        for value, formal in zip(arguments, schema.arguments, strict=True):
            optional = isinstance(formal.type, torch.OptionalType)
            if str(formal.type) == "float":
                value = float(value)
            encoded.append(_kind(value) + bytes([optional]) + _encode(value, storages))
            changed = formal.alias_info is not None and formal.alias_info.is_write
            if changed and isinstance(value, torch.Tensor):
                written.add(value.untyped_storage().data_ptr())
        parts = [struct.pack("<I", len(name)), name.encode(), struct.pack("<I", len(storages))]
        for address, storage in storages.items():
            parts.append(struct.pack("<BIQ", address in written, address % 64, len(storage)))
            parts.append(_bytes_of(storage).numpy().tobytes())
        parts.append(struct.pack("<II", len(arguments), len(schema.returns)))
        self._process.stdin.write(b"".join(parts + encoded))
        self._process.stdin.flush()
        if error := self._text():
            raise RuntimeError(error)
        self.calls[name] += 1
        for address, storage in storages.items():
            if address in written:
                _bytes_of(storage).copy_(self._values(torch.uint8, (len(storage),)))
        results = tuple(self._tensor() for _ in schema.returns)
        return results[0] if len(results) == 1 else results or None

    def _tensor(self) -> torch.Tensor:
        dtype, axes = DTYPES[self._number("i")], self._number("I")
        return self._values(dtype, tuple(self._number("q") for _ in range(axes)))

    def _values(self, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        count = torch.Size(shape).numel() * dtype.itemsize
        data = bytearray(self._read(count))
        return torch.frombuffer(data, dtype=dtype).reshape(shape) if count else torch.empty(shape)

    def _text(self) -> str:
        return self._read(self._number("I")).decode()

    def _number(self, code: str) -> int:
        return struct.unpack("<" + code, self._read(struct.calcsize("<" + code)))[0]

    def _read(self, count: int) -> bytes:
        data = self._process.stdout.read(count)
        if len(data) < count:
            raise EOFError(f"the process for ARM64 ended with status {self._process.wait()}")
        return data


def _kind(value: Any) -> bytes:
    return b"-" if value is None else b"t" if isinstance(value, torch.Tensor) else b"n"


def _encode(value: Any, storages: dict[int, torch.UntypedStorage]) -> bytes:
    if value is None:
        return b""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        storages.setdefault(storage.data_ptr(), storage)
        number = list(storages).index(storage.data_ptr())
        offset = value.storage_offset() * value.element_size()
        axes = [*value.shape, *value.stride()]
        head = struct.pack("<IQiI", number, offset, DTYPES.index(value.dtype), value.dim())
        return head + struct.pack(f"<{len(axes)}q", *axes)
    return struct.pack("<d", value) if isinstance(value, float) else struct.pack("<q", value)


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)
