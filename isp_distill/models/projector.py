"""``Projector``: a student's features in the width of its teacher's, for the loss alone."""

from __future__ import annotations

from torch import Tensor, nn

PROJECTORS = ("linear", "mlp")


def width_of(features: Tensor) -> int:
    """The number of features of each position, of ``[N, D]``, ``[N, L, D]`` or ``[N, D, H, W]``."""
    return features.shape[1] if features.dim() == 4 else features.shape[-1]


class Projector(nn.Module):
    """A linear layer on the features of each position, or two with a GELU between them.

    It is trained beside the student and is no part of it.

    Args:
        width: of the student's features.
        target: of the teacher's.
        kind: "linear" or "mlp".
    """

    def __init__(self, width: int, target: int, kind: str) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        if kind == "mlp":
            hidden = max(width, target)
            self.layers.extend([nn.Linear(width, hidden), nn.GELU()])
            width = hidden
        self.layers.append(nn.Linear(width, target))

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[N, D]``, ``[N, L, D]`` or ``[N, D, H, W]`` in the teacher's width."""
        if features.dim() == 4:
            projected: Tensor = self.layers(features.movedim(1, -1)).movedim(-1, 1)
            return projected
        plain: Tensor = self.layers(features)
        return plain
