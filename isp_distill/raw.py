"""A camera RAW file as numbers: the Bayer mosaic and what is needed to interpret it.

``read_raw`` decodes one file with LibRaw (through rawpy); ``upright`` and ``crop`` move the mosaic
and keep track of its colour filter. What the file's metadata means is decided in
``raw_metadata.py``. This module does not import torch: decode workers load it on its own.
"""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rawpy

from . import dng_color, dng_float, dng_levels, raw_metadata, tiff
from .errors import CorruptRawError, UnsupportedRawError
from .gain_map import GainMap
from .raw_metadata import PATTERNS, SITE_PLANES, Blacks, Gains, Matrix

#: Refuse headers that promise more than this. The largest Bayer mosaics have about 250 megapixels;
#: a damaged width or height easily reaches 4,000.
MAX_PIXELS = 512_000_000


@dataclass(frozen=True, eq=False)
class RawImage:
    """One Bayer mosaic and its metadata; ``read_raw`` makes it.

    Attributes:
        mosaic: uint16 [H, W], C-contiguous, H and W even: the visible area in raw units. Values
            below ``black`` and above ``white`` occur in real files.
        pattern: colours of the first 2x2 of ``mosaic``, row by row: "RGGB", "BGGR", "GRBG", "GBRG".
        black: black level of R, Gr, Gb, B in raw units; Gr is the green in a red row.
        white: level at which the sensor saturates, raw units, above every black level.
        white_balance: gains of R, G, B, green 1.
        ccm: 3x3, white-balanced camera RGB to linear sRGB; each row sums to 1.
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
    """

    mosaic: np.ndarray
    pattern: str
    black: Blacks
    white: float
    white_balance: Gains = (1.0, 1.0, 1.0)
    ccm: Matrix = raw_metadata.IDENTITY
    orientation: int = 1
    camera: str = ""
    exposure_time: float | None = None
    iso: float | None = None
    path: str = ""
    default_crop: tuple[int, int, int, int] | None = None
    baseline_exposure: float = 0.0
    gain_map: GainMap | None = None

    def __post_init__(self) -> None:
        """Refuse what no later stage can handle.

        Raises:
            ValueError: the mosaic is not an even-sized C-contiguous uint16 [H, W], the pattern is
                not Bayer, or the orientation is not 1..8.
        """
        m = self.mosaic
        if m.ndim != 2 or m.dtype != np.uint16 or not m.flags.c_contiguous:
            raise ValueError(
                f"mosaic must be C-contiguous uint16 [H, W], not {m.dtype} {list(m.shape)}; "
                "use np.ascontiguousarray(mosaic, dtype=np.uint16)"
            )
        if min(m.shape) < 2 or m.shape[0] % 2 or m.shape[1] % 2:
            raise ValueError(
                f"mosaic height and width must be even, at least 2, not {list(m.shape)}; "
                "crop the last row or column"
            )
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}, not {self.pattern!r}")
        if self.orientation not in range(1, 9):
            raise ValueError(f"orientation must be an EXIF one, 1..8, not {self.orientation!r}")

    @property
    def height(self) -> int:
        """Rows of the mosaic."""
        return int(self.mosaic.shape[0])

    @property
    def width(self) -> int:
        """Columns of the mosaic."""
        return int(self.mosaic.shape[1])

    @property
    def black_per_site(self) -> np.ndarray:
        """Black levels, float64 [2, 2], by position in the first 2x2 of the mosaic."""
        planes = SITE_PLANES[self.pattern]
        return np.array([self.black[p] for p in planes], dtype=np.float64).reshape(2, 2)


def upright(raw: RawImage) -> RawImage:
    """Apply the orientation to the mosaic: flips and transposes only, no value changes.

    A flipped or transposed Bayer mosaic of even size is a Bayer mosaic with another pattern.
    Transposing turns red rows into red columns, so Gr and Gb exchange their black levels.

    Args:
        raw: any image.

    Returns:
        The same picture with ``orientation`` 1; ``raw`` itself where it is upright already.
    """
    if raw.orientation == 1:
        return raw
    red = PATTERNS.index(raw.pattern)
    black = raw.black
    mosaic = raw.mosaic
    # EXIF orientations as mirrored rows, then mirrored columns, then transposed (TIFF 6.0, tag
    # 274). An even size makes a mirror swap the two sites of a period.
    if raw.orientation in (3, 4, 6, 7):
        mosaic, red = mosaic[::-1], red ^ 2
    if raw.orientation in (2, 3, 7, 8):
        mosaic, red = mosaic[:, ::-1], red ^ 1
    if raw.orientation >= 5:
        mosaic, red = mosaic.T, (0, 2, 1, 3)[red]
        black = (black[0], black[2], black[1], black[3])
    return replace(
        raw,
        mosaic=np.ascontiguousarray(mosaic),
        pattern=PATTERNS[red],
        black=black,
        orientation=1,
    )


def crop(raw: RawImage, top: int, left: int, height: int, width: int) -> RawImage:
    """Cut a rectangle out of the mosaic as it is stored (before any orientation).

    An odd ``top`` or ``left`` changes the pattern, which is tracked; black levels belong to colours
    and stay.

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
    red = PATTERNS.index(raw.pattern) ^ (top % 2 * 2 + left % 2)
    return replace(
        raw,
        mosaic=raw.mosaic[top : top + height, left : left + width].copy(),
        pattern=PATTERNS[red],
    )


def read_raw(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> RawImage:
    """Decode a camera RAW file: DNG, CR2, CR3, NEF, ARW, RAF (Bayer) and what else LibRaw reads.

    The visible area is returned, an odd last row or column cropped. The orientation is reported,
    not applied (see :func:`upright`). Decoding runs LibRaw in this process; ``DecodePool`` does the
    same in processes that may die.

    Args:
        path: the file.

    Returns:
        The mosaic and its metadata. A ``UserWarning`` names the file where the white balance, the
        colour matrix or the white level is missing and had to be assumed, and where a black level
        is a mean over levels that vary. A floating-point DNG has its white at 16383.

    Raises:
        UnsupportedRawError: the file is sound but holds no Bayer mosaic (X-Trans, Foveon,
            monochrome, demosaiced DNG, not RAW at all), or LibRaw cannot decode its compression.
        CorruptRawError: the file is damaged: truncated, zeroed, nonsense sizes, or a DNG with a
            tag that is there, is needed, and cannot be read.
        OSError: the file cannot be opened (``FileNotFoundError``, ``PermissionError``, ...).
    """
    name = os.fsdecode(path)
    with open(name, "rb") as file:
        head = file.read(16)
        directories = tiff.read_directories(file)
        size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise CorruptRawError(name, "the file is empty; copy it again")
    if tiff.is_dng(directories):
        missing = tiff.missing_bytes(tiff.raw_directory(directories), size)
        if missing:
            raise CorruptRawError(
                name, f"truncated: {missing} bytes of pixel data are missing; copy the file again"
            )
    with rawpy.RawPy() as decoder:
        try:
            _open(decoder, name)
            _check_size(name, decoder)
            if tiff.is_dng(directories):
                shape = (decoder.sizes.raw_height, decoder.sizes.raw_width)
                dng_levels.check_tags(tiff.raw_directory(directories, shape), directories)
            decoder.unpack()
            return _interpret(name, decoder, head, directories)
        except tiff.TagError as error:
            raise CorruptRawError(name, f"{error}; copy or convert the file again") from error
        except (rawpy.LibRawError, rawpy.NotSupportedError, MemoryError) as error:
            raise _explain(name, error, head, directories) from error


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


def _check_size(name: str, decoder: Any) -> None:
    """Refuse absurd sizes before LibRaw allocates them."""
    sizes = decoder.sizes
    pixels = sizes.raw_height * sizes.raw_width
    if pixels > MAX_PIXELS:
        raise CorruptRawError(
            name,
            f"the header claims {sizes.raw_width} x {sizes.raw_height} pixels, more than the "
            f"{MAX_PIXELS} any sensor has; copy the file again",
        )
    if (
        sizes.height < 2
        or sizes.width < 2
        or sizes.top_margin + sizes.height > sizes.raw_height
        or sizes.left_margin + sizes.width > sizes.raw_width
    ):
        raise CorruptRawError(
            name,
            f"the visible area, {sizes.width} x {sizes.height} at ({sizes.left_margin}, "
            f"{sizes.top_margin}), is not inside the sensor's {sizes.raw_width} x "
            f"{sizes.raw_height} pixels; copy the file again",
        )


def _interpret(name: str, decoder: Any, head: bytes, directories: list[tiff.Directory]) -> RawImage:
    """The RawImage of an unpacked file."""
    colors, pattern = _bayer(name, decoder, head, directories)
    sizes = decoder.sizes
    dng = tiff.is_dng(directories)
    sensor = tiff.raw_directory(directories, (sizes.raw_height, sizes.raw_width)) if dng else {}
    floating = dng_float.is_float(sensor)
    if floating:
        mosaic, float_note = _float_mosaic(name, sizes, head, sensor)
    else:
        visible = decoder.raw_image_visible
        # A copy, because LibRaw frees its memory with the decoder.
        mosaic = np.array(visible[: sizes.height // 2 * 2, : sizes.width // 2 * 2], order="C")
        float_note = None
    peak = int(mosaic.max())
    if peak == 0:
        raise CorruptRawError(name, "every pixel is 0: the data was lost; copy the file again")

    black = raw_metadata.black_of_libraw(decoder.black_level_per_channel, colors, pattern)
    black_note = None
    if dng:
        if floating:
            black = (0.0, 0.0, 0.0, 0.0)
        black, black_note = dng_levels.black_of_dng(
            sensor, sizes.top_margin, sizes.left_margin, pattern, black
        )
    if floating:
        scale = dng_float.scale_of(sensor)
        black = (black[0] * scale, black[1] * scale, black[2] * scale, black[3] * scale)
        white, white_note = dng_float.WHITE, None
    else:
        white, white_note = raw_metadata.white_of(
            decoder.white_level, decoder.camera_white_level_per_channel, black, peak
        )
    if not 0 <= min(black) <= max(black) < white <= 65535:
        raise CorruptRawError(
            name, f"black levels {black} and white level {white:g} make no sense together"
        )
    profile = dng_color.colors_of(directories if dng else [])
    neutral = dng_color.as_shot_neutral(directories, profile) if dng else None
    balance, balance_note = raw_metadata.white_balance_of(
        decoder.camera_whitebalance, neutral, decoder.daylight_whitebalance
    )
    ccm, ccm_note = None, None
    if profile.interpolates() and balance_note is None:
        ccm = dng_color.camera_to_srgb_under(profile, [1 / gain for gain in balance])
    if ccm is None:
        ccm, ccm_note = raw_metadata.ccm_of(profile.daylight(), decoder.rgb_xyz_matrix)
    for note in (float_note, black_note, white_note, balance_note, ccm_note):
        if note:
            warnings.warn(f"{name}: {note}", stacklevel=3)
    exposure_time, iso = _exposure(decoder, directories)
    return RawImage(
        mosaic=mosaic,
        pattern=pattern,
        black=black,
        white=white,
        white_balance=balance,
        ccm=ccm,
        orientation=raw_metadata.orientation_of(sizes.flip),
        camera=_camera(directories),
        exposure_time=exposure_time,
        iso=iso,
        path=name,
    )


def _float_mosaic(
    name: str, sizes: Any, head: bytes, sensor: tiff.Directory
) -> tuple[np.ndarray, str | None]:
    """The visible area of a floating-point DNG, uint16, and a warning where it was cut."""
    order = "<" if head[:2] == b"II" else ">"
    scale = dng_float.scale_of(sensor)
    try:
        with open(name, "rb") as file:
            samples = dng_float.read_samples(file, sensor, order)
    except dng_float.UnknownEncodingError as error:
        raise UnsupportedRawError(
            name, f"{error} are not read here; convert it to a 16-bit integer or uncompressed DNG"
        ) from error
    if samples.shape != (sizes.raw_height, sizes.raw_width):
        raise CorruptRawError(
            name,
            f"its floating-point samples are {list(samples.shape)} where LibRaw finds "
            f"[{sizes.raw_height}, {sizes.raw_width}]; convert the file again",
        )
    top, left = sizes.top_margin, sizes.left_margin
    bottom, right = top + sizes.height // 2 * 2, left + sizes.width // 2 * 2
    return dng_float.mosaic_of(samples[top:bottom, left:right], scale)


def _bayer(
    name: str, decoder: Any, head: bytes, directories: list[tiff.Directory]
) -> tuple[list[int], str]:
    """LibRaw's colour indices of the visible area's first 2x2, and their pattern.

    Raises:
        UnsupportedRawError: the sensor data is not a Bayer mosaic; the message says what it is.
    """
    advice = "isp-distill reads Bayer mosaics only"
    if decoder.raw_type != rawpy.RawType.Flat or decoder.raw_image_visible is None:
        if head.startswith(b"FOVb"):
            raise UnsupportedRawError(name, f"a Foveon sensor has no mosaic; {advice}")
        raise UnsupportedRawError(
            name,
            "the data is already demosaiced (linear DNG, sRAW or similar); "
            f"{advice}, convert from the original RAW",
        )
    monochrome = tiff.integers(tiff.raw_directory(directories), tiff.PHOTOMETRIC) == (
        tiff.PHOTOMETRIC_LINEAR_RAW,
    )
    if decoder.num_colors == 1 or monochrome:
        raise UnsupportedRawError(name, f"a monochrome sensor has no colour filter; {advice}")
    try:
        period = decoder.raw_pattern
    except NotImplementedError as error:  # rawpy: a filter code that is none it knows
        raise UnsupportedRawError(name, f"unknown colour filter ({error}); {advice}") from error
    if period is not None and period.shape == (6, 6):
        raise UnsupportedRawError(name, f"the sensor is X-Trans (6x6 colour filter); {advice}")
    top, left = decoder.sizes.top_margin, decoder.sizes.left_margin
    # 8x8 tells a Bayer filter from the longer periods that begin like one.
    sites = [[decoder.raw_color(top + y, left + x) for x in range(8)] for y in range(8)]
    colors = [*sites[0][:2], *sites[1][:2]]
    description = decoder.color_desc.decode("ascii", "replace")
    pattern = raw_metadata.pattern_of(colors, description)
    if (
        decoder.num_colors != 3
        or pattern is None
        or np.any(np.array(sites) != np.tile(np.array(colors).reshape(2, 2), (4, 4)))
    ):
        letters = [description[c] if 0 <= c < len(description) else "?" for c in colors]
        raise UnsupportedRawError(
            name,
            f"the colour filter begins {''.join(letters)} with {decoder.num_colors} colours "
            f"and is not Bayer; {advice}",
        )
    return colors, pattern


def _camera(directories: list[tiff.Directory]) -> str:
    """Make and model as one string, without the make said twice; "" where unknown."""
    make, model = (tiff.find_text(directories, t) for t in (tiff.MAKE, tiff.MODEL))
    if not model:
        return tiff.find_text(directories, tiff.UNIQUE_CAMERA_MODEL) or make
    return model if model.lower().startswith(make.lower()) else f"{make} {model}"


def _exposure(decoder: Any, directories: list[tiff.Directory]) -> tuple[float | None, float | None]:
    """Exposure time (seconds) and ISO speed: from the tags, else from LibRaw's float32 copy.

    An ISO tag of 65535 means "more than 16 bits" (EXIF 2.3, ISOSpeedRatings): the number is in the
    tag of the kind that SensitivityType names, else LibRaw may know it from the maker's notes.
    """
    other = getattr(decoder, "other", None)
    seconds = (tiff.find(directories, tiff.EXPOSURE_TIME) or (0.0,))[0]
    seconds = seconds or float(getattr(other, "shutter_speed", 0.0) or 0.0)
    iso = (tiff.find(directories, tiff.ISO_SPEED) or (0.0,))[0]
    if iso in (0, 65535):
        long_tags = (
            tiff.RECOMMENDED_EXPOSURE_INDEX,
            tiff.STANDARD_OUTPUT_SENSITIVITY,
            tiff.ISO_SPEED_LONG,
        )
        if (tiff.find(directories, tiff.SENSITIVITY_TYPE) or (0,))[0] in (1, 5):
            long_tags = (long_tags[1], long_tags[0], long_tags[2])
        known = [(tiff.find(directories, tag) or (0.0,))[0] for tag in long_tags]
        known.append(float(getattr(other, "iso_speed", 0.0) or 0.0))
        iso = next((v for v in known if 0 < v < float("inf")), iso)
    return (
        float(seconds) if 0 < seconds < float("inf") else None,
        float(iso) if 0 < iso < float("inf") else None,
    )


def _explain(
    name: str, error: Exception, head: bytes, directories: list[tiff.Directory]
) -> CorruptRawError | UnsupportedRawError:
    """The error a user can act on, from LibRaw's."""
    said = error.args[0] if error.args else ""
    words = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    memory = (
        rawpy.LibRawUnsufficientMemoryError,
        rawpy.LibRawMemPoolOverflowError,
        rawpy.LibRawTooBigError,
        MemoryError,
    )
    if isinstance(error, memory):
        return CorruptRawError(
            name,
            "decoding it needs more memory than allowed: a damaged size, or raise the memory limit",
        )
    unsupported = isinstance(error, (rawpy.LibRawFileUnsupportedError, rawpy.NotSupportedError))
    if tiff.is_dng(directories):
        directory = tiff.raw_directory(directories)
        method = (*tiff.integers(directory, tiff.COMPRESSION), 1)[0]
        # Deflate with integer samples: LibRaw takes it up, then calls the data corrupted.
        deflated = method in (8, 32946) and tiff.integers(directory, tiff.SAMPLE_FORMAT) != (3,)
        if deflated or (unsupported and method not in (1, 7)):
            return UnsupportedRawError(
                name,
                f"LibRaw does not read DNG compression {method} here; "
                "convert the file to an uncompressed or lossless-JPEG DNG",
            )
        if unsupported:
            return CorruptRawError(
                name, "its DNG header makes no sense to LibRaw; copy the file again"
            )
    if not unsupported:
        return CorruptRawError(name, f"LibRaw could not decode it ({words}); copy the file again")
    if not any(head):
        return CorruptRawError(name, "it begins with zeros: the data was lost; copy it again")
    for magic, kind in (
        (b"\xff\xd8\xff", "a JPEG"),
        (b"\x89PNG", "a PNG"),
        (b"II*\0", "a TIFF without sensor data"),
        (b"MM\0*", "a TIFF without sensor data"),
    ):
        if head.startswith(magic):
            return UnsupportedRawError(name, f"it is {kind}, not a RAW file, whatever its name")
    return UnsupportedRawError(name, f"LibRaw knows no such RAW format (it begins {head[:4]!r})")
