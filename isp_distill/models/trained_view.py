"""The view that a student was trained at: kept with its weights, and checked at every call.

A student is trained on mosaics of one size, which are binned and cut from the files. Larger ones
run through most models all the same, and mean nothing to them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from isp_distill.data.cut_view import trained_view
from isp_distill.data.views import View
from isp_distill.isp.camera import ISP
from isp_distill.models.module_settings import RecordedModule


class StudentModule(RecordedModule):
    """A module that takes ``(mosaic, isp)`` and knows the view that it was trained at.

    Attributes:
        view: set by :func:`isp_distill.train` and kept in the state dict; mosaics of another size
            are refused. None where it was never trained; set it to None to let any size through.
        description: what its files say of it, where it was saved or loaded: the names of its
            classes, its sensor; a :class:`~isp_distill.students.description.StudentDescription`.
    """

    view: View | None = None
    description: Any = None

    def settings(self) -> dict[str, Any]:
        """Nothing; see :class:`~isp_distill.models.module_settings.RecordedModule`."""
        return {}

    def notes(self) -> dict[str, Any]:
        """The trained view."""
        return {"view": None if self.view is None else dataclasses.asdict(self.view)}

    def take_notes(self, notes: dict[str, Any]) -> None:
        """Take over the trained view of what is loaded."""
        saved = notes.get("view")
        self.view = None if saved is None else _view(saved)

    def sides(self, mosaic: Tensor, isp: ISP | None) -> tuple[int, int]:
        """Height and width of mosaics in pixels; ``isp`` knows packed ones."""
        if isp is None:
            return mosaic.shape[-2], mosaic.shape[-1]
        return isp.sides(mosaic)

    def check_size(self, mosaic: Tensor, isp: ISP | None) -> None:
        """Refuse mosaics of another size than the trained view's; ``isp`` knows packed ones.

        Raises:
            ValueError: that names both sizes, and what to do.
        """
        if self.view is None:
            return
        side = self.view.crop
        height, width = self.sides(mosaic, isp)
        if height != side or width != side:
            raise ValueError(
                f"the student was trained on mosaics of {side} x {side}, this one is {height} x "
                f"{width}: cut what it was trained on with isp_distill.cut_view(raw, student), or "
                "set student.view = None to call it with any size"
            )


def _view(values: dict[str, Any]) -> View:
    pairs = {
        name: tuple(values[name]) for name in ("area", "ratio") if values.get(name) is not None
    }
    return View(**{**values, **pairs})


def students_in(module: object) -> list[StudentModule]:
    """The modules in a student that know a view; none in a function."""
    if not isinstance(module, nn.Module):
        return []
    return [m for m in module.modules() if isinstance(m, StudentModule)]


def trained_at(student: nn.Module, view: View | None) -> None:
    """Tell a student the view that it is trained at."""
    for module in students_in(student):
        module.view = view


@contextlib.contextmanager
def any_size(student: object) -> Iterator[None]:
    """Let a student take mosaics of another size than its view's, where that is asked for."""
    modules = students_in(student)
    views = [m.view for m in modules]
    try:
        for module in modules:
            module.view = None
        yield
    finally:
        for module, view in zip(modules, views, strict=True):
            module.view = view


def known_view(student: nn.Module, crop: int | None, binning: int | None) -> View:
    """The view of a student on files, where nobody says a usual size.

    Raises:
        ValueError: it was never trained, and ``crop`` is None.
    """
    if crop is None and trained_view(student) is None:
        raise ValueError(
            f"this {type(student).__name__} was never trained: give crop, the side of the mosaics "
            "that it is to see, as crop=448"
        )
    return fixed_view(student, crop, binning, 0)


def fixed_view(student: object, crop: int | None, binning: int | None, usual: int) -> View:
    """The view at which a student is evaluated, or exported.

    Args:
        student: asked for its trained view where ``crop`` is None.
        crop: side of the mosaics, where the caller chose one.
        binning: likewise.
        usual: the side for a student that knows no view.
    """
    trained = trained_view(student)
    if crop is not None or trained is None:
        return View(usual if crop is None else crop, binning)
    return View(trained.crop, trained.binning if binning is None else binning)
