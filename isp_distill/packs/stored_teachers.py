"""The stored logits of a dataset: those of a pack, or of several packs as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isp_distill.data.draw import Draw
from isp_distill.data.several_folders import SeveralFolders
from isp_distill.data.source import Source
from isp_distill.data.views import View
from isp_distill.isp.augmentation import ISPAugmentation
from isp_distill.models.teacher import Teacher
from isp_distill.packs.stored_teacher import StoredTeacher


class SeveralStoredTeachers:
    """The logits of one teacher, stored in several packs.

    Args:
        sets: of each pack, in order.
        lengths: files of each pack.
    """

    def __init__(self, sets: Sequence[StoredTeacher], lengths: Sequence[int]) -> None:
        self._places = [
            (one, index)
            for one, length in zip(sets, lengths, strict=True)
            for index in range(length)
        ]
        self._first = sets[0]
        #: See :class:`StoredTeacher`.
        self.embedding = sets[0].embedding
        #: Identifies teacher and views.
        self.name = "+".join(dict.fromkeys(one.name for one in sets))

    def output_shape(self) -> tuple[int, ...]:
        """The shape of a view's logits, ``(C,)`` or ``(C, h, w)``."""
        return self._first.output_shape()

    def view(self, index: int, number: int) -> tuple[Draw, np.ndarray]:
        """A view of an item, and its logits; see :class:`StoredTeacher`."""
        one, own = self._places[index]
        return one.view(own, number)

    def features(self, index: int, number: int) -> dict[str, np.ndarray] | None:
        """The features of a view of an item; see :class:`StoredTeacher`."""
        one, own = self._places[index]
        return one.features(own, number)


def stored_teacher_of(
    source: Source,
    teacher: Teacher,
    view: View,
    augmentation: ISPAugmentation | None = None,
    features: Sequence[str] = (),
) -> StoredTeacher | SeveralStoredTeachers | None:
    """The stored logits of this teacher for these views, or None where nothing is stored.

    ``features``: of it, that are read beside the logits.

    Raises:
        ValueError: logits are stored, but of another teacher or for other views; or some of
            several folders have them and others have none.
    """
    if not isinstance(source, SeveralFolders):
        return StoredTeacher.matching(source, teacher, view, augmentation, features)
    found = [
        StoredTeacher.matching(part, teacher, view, augmentation, features) for part in source.parts
    ]
    sets = [one for one in found if one is not None]
    if not sets:
        return None
    if len(sets) < len(found):
        raise ValueError(
            f"{source.name_of(found.index(None))}: has no stored logits, and "
            f"{sets[0].folder.parent.parent} has: pack both with the teacher, or let the teacher "
            "run for both (--live-teacher, "
            "PackedRaw(path, use_stored_teacher=False))"
        )
    return SeveralStoredTeachers(sets, [len(part) for part in source.parts])
