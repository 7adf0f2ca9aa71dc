"""How a student's modules are made again, without its weights: what ``config.json`` says of it.

Weights alone are half of a model. Three things can make the other half again: timm, by the name of
an architecture; a function of the user's, MODULE:FUNCTION; or the user, who then passes the model.
What is written down is tried first, so that a file never names an architecture that it is not.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isp_distill.models.named import is_function, made_by
from isp_distill.models.raw_model import RawModel
from isp_distill.models.rawify import rawify
from isp_distill.models.stem import RawStem
from isp_distill.models.student import PlanesModel, as_student
from isp_distill.models.teacher import as_teacher
from isp_distill.storage.field_checks import Check, any_object, one_of, optional, text

KINDS = ("timm", "function", "own")

_FIELDS: dict[str, Check] = {
    "kind": one_of(*KINDS),
    "name": text,
    "options": any_object,
    "reason": text,
    "rawify": optional(any_object),
}


@dataclass(frozen=True)
class Architecture:
    """How a student is made.

    Attributes:
        kind: "timm", "function", or "own" for a model that only its owner can make.
        name: of timm's architecture; MODULE:FUNCTION; or of the model's class.
        options: of timm's ``create_model``.
        rawify: the arguments of :func:`isp_distill.rawify` that made the student of the model; None
            where the model is the student.
        reason: of "own", why nothing else makes it.
    """

    kind: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    rawify: dict[str, Any] | None = None
    reason: str = ""

    @classmethod
    def of(cls, student: nn.Module, function: str | None = None) -> Architecture:
        """How a student can be made again.

        Args:
            student: takes ``(mosaic, isp)``.
            function: MODULE:FUNCTION that returned it, or the teacher that it was made of.
        """
        made = student.made if isinstance(student, RawModel) else None
        if function is not None:
            return cls("function", function, rawify=made)
        inner = student.model if isinstance(student, (RawModel, PlanesModel)) else student
        own = f"{type(inner).__module__}.{type(inner).__qualname__}"
        found = _timm_model(student)
        if found is None:
            return cls("own", own, rawify=made, reason="it is no model of timm")
        name, options = found
        if isinstance(student, PlanesModel):
            options["in_chans"] = student.channels
        by_name = cls("timm", name, options, made)
        reason = by_name._difference(student)
        return by_name if not reason else cls("own", own, rawify=made, reason=reason)

    @classmethod
    def from_plain(cls, values: Any) -> Architecture:
        """From what :meth:`plain` made.

        Raises:
            ValueError: it says something else; the message names the field.
        """
        if not isinstance(values, Mapping) or set(values) != set(_FIELDS):
            raise ValueError(f"architecture must hold {', '.join(_FIELDS)}")
        for name, check in _FIELDS.items():
            check(values[name], f"architecture.{name}")
        return cls(**values)

    def plain(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)

    def make(self, model: nn.Module | None = None, trust: Sequence[str] = ()) -> nn.Module:
        """The student, with any weights.

        Args:
            model: the user's, in place of what is named here: the RGB model that the student was
                made of, or the student.
            trust: packages whose functions may be called.

        Raises:
            ValueError: it is the user's own and was not given, or its function is not trusted.
            ImportError: timm, or the function's module, is missing.
            TypeError: what was given is no model.
        """
        if model is None:
            model = self._named(trust)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, not {type(model).__name__}")
        ready = any(isinstance(m, (RawStem, PlanesModel)) for m in model.modules())
        if self.rawify is not None and not ready:
            model = rawify(model, **self.rawify)
        student = as_student(model)
        assert isinstance(student, nn.Module)
        return student

    def _named(self, trust: Sequence[str]) -> nn.Module:
        """The model that is named here."""
        if self.kind == "own":
            raise ValueError(
                f"nothing here makes a {self.name} ({self.reason}): load it with "
                "load(path, model=MODEL), the RGB model or the student with any weights; or train "
                'with teacher="MODULE:FUNCTION", which is written down'
            )
        if self.kind == "timm":
            try:
                timm = importlib.import_module("timm")
            except ImportError as error:
                raise ImportError(f"the student is timm's {self.name}: pip install timm") from error
            model: nn.Module = timm.create_model(self.name, pretrained=False, **self.options)
            return model
        if not is_function(self.name):
            raise ValueError(f"architecture.name {self.name!r} is no MODULE:FUNCTION")
        check_trusted(self.name, trust, "the student is made by calling")
        made = as_teacher(made_by(self.name, "student")).module
        if made is None:
            raise ValueError(f"{self.name} makes a teacher that is a function, and no module")
        return made

    def _difference(self, student: nn.Module) -> str:
        """Why this does not make the student; empty where it does."""
        try:
            with torch.random.fork_rng([]):
                again = self.make()
        except Exception as error:  # whatever timm or the model raises: then it is not made by name
            return f"timm.create_model({self.name!r}) fails: {error}"
        if _described(again) == _described(student):
            return ""
        return f"it is not what timm.create_model({self.name!r}) makes"


def check_trusted(function: str, trust: Sequence[str], what: str) -> None:
    """Refuse to call a function whose package the caller has not named.

    Args:
        function: MODULE:FUNCTION.
        trust: packages whose functions may be called.
        what: it is called for, as the error begins.

    Raises:
        ValueError: that says how it is allowed.
    """
    package = function.partition(":")[0]
    if not any(package == one or package.startswith(f"{one}.") for one in trust):
        raise ValueError(
            f"{what} {function}, which runs code of yours: allow it with "
            f'trust=("{package}",) (--trust {package} in the shell)'
        )


def _timm_model(student: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Name and options of the model of timm in a student, or None."""
    for module in student.modules():
        config = getattr(module, "pretrained_cfg", None)
        if isinstance(config, dict) and isinstance(config.get("architecture"), str):
            options: dict[str, Any] = {}
            classes = getattr(module, "num_classes", None)
            if isinstance(classes, int):
                options["num_classes"] = classes
            return config["architecture"], options
    return None


def _described(module: nn.Module) -> tuple[str, dict[str, list[int]]]:
    """Layers with their settings, and the shape of every weight."""
    shapes = {k: list(v.shape) for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    return str(module), shapes
