"""Two models compared view by view: classes, embeddings, and whatever else is matched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from isp_distill.detection.heads import heads_of
from isp_distill.detection.loss import usual_objective as usual_of_heads
from isp_distill.models.feature_match import FeatureMatchLoss
from isp_distill.models.losses import DistillLoss
from isp_distill.models.match import Match, matches_of
from isp_distill.models.matching import MatchedStudent, Matching, TeacherTaps
from isp_distill.models.output import Output
from isp_distill.models.student import Student
from isp_distill.models.teacher import Teacher
from isp_distill.models.teacher_output import usual_objective
from isp_distill.reports.classes import ClassTally
from isp_distill.reports.detections import DetectionTally
from isp_distill.reports.features import FeatureTally, RetrievalTally
from isp_distill.reports.report import Report


@dataclass
class AgreementTally:
    """Predictions of a match of classes that is not of the models' outputs."""

    rows: int = 0
    agreed: float = 0.0
    kl: float = 0.0

    def merge(self, other: AgreementTally) -> None:
        """Count in what another process counted."""
        self.rows += other.rows
        self.agreed += other.agreed
        self.kl += other.kl

    def figures(self) -> dict[str, float | None]:
        """Share of agreement, and mean KL in nats."""
        if not self.rows:
            return {"agreement": None, "kl": None}
        return {"agreement": self.agreed / self.rows, "kl": self.kl / self.rows}


@dataclass
class Tallies:
    """What was counted of the views that were compared.

    Attributes:
        views: how many.
        main: name of the match of both models' outputs, where they are embeddings.
        classes: of the outputs, or of the classes that embeddings make.
        retrieval: of the outputs, where they are embeddings.
        detections: of the outputs, where both are a detector's heads.
        each: of every match by its name, but outputs of classes.
    """

    views: int = 0
    main: str | None = None
    classes: ClassTally = field(default_factory=ClassTally)
    retrieval: RetrievalTally = field(default_factory=RetrievalTally)
    detections: DetectionTally | None = None
    each: dict[str, FeatureTally | AgreementTally] = field(default_factory=dict)

    def merge(self, other: Tallies) -> None:
        """Count in what another process counted."""
        self.views += other.views
        self.classes.merge(other.classes)
        self.retrieval.merge(other.retrieval)
        if self.detections is not None and other.detections is not None:
            self.detections.merge(other.detections)
        for name, tally in other.each.items():
            self.each[name].merge(tally)  # type: ignore[arg-type]  # both are of one match

    def report(self, skipped: dict[str, str], matched: bool) -> Report:
        """The report of all views.

        Args:
            skipped: files left out, with reasons.
            matched: whether more than the outputs was compared: then each match stands by its name.

        Raises:
            ValueError: nothing was compared.
        """
        if self.views == 0:
            first = next(iter(skipped.items()), None)
            why = "" if first is None else f"; the first, {first[0]}: {first[1]}"
            raise ValueError(
                f"there was nothing to evaluate; {len(skipped)} files were skipped{why}"
            )
        found: dict[str, Any] = self.classes.figures()
        if self.detections is not None:
            found |= self.detections.figures()
        figures = {name: tally.figures() for name, tally in self.each.items()}
        if self.main is not None:
            found["cosine"] = figures[self.main].get("cosine")
            pair = self.retrieval.found()
            if pair is not None:
                found["retrieval_top1"], found["retrieval_top5"] = pair
        if matched and self.main is None and "agreement_top1" in found:
            outputs = {"agreement": found["agreement_top1"], "kl": found["kl"]}
            figures = {"logits": outputs, **figures}
        return Report(
            samples=self.views, skipped=dict(skipped), matches=figures if figures else {}, **found
        )


class Comparison:
    """Compares a student with its teacher, batch by batch.

    Args:
        student: takes ``(mosaic, isp)``.
        teacher: on the device, in eval mode.
        match: what is compared beside the outputs; or a run's, with its projectors.
        student_output: how the student's output is read; None: as ``match`` says, if it does.
        dense_size: of dense logits, where they are compared.
        device: where the models are.

    Raises:
        TypeError: the teacher's output is not understood.
        ValueError: a match that cannot be.
    """

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        match: Matching | Sequence[Match | Mapping[str, Any] | str] | None,
        student_output: Output,
        dense_size: int | Sequence[int] | None,
        device: torch.device,
    ) -> None:
        self.tallies = Tallies()
        run = match if isinstance(match, Matching) else None
        given = run.matches if run is not None else matches_of(match)
        matches = list(given or (Match("logits"),))
        self.matched = given is not None and (run is None or len(matches) > 1)
        losses = {} if run is None else dict(enumerate(run.losses))
        heads, usual = heads_of(teacher.model), None
        if heads is not None:
            self.tallies.detections = DetectionTally(heads, teacher.size)
            usual = usual_of_heads(heads)
        if any(one.objective is None for one in matches):
            usual = usual or usual_objective(teacher, device)
            matches = [one.completed(usual, 1.0) for one in matches]
        places = [place for place, one in enumerate(matches) if one.of_outputs]
        #: Whether the outputs are compared only where they can be.
        self._by_the_way = not places
        if not places:
            objective = usual or usual_objective(teacher, device)
            places = [len(matches)]
            matches.append(Match("logits", objective=objective))
            self.matched = True
        self._main, self._matches = places[0], matches
        self._teacher, self._size = teacher, dense_size
        output = student_output
        if output is None and run is not None:
            output = run.student_output
        self.targets = TeacherTaps(teacher, matches)
        projectors = None if run is None else run.projectors
        self.student = MatchedStudent(student, matches, output, projectors)
        self.student.training = False
        self._agreement = DistillLoss(return_agreement=True, reduction="sum", size=dense_size)
        for place, one in enumerate(matches):
            if not one.of_classes:
                loss = losses.get(place)
                statistics = loss.statistics if isinstance(loss, FeatureMatchLoss) else None
                self.tallies.each[one.name] = FeatureTally(one.normalise, statistics)
            elif not one.of_outputs:
                self.tallies.each[one.name] = AgreementTally()
        if not matches[self._main].of_classes:
            self.tallies.main = matches[self._main].name

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks on both models' modules, until the end of the block."""
        with self.targets.listening(), self.student.listening():
            yield

    def add(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        labels: Tensor | None,
        of_pixels: bool,
        truth: Sequence[Tensor] | None = None,
    ) -> None:
        """Compare what the matches took of both models, of some views.

        Args:
            student: what each match takes of it.
            teacher: likewise.
            labels: of the views.
            of_pixels: whether they are maps, and not a class of each view.
            truth: the true boxes of each view.
        """
        self.tallies.views += len(teacher[0])
        for place, one in enumerate(self._matches):
            ours, theirs = student[place], teacher[place]
            if place == self._main and self.tallies.detections is not None:
                self.tallies.detections.add(ours, theirs, truth)
                continue
            if place == self._main:
                if not (self._by_the_way and _unlike(ours, theirs)):
                    self._add_outputs(one, ours, theirs, labels, of_pixels)
                continue
            tally = self.tallies.each.get(one.name)
            if isinstance(tally, FeatureTally):
                tally.add(ours, theirs)
            elif isinstance(tally, AgreementTally):
                total, agreed = self._agreement(ours, theirs)
                tally.merge(
                    AgreementTally(self._agreement.positions(theirs), float(agreed), float(total))
                )

    def _add_outputs(
        self, one: Match, ours: Tensor, theirs: Tensor, labels: Tensor | None, of_pixels: bool
    ) -> None:
        tallies = self.tallies
        if one.of_classes:
            tallies.classes.add_batch(ours, theirs, labels, of_pixels, self._size)
            return
        tally = tallies.each[one.name]
        assert isinstance(tally, FeatureTally)
        tally.add(ours, theirs)
        tallies.retrieval.add(ours, theirs)
        if self._teacher.class_embeddings is not None:
            of_student, of_teacher = map(self._teacher.zero_shot, (ours, theirs))
            tallies.classes.add_batch(of_student, of_teacher, labels, of_pixels, None)


def _unlike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two outputs are of different kinds, so that nothing can be said of them."""
    return ours.dim() != theirs.dim() or ours.shape[1] != theirs.shape[1]
