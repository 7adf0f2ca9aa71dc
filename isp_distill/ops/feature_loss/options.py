"""What a feature loss is asked to compute, checked before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from isp_distill.arguments import FLOATING_TYPES, nearest, readable, shown
from isp_distill.ops.distill_loss.options import (
    REDUCTIONS,
    check_dense,
    check_device,
    checked_mask,
    checked_weight,
)

#: Each objective with the defaults of its parameters.
OBJECTIVES: dict[str, tuple[float, ...]] = {
    "cosine": (),
    "mse": (),
    "smooth_l1": (1.0,),
    "cosine_smooth_l1": (0.9, 0.1, 1.0),
}
NORMALISATIONS = ("none", "l2", "layer", "teacher")
#: Bounds of smooth_l1's beta: within them its slope and its bend are normal float32 numbers.
BETAS = (1e-6, 1e6)
#: How far the shares of cosine_smooth_l1 stay from infinity.
MOST_SHARE = 1e6


@dataclass(frozen=True)
class Options:
    """The options of a feature loss in their checked form."""

    objective: str
    parameters: tuple[float, ...]
    normalise: str
    reduction: str

    @property
    def cosine_share(self) -> float:
        """What ``1 - cosine`` is multiplied by."""
        return {"cosine": 1.0, "cosine_smooth_l1": (*self.parameters, 0.0)[0]}.get(
            self.objective, 0.0
        )

    @property
    def element_share(self) -> float:
        """What the mean over the elements is multiplied by."""
        if self.objective == "cosine_smooth_l1":
            return self.parameters[1]
        return 0.0 if self.objective == "cosine" else 1.0

    @property
    def elements(self) -> str:
        """What is taken of the elements: "none", "mse" or "smooth_l1"."""
        if self.element_share == 0:
            return "none"
        return "mse" if self.objective == "mse" else "smooth_l1"

    @property
    def beta(self) -> float:
        """Where smooth_l1 bends; 1 for the other objectives."""
        return self.parameters[-1] if self.parameters else 1.0


def parse_objective(text: str) -> tuple[str, tuple[float, ...]]:
    """``"smooth_l1(0.5)"`` to ``("smooth_l1", (0.5,))``; a bare name takes its defaults.

    Raises:
        TypeError: if it is not a string.
        ValueError: for an unknown name, a wrong number of parameters, or one out of range.
    """
    if not isinstance(text, str):
        raise TypeError(f"objective must be a string, not {type(text).__name__}")
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
    if match is None or match[1] not in OBJECTIVES:
        raise ValueError(
            f"unknown objective {text!r}: expected one of {', '.join(OBJECTIVES)} "
            f"{nearest(text, OBJECTIVES)}".rstrip()
        )
    name, arguments = match[1], match[2]
    defaults = OBJECTIVES[name]
    if arguments is None:
        return name, defaults
    try:
        values = tuple(float(a) for a in arguments.split(",")) if arguments.strip() else ()
    except ValueError:
        raise ValueError(f"objective {text!r}: its parameters must be numbers") from None
    if len(values) != len(defaults):
        raise ValueError(f"objective {text!r}: {name} takes {len(defaults)} parameters")
    if values and not BETAS[0] <= values[-1] <= BETAS[1]:
        raise ValueError(f"objective {text!r}: beta must lie in [1e-6, 1e6]")
    if not all(0 <= share <= MOST_SHARE for share in values[:-1]):
        raise ValueError(
            f"objective {text!r}: the shares must be finite and not negative, at most 1e6"
        )
    return name, values


def checked_options(objective: str, normalise: str, reduction: str) -> Options:
    """All options that do not depend on a tensor.

    Raises:
        TypeError: for a wrong type.
        ValueError: for an unknown name, or a number out of range.
    """
    name, parameters = parse_objective(objective)
    if normalise not in NORMALISATIONS:
        raise ValueError(
            f"unknown normalise {shown(normalise)}: expected {', '.join(NORMALISATIONS)}"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {shown(reduction)}: expected {', '.join(REDUCTIONS)}")
    return Options(name, parameters, normalise, reduction)


def check_features(student: Tensor, teacher: Tensor, size: tuple[int, int] | None) -> None:
    """Both features: type, dtype, device, shape.

    Raises:
        TypeError: if one is not a dense floating-point tensor.
        ValueError: for shapes that do not fit, or an empty batch.
    """
    for name, features in (("student", student), ("teacher", teacher)):
        check_dense(name, features)
        if features.dtype not in FLOATING_TYPES:
            names = ", ".join(str(d).removeprefix("torch.") for d in FLOATING_TYPES)
            raise TypeError(f"{name} has dtype {features.dtype}: expected one of {names}")
        if features.dim() not in (2, 3, 4):
            raise ValueError(
                f"{name} has shape {list(features.shape)}: expected [N, D], [N, L, D] or "
                "[N, D, H, W]"
            )
        if features.numel() == 0:
            raise ValueError(f"{name} has shape {list(features.shape)}: an empty one has no loss")
        if size is not None and features.dim() != 4:
            raise ValueError(
                f"{name} has shape {list(features.shape)}, and size is of maps [N, D, H, W]: give "
                "tokens as tokens.transpose(1, 2).unflatten(2, (height, width)), a view"
            )
    check_device(student, teacher=teacher)
    if size is None and student.shape != teacher.shape:
        fix = "give size=(height, width) for grids that differ"
        channel = -1 if student.dim() == 3 else 1
        if student.dim() != teacher.dim():
            fix = "both must have the same axes"
        elif student.shape[channel] != teacher.shape[channel]:
            fix = "a projection must bring the student's width to the teacher's"
        raise ValueError(
            f"student has shape {list(student.shape)}, teacher {list(teacher.shape)}: {fix}"
        )
    if size is not None and student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student has shape {list(student.shape)}, teacher {list(teacher.shape)}: batch and "
            "width must be the same (a projection must bring the student's width to the teacher's)"
        )


def checked_rows(
    student: Tensor, positions: Sequence[int], mask: Tensor | None, weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Mask (bool, a value a row) and weight (a value a sample, or a row).

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for a wrong shape or device.
    """
    shape = tuple(positions)
    mask = checked_mask(mask, shape)
    expected = f"{[shape[0]]}, a value a sample, or {list(shape)}, a value a row"
    weight = checked_weight(weight, [shape[:1], shape], expected)
    check_device(student, mask=mask, weight=weight)
    return mask, weight


def checked_statistics(
    student: Tensor, width: int, normalise: str, mean: Any, std: Any
) -> tuple[Tensor | None, Tensor | None]:
    """The teacher's running mean and standard deviation, ``[D]``, without their history.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: if they are missing, not asked for, or of a wrong shape or device.
    """
    if normalise != "teacher":
        if mean is not None or std is not None:
            raise ValueError(f'mean and std are of normalise="teacher", not of {normalise!r}')
        return None, None
    found = []
    for name, value in (("mean", mean), ("std", std)):
        if value is None:
            raise ValueError(f'normalise="teacher" needs {name}, a value a channel: [{width}]')
        check_dense(name, value)
        if value.dtype not in FLOATING_TYPES:
            raise TypeError(f"{name} must be a floating-point tensor, not {value.dtype}")
        if tuple(value.shape) != (width,):
            raise ValueError(f"{name} has shape {list(value.shape)}: expected [{width}]")
        check_device(student, **{name: value})
        found.append(value.detach().resolve_neg())
    return found[0], found[1]


def check_values(weight: Tensor | None, std: Tensor | None) -> None:
    """The range of weights and deviations, on the CPU; elsewhere a look would stall the device.

    Raises:
        ValueError: for a weight that is negative or not finite, or a deviation that is not above 0.
    """
    if (
        weight is not None
        and readable(weight)
        and not bool((weight.isfinite() & (weight >= 0)).all())
    ):
        raise ValueError("weight must be finite and not negative")
    if std is not None and readable(std) and not bool((std.isfinite() & (std > 0)).all()):
        raise ValueError(
            "std must be finite and above 0: a channel that never changes says nothing, give "
            "std.clamp(min=1e-6)"
        )
