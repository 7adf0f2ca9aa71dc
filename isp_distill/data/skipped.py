"""What was left out of a dataset, as text."""

from __future__ import annotations

from collections.abc import Mapping


def skipped_report(skipped: Mapping[str, str], what: str = "files") -> str:
    """What was left out, each with its reason, sorted; empty if nothing was.

    Args:
        skipped: reason by path.
        what: they are.
    """
    lines = [f"  {path}: {reason}" for path, reason in sorted(skipped.items())]
    return "\n".join([f"{len(lines)} {what} were skipped:", *lines]) if lines else ""
