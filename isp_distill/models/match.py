"""``Match``: what of the student shall be like what of the teacher, and by which loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isp_distill.arguments import nearest, real_number, shown
from isp_distill.models.layout import LAYOUTS
from isp_distill.models.projector import PROJECTORS
from isp_distill.models.taps import MAIN
from isp_distill.ops.distill_loss.options import OBJECTIVES as CLASS_OBJECTIVES
from isp_distill.ops.distill_loss.options import parse_objective
from isp_distill.ops.feature_loss.options import NORMALISATIONS
from isp_distill.ops.feature_loss.options import OBJECTIVES as FEATURE_OBJECTIVES
from isp_distill.ops.feature_loss.options import parse_objective as parse_feature_objective


@dataclass(frozen=True)
class Match:
    """One thing that :func:`isp_distill.train` makes alike; ``match=`` takes a list of them.

    Attributes:
        student: "logits" for the student's output (of models without a classifier, their
            embedding); a key of its output; or the name of a module in it, whose output is taken by
            a forward hook. Names are those of your model: what rawify put around it is left out.
        teacher: likewise of the teacher; None: what ``student`` says.
        objective: of :func:`isp_distill.distill_loss` (classes), or of
            :func:`isp_distill.feature_loss`: cosine, mse, smooth_l1 (features). None: the
            training's own ``objective`` for logits, cosine for all else. "mse" compares logits
            where both are "logits", and features elsewhere.
        weight: of its loss in the sum that is trained.
        temperature: of a softmax; None: the training's.
        project: "linear" or "mlp": a layer, or two, that take the student's features to the width
            of the teacher's, where the widths differ. It is trained with ``stem_lr``, kept in the
            checkpoint, and no part of the student.
        normalise: of features, before they are compared: l2, layer, or teacher (by the teacher's
            own running mean and standard deviation); None: not at all.
        layout: of maps of features: "channels_first", ``[N, D, H, W]``, or "channels_last",
            ``[N, H, W, D]``, as Swin has them; None: the first, and a shape that is more likely the
            second is refused.
        teacher_layout: of the teacher's maps, where it is another one.

    Features are ``[N, D]``, ``[N, L, D]`` (tokens) or ``[N, D, H, W]`` (maps). Grids of different
    sizes are resampled to the teacher's. Where tokens meet a map, the leading ones that make no
    square with the rest (class and register tokens) are left out.

    Raises:
        TypeError: for a value of another type.
        ValueError: for an unknown objective, or one out of range.

    Examples:
        >>> tokens = isp_distill.Match("blocks.8", "blocks.11", weight=0.5, project="linear")
        >>> tokens.name
        'blocks.8 -> blocks.11'
        >>> isp_distill.TrainSettings(match=["logits", tokens]).match[0]
        Match(student='logits', teacher=None, objective=None, weight=1.0)
    """

    student: str
    teacher: str | None = None
    objective: str | None = None
    weight: float = 1.0
    temperature: float | None = None
    project: str | None = None
    normalise: str | None = None
    layout: str | None = None
    teacher_layout: str | None = None

    def __post_init__(self) -> None:
        for name in ("student", "teacher"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value) and not (name == "teacher" and value is None):
                raise TypeError(f"{name} of a match must be a name, got {shown(value)}")
        weight = real_number(self.weight, "weight of a match")
        if not (0 <= weight < math.inf):
            raise ValueError(f"weight of a match must be 0 or more, got {weight:g}")
        object.__setattr__(self, "weight", weight)
        if self.objective is not None:
            of_classes = self.of_classes  # refuses what is none
            (parse_objective if of_classes else parse_feature_objective)(self.objective)
        for name, allowed in (
            ("project", PROJECTORS),
            ("normalise", NORMALISATIONS),
            ("layout", LAYOUTS),
            ("teacher_layout", LAYOUTS),
        ):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ValueError(
                    f"unknown {name} {value!r} of a match: expected {' or '.join(allowed)}"
                )
        if self.temperature is not None:
            value = real_number(self.temperature, "temperature of a match")
            object.__setattr__(self, "temperature", value)
        if self.objective is None and not self.of_outputs:
            object.__setattr__(self, "objective", "cosine")
        if self.objective is not None:
            self._check_kind()

    def __repr__(self) -> str:
        shown_always = ("student", "teacher", "objective", "weight")
        said = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if f.name in shown_always or getattr(self, f.name) is not None
        ]
        return f"Match({', '.join(said)})"

    @property
    def target(self) -> str:
        """What of the teacher is matched."""
        return self.student if self.teacher is None else self.teacher

    @property
    def name(self) -> str:
        """For reports and metrics."""
        return self.student if self.target == self.student else f"{self.student} -> {self.target}"

    @property
    def of_outputs(self) -> bool:
        """Whether both models' outputs are matched, as a whole."""
        return self.student in MAIN and self.target in MAIN

    @property
    def of_classes(self) -> bool:
        """Whether axis 1 is classes, and not features.

        Raises:
            ValueError: for an unknown objective.
        """
        return of_classes(self.objective, self.of_outputs)

    def completed(self, objective: str, temperature: float) -> Match:
        """The match with what the training says where it says nothing itself."""
        chosen = dataclasses.replace(self, objective=self.objective or objective)
        if not chosen.of_classes or self.temperature is not None:
            return chosen
        return dataclasses.replace(chosen, temperature=temperature)

    def _check_kind(self) -> None:
        """Refuse options that an objective has not.

        Raises:
            ValueError: that names option and objective.
        """
        of_features = ("project", "normalise", "layout", "teacher_layout")
        of_other_kind = of_features if self.of_classes else ("temperature",)
        for name in of_other_kind:
            if getattr(self, name) is not None:
                kind = "classes" if self.of_classes else "features"
                raise ValueError(
                    f"{name} of a match: {self.objective} compares {kind}, and has none; leave it "
                    "out, or choose another objective"
                )


def of_classes(objective: str | None, of_outputs: bool) -> bool:
    """Whether an objective compares classes; one that is in both losses, where outputs are matched.

    Raises:
        TypeError: for what is no string.
        ValueError: for an unknown objective.
    """
    if objective is None:
        return of_outputs
    if not isinstance(objective, str):
        raise TypeError(f"objective must be a string, not {type(objective).__name__}")
    bare = objective.partition("(")[0].strip()
    if bare in FEATURE_OBJECTIVES:
        return of_outputs and bare in CLASS_OBJECTIVES
    if bare in CLASS_OBJECTIVES:
        return True
    every = [*CLASS_OBJECTIVES, *(o for o in FEATURE_OBJECTIVES if o not in CLASS_OBJECTIVES)]
    raise ValueError(f"unknown objective {objective!r}: expected one of {', '.join(every)}")


def matches_of(values: Any) -> tuple[Match, ...] | None:
    """Matches from a list of them, of their fields as mappings, or of names.

    Raises:
        TypeError: for anything else, or a field that a match has not.
        ValueError: for an empty list, two matches of one name, or a value out of range.
    """
    if values is None:
        return None
    if isinstance(values, (str, Match, Mapping)):
        values = [values]
    if not isinstance(values, Sequence):
        raise TypeError(f"match must be a list of Match, got {shown(values)}")
    made = tuple(_made(value) for value in values)
    if not made:
        raise ValueError("match must have one Match at least; leave it out to match the outputs")
    names = [one.name for one in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"match names {twice[0]!r} twice: add up their weights, or leave one out")
    return made


def _made(value: Any) -> Match:
    if isinstance(value, Match):
        return value
    if isinstance(value, str):
        return Match(value)
    if not isinstance(value, Mapping):
        raise TypeError(f"match must be a list of Match, got {shown(value)} in it")
    known = [f.name for f in dataclasses.fields(Match)]
    for name in value:
        if name not in known:
            hint = nearest(str(name), known) or f"there are {', '.join(known)}"
            raise TypeError(f"match has no {name!r}: {hint}")
    if "student" not in value:
        raise TypeError(f"match {shown(dict(value))} names no student's output")
    return Match(**value)
