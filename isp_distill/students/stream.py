"""``Stream``: the frames of one camera, one after another, through a student.

What is the same for every frame is done once: where the view lies, the camera's numbers, the
buffers. A frame is read where the driver has put it. Where nothing has to be binned or unpacked,
the student's first layer reads the driver's own memory.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from isp_distill.arguments import shown
from isp_distill.data.draw import FIXED_PLACES, Draw
from isp_distill.isp.camera import ISP
from isp_distill.models.output import read_output
from isp_distill.models.student import as_student
from isp_distill.models.trained_view import any_size, known_view
from isp_distill.raw.pixels import Pixels
from isp_distill.raw.sensor_format import SensorFormat
from isp_distill.students.description import description_of


class Stream:
    """A student on the frames of one camera.

    Args:
        student: a module; it is put into eval mode, and not moved.
        format: of the frames, upright (``orientation`` 1).
        crop: side of the mosaics that it sees; None: what it was trained at.
        binning: see :class:`isp_distill.View`; None: what it was trained at.

    Attributes:
        isp: the camera, which does not change; set another one for other gains.

    Raises:
        ValueError: for a student that was never trained, where ``crop`` is None, or a format that
            lies on its side.
        RawError: for frames that are too small for the crop.

    Examples:
        >>> form = isp_distill.SensorFormat(96, 64, "uint16", "RGGB", black=64, bits=10)
        >>> stream = isp_distill.Stream(isp_distill.rawify(model), form, crop=64)
        >>> frame = np.full((64, 96), 500, np.uint16)  # the driver's buffer
        >>> stream(frame).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        student: nn.Module,
        format: SensorFormat,
        *,
        crop: int | None = None,
        binning: int | None = None,
    ) -> None:
        if not isinstance(student, nn.Module):
            raise TypeError(f"student must be a module, not {type(student).__name__}")
        if format.orientation != 1:
            raise ValueError(
                f"the format's orientation is {format.orientation}: a stream takes frames as they "
                "are seen; turn the camera, or use predict, which turns each frame"
            )
        self.student = cast(nn.Module, as_student(student)).eval()
        self.format = format
        self.view = known_view(self.student, crop, binning)
        crop = self.view.crop
        described = description_of(self.student)
        self._reads = None if described is None else described.reads
        rows = format.height // format.block
        columns = format.width // format.block
        self._window = self.view.window(rows, columns, Draw(FIXED_PLACES[0]), "the stream's frames")
        self._factor = self._window[2] // crop
        blank = format.image(np.zeros((format.height, format.width), np.uint16))
        _, camera = self.view.cut_raw(blank, Draw(FIXED_PLACES[0]))
        first = next(self.student.parameters(), torch.empty(0))
        self._device = first.device
        self.isp = ISP.from_raw(camera).batched(1).to(self._device)
        self._binned = np.empty((crop, crop), np.float32)
        self._sums = np.empty((2, crop // 2, 2), np.uint32)
        self._tall = np.empty((2, self._window[3]), np.uint32)

    @torch.inference_mode()
    def __call__(self, frame: Any) -> Tensor:
        """The student's prediction for one frame: ``[1, C]``, or ``[1, C, h, w]`` of a dense one.

        Of a detector its heads, of which :func:`isp_distill.detection.detections` makes boxes.

        Args:
            frame: a frame's bytes (anything with the buffer protocol, such as a ``memoryview`` of
                the driver's memory), an array or a tensor (also by DLPack) of them, or of codes
                uint16 ``[height, width]``. It is read before the call returns, and not kept.

        Raises:
            TypeError: for anything else.
            ValueError: for a frame of another size.
        """
        mosaic = self._seen(self._pixels(frame))
        with any_size(self.student):
            returned = self.student(torch.from_numpy(mosaic)[None].to(self._device), self.isp)
        return read_output(returned, self._reads)

    def _pixels(self, frame: Any) -> Pixels:
        """A frame's pixels, in the memory that they lie in."""
        form = self.format
        if isinstance(frame, Tensor):
            array: np.ndarray[Any, Any] = frame.detach().cpu().numpy()
        elif isinstance(frame, np.ndarray):
            array = frame
        elif hasattr(frame, "__dlpack__"):
            array = torch.utils.dlpack.from_dlpack(frame).cpu().numpy()
        else:
            try:
                array = np.frombuffer(frame, np.uint8)
            except (TypeError, ValueError, BufferError) as error:
                raise TypeError(
                    f"a frame is bytes, an array or a tensor, not {shown(frame)} ({error})"
                ) from error
        if array.dtype == np.uint16 and array.shape == (form.height, form.width):
            return Pixels.of(array)
        assert form.stride is not None
        if array.dtype != np.uint8 or array.size != form.frame_bytes:
            raise ValueError(
                f"a frame of this format is uint8 of {form.frame_bytes} bytes, or codes uint16 "
                f"[{form.height}, {form.width}], got {array.dtype} {list(array.shape)}"
            )
        rows = array.reshape(form.height, form.stride)
        if form.packing == "uint16" and form.byte_order == "little" and form.shift == 0:
            return Pixels.of(rows[:, : 2 * form.width].view("<u2"))
        if form.keeps_bytes:
            return Pixels(rows, form.packing, form.width)
        return Pixels.of(form.codes(rows))

    def _seen(self, pixels: Pixels) -> np.ndarray[Any, Any]:
        """The view of a frame: a part of its own memory, or binned into the stream's buffer."""
        top, left, height, width = self._window
        if self.format.block > 1:
            image = self.format.image(pixels)
            return self.view.cut_raw(image, Draw(FIXED_PLACES[0]))[0]
        window = pixels.window(top, left, height, width)
        if self._factor == 1:
            self._say_packing(window)
            return window.array
        self._say_packing(None)
        self._bin(window.codes)
        return self._binned

    def _say_packing(self, window: Pixels | None) -> None:
        packing = None if window is None else window.packing
        if packing != self.isp.packing:
            width = None if window is None or packing is None else window.width
            self.isp = self.isp.replace(packing=packing, width=width)

    def _bin(self, codes: np.ndarray[Any, Any]) -> None:
        """Average blocks into the buffer, as :func:`isp_distill.bin_mosaic` does."""
        factor, crop = self._factor, self.view.crop
        for row in range(0, crop, 2):
            band = codes[factor * row : factor * (row + 2)]
            np.sum(band.reshape(factor, 2, -1), axis=0, dtype=np.uint32, out=self._tall)
            tall = self._tall.reshape(2, crop // 2, factor, 2)
            np.sum(tall, axis=2, out=self._sums)
            self._binned[row : row + 2] = self._sums.reshape(2, crop)
        np.divide(self._binned, np.float32(factor * factor), out=self._binned)
        np.rint(self._binned, out=self._binned)
