"""Warnings that are said once for each camera, not for each of its thousand files."""

from __future__ import annotations

import warnings

from isp_distill.raw.gain_map import GainMap

_said: set[str] = set()


class CameraWarning(UserWarning):
    """A warning that holds for every file of a camera.

    Args:
        text: what is said; it may name the file that it was first said of.
        key: camera and matter: what is said once.
    """

    def __init__(self, text: str, key: str) -> None:
        super().__init__(text)
        self.key = key


def warn_once(text: str, key: str, stacklevel: int = 2) -> None:
    """Warn, unless this process has warned of the same matter; see :class:`CameraWarning`."""
    if key not in _said:
        _said.add(key)
        warnings.warn(CameraWarning(text, key), stacklevel=stacklevel + 1)


def warn_of_unapplied(path: str, camera: str, unapplied: list[str], stacklevel: int = 2) -> None:
    """Warn of the corrections that a file asks for and that nothing here makes."""
    if unapplied:
        what = ", ".join(unapplied)
        warn_once(
            f"{path}: the file asks for corrections that are not applied: {what} (said once for "
            f"{camera or 'this kind of file'})",
            f"unapplied {camera} {what}",
            stacklevel + 1,
        )


def warn_of_unseen(path: str, camera: str, gain_map: GainMap | None, stacklevel: int = 2) -> None:
    """Say that a student does not see what ``render`` corrects."""
    if gain_map is not None:
        warn_once(
            f"{path}: this file has a gain map that the student does not see: render corrects the "
            "lens shading for the teacher, raw_conv takes the mosaic as it is; load with "
            "gain_map=True to correct the mosaic itself, or with gain_map=False to leave it so "
            f"without a warning (said once for {camera or 'this kind of file'})",
            f"unseen {camera}",
            stacklevel + 1,
        )
