"""Where the channels of a feature map stand: after the batch, or last as in Swin."""

from __future__ import annotations

from torch import Tensor

LAYOUTS = ("channels_first", "channels_last")


def channels_first(features: Tensor, layout: str | None, whose: str) -> Tensor:
    """A map as ``[N, D, H, W]``, a view; what is no map as it is.

    Args:
        features: ``[N, D, H, W]``, or ``[N, H, W, D]`` where ``layout`` says so.
        layout: one of :data:`LAYOUTS`; None: channels_first, where the shape does not speak
            against it.
        whose: names them in the error.

    Raises:
        ValueError: nobody said how the map lies, and it is square if its channels are last.
    """
    if features.dim() != 4 or layout == "channels_first":
        return features
    if layout == "channels_last":
        return features.movedim(-1, 1)
    first, second, last = features.shape[1:]
    if first == second != last:
        raise ValueError(
            f"{whose} are {list(features.shape)}: a square map of {last} channels that come last, "
            f"or one of {first} channels that is {second} x {last}? Say layout="
            '"channels_last", or "channels_first", in the Match'
        )
    return features
