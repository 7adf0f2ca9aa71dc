"""What an item of a dataset is called in messages, tables and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isp_distill.raw.image import RawImage


def item_name(source: Any, index: int) -> str:
    """The path of an item's file, or what its frame is called, or "item 3".

    Args:
        source: a dataset.
        index: of the item.
    """
    names, root = getattr(source, "names", None), getattr(source, "root", None)
    if names is not None:  # frames of a file have names of their own
        return str(names[index] if root is None else Path(root) / names[index])
    paths = getattr(source, "paths", None)
    if paths is not None:
        return str(paths[index])
    item = source[index] if isinstance(source, list) else None
    return item.path if isinstance(item, RawImage) and item.path else f"item {index}"
