"""How like a student's features are to its teacher's: cosine, relative error, linear CKA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isp_distill.models.feature_match import RunningStatistics, aligned
from isp_distill.models.projector import width_of
from isp_distill.ops.reference_feature_loss import cosine, normalised

# Places of a view that the similarity of two spaces is measured on.
_PLACES = 64


class FeatureTally:
    """Sums over the views that were compared, of one match.

    Linear CKA (Kornblith et al. 2019) compares the two spaces whatever their widths: 1 where one is
    a rotated and scaled copy of the other. It is taken over 64 places of each view at most.

    Args:
        normalise: how features are normalised before the relative error is taken.
        statistics: of the teacher, for "teacher".
    """

    def __init__(
        self, normalise: str | None = None, statistics: RunningStatistics | None = None
    ) -> None:
        known = normalise != "teacher" or statistics is not None
        self._normalise = (normalise or "none") if known else "none"
        self._statistics = (None, None) if statistics is None else statistics.current()
        self.rows = self.cosine = self.error = self.size = 0.0
        # Sums of products of the student's and the teacher's features, of each one's own, and sums.
        self.products: dict[str, Tensor] = {}
        self.places = 0

    def add(self, student: Tensor, teacher: Tensor) -> None:
        """Compare the features of some views; see :func:`isp_distill.feature_loss` for shapes."""
        student, teacher, size = aligned(student.float(), teacher.float())
        if size is not None:
            student = F.interpolate(student, size, mode="bilinear", align_corners=False)
        ours, theirs = _positions(student), _positions(teacher)
        self._relate(ours, theirs)
        if width_of(student) != width_of(teacher):
            return
        s, t = ours.flatten(0, 1), theirs.flatten(0, 1)
        self.rows += len(s)
        s, t = (normalised(x, self._normalise, *self._statistics) for x in (s, t))
        self.cosine += float(cosine(s, t).sum(dtype=torch.float64))
        self.error += float((s - t).square().sum(dtype=torch.float64))
        self.size += float(t.square().sum(dtype=torch.float64))

    def _relate(self, ours: Tensor, theirs: Tensor) -> None:
        step = -(-ours.shape[1] // _PLACES)
        s, t = (x[:, ::step].flatten(0, 1).double() for x in (ours, theirs))
        self.places += len(s)
        found = {"st": s.T @ t, "ss": s.T @ s, "tt": t.T @ t, "s": s.sum(0), "t": t.sum(0)}
        for name, value in found.items():
            kept = self.products.get(name)
            self.products[name] = value.cpu() if kept is None else kept + value.cpu()

    def merge(self, other: FeatureTally) -> None:
        """Count in what another process counted."""
        for name in ("rows", "cosine", "error", "size", "places"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, value in other.products.items():
            self.products[name] = self.products.get(name, torch.zeros_like(value)) + value

    def figures(self) -> dict[str, float | None]:
        """Mean cosine, relative error and CKA; the first two are None where widths differ."""
        return {
            "cosine": self.cosine / self.rows if self.rows else None,
            "relative_error": (self.error / self.size) ** 0.5 if self.size else None,
            "cka": self._cka(),
        }

    def _cka(self) -> float | None:
        if not self.places:
            return None
        means = {name: self.products[name] / self.places for name in ("s", "t")}
        centred = {
            pair: self.products[pair] - self.places * torch.outer(means[pair[0]], means[pair[1]])
            for pair in ("st", "ss", "tt")
        }
        size = float(centred["ss"].norm() * centred["tt"].norm())
        return float(centred["st"].norm().square()) / size if size > 0 else None


class RetrievalTally:
    """Embeddings of all views, to see whether the student's finds the teacher's of the same view.

    No labels are needed, and a student that gives every picture the same embedding finds nothing.
    """

    def __init__(self) -> None:
        self.student: list[Tensor] = []
        self.teacher: list[Tensor] = []

    def add(self, student: Tensor, teacher: Tensor) -> None:
        """Keep the embeddings of some views; those of tokens and maps are averaged over places."""
        for kept, features in ((self.student, student), (self.teacher, teacher)):
            kept.append(F.normalize(_positions(features.float()).mean(1), dim=1).cpu())

    def merge(self, other: RetrievalTally) -> None:
        """Count in another process's views."""
        self.student += other.student
        self.teacher += other.teacher

    def found(self) -> tuple[float, float] | None:
        """Share of views whose own embedding of the teacher is nearest, and among the five nearest.

        Another view that is exactly as near counts as nearer. None of no views, or where the widths
        differ.
        """
        if not self.student or self.student[0].shape[1] != self.teacher[0].shape[1]:
            return None
        queries, every = torch.cat(self.student), torch.cat(self.teacher)
        first = fifth = 0
        for start in range(0, len(queries), 1024):
            near = queries[start : start + 1024] @ every.T
            own = near.diagonal(start)[:, None]
            before = (near >= own).sum(1) - 1
            first += int((before < 1).sum())
            fifth += int((before < 5).sum())
        return first / len(queries), fifth / len(queries)


def _positions(features: Tensor) -> Tensor:
    """Features as ``[N, places, D]``."""
    if features.dim() == 4:
        return features.flatten(2).transpose(1, 2)
    return features if features.dim() == 3 else features[:, None]
