"""Students: whatever takes a mosaic and its camera, made from a model or from its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from isp_distill.data.unpacking import linear_mosaic
from isp_distill.isp.camera import ISP
from isp_distill.models.half_precision import check_trainable_types
from isp_distill.models.named import is_function, made_by
from isp_distill.models.raw_model import RawModel
from isp_distill.models.rawify import rawify
from isp_distill.models.stem import RawStem
from isp_distill.models.teacher import Teacher
from isp_distill.models.trained_view import StudentModule
from isp_distill.ops import reference

#: Anything that maps mosaics and their camera to logits.
Student = Callable[[Tensor, ISP], Any]


class PlanesModel(StudentModule):
    """A student without a RawStem, fed the normalised mosaic its first convolution asks for.

    With 4 input channels: the planes R, Gr, Gb, B ``[N, 4, H/2, W/2]``; with 1: the mosaic
    ``[N, 1, H, W]``; white-balanced, in [0, 1].

    Raises:
        ValueError: if the first convolution takes neither 1 nor 4 channels.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        if first is None or first.in_channels not in (1, 4):
            raise ValueError(
                f"{type(model).__name__} takes neither a mosaic (1 channel) nor its planes (4): "
                "make an RGB model a student with isp_distill.rawify(model)"
            )
        self.model, self.channels = model, first.in_channels

    def forward(self, mosaic: Tensor, isp: ISP) -> Any:
        """What the model makes of ``[N, H, W]`` mosaics; packed or companded where ``isp`` says so.

        Raises:
            ValueError: for mosaics of another size than :attr:`view`'s.
        """
        self.check_size(mosaic, isp)
        mosaic, isp = linear_mosaic(mosaic, isp)
        camera = isp.batched(len(mosaic), mosaic.device)
        black, white, pattern = camera.black, camera.white, camera.pattern
        assert isinstance(black, Tensor)
        assert isinstance(white, Tensor)
        assert isinstance(pattern, Tensor)
        gain = camera.gain(len(mosaic), mosaic.device)
        planes = reference.pack(mosaic.float(), pattern)
        planes = reference.normalise(planes, black, white, gain, clip=True)
        if self.channels == 4:
            return self.model(planes)
        return self.model(reference.unpack(planes, pattern)[:, None])


def takes_packed_mosaics(student: Student | nn.Module) -> bool:
    """Whether a student reads packed mosaics as its ISP says: ours do, a function may not."""
    return isinstance(student, (RawModel, PlanesModel))


def as_student(student: Student | nn.Module) -> Student:
    """A student that takes ``(mosaic, isp)``: a RawModel, a wrapped module, or any function."""
    if isinstance(student, (RawModel, PlanesModel)) or not isinstance(student, nn.Module):
        return student
    if any(isinstance(m, RawStem) for m in student.modules()):
        return RawModel(student)
    return PlanesModel(student)


def demosaic_of(teacher: Teacher) -> str:
    """What a student of this teacher begins with: its own pictures' demosaicing, else malvar."""
    return teacher.demosaic or "malvar"


def student_module(
    student: nn.Module | str,
    teacher: Teacher,
    curve: str | None = None,
    demosaic: str | None = None,
) -> nn.Module:
    """The student to train, as a module that takes ``(mosaic, isp)``.

    Args:
        student: "rawify" for the teacher's own architecture and weights, MODULE:FUNCTION, or a
            module.
        teacher: of it.
        curve: of the student that "rawify" makes; None: gamma.
        demosaic: of the picture that it begins with; None: the teacher's, else malvar.

    Raises:
        ValueError: for any other name, a curve or a demosaic for another student, or weights that
            are not float32 or float64.
        TypeError: for a student that is no module.
    """
    for name, value in {"curve": curve, "demosaic": demosaic}.items():
        if value is not None and student != "rawify":
            raise ValueError(
                f'{name}={value!r} is for the student "rawify": of one of your own its stem says '
                f"it, rawify(model, {name}={value!r})"
            )
    if isinstance(student, str):
        if is_function(student):
            return student_module(made_by(student, "student"), teacher)
        if student != "rawify":
            raise ValueError(
                f'student {student!r}: give "rawify", MODULE:FUNCTION of a function of yours that '
                "returns one, or a module"
            )
        if teacher.module is None:
            raise ValueError(
                'student "rawify" is made of the teacher\'s own layers, and this teacher is a '
                "function: give a student of your own, such as isp_distill.rawify(model)"
            )
        student = rawify(
            teacher.module,
            mean=teacher.mean,
            std=teacher.std,
            curve=curve or "gamma",
            white_balance=True,
            colour_matrix=True,
            size=teacher.size,
            demosaic=demosaic or demosaic_of(teacher),
        )
        # A copy of a teacher whose weights are frozen, as a teacher's often are, is to be trained.
        student.requires_grad_(True)
    pupil = as_student(student)
    if not isinstance(pupil, nn.Module):
        raise TypeError(f"a student to train must be an nn.Module, not {type(student).__name__}")
    check_trainable_types(pupil)
    return pupil
