"""Who reads a model's input: found by running the model once and watching each operation.

Looking for the first convolution is not enough. RepVGG's first block has two, CrossViT resizes the
picture for a second one, TResNet rearranges it before any. So the model is run on a picture whose
memory is known, and every operation that touches that memory is written down, with the module that
it happened in. Views of the picture and plain copies of it are still the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# These ask for a shape, a type and a device, and read no value.
_SHAPE_ONLY = {
    *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
    *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"),
    *("sym_size", "sym_stride", "sym_numel", "size", "stride", "is_same_size"),
}
# These give the same picture in other memory.
_COPIES = {"clone", "_to_copy", "contiguous", "lift_fresh_copy"}


@dataclass
class Convolution:
    """What a convolution module computed with.

    Attributes:
        module: the module itself.
        weight: ``[C, 3 / groups, K, L]``, after any standardisation or parametrisation of its own.
        bias: ``[C]`` or None.
        stride: vertical, horizontal.
        dilation: likewise.
        groups: of channels.
    """

    module: nn.Conv2d
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass
class Reader:
    """One module that reads the picture.

    Attributes:
        name: its place in the model; empty for the model's own ``forward``.
        kind: its class.
        operations: what it did with the picture, e.g. ``["constant_pad_nd"]``.
        convolution: where the module is an ``nn.Conv2d`` that was called once, with the whole
            picture as it is; else None.
    """

    name: str
    kind: str
    operations: list[str] = field(default_factory=list)
    convolution: Convolution | None = None

    def __str__(self) -> str:
        place = f"{self.name} ({self.kind})" if self.name else self.kind
        return f"{place}: {', '.join(self.operations)}"


@dataclass
class _Call:
    """What is seen of one module."""

    count: int = 0
    whole: bool = False
    convolutions: list[Convolution] = field(default_factory=list)


# Untyped in torch, hence the ignores.
class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Writes down every operation on the picture's memory."""

    def __init__(self, model: nn.Module, picture: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.pictures = [picture]  # kept, so that no other tensor gets their memory
        self.modules = dict(model.named_modules())
        self.stack = [""]
        self.calls: dict[str, _Call] = {}
        self.readers: dict[str, Reader] = {}
        for name, module in self.modules.items():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks: what it does counts as done by its owner
            module.register_forward_pre_hook(self._enters(name), with_kwargs=True)
            module.register_forward_hook(self._leaves, always_call=True)

    def _enters(self, name: str) -> Callable[[nn.Module, Any, dict[str, Any]], None]:
        def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self.stack.append(name)
            call = self.calls.setdefault(name, _Call())
            call.count += 1
            inputs = list(tensors_in([args, kwargs]))
            call.whole = len(inputs) == 1 and self._is_picture(inputs[0])

        return enter

    def _leaves(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.pop()

    def _shares(self, value: Tensor) -> bool:
        return any(_memory(value) == _memory(picture) for picture in self.pictures)

    def _is_picture(self, value: Tensor) -> bool:
        """Whether a tensor is the picture itself, not a part of it or another order of it."""
        return any(
            _memory(value) == _memory(picture)
            and value.shape == picture.shape
            and value.stride() == picture.stride()
            and value.storage_offset() == picture.storage_offset()
            for picture in self.pictures
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        operation = str(func.overloadpacket.__name__)
        if operation in ("convolution", "_convolution"):
            self._keep_convolution(args)
        read = [value for value in tensors_in([args, kwargs]) if self._shares(value)]
        if not read or operation in _SHAPE_ONLY:
            return output
        results = list(tensors_in(output))
        if not func._schema.is_mutable and all(self._shares(value) for value in results):
            return output  # a view
        copied = operation in _COPIES and self._is_picture(read[0])
        if copied and results[0].dtype.is_floating_point:
            self.pictures.append(results[0])
            return output
        name = self.stack[-1]
        kind = type(self.modules[name]).__name__
        reader = self.readers.setdefault(name, Reader(name, kind))
        if operation not in reader.operations:
            reader.operations.append(operation)
        return output

    def _keep_convolution(self, args: Sequence[Any]) -> None:
        name = self.stack[-1]
        module = self.modules[name]
        if isinstance(module, nn.Conv2d) and name in self.calls:
            _, weight, bias, stride, _, dilation, _, _, groups = args[:9]
            kept = Convolution(module, weight, bias, tuple(stride), tuple(dilation), groups)
            self.calls[name].convolutions.append(kept)

    def found(self) -> list[Reader]:
        """The readers, in the order in which they read."""
        for name, reader in self.readers.items():
            call = self.calls.get(name, _Call())
            if call.count == 1 and call.whole and len(call.convolutions) == 1:
                reader.convolution = call.convolutions[0]
        return list(self.readers.values())


def _memory(value: Tensor) -> int:
    try:
        return value.untyped_storage().data_ptr() or -id(value)
    except (RuntimeError, NotImplementedError):  # sparse and wrapped tensors have none
        return -id(value)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in a model's output: tensors, mappings, lists, and objects that hold some."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors_in(vars(value))


def readers_of(model: nn.Module, picture: Tensor) -> tuple[list[Reader], Any]:
    """Run a model on a picture, once.

    Args:
        model: a copy that is thrown away: it is given hooks.
        picture: what it is called on.

    Returns:
        Every module that reads a value of the picture, and the model's output.
    """
    watch = _Watch(model, picture)
    with watch:
        output = model(picture)
    return watch.found(), output
