"""Everything that a training makes alike: what is taken of both models, and the losses between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isp_distill.isp.camera import ISP
from isp_distill.models.feature_match import FeatureMatchLoss
from isp_distill.models.layout import channels_first
from isp_distill.models.losses import DistillLoss
from isp_distill.models.match import Match
from isp_distill.models.modes import evaluating
from isp_distill.models.output import TEACHER_OPTION, Output
from isp_distill.models.projector import Projector, width_of
from isp_distill.models.taps import MAIN, Taps
from isp_distill.models.teacher import Teacher


@dataclass(frozen=True)
class Part:
    """What one match is, of a batch.

    Attributes:
        loss: unweighted.
        figure: sum over ``count``: predictions that agree, or cosines of features.
        count: predictions, or samples.
    """

    loss: Tensor
    figure: Tensor
    count: int


class TeacherTaps:
    """What a teacher's pictures become, match by match.

    Args:
        teacher: run as it is.
        matches: what of it is taken.
    """

    def __init__(self, teacher: Teacher, matches: Sequence[Match]) -> None:
        self.teacher, self._matches = teacher, tuple(matches)
        targets = [_main_as_one(match.target) for match in matches]
        self._taps = Taps(teacher.model, targets, teacher.output, TEACHER_OPTION, "teacher")
        self._places = [self._taps.names.index(target) for target in targets]
        #: Names of what is taken beside the teacher's output.
        self.features = tuple(name for name in self._taps.names if name not in MAIN)

    def listening(self) -> contextlib.AbstractContextManager[None]:
        """Hooks on the teacher's modules, until the end of the block."""
        return self._taps.listening()

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> list[Tensor]:
        """What each match takes of the teacher, for pictures in [0, 1]."""
        found = self._taps.take(self.teacher.run(picture))
        return self._laid_out([found[place].to(picture.device) for place in self._places])

    def stored(self, logits: Tensor, features: dict[str, Tensor] | None) -> list[Tensor]:
        """The same of what was stored."""
        every = [logits if name in MAIN else (features or {})[name] for name in self._taps.names]
        return self._laid_out([every[place] for place in self._places])

    def _laid_out(self, taken: list[Tensor]) -> list[Tensor]:
        return [
            _as_map(value, match, match.teacher_layout or match.layout, "teacher")
            for value, match in zip(taken, self._matches, strict=True)
        ]


class MatchedStudent(nn.Module):
    """A student that returns what each match takes of it, in the width of the teacher's.

    One module, so that what wraps it (parallel training, a compiler) sees all that is trained.

    Args:
        student: takes ``(mosaic, isp)``.
        matches: what of it is taken.
        output: how its output is read.
        projectors: by a match's place.
    """

    def __init__(
        self,
        student: Callable[..., Any],
        matches: Sequence[Match],
        output: Output = None,
        projectors: nn.ModuleDict | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.projectors = nn.ModuleDict() if projectors is None else projectors
        sources = [_main_as_one(match.student) for match in matches]
        self.taps, self._matches = Taps(student, sources, output), tuple(matches)
        self._places = [self.taps.names.index(source) for source in sources]

    def listening(self) -> contextlib.AbstractContextManager[None]:
        """Hooks on the student's modules, until the end of the block."""
        return self.taps.listening()

    def forward(self, mosaic: Tensor, isp: ISP) -> list[Tensor]:
        """What each match takes of the student."""
        found = self.taps.take(self.student(mosaic, isp))
        taken = []
        for number, place in enumerate(self._places):
            match = self._matches[number]
            value = _as_map(found[place], match, match.layout, "student")
            if str(number) in self.projectors:
                value = self.projectors[str(number)](value)
            taken.append(value)
        return taken


class Matching(nn.Module):
    """The losses of a run's matches, and the layers that only they need.

    Args:
        matches: with an objective each.
        losses: of each.
        projectors: by a match's place: of the student's features to the teacher's width.
        student_output: how the student's output is read.
    """

    def __init__(
        self,
        matches: Sequence[Match],
        losses: Sequence[DistillLoss | FeatureMatchLoss],
        projectors: nn.ModuleDict | None = None,
        student_output: Output = None,
    ) -> None:
        super().__init__()
        self.matches = tuple(matches)
        self.losses = nn.ModuleList(losses)
        self.projectors = nn.ModuleDict() if projectors is None else projectors
        self.student_output = student_output

    @property
    def needs_labels(self) -> bool:
        """Whether one of the losses depends on labels."""
        return any(getattr(loss, "needs_labels", False) for loss in self.losses)

    @property
    def embeds(self) -> bool:
        """Whether the models' outputs are matched as embeddings."""
        return any(m.of_outputs and not m.of_classes for m in self.matches)

    def student(self, student: Callable[..., Any]) -> MatchedStudent:
        """The student that returns what is matched."""
        return MatchedStudent(student, self.matches, self.student_output, self.projectors)

    def teacher(self, teacher: Teacher) -> TeacherTaps:
        """What is matched of a teacher."""
        return TeacherTaps(teacher, self.matches)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """A block after which the teacher's statistics are what they were."""
        kept = {name: value.clone() for name, value in self.named_buffers()}
        try:
            yield
        finally:
            for name, value in self.named_buffers():
                value.copy_(kept[name])

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        labels: Tensor | None = None,
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[Part]]:
        """The sum of the weighted losses, and each match's own numbers.

        Args:
            student: what each match takes of it.
            teacher: likewise.
            labels: see :class:`DistillLoss`.
            total: see :class:`FeatureMatchLoss`.
        """
        whole: Tensor | None = None
        parts = []
        for match, loss, ours, theirs in zip(
            self.matches, self.losses, student, teacher, strict=True
        ):
            if isinstance(loss, DistillLoss):
                # The data have labels, and it may be that nobody in this batch has one.
                missing = labels is None and loss.needs_labels
                known = loss.no_labels(theirs) if missing else labels
                value, agreed = loss(ours, theirs, known)
                parts.append(Part(value, agreed, loss.positions(theirs)))
            else:
                value, similarity = loss(ours, theirs, total)
                parts.append(Part(value, similarity * len(theirs), len(theirs)))
            weighted = value if match.weight == 1 else match.weight * value
            whole = weighted if whole is None else whole + weighted
        assert whole is not None
        return whole, parts


def made_matching(
    matches: Sequence[Match],
    student: nn.Module,
    teacher: Teacher,
    side: int,
    class_loss: Callable[[Match], DistillLoss],
    student_output: Output = None,
) -> Matching:
    """The losses and projectors of some matches, after both models were run once.

    Args:
        matches: with an objective each.
        student: takes ``(mosaic, isp)``; on its device.
        teacher: on the same one, in eval mode.
        side: of the mosaics that the student sees.
        class_loss: makes the loss of a match that compares classes.
        student_output: how the student's output is read.

    Raises:
        TypeError: a model has no such output or module.
        ValueError: features cannot be compared.
    """
    projectors = nn.ModuleDict()
    losses: list[DistillLoss | FeatureMatchLoss] = []
    features = [match for match in matches if not match.of_classes or not match.of_outputs]
    if not features:
        return Matching(matches, [class_loss(m) for m in matches], None, student_output)
    ours, theirs = _tried(matches, student, teacher, side, student_output)
    for number, (match, s, t) in enumerate(zip(matches, ours, theirs, strict=True)):
        if match.of_classes:
            losses.append(class_loss(match))
            continue
        widths = width_of(s), width_of(t)
        if widths[0] != widths[1] and match.project is not None:
            projectors[str(number)] = Projector(*widths, match.project).to(s.device)
        assert match.objective is not None
        loss = FeatureMatchLoss(match.objective, match.normalise, widths[1])
        losses.append(loss.to(t.device))
        try:
            with torch.no_grad():
                loss(projectors[str(number)](s) if str(number) in projectors else s, t)
        except ValueError as error:
            raise ValueError(f"match {match.name!r}: {error}") from None
    return Matching(matches, losses, projectors, student_output)


def _tried(
    matches: Sequence[Match], student: nn.Module, teacher: Teacher, side: int, output: Output
) -> tuple[list[Tensor], list[Tensor]]:
    """What the matches take of both models, of one black picture; nothing of a model changes."""
    device = next((p.device for p in student.parameters()), torch.device("cpu"))
    taps, matched = TeacherTaps(teacher, matches), MatchedStudent(student, matches, output)
    devices = [device] if device.type == "cuda" else []
    mosaic = torch.zeros(1, side, side, dtype=torch.uint16, device=device)
    with torch.random.fork_rng(devices), torch.no_grad(), evaluating(student):
        with taps.listening():
            theirs = taps(teacher.black(device))
        with matched.listening():
            ours = matched(mosaic, ISP(black=0, white=1))
    return ours, theirs


def _as_map(value: Tensor, match: Match, layout: str | None, whose: str) -> Tensor:
    """What a match takes of a model, with its channels first where it is a map of features."""
    if match.of_classes:
        return value
    return channels_first(value, layout, f"match {match.name!r}: the {whose}'s features")


def _main_as_one(name: str) -> str:
    """Both words for a model's output as one."""
    return MAIN[0] if name in MAIN else name
