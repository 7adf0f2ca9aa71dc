"""Whether a teacher returns logits: found out before a file is decoded, not after hours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from isp_distill.models.output import is_embedding
from isp_distill.models.teacher import Teacher
from isp_distill.ops.distill_loss.options import parse_objective

# Objectives that compare values or places; the others take axis 1 for classes.
_FOR_ANY_FEATURES = ("mse", "cwd")
# Names of autograd's nodes, by what they begin with. A classifier is the first; features leave a
# network through the second (after pooling, activations, sums, which are looked through).
_WEIGHTED = ("Addmm", "Mm", "Bmm", "Baddbmm", "Linear", "Convolution", "MkldnnConvolution")
_NORMS = ("NativeLayerNorm", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm",
          "NativeGroupNorm", "FusedRmsNorm")  # fmt: skip
_NODES = 200


def check_logits(shape: Sequence[int]) -> None:
    """Refuse outputs that are neither a picture's logits nor its pixels'.

    Args:
        shape: of one picture's output, ``(C,)`` or ``(C, h, w)``.

    Raises:
        ValueError: it has another number of axes.
    """
    if len(shape) in (1, 3):
        return
    text = ", ".join(["N", *map(str, shape)])
    raise ValueError(
        f"the teacher returns [{text}]: training compares logits [N, C] of pictures or "
        "[N, C, H, W] of pixels; pass a module that returns these (of tokens, the classifier on "
        'their mean or on the class token), or compare features with objective="cosine"'
    )


def warn_of_features(teacher: Teacher, objective: str, device: torch.device) -> None:
    """Warn where an objective that compares classes would be given an embedding.

    Args:
        teacher: its model is run once on a black picture, in eval mode.
        objective: see :func:`isp_distill.distill_loss`.
        device: where the model is.
    """
    if parse_objective(objective)[0] in _FOR_ANY_FEATURES:
        return
    if lacks_classifier(teacher, device):
        warnings.warn(
            f"the teacher ({type(teacher.model).__name__}) seems to have no classifier: "
            f'objective="{objective}" takes its embedding for logits; give a teacher with its '
            'classifier, or compare embeddings with objective="cosine"',
            stacklevel=3,
        )


def usual_objective(teacher: Teacher, device: torch.device) -> str:
    """What a teacher's output is compared by: cosine for an embedding, else forward_kl."""
    return "cosine" if lacks_classifier(teacher, device) else "forward_kl"


def lacks_classifier(teacher: Teacher, device: torch.device) -> bool:
    """Whether a teacher returns an embedding, of pictures or of tokens, and no logits.

    Three signs count: timm's ``num_classes == 0``; a name that transformers gives to embeddings;
    and an output that comes from a normalisation, whereas a classifier's last layer with weights is
    linear or a convolution.

    Args:
        teacher: its model is run on a black picture, in eval mode.
        device: where the model is.

    Raises:
        TypeError: its output is not understood.
    """
    if getattr(teacher.model, "num_classes", None) == 0:
        return True
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            with torch.enable_grad():
                returned = teacher.run(teacher.black(device).requires_grad_())
                output = teacher.read(returned, device)
        except (RuntimeError, ValueError):  # a model that runs only without gradients, or by NumPy
            with torch.no_grad():
                return is_embedding(teacher.run(teacher.black(device)), teacher.output)
    return is_embedding(returned, teacher.output) or _last_weighted(output) == {"norm"}


def _last_weighted(output: Tensor) -> set[str]:
    """What kinds of layers with weights the output comes from, the nearest on each way back."""
    found: set[str] = set()
    waiting: list[Any] = [output.grad_fn]
    seen: set[Any] = set()
    while waiting and len(seen) < _NODES:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name()
        if name.startswith(_NORMS):
            found.add("norm")
        elif name.startswith(_WEIGHTED):
            found.add("weights")
        elif isinstance(node, BackwardCFunction):
            found.add("unknown")  # written in Python: nobody knows what it does
        else:
            waiting += [following for following, _ in node.next_functions]
    return found
