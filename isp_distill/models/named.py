"""Models by the name of a function: MODULE:FUNCTION, as a shell or a file can say it."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

# A function of the user's, and no model of timm ("hf-hub:timm/...", "timm:...").
_FUNCTION = re.compile(r"(?!timm:|hf_hub:)([^\W\d][\w.]*):([^\W\d]\w*)")


def is_function(name: str) -> bool:
    """Whether a name is MODULE:FUNCTION."""
    return _FUNCTION.fullmatch(name) is not None


def made_by(name: str, what: str) -> Any:
    """What the function of this name returns; see :func:`function_named`."""
    return function_named(name, what)()


def function_named(name: str, what: str) -> Callable[..., Any]:
    """The function of this name; its module is looked for in the working directory.

    Args:
        name: MODULE:FUNCTION.
        what: it makes, for errors.

    Raises:
        ImportError: there is no such module, or it cannot be imported.
        ValueError: it has no such function.
    """
    found = _FUNCTION.fullmatch(name)
    assert found is not None
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(found[1])
    except ModuleNotFoundError as error:
        if error.name is None or not f"{found[1]}.".startswith(f"{error.name}."):
            raise  # something that the module imports
        raise ImportError(
            f"{what} {name}: there is no module {found[1]} ({error}), neither in the working "
            f"directory {os.getcwd()} nor installed"
        ) from error
    make = getattr(module, found[2], None)
    if not callable(make):
        raise ValueError(f"{what} {name}: the module {found[1]} has no function {found[2]}")
    return make  # type: ignore[no-any-return]  # what it takes and returns is its own affair
