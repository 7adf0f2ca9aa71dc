"""Docstrings as Markdown: cross references such as ``:func:`isp_distill.train``` become links."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).resolve().parent))

from public_names import public_names

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`(~?)([\w.]+)`")
_PUBLIC = public_names(Path(__file__).resolve().parents[2])
_PREFIX = "isp_distill."


def as_markdown(text: str) -> str:
    """A docstring's text with links to the public names, and code in place of all other roles."""
    text = _ROLE.sub(_link, text)
    # A literal block of reStructuredText: Markdown knows it by its indent alone.
    return re.sub(r"::\n(?=\n {4})", ":\n", text)


def _link(match: re.Match[str]) -> str:
    short, target = bool(match[1]), match[2]
    name = target.rsplit(".", 1)[-1] if short else target.removeprefix(_PREFIX)
    # By the name alone, "isp_distill.NAME", or where it is defined.
    whole = target.removeprefix(_PREFIX).split(".")
    first = whole[0] if whole[0] in _PUBLIC else whole[-1]
    if first not in _PUBLIC:
        return f"`{name}`"
    member = ".".join(whole[1:]) if whole[0] == first and len(whole) > 1 else ""
    anchor = f"{_PREFIX}{first}" + (f".{member}" if member else "")
    return f"[`{name}`][{anchor}]"


class Roles(griffe.Extension):
    """Rewrites every docstring as griffe reads it."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object with a docstring of its own."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
