"""Pillow, which reads and draws pictures, where it is installed."""

from __future__ import annotations

from typing import Any


def pillow(what: str, otherwise: str = "") -> Any:
    """``PIL.Image``.

    Args:
        what: needs it, with its verb, as an error begins: "reading pictures needs".
        otherwise: what can be done without it, as the error ends.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"{what} Pillow: pip install isp-distill[images]{otherwise}") from error
    return Image
