"""The modes of modules: evaluation for a while, and then each as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules in the mode of evaluation, until the end of the block.

    Each module in them is remembered by itself: parts may be frozen, as batch norms often are.
    """
    modes = {part: part.training for module in modules for part in module.modules()}
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes.items():
            part.training = training
