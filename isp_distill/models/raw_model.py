"""``RawModel``: a model that starts on the sensor's mosaic, called with the mosaic and its camera.

It hands the camera to the model's :class:`~isp_distill.models.stem.RawStem` beside each batch.
``rawify`` (rawify.py) makes one out of an RGB model.
"""

from __future__ import annotations

import contextlib
import math
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from isp_distill.isp.camera import ISP
from isp_distill.models.half_precision import explain_half_precision
from isp_distill.models.stem import RawStem, share_camera
from isp_distill.models.trained_view import StudentModule

GRIDS = ("packed", "sensor")


@dataclass(frozen=True)
class Takeover:
    """How :func:`isp_distill.rawify` took a model over.

    Attributes:
        form: "stem": the one convolution that reads the input became a RawStem; "stems": several
            did; "picture": one RawStem makes the picture, and the model is as it was.
        readers: every module that reads the model's input, and what it does with it.
        reason: why the picture is made; else empty.
    """

    form: str
    readers: tuple[str, ...]
    reason: str = ""


def _share_again(module: nn.Module, _: Any) -> None:
    # With assign=True a state dict brings new parameters, one for each stem.
    share_camera(cast(RawModel, module).stems)


class _Turns:
    """One thread at a time; a copy of a module, and a pickled one, have turns of their own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __deepcopy__(self, memo: Any) -> _Turns:
        return _Turns()

    def __reduce__(self) -> tuple[type[_Turns], tuple[()]]:
        return _Turns, ()

    def take(self) -> AbstractContextManager[Any]:
        """Wait for the others; nothing where a compiler looks on, which knows no threads."""
        return contextlib.nullcontext() if torch.compiler.is_compiling() else self._lock


class RawModel(StudentModule):
    """A model that starts with a :class:`RawStem`, called with the mosaic and its camera.

    Many models look at their input's shape before their first layer does (patch embeddings check
    it, segmentation heads return to it). So the model is called on a stand-in of the picture's
    shape, which holds no memory, and its RawStem reads the mosaic instead. Threads that call one
    model at once take turns.

    Args:
        model: any module with a RawStem in it, applied to the model's input itself; or with several
            that share one camera.
        grid: "packed" or "sensor": the picture that an H x W mosaic stands for is H/2 x W/2 or
            H x W.

    Attributes:
        takeover: how rawify made the model, if it did.
        made: the arguments of :func:`isp_distill.rawify` that make it again, if it did.

    Raises:
        ValueError: if there is no RawStem, or several that do not share gain, mix and gamma.

    Examples:
        >>> body = torch.nn.Sequential(isp_distill.RawStem(8, 3), torch.nn.AdaptiveAvgPool2d(1))
        >>> student = isp_distill.RawModel(body)
        >>> mosaic = torch.full((2, 64, 64), 500, dtype=torch.uint16)
        >>> student(mosaic, isp_distill.ISP(black=64, white=1023)).shape
        torch.Size([2, 8, 1, 1])
    """

    def __init__(self, model: nn.Module, grid: str = "packed") -> None:
        super().__init__()
        if grid not in GRIDS:
            raise ValueError(f"unknown grid {grid!r}: expected {' or '.join(GRIDS)}")
        self.model, self.grid = model, grid
        self._turns = _Turns()
        self.takeover: Takeover | None = None
        self.made: dict[str, Any] | None = None
        if len({id(stem.gain) for stem in self.stems}) != 1:
            raise ValueError(
                f"{type(model).__name__} must hold exactly one RawStem, or several of one camera: "
                "make it with rawify(model)"
            )
        # Untyped in torch, hence the ignore.
        self.register_load_state_dict_post_hook(_share_again)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        made = self.takeover
        if made is None:
            return f"grid={self.grid}"
        reason = f" ({made.reason})" if made.reason else ""
        return f"grid={self.grid}, takeover={made.form}{reason}"

    def settings(self) -> dict[str, Any]:
        """What picture a mosaic stands for."""
        return {"grid": self.grid}

    @property
    def stem(self) -> RawStem:
        """The model's RawStem; of several, the first."""
        return self.stems[0]

    @property
    def stems(self) -> list[RawStem]:
        """Every RawStem of the model. Several share gain, mix and gamma."""
        # As modules() does, which takes ten times as long, in every call.
        found: list[RawStem] = []
        seen: set[nn.Module] = set()
        ahead: list[nn.Module | None] = [self.model]
        while ahead:
            module = ahead.pop()
            if module is None or module in seen:
                continue
            seen.add(module)
            if isinstance(module, RawStem):
                found.append(module)
            ahead += [*module._modules.values()][::-1]
        return found

    def _apply(self, fn: Any, recurse: bool = True) -> RawModel:
        # Moving to another device may make new parameters, one for each stem.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in torch
        share_camera(self.stems)
        return self

    def calibrate(self, isp: ISP) -> None:
        """Keep one camera's settings, for calls that bring none: see :meth:`RawStem.calibrate`."""
        for stem in self.stems:
            stem.calibrate(isp)

    def forward(self, mosaic: Tensor, isp: ISP | None = None) -> Any:
        """What the model makes of ``[N, H, W]`` mosaics, with each sample's camera in ``isp``.

        Mosaics may be packed bytes, uint8 ``[N, H, bytes]``, and companded codes, where ``isp``
        says how, or the camera that was kept.

        Raises:
            TypeError: for anything but a tensor and an :class:`isp_distill.ISP`.
            ValueError: for mosaics of another size than :attr:`view`'s, or if there is neither a
                camera in ``isp`` nor one that was kept.
        """
        _check_input(mosaic, isp)
        self.check_size(mosaic, isp)
        with self._turns.take():
            return self._called(mosaic, isp)

    def sides(self, mosaic: Tensor, isp: ISP | None) -> tuple[int, int]:
        """Height and width of mosaics in pixels, also where they are packed."""
        return _sides(self.stem, mosaic, isp)

    def _called(self, mosaic: Tensor, isp: ISP | None) -> Any:
        stems = self.stems
        height, width = _sides(stems[0], mosaic, isp)
        if self.grid == "packed":
            height, width = height // 2, width // 2
        # Not a number: whoever else reads it is found out, where zeros would pass for a picture.
        stand_in = torch.full((), math.nan, dtype=stems[0].weight.dtype, device=mosaic.device)
        for stem in stems:
            stem.read_instead(mosaic, isp, (height, width))
        try:
            return self.model(stand_in.expand(mosaic.shape[0], 3, height, width))
        except RuntimeError as error:
            explain_half_precision(self, error)
            raise
        finally:
            for stem in stems:
                stem.read_input()


def _sides(stem: RawStem, mosaic: Tensor, isp: ISP | None) -> tuple[int, int]:
    _, width = stem.packing_of(mosaic, isp)
    return mosaic.shape[-2], mosaic.shape[-1] if width is None else width


def _check_input(mosaic: object, isp: object) -> None:
    """Refuse what is no mosaic and no camera, and say how they are had.

    Raises:
        TypeError: if one of them is not.
    """
    if not isinstance(mosaic, Tensor):
        raise TypeError(
            f"a student takes mosaics [N, H, W] as a tensor, not {type(mosaic).__name__}: of a "
            "RawImage, student(*isp_distill.cut_view(raw, student))"
        )
    if not (isp is None or isinstance(isp, ISP)):
        raise TypeError(
            f"a student takes its camera as an isp_distill.ISP, not {type(isp).__name__}: of a "
            "RawImage, isp_distill.ISP.from_raw(raw)"
        )
