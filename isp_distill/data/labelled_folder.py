"""``LabelledFolder``: what all folders of files have in common: labels, and what is left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isp_distill.data.label_maps import LabelMaps
from isp_distill.data.labels import Labels, labelled, stated
from isp_distill.data.skipped import skipped_report


class LabelledFolder:
    """A part of a folder: the labels of its files, and which of them could not be used.

    Attributes:
        classes: the class names, sorted; empty where ``labels`` gives numbers or nothing.
        label_maps: the :class:`~isp_distill.data.label_maps.LabelMaps`, or None.
        labels_from: what ``labels`` was, where a file of settings can say it.
    """

    root: Path
    paths: list[Path]
    skipped: dict[str, str]
    # What its files are called.
    _called = "files"

    def _take_labels(
        self,
        labels: Labels,
        label_maps: str | os.PathLike[str] | None,
        names: Sequence[Path] | None = None,
    ) -> None:
        """Read the labels of :attr:`paths`; a missing one is known now.

        Args:
            labels: see :func:`isp_distill.data.labels.labelled`.
            label_maps: the folder of maps.
            names: what the maps are called by; the paths below :attr:`root` if None.
        """
        self.labels_from = stated(labels)
        self._labels, self.classes = labelled(self.root, self.paths, labels)
        self.label_maps = None
        if label_maps is not None:
            below = [path.relative_to(self.root) for path in self.paths]
            self.label_maps = LabelMaps(label_maps, below if names is None else names)

    def label(self, index: int) -> int | np.ndarray | None:
        """The i-th file's class, its whole label map (int64, -100 for no class), or None."""
        if self.label_maps is not None:
            return self.label_maps[index]
        return None if self._labels is None else self._labels[index]

    def report(self) -> str:
        """What could not be used, each with its reason; "" if nothing."""
        return skipped_report(self.skipped, self._called)


def check_one_kind(labels: object, label_maps: object) -> None:
    """Refuse both kinds of labels at once.

    Raises:
        ValueError: both are given.
    """
    if labels is not None and label_maps is not None:
        raise ValueError("labels are classes of whole files, label_maps of pixels: give one")
