"""What a distillation loss is asked to compute, checked once for every form of the call."""

from __future__ import annotations

import functools
import numbers
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LABEL_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MASK_DTYPES = (torch.bool, *LABEL_DTYPES)
REDUCTIONS = ("mean", "sum", "batchmean", "none")
#: Beyond these float32 holds neither T^2 nor the differences that it multiplies.
TEMPERATURES = (1e-3, 1e3)
#: How far jsd's beta stays from 0 and 1, and dkd's weights from infinity.
LEAST_SHARE, MOST_WEIGHT = 1e-6, 1e6
#: The largest exponent of binary_kl's weights.
MOST_GAMMA = 16.0

#: Each objective with the defaults of its parameters.
OBJECTIVES: dict[str, tuple[float, ...]] = {
    "forward_kl": (),
    "reverse_kl": (),
    "jsd": (0.5,),
    "tvd": (),
    "dkd": (1.0, 8.0),
    "mse": (),
    "cwd": (),
    "binary_kl": (0.0, 0.0),
}


def parse_objective(text: str) -> tuple[str, tuple[float, ...]]:
    """``"jsd(0.3)"`` to ``("jsd", (0.3,))``; a bare name takes the defaults of its parameters.

    Raises:
        TypeError: if it is not a string.
        ValueError: for an unknown name, a wrong number of parameters, or one out of range.
    """
    if not isinstance(text, str):
        raise TypeError(f"objective must be a string, not {type(text).__name__}")
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
    if match is None or match[1] not in OBJECTIVES:
        raise ValueError(f"unknown objective {text!r}: expected one of {', '.join(OBJECTIVES)}")
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
    if name == "jsd" and not LEAST_SHARE <= values[0] <= 1 - LEAST_SHARE:
        raise ValueError(f"objective {text!r}: beta must lie in [1e-6, 1 - 1e-6]")
    if name == "dkd" and not all(0 <= v <= MOST_WEIGHT for v in values):
        raise ValueError(
            f"objective {text!r}: alpha and beta must be finite and not negative, at most 1e6"
        )
    if name == "binary_kl" and not (0 <= values[0] <= MOST_GAMMA and 0 <= values[1] <= 1):
        raise ValueError(f"objective {text!r}: gamma must lie in [0, 16] and floor in [0, 1]")
    return name, values


@dataclass(frozen=True)
class Options:
    """The options of a distillation loss in their checked form."""

    objective: str
    parameters: tuple[float, ...]
    temperature: float
    alpha: float
    ignore_index: int
    label_smoothing: float
    reduction: str

    @property
    def needs_labels(self) -> bool:
        """Whether the value depends on labels: through cross entropy, or DKD's target class."""
        return self.alpha != 1 or self.objective == "dkd"


def number(name: str, value: Any) -> float:
    """An option as a float.

    Raises:
        TypeError: if it is no number, or a tensor whose gradient would be lost.
    """
    if type(value) is float or type(value) is int:
        return float(value)
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise TypeError(
                f"{name} requires grad, and the loss has no gradient in it: give a number, "
                f"{name}.item()"
            )
        if value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool:
            return float(value)
    elif not isinstance(value, bool) and isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{name} must be a number, not {_kind(value)}")


def whole_number(name: str, value: Any) -> int:
    """An option as an int of 64 bits.

    Raises:
        TypeError: if it is no whole number.
        ValueError: if 64 bits do not hold it.
    """
    if type(value) is not int:
        floating = isinstance(value, Tensor) and (value.dtype.is_floating_point or value.dim() > 0)
        if isinstance(value, bool) or floating or not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be a whole number, not {_kind(value)}")
        value = operator.index(value)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is {value}: it must fit in 64 bits")
    return int(value)


def checked_size(size: Any) -> tuple[int, int]:
    """Height and width from one number for both, or from both.

    Raises:
        TypeError: for a side that is no whole number.
        ValueError: for more or fewer than two sides, or one below 1.
    """
    sides = (
        tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    )
    if len(sides) != 2:
        raise ValueError(f"size {size}: expected one number or (height, width)")
    height, width = (whole_number("size", side) for side in sides)
    if height < 1 or width < 1:
        raise ValueError(f"size {size} must be positive")
    return height, width


def flag(name: str, value: Any) -> bool:
    """An option that is on or off.

    Raises:
        TypeError: if it is neither True nor False.
    """
    if value is True or value is False:
        return value
    raise TypeError(f"{name} must be True or False, not {_kind(value)}")


def _kind(value: Any) -> str:
    """A wrong value, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)} and {value.dtype}"
    return f"{type(value).__name__} {value!r:.40}"


def checked_options(
    objective: str,
    temperature: float,
    alpha: float,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Options:
    """All options that do not depend on a tensor.

    What is a name or a number by its very type cannot change: it is checked once, and remembered.

    Raises:
        TypeError: for a wrong type.
        ValueError: for an unknown name, or a number out of range.
    """
    given = (objective, temperature, alpha, ignore_index, label_smoothing, reduction)
    # True and 1+0j are equal to 1, and are refused.
    if torch.compiler.is_compiling() or not _PLAIN.issuperset(map(type, given)):
        return _checked_options(*given)
    return _remembered(*given)


_PLAIN = frozenset((str, float, int))


def _checked_options(
    objective: Any,
    temperature: Any,
    alpha: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
) -> Options:
    name, parameters = parse_objective(objective)
    temperature = number("temperature", temperature)
    alpha = number("alpha", alpha)
    label_smoothing = number("label_smoothing", label_smoothing)
    ignore_index = whole_number("ignore_index", ignore_index)
    if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
        raise ValueError(f"temperature must lie in [0.001, 1000], got {temperature}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}: expected {', '.join(REDUCTIONS)}")
    if name == "cwd" and reduction == "none" and alpha != 1:
        raise ValueError(
            'cwd with reduction="none" has a value per channel and cross entropy one per pixel: '
            "they do not add up; choose another reduction, or alpha=1"
        )
    return Options(name, parameters, temperature, alpha, ignore_index, label_smoothing, reduction)


_remembered = functools.lru_cache(maxsize=256, typed=True)(_checked_options)


def check_dense(name: str, tensor: Any) -> None:
    """A tensor whose elements lie in memory by strides.

    Raises:
        TypeError: if it is none, or a sparse, nested or otherwise packed one.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"{name} is {layout}: give a dense tensor, {name}.to_dense()")


def check_logits(student: Tensor, teacher: Tensor, options: Options) -> None:
    """Both logits: type, dtype, device, shape.

    Raises:
        TypeError: if one is not a floating-point tensor of a supported dtype.
        ValueError: for shapes that differ or are not ``[N, C, ...]``, or an empty batch.
    """
    for name, logits in (("student", student), ("teacher", teacher)):
        check_dense(name, logits)
        if logits.dtype not in LOGIT_DTYPES:
            names = ", ".join(str(d).removeprefix("torch.") for d in LOGIT_DTYPES)
            raise TypeError(f"{name} has dtype {logits.dtype}: expected one of {names}")
    if student.dim() < 2 or student.shape[1] < 2:
        raise ValueError(
            f"student has shape {list(student.shape)}: expected [N, C] or [N, C, ...] with C >= 2"
        )
    if student.shape != teacher.shape:
        raise ValueError(
            f"student has shape {list(student.shape)}, teacher {list(teacher.shape)}: "
            "they must be the same (see upsampled_distill_loss for logits of low resolution)"
        )
    check_device(student, teacher=teacher)
    if student.numel() == 0:
        raise ValueError(f"logits have shape {list(student.shape)}: an empty batch has no loss")
    if options.objective == "cwd" and student.dim() < 3:
        raise ValueError("cwd compares channels over their pixels: it needs logits [N, C, ...]")


def check_device(student: Tensor, **others: Tensor | None) -> None:
    """Every tensor on the student's device.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, tensor in others.items():
        if tensor is not None and tensor.device != student.device:
            raise ValueError(f"{name} is on {tensor.device}, student on {student.device}")


def checked_rows(
    student: Tensor,
    positions: Sequence[int],
    labels: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    options: Options,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Labels (int64), mask (bool) and weight (floating point) of a loss over ``positions``.

    Labels are dropped where the value does not depend on them. Their range is checked where the
    loss is computed (:func:`check_values`), for it takes a look at the data.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for a wrong shape or device, or labels missing.
    """
    shape = tuple(positions)
    if labels is None and options.alpha != 1:
        raise ValueError(f"alpha={options.alpha} mixes in cross entropy: it needs labels")
    if labels is not None:
        check_dense("labels", labels)
        if labels.dtype not in LABEL_DTYPES:
            raise TypeError(f"labels are {labels.dtype}: give class indices (an integer dtype)")
        if tuple(labels.shape) != shape:
            raise ValueError(f"labels have shape {list(labels.shape)}: expected {list(shape)}")
    mask = checked_mask(mask, shape)
    weight = checked_weight(weight, [shape[:1]], f"{[shape[0]]}")
    check_device(student, labels=labels, mask=mask, weight=weight)
    labels = labels.to(torch.int64) if labels is not None and options.needs_labels else None
    return labels, mask, weight


def checked_mask(mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """A mask of rows as bool.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for a wrong shape.
    """
    if mask is None:
        return None
    check_dense("mask", mask)
    if mask.dtype not in MASK_DTYPES:
        raise TypeError(f"mask must be bool or an integer (0 is outside), not {mask.dtype}")
    if tuple(mask.shape) != shape:
        raise ValueError(f"mask has shape {list(mask.shape)}: expected {list(shape)}")
    return mask if mask.dtype == torch.bool else mask != 0


def checked_weight(
    weight: Tensor | None, shapes: Sequence[tuple[int, ...]], expected: str
) -> Tensor | None:
    """A weight of samples or rows, without its history.

    Args:
        weight: of one of ``shapes``.
        shapes: that it may have.
        expected: these, in words.

    Raises:
        TypeError: for a wrong type or dtype, or one that requires grad.
        ValueError: for a wrong shape.
    """
    if weight is None:
        return None
    check_dense("weight", weight)
    if weight.dtype not in LOGIT_DTYPES:
        raise TypeError(f"weight must be a floating-point tensor, not {weight.dtype}")
    if weight.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            "weight requires grad, and the loss has no gradient in it: give weight.detach()"
        )
    if tuple(weight.shape) not in shapes:
        raise ValueError(f"weight has shape {list(weight.shape)}: expected {expected}")
    return weight.detach().resolve_neg()


def check_values(
    labels: Tensor | None, weight: Tensor | None, classes: int, ignore_index: int
) -> None:
    """The range of labels and weights, on the CPU; elsewhere a look would stall the device.

    Raises:
        ValueError: for a label that is neither a class nor ``ignore_index``, or a weight that is
            negative or not finite.
    """
    if labels is not None and labels.device.type == "cpu":
        low, high = (int(v) for v in labels.aminmax())
        if low < 0 or high >= classes:
            wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= classes))]
            if len(wrong):
                raise ValueError(
                    f"label {int(wrong[0])} is neither a class (0 to {classes - 1}) nor "
                    f"ignore_index={ignore_index}"
                )
    if (
        weight is not None
        and weight.device.type == "cpu"
        and not bool((weight.isfinite() & (weight >= 0)).all())
    ):
        raise ValueError("weight must be finite and not negative")
