"""A progress bar that an interrupted run does not wait for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeAlias

from tqdm import tqdm

Bar: TypeAlias = "tqdm[None]"


@contextlib.contextmanager
def progress_bar(
    description: str, total: int, *, done: int = 0, shown: bool = True, leave: bool = True
) -> Iterator[Bar]:
    """A bar that its user moves, closed at the end of the block.

    After Ctrl-C it draws no more: into a pipe that nobody reads, its last line would wait for ever.

    Args:
        description: what is done.
        total: steps in all.
        done: steps done before.
        shown: False for a bar that does nothing.
        leave: keep it on the screen at the end.
    """
    bar = tqdm(total=total, initial=done, desc=description, disable=not shown, leave=leave)
    try:
        yield bar
    except KeyboardInterrupt:
        bar.disable = True
        raise
    finally:
        bar.close()
