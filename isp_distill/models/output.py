"""What a model returns, of whatever library it is: the one tensor in it that is asked for.

torchvision's segmentation networks return ``{"out": ...}``, those of transformers a dataclass with
``logits``, encoders one with an embedding, others a tuple. All of them are read here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isp_distill.arguments import shown
from isp_distill.models.named import function_named, is_function

#: How an output is read: None for what every library calls it, a key, or a function of the output.
Output = str | Callable[[Any], Any] | None

#: What libraries call logits, in the order in which they are looked for.
LOGITS = ("logits", "out")
#: What transformers calls the embedding of a whole picture.
EMBEDDINGS = ("image_embeds", "pooler_output")

#: What a caller sets where an output is not understood, for errors.
TEACHER_OPTION, STUDENT_OPTION = "Teacher(..., output=...)", "student_output=..."
EXPORT_OPTION = "export(..., output=...)"


class OutputError(TypeError):
    """An output that is not understood; the message lists its keys and names the option."""


def checked_output(how: Any, option: str) -> Output:
    """How an output is read, as a user gives it.

    Raises:
        TypeError: for what is neither a name nor a function.
        ValueError: for a function that cannot be found by its name.
    """
    if how is None or callable(how) or (isinstance(how, str) and how):
        if isinstance(how, str) and ":" in how and not is_function(how):
            raise ValueError(
                f"{option} {how!r}: no function of a module has this name; a file cannot say a "
                "lambda, so give MODULE:FUNCTION of a function of yours"
            )
        return how  # type: ignore[no-any-return]  # anything that can be called
    raise TypeError(
        f"{option} must be a key of the model's output, or a function of it, got {shown(how)}"
    )


def described_output(how: Output) -> str | None:
    """How an output is read, in a word that a file can hold: the key, or MODULE:FUNCTION."""
    if how is None or isinstance(how, str):
        return how
    name = getattr(how, "__qualname__", type(how).__qualname__)
    return f"{getattr(how, '__module__', type(how).__module__)}:{name}"


def read_output(output: Any, how: Output = None, option: str = STUDENT_OPTION) -> Tensor:
    """The tensor in a model's output that is compared.

    Args:
        output: what the model returned.
        how: None for a tensor, ``logits`` or ``out`` (or else the embedding, ``image_embeds`` or
            ``pooler_output``) of a mapping or an object, or a tuple's first; a key of it (with dots
            for what lies deeper, ``hidden_states.3``); MODULE:FUNCTION or a function of it.
        option: what a caller sets where this does not help, for the error.

    Returns:
        ``[N, C]``, ``[N, C, H, W]`` or whatever else of two and more axes; an array of NumPy is
        made a tensor.

    Raises:
        OutputError: it is not understood; the message lists the keys and names the option.
    """
    if how is None:
        found = _usual(output)
    elif isinstance(how, str) and not is_function(how):
        found = part_of(output, how)
        if found is None:
            raise OutputError(f"the model's output has no {how!r} ({option}): {described(output)}")
    else:
        reader = function_named(how, option) if isinstance(how, str) else how
        output = reader(output)
        found = output
    if isinstance(found, np.ndarray):
        found = torch.from_numpy(found)
    if not isinstance(found, Tensor) or found.dim() < 2:
        what = described(output if how is None else found)
        raise OutputError(
            f"a model must return logits [N, C] or [N, C, H, W], or an embedding [N, D], and "
            f"returned {what}: say which part it is with {option}, a key or a function "
            "of the output"
        )
    return found


def is_embedding(output: Any, how: Output = None) -> bool:
    """Whether the tensor that :func:`read_output` reads is called an embedding by its library."""
    if isinstance(how, str):
        return how.rpartition(".")[2] in EMBEDDINGS
    if how is not None or isinstance(output, Tensor):
        return False
    names = parts(output)
    return not any(_is_value(names.get(n)) for n in LOGITS) and any(
        _is_value(names.get(n)) for n in EMBEDDINGS
    )


def parts(output: Any) -> dict[str, Any]:
    """What an output holds by name: a mapping's items, a dataclass's or a named tuple's fields."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    return {}


def part_of(output: Any, name: str) -> Any:
    """What an output holds under a name, with dots for what lies deeper; None where nothing is."""
    for key in name.split("."):
        held = parts(output)
        if key in held:
            output = held[key]
        elif isinstance(output, (tuple, list)) and key.isdecimal() and int(key) < len(output):
            output = output[int(key)]
        else:
            return None
    return output


def described(output: Any) -> str:
    """What an output is, for an error: its kind, and its keys with their shapes."""
    names = parts(output)
    if names:
        listed = ", ".join(f"{key} ({_kind(value)})" for key, value in names.items())
        return f"{type(output).__name__} with the keys {listed}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {', '.join(map(_kind, output)) or 'nothing'}"
    return _kind(output)


def _usual(output: Any) -> Any:
    """What the libraries agree on, or what was given where they do not."""
    if _is_value(output):
        return output
    held = parts(output)
    for name in (*LOGITS, *EMBEDDINGS):
        if _is_value(held.get(name)):
            return held[name]
    if isinstance(output, (tuple, list)) and output and not hasattr(output, "_fields"):
        return _usual(output[0])
    return output


def _is_value(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _kind(value: Any) -> str:
    if _is_value(value):
        return f"{list(value.shape)}"
    return "None" if value is None else type(value).__name__
