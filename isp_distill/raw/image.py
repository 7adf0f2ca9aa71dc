"""A camera RAW file as numbers: the mosaic and what is needed to interpret it.

``read_raw`` decodes one file with LibRaw (through rawpy); ``upright`` and ``crop`` move the mosaic
and keep track of its colour filter. What LibRaw and the file's tags say is weighed in
``interpretation.py`` and ``metadata.py``. This module does not import torch: decode workers load it
on its own.
"""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rawpy

from isp_distill.errors import CorruptRawError
from isp_distill.files.ordinary import check_ordinary
from isp_distill.raw import fields as raw_fields
from isp_distill.raw import filters, framing, interpretation, metadata, rendition, tiff
from isp_distill.raw import refusals as raw_refusals
from isp_distill.raw.companding import Curve, curve_of
from isp_distill.raw.dng import levels as dng_levels
from isp_distill.raw.dng import lossless_jpeg, opcodes
from isp_distill.raw.filters import Matrix
from isp_distill.raw.gain_map import GainMap
from isp_distill.raw.metadata import SITE_PLANES, Blacks, Gains
from isp_distill.raw.pixels import Pixels
from isp_distill.raw.raw_input import Located, RawInput, located


@dataclass(frozen=True, eq=False)
class RawImage:
    """One mosaic and its metadata; ``read_raw`` makes it, of Bayer filters.

    Attributes:
        mosaic: uint16 [H, W], C-contiguous, H and W even: the visible area in raw units. Values
            below ``black`` and above ``white`` occur in real files. With ``packing`` the sensor's
            bytes instead, uint8 [H, bytes].
        pattern: colours of the first 2x2 of ``mosaic``, row by row: "RGGB", "BGGR", "GRBG", "GBRG",
            or those of another filter (RCCB, RCCG, RYYB, RYYCy, RGIrB, RIrGB and their other
            orders), or "mono": see :mod:`isp_distill.raw.filters`.
        black: black level of R, Gr, Gb, B in raw units; Gr is the green in a red row. One number
            stands for all four. Of another filter: the first colour, what is in its row, what is in
            its column, the last.
        white: level at which the sensor saturates, raw units, above every black level.
        white_balance: gains of R, G, B, green 1; one number stands for all three. Of another
            filter: of the first colour, those in the middle, and the last.
        ccm: 3x3, white-balanced camera RGB to linear sRGB; each row sums to 1. Of another filter
            its columns are the first, the doubled and the last colour, or all four (3x4). There is
            no default for those: None. Mono has three equal channels.
        orientation: EXIF orientation, 1..8; 1 is upright.
        camera: make and model; "" where the file does not say.
        exposure_time: seconds, or None.
        iso: ISO speed, or None.
        path: the file it came from; "" for a mosaic that came from none.
        default_crop: the part that the camera's own pictures show, within the mosaic: top, left,
            height, width; None where the file does not say.
        baseline_exposure: how much brighter than its white level says the maker wants the picture,
            in stops (the DNG's BaselineExposure).
        gain_map: the lens shading that the file asks to correct, or None. It is not applied to
            ``mosaic``.
        packing: how the codes lie in the bytes of a packed mosaic, see
            :mod:`isp_distill.raw.packings`; None, the usual case, for a mosaic of codes.
        packed_width: of a packed mosaic, its pixels in a row.
        linearise: of a companding sensor, what its codes mean: knots (code, value), or the values
            of the codes from 0 on; ``black`` and ``white`` are then linear values, of up to 24
            bits. A table of straight pieces is kept as their knots. None: codes are linear.

    Examples:
        >>> mosaic = np.full((64, 64), 600, dtype=np.uint16)
        >>> isp_distill.RawImage(mosaic, "RGGB", black=64, white=1023).black
        (64.0, 64.0, 64.0, 64.0)
    """

    mosaic: np.ndarray
    pattern: str
    black: Blacks
    white: float
    white_balance: Gains = (1.0, 1.0, 1.0)
    ccm: Matrix | None = None
    orientation: int = 1
    camera: str = ""
    exposure_time: float | None = None
    iso: float | None = None
    path: str = ""
    default_crop: tuple[int, int, int, int] | None = None
    baseline_exposure: float = 0.0
    gain_map: GainMap | None = None
    packing: str | None = None
    packed_width: int | None = None
    linearise: Curve | None = None

    def __post_init__(self) -> None:
        """Bring every field to its one form and refuse what no later stage can handle.

        A number stands for four black levels or three gains; lists and arrays become tuples, numpy
        scalars floats; a uint16 mosaic that is not contiguous, and a uint8 one, is copied.

        Raises:
            TypeError: a field is of a type that has no such meaning.
            ValueError: the mosaic is not an even-sized uint16 [H, W], nor the bytes of one whose
                packing and width are given, the pattern is unknown, a
                level, gain or matrix is not finite or has another length, white is not above every
                black level, the orientation is not 1..8, a mono sensor's sites differ, or
                ``linearise`` is no curve.
        """
        black = raw_fields.black_of(self.black)
        pattern = raw_fields.pattern_of(self.pattern)
        gains = raw_fields.white_balance_of(self.white_balance)
        if self.packing is None and self.packed_width is None:
            mosaic = raw_fields.mosaic_of(self.mosaic)
        else:
            given = self.mosaic, self.packing, self.packed_width
            mosaic = raw_fields.packed_mosaic_of(*given)
        crop = raw_fields.default_crop_of(self.default_crop)
        fields = {
            "linearise": curve_of(self.linearise),
            "mosaic": mosaic,
            "pattern": pattern,
            "black": black,
            "white": raw_fields.white_of(self.white, black),
            "white_balance": gains,
            "ccm": raw_fields.ccm_of(self.ccm, pattern),
            "orientation": raw_fields.orientation_of(self.orientation),
            "exposure_time": raw_fields.positive_or_none("exposure_time", self.exposure_time),
            "iso": raw_fields.positive_or_none("iso", self.iso),
            "path": os.fsdecode(self.path),
            "default_crop": crop and framing.checked_rectangle(crop, len(mosaic), self.width),
            "baseline_exposure": raw_fields.number("baseline_exposure", self.baseline_exposure),
        }
        maps = None if self.gain_map is None else self.gain_map.gains
        raw_fields.check_sites_alike(pattern, black, gains, maps)
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def height(self) -> int:
        """Rows of the mosaic."""
        return int(self.mosaic.shape[0])

    @property
    def width(self) -> int:
        """Columns of the mosaic, in pixels."""
        return int(self.mosaic.shape[1] if self.packed_width is None else self.packed_width)

    @property
    def pixels(self) -> Pixels:
        """The mosaic, and how it is packed: what cuts and turns it, see :class:`Pixels`."""
        return Pixels(self.mosaic, self.packing, self.width)

    def unpacked(self) -> RawImage:
        """The same image with a mosaic of codes, uint16 [H, W]; itself where it has one."""
        return self if self.packing is None else replace(self, **self.pixels.unpacked().fields())

    @property
    def black_per_site(self) -> np.ndarray:
        """Black levels, float64 [2, 2], by position in the first 2x2 of the mosaic."""
        planes = SITE_PLANES[self.pattern]
        return np.array([self.black[p] for p in planes], dtype=np.float64).reshape(2, 2)


def upright(raw: RawImage) -> RawImage:
    """Apply the orientation to the mosaic: flips and transposes only, no value changes.

    A flipped or transposed mosaic of even size is a mosaic with another pattern.
    Transposing turns red rows into red columns, so Gr and Gb exchange their black levels. Default
    crop and gain map turn with the mosaic. One that is packed stays so where rows alone change
    places.

    Args:
        raw: any image.

    Returns:
        The same picture with ``orientation`` 1; ``raw`` itself where it is upright already.

    Examples:
        >>> raw = isp_distill.read_raw("photos/new.dng")
        >>> raw.orientation, isp_distill.upright(raw).mosaic.shape
        (6, (128, 96))
    """
    if raw.orientation == 1:
        return raw
    pattern, black, ccm = raw.pattern, raw.black, raw.ccm
    pixels = raw.pixels
    gain_map = raw.gain_map
    # EXIF orientations as mirrored rows, then mirrored columns, then transposed (TIFF 6.0, tag
    # 274). An even size makes a mirror swap the two sites of a period.
    if raw.orientation in (3, 4, 6, 7):
        pixels, pattern = pixels.flipped(), filters.moved(pattern, 1, 0)
        gain_map = None if gain_map is None else gain_map.flipped(raw.height)
    if raw.orientation in (2, 3, 7, 8):
        pixels, pattern = pixels.mirrored(), filters.moved(pattern, 0, 1)
        gain_map = None if gain_map is None else gain_map.mirrored(raw.width)
    if raw.orientation >= 5:
        pixels, ccm = pixels.transposed(), filters.exchanged(ccm)
        pattern = filters.transposed(pattern)
        black = (black[0], black[2], black[1], black[3])
        gain_map = None if gain_map is None else gain_map.transposed()
    return replace(
        raw,
        **pixels.fields(),
        pattern=pattern,
        black=black,
        ccm=ccm,
        orientation=1,
        default_crop=framing.upright(raw.default_crop, raw.orientation, raw.height, raw.width),
        gain_map=gain_map,
    )


def crop(raw: RawImage, top: int, left: int, height: int, width: int) -> RawImage:
    """Cut a rectangle out of the mosaic as it is stored (before any orientation).

    An odd ``top`` or ``left`` changes the pattern, which is tracked; black levels belong to colours
    and stay. The gain map moves along, and so does the default crop where the rectangle holds all
    of it; else it is None. A packed mosaic stays packed where the rectangle begins with a whole
    group of pixels.

    Args:
        raw: any image.
        top: first row, 0 or more, odd ones too.
        left: first column, 0 or more, odd ones too.
        height: rows, even.
        width: columns, even.

    Returns:
        A copy; it does not keep the whole mosaic alive.

    Raises:
        ValueError: the rectangle has an odd or empty size, or leaves the mosaic.
    """
    if height < 2 or width < 2 or height % 2 or width % 2:
        raise ValueError(f"crop size must be even and at least 2x2, not {height}x{width}")
    if top < 0 or left < 0 or top + height > raw.height or left + width > raw.width:
        raise ValueError(
            f"crop of {height}x{width} at ({top}, {left}) leaves the mosaic "
            f"({raw.height}x{raw.width})"
        )
    return replace(
        raw,
        **raw.pixels.window(top, left, height, width).copied().fields(),
        pattern=filters.moved(raw.pattern, top, left),
        default_crop=framing.cropped(raw.default_crop, top, left, height, width),
        gain_map=None if raw.gain_map is None else raw.gain_map.cropped(top, left),
    )


def read_raw(path: RawInput) -> RawImage:
    """Decode a camera RAW file: DNG, CR2, CR3, NEF, ARW, RAF (Bayer) and what else LibRaw reads.

    The visible area is returned, an odd last row or column cropped. The orientation is reported,
    not applied (see :func:`upright`). Decoding runs LibRaw in this process; ``DecodePool`` does the
    same in processes that may die. With the extra ``fast`` the pixels of lossless-JPEG DNGs are
    decoded by libjpeg-turbo, to the same bits; ``ISP_DISTILL_DECODER=libraw`` turns that off.

    Args:
        path: the file; or its content as bytes; or a binary file that is open, which is read from
            where it stands to its end. The image's ``path`` is then "", or the open file's name.

    Returns:
        The mosaic and its metadata. A ``UserWarning`` names the file where the white balance, the
        colour matrix or the white level is missing and had to be assumed, and where a black level
        is a mean over levels that vary. A floating-point DNG has its white at 16383.

    Raises:
        UnsupportedRawError: the file is sound but holds no Bayer mosaic (X-Trans, Foveon,
            monochrome, demosaiced DNG, not RAW at all), or LibRaw cannot decode its compression.
        CorruptRawError: the file is damaged: truncated, zeroed, nonsense sizes, or a DNG with a
            tag that is there, is needed, and cannot be read; or it is a pipe or a device.
        OSError: the file cannot be opened (``FileNotFoundError``, ``PermissionError``, ...).
        TypeError: it is none of these, or a file that was opened as text.
        ValueError: it is bytes that are a path; or ``ISP_DISTILL_DECODER`` is no decoder's name.

    Examples:
        >>> raw = isp_distill.read_raw("photos/new.dng")
        >>> raw.mosaic.shape, raw.pattern, raw.white
        ((96, 128), 'GRBG', 16383.0)
        >>> with open("photos/new.dng", "rb") as file:
        ...     isp_distill.read_raw(file.read()).path
        ''
    """
    with located(path) as found:
        name = found.name
        check_ordinary(found.file, CorruptRawError)
        with open(found.file, "rb") as file:
            head = file.read(16)
            directories = tiff.read_directories(file)
            size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise CorruptRawError(name, "the file is empty; copy it again")
        if tiff.is_dng(directories):
            missing = tiff.missing_bytes(tiff.raw_directory(directories), size)
            if missing:
                raise CorruptRawError(
                    name,
                    f"truncated: {missing} bytes of pixel data are missing; copy the file again",
                )
        with rawpy.RawPy() as decoder:
            try:
                frame = lossless_jpeg.unpacked(decoder, found.file, directories)
                if frame is None:
                    _open(decoder, found.file)
                if tiff.is_dng(directories):
                    shape = (decoder.sizes.raw_height, decoder.sizes.raw_width)
                    dng_levels.check_tags(tiff.raw_directory(directories, shape), directories)
                raw_refusals.check_size(name, decoder)
                if frame is None:
                    decoder.unpack()
                return _interpret(found, decoder, head, directories, frame)
            except tiff.TagError as error:
                raise CorruptRawError(name, f"{error}; copy or convert the file again") from error
            except (rawpy.LibRawError, rawpy.NotSupportedError, MemoryError) as error:
                raise raw_refusals.explain(name, error, head, directories) from error


def _open(decoder: Any, name: str) -> None:
    """Give LibRaw the file: by name, since its stream from memory misses short truncations."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        # A name that is not valid UTF-8; rawpy can only pass on names that are.
        with open(name, "rb") as file:
            decoder.open_buffer(io.BytesIO(file.read()))
    else:
        decoder.open_file(name)


def _interpret(
    found: Located,
    decoder: Any,
    head: bytes,
    directories: list[tiff.Directory],
    frame: np.ndarray | None,
) -> RawImage:
    """The RawImage of an unpacked file; ``frame`` holds its pixels where LibRaw has none."""
    name = found.name
    colors, pattern = raw_refusals.bayer_of(name, decoder, head, directories)
    sizes = decoder.sizes
    dng = tiff.is_dng(directories)
    sensor = tiff.raw_directory(directories, (sizes.raw_height, sizes.raw_width)) if dng else {}
    mosaic, note = interpretation.mosaic_of(found, decoder, head, sensor, frame)
    notes = [note]
    peak = int(mosaic.max())
    if peak == 0:
        raise CorruptRawError(name, "every pixel is 0: the data was lost; copy the file again")
    black = metadata.black_of_libraw(decoder.black_level_per_channel, colors, pattern)
    if dng:
        black, note = interpretation.black_of_dng(sensor, sizes, pattern, black)
        notes.append(note)
    white, note = interpretation.white_of(decoder, sensor, black, peak)
    notes.append(note)
    if not 0 <= min(black) <= max(black) < white <= 65535:
        raise CorruptRawError(
            name, f"black levels {black} and white level {white:g} make no sense together"
        )
    balance, ccm, color_notes = interpretation.colors_of(decoder, directories)
    notes += color_notes
    camera = interpretation.camera_of(directories)
    try:
        wanted, wishes = rendition.rendition_of(
            name, sizes, directories, sensor, camera, pattern, mosaic.shape
        )
    except opcodes.OpcodeError as error:
        raise CorruptRawError(name, f"{error}; copy the file again") from error
    for note in (*notes, *wishes):
        if note:
            warnings.warn(f"{name}: {note}", stacklevel=3)
    exposure_time, iso = interpretation.exposure_of(decoder, directories)
    return RawImage(
        mosaic=mosaic,
        pattern=pattern,
        black=black,
        white=white,
        white_balance=balance,
        ccm=ccm,
        orientation=metadata.orientation_of(sizes.flip),
        camera=camera,
        exposure_time=exposure_time,
        iso=iso,
        path=found.path,
        **wanted,
    )
