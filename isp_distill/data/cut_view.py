"""``cut_view``: what a student sees of RAW files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isp_distill.data.draw import FIXED_PLACES, Draw
from isp_distill.data.stacking import stacked
from isp_distill.data.views import View
from isp_distill.isp.camera import ISP
from isp_distill.raw.image import RawImage, upright


def trained_view(student: object) -> View | None:
    """The view that a student was trained at, in whichever of its modules; None if in none."""
    modules = student.modules() if isinstance(student, nn.Module) else ()
    views = (getattr(module, "view", None) for module in modules)
    return next((view for view in views if isinstance(view, View)), None)


def cut_view(raw: RawImage | Sequence[RawImage], view: nn.Module | View) -> tuple[Tensor, ISP]:
    """What a student sees of RAW files: turned upright, binned, and cut around the middle.

    Exactly the views of :func:`isp_distill.evaluate`, so ``student(*cut_view(raw, student))`` is
    a trained student as it was measured.

    Args:
        raw: what :func:`isp_distill.read_raw` returned, or a list of such, of any sizes.
        view: a student that :func:`isp_distill.train` trained, or that loaded the weights of one;
            or a :class:`View`, of which ``crop`` and ``binning`` count.

    Returns:
        The mosaics, uint16 ``[N, crop, crop]`` in sensor units, and their cameras; on the student's
        device where one is given, else on the CPU. Of packed images the mosaics stay packed where
        the view begins with a whole group of pixels and is not binned: ``packing`` and ``width`` of
        the ISP then say how, and students and :func:`isp_distill.render` read them so.

    Raises:
        ValueError: for an empty list, or a student that was never trained and so knows no view.
        TypeError: if ``raw`` is no RAW image, or ``view`` neither a student nor a view.
        RawError: if a mosaic is too small for the crop.

    Examples:
        >>> student = isp_distill.rawify(model)
        >>> raw = isp_distill.read_raw("photos/new.dng")
        >>> student(*isp_distill.cut_view(raw, isp_distill.View(64))).shape
        torch.Size([1, 4])
    """
    device = torch.device("cpu")
    chosen: View | None
    if isinstance(view, nn.Module):
        chosen = trained_view(view)
        device = next((p.device for p in view.parameters()), device)
        if chosen is None:
            raise ValueError(
                f"this {type(view).__name__} knows no view, since train() never trained it: give "
                "the view itself, as in cut_view(raw, isp_distill.View(448))"
            )
    elif isinstance(view, View):
        chosen = view
    else:
        raise TypeError(f"view must be a trained student or a View, not {type(view).__name__}")
    raws = [raw] if isinstance(raw, RawImage) else list(raw)
    if not raws:
        raise ValueError("cut_view: the list of RAW images is empty")
    for one in raws:
        if not isinstance(one, RawImage):
            raise TypeError(f"cut_view takes RawImages (read_raw), not {type(one).__name__}")
    middle = View(chosen.crop, chosen.binning)
    cut = [middle.cut_raw(upright(one), Draw(FIXED_PLACES[0]), packed=True) for one in raws]
    mosaics, isp = stacked(*zip(*cut, strict=True))
    return mosaics.to(device), isp.to(device)
