"""Libraries that detection needs and nothing else does: asked for when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from isp_distill.detection.heads import Heads


def torchvision_operations() -> Any:
    """``torchvision.ops``.

    Raises:
        ImportError: that says what to install.
    """
    return _needed("torchvision.ops", "boxes need torchvision")


def linear_sum_assignment() -> Any:
    """scipy's solver of the assignment problem.

    Raises:
        ImportError: that says what to install.
    """
    what = "pairing the queries of two detectors needs scipy"
    return _needed("scipy.optimize", what).linear_sum_assignment


def check_libraries(heads: Heads, box_objective: str) -> None:
    """Ask for what a training will need, before it begins.

    Raises:
        ImportError: that says what to install.
    """
    if heads.nms is not None or box_objective == "giou":
        torchvision_operations()
    if not heads.ordered:
        linear_sum_assignment()


def _needed(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{what}: pip install "isp-distill[detection]"') from error
