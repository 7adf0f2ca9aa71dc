"""Makes Triton's interpreter faster, without a change of what it computes."""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def patch_once_a_launch() -> None:
    """Have the interpreter replace Triton's language once a launch, not at every call in a kernel.

    Before it runs a function, the interpreter looks through all of ``triton.language`` for what it
    has to replace by its own. It does so again wherever a kernel calls another function, though by
    then nothing is left to replace; most of the time went there. The end of a launch puts back what
    its beginning replaced, so the next launch starts anew.
    """
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    languages: dict[Any, tuple[bool, ...]] = {}  # which of both modules a function sees
    replaced: set[tuple[bool, ...]] = set()  # in this launch

    def patch_what_is_not_yet(function: Any) -> Any:
        if function not in languages:
            seen = list(function.__globals__.values())
            languages[function] = tuple(
                any(value is module for value in seen) for module in (tl, tl.core)
            )
        if languages[function] in replaced:
            return interpreter._LangPatchScope()
        replaced.add(languages[function])
        return patch(function)

    def launch_afresh(self: Any, *arguments: Any, **named: Any) -> Any:
        replaced.clear()
        return launch(self, *arguments, **named)

    interpreter._patch_lang = patch_what_is_not_yet
    interpreter.GridExecutor.__call__ = launch_afresh
