"""What a model computes on the way: its output, a part of it, or what one of its modules returns.

A module's output is taken by a forward hook. Hooks are there only while somebody listens, so that
a model is as it was afterwards, and a copy of it carries none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from isp_distill.arguments import nearest
from isp_distill.models.output import (
    STUDENT_OPTION,
    Output,
    OutputError,
    described,
    part_of,
    read_output,
)

#: Names of what a model returns, as a whole.
MAIN = ("logits", "output")
# What wraps a model: RawModel and PlanesModel, parallel and compiled modules.
_WRAPPERS = {"model", "module", "_orig_mod", "student"}
# Modules that an error names.
_NAMED = 8


class Taps:
    """Outputs of a model by name.

    Args:
        model: a module, or any other function, which has outputs alone.
        names: "logits" (or "output") for the model's output; a key of it; or the name of a module
            in it, as ``named_modules()`` says it. What rawify put around a model may be left out.
        output: how the model's output is read, see :class:`isp_distill.Teacher`.
        option: what sets ``output``, for errors.
        whose: "student" or "teacher", for errors.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        names: Sequence[str],
        output: Output = None,
        option: str = STUDENT_OPTION,
        whose: str = "student",
    ) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._output, self._option, self._whose = output, option, whose
        self._known = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
        found = {n: _module_named(n, self._known) for n in self.names if n not in MAIN}
        self._modules = {n: module for n, module in found.items() if module is not None}
        self._seen: dict[str, Any] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks on the modules, until the end of the block."""
        with contextlib.ExitStack() as stack:
            for name, module in self._modules.items():
                handle = module.register_forward_hook(self._keeps(name))
                stack.callback(handle.remove)
            try:
                yield
            finally:
                self._seen.clear()

    def take(self, output: Any) -> list[Tensor]:
        """What the names stand for, in their order, after a call that returned ``output``.

        A key of the output comes before a module of the same name. Of a module that is called
        several times the last call counts.

        Raises:
            TypeError: there is no such output, or it is no tensor.
        """
        found = [self._one(name, output) for name in self.names]
        self._seen.clear()
        return found

    def _one(self, name: str, output: Any) -> Tensor:
        if name in MAIN:
            return read_output(output, self._output, self._option)
        value = part_of(output, name)
        if value is None:
            value = self._seen.get(name)
        if value is None:
            raise OutputError(self._missing(name, output))
        try:
            return read_output(value)
        except OutputError:
            raise OutputError(
                f"the {self._whose}'s {name!r} is {described(value)}, and a Match compares tensors "
                "of two and more axes: name a part of it, or a module in it"
            ) from None

    def _missing(self, name: str, output: Any) -> str:
        if name in self._modules:
            return (
                f"the {self._whose}'s module {name!r} was not called: give one that takes part in "
                "every call (a model that torch.compile has run already takes no new hooks)"
            )
        plain = [known for one in self._known if (known := _unwrapped(one))]
        tops = list(dict.fromkeys(one.partition(".")[0] for one in plain))
        hint = nearest(name, plain) or f"its modules are in {', '.join(tops[:_NAMED]) or 'none'}"
        return (
            f"the {self._whose} has no module {name!r}, and its output no such key ({hint}; it "
            f"returns {described(output)})"
        )

    def _keeps(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, result: Any) -> None:
            self._seen[name] = result

        return keep


def _module_named(name: str, known: dict[str, nn.Module]) -> nn.Module | None:
    """The module of a name, or of it below what wraps the model; the outermost of several."""
    if name in known:
        return known[name]
    below = [one for one in known if one.endswith(f".{name}")]
    wrapped = [one for one in below if set(one[: -len(name) - 1].split(".")) <= _WRAPPERS]
    return known[min(wrapped, key=len)] if wrapped else None


def _unwrapped(name: str) -> str:
    """A module's name without what wraps the model."""
    words = name.split(".")
    while words and words[0] in _WRAPPERS:
        words.pop(0)
    return ".".join(words)
