"""Models by the name of a function: MODULE:FUNCTION, as a shell or a file can say it."""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

# A function of the user's, and no model of timm ("hf-hub:timm/...", "timm:...").
_FUNCTION = re.compile(r"(?!timm:|hf_hub:)([^\W\d][\w.]*):([^\W\d]\w*)")


def is_function(name: str) -> bool:
    """Whether a name is MODULE:FUNCTION."""
    return _FUNCTION.fullmatch(name) is not None


def made_by(name: str, what: str) -> Any:
    """What the function of this name returns; its module is looked for in the working directory.

    Args:
        name: MODULE:FUNCTION.
        what: is made, for errors.

    Raises:
        ImportError: there is no such module, or it cannot be imported.
        ValueError: it has no such function.
    """
    found = _FUNCTION.fullmatch(name)
    assert found is not None
    if "" not in sys.path:
        sys.path.insert(0, "")
    make = getattr(importlib.import_module(found[1]), found[2], None)
    if not callable(make):
        raise ValueError(f"{what} {name}: the module {found[1]} has no function {found[2]}")
    return make()
