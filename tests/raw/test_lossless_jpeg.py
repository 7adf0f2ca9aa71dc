"""Lossless-JPEG DNGs by libjpeg-turbo: LibRaw's bits and its errors."""

from __future__ import annotations

import random
import struct
import sys
import warnings

import dng_bytes
import lossless_jpeg as cases
import numpy as np
import pytest
import rawpy
from dng_bytes import BYTE, LONG, SHORT, Tag
from fetched import colorchart
from fuzz.mutations import damaged_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

import isp_distill
from isp_distill.errors import CorruptRawError, RawError
from isp_distill.raw import tiff
from isp_distill.raw.decoding.pool import DecodePool
from isp_distill.raw.dng import lossless_jpeg
from isp_distill.raw.image import read_raw

pytest.importorskip("imagecodecs", reason="what decodes here: the extra named fast")
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")


@pytest.fixture(autouse=True)
def _the_default(monkeypatch):
    monkeypatch.delenv(lossless_jpeg.ENVIRONMENT, raising=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.dng"


class Took:
    """Reads a file both ways, and knows which one the first took."""

    def __init__(self, path):
        self.path, self.fast = path, None
        unpacked = lossless_jpeg.unpacked

        def spy(*arguments):
            frame = unpacked(*arguments)
            self.fast = frame is not None
            return frame

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lossless_jpeg, "unpacked", spy)
            self.ours = outcome(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(lossless_jpeg.ENVIRONMENT, "libraw")
            self.libraw = outcome(path)


def outcome(path):
    """What reading gives: every field and the warnings, or the kind of error and its words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fields = dict(vars(read_raw(path)))
        except RawError as error:
            return type(error), error.reason
    fields["mosaic"] = (fields["mosaic"].shape, fields["mosaic"].tobytes())
    return fields, [str(w.message) for w in caught]


def noise(height, width, bits, seed=0):
    """Black to white, with steps of every size."""
    draw = np.random.default_rng(seed)
    steps = draw.integers(0, 1 << draw.integers(0, bits + 1, (height, width)))
    return (steps % (1 << bits)).astype(np.uint16)


def walk(height, width, bits=12, seed=0):
    """As a photograph: small steps."""
    draw = np.random.default_rng(seed)
    steps = draw.integers(-9, 10, (height, width)).cumsum(axis=1)
    return np.clip(steps + (1 << bits) // 3, 1, (1 << bits) - 1).astype(np.uint16)


@st.composite
def files(draw):
    """A mosaic and how it is stored."""
    components = draw(st.sampled_from((1, 2)))
    # LibRaw wants 22 rows and columns inside the margins.
    height, width = draw(st.integers(26, 70)), draw(st.integers(14, 40)) * 2
    bits = draw(st.integers(8, 16))
    tile = None
    if draw(st.booleans()):
        tile = draw(st.integers(1, height + 40)), draw(st.integers(8, width // 2)) * 2
    top, left = draw(st.sampled_from(((0, 0), (2, 4), (1, 0), (0, 3))))
    area = Tag(LONG, [top, left, height, width])
    return {
        "mosaic": noise(height, width, bits, draw(st.integers(0, 99))),
        "bits": bits,
        "tile": tile,
        "tags": {50829: area, 50717: Tag(LONG, (1 << bits) - 1)},
        "components": components,
        "tables": draw(st.integers(1, components)),
        "predictor": draw(st.integers(1, 7)),
        "lengths": draw(st.sampled_from((cases.EVEN, cases.STEEP))),
        "symbols": draw(st.permutations(range(17))),
    }


@settings(deadline=None, max_examples=150)
@given(files())
def test_the_same_bits_and_metadata(tmp_path_factory, file):
    path = cases.write(tmp_path_factory.mktemp("dng") / "a.dng", **file)
    took = Took(path)
    assert took.ours == took.libraw
    width, tile = file["mosaic"].shape[1], file["tile"]
    # LibRaw reads every other pixel of these; see _decoded.
    mangled = file["components"] == 2 and tile is not None and 2 * tile[1] == width
    assert took.fast is not mangled


@pytest.mark.parametrize("shape", [(32, 96), (64, 48), (128, 24)])
@pytest.mark.parametrize("components", [1, 2])
def test_a_stream_of_other_proportions(path, shape, components):
    # Some cameras code two rows as one.
    mosaic = walk(64, 48)
    stream = cases.encode(mosaic.reshape(shape), 12, components=components, predictor=6)
    dng_bytes.write(path, cases.directory(mosaic, 12, [stream]))
    took = Took(path)
    assert took.ours == took.libraw
    assert took.fast is (components == 1 or shape[1] * 2 != 48)
    if took.fast:
        assert (read_raw(path).mosaic == mosaic).all()


FOREIGN = {
    "a linearisation table": {50712: Tag(SHORT, list(range(0, 8192, 2)))},
    "masked areas": {50830: Tag(LONG, [0, 0, 40, 8]), 50829: Tag(LONG, [0, 8, 40, 48])},
    "another order of colours": {50710: Tag(BYTE, [1, 0, 2])},
    "colours as undefined bytes that are no Bayer filter": {33422: Tag(7, b"\0\1\1\3")},
    "a filter of 2 x 3": {33421: Tag(SHORT, [2, 3])},
    "a Fuji layout": {50711: Tag(SHORT, 2)},
    "sub-tile blocks": {50974: Tag(LONG, [2, 2])},
    "rows interleaved": {50975: Tag(SHORT, 2)},
    "planes": {284: Tag(SHORT, 2)},
    "a predictor of TIFF": {317: Tag(SHORT, 2)},
    "bits the other way round": {266: Tag(SHORT, 2)},
    "no length": {257: None},
    "a width of text": {256: Tag(2, b"many\0")},
    "no counts": {279: None},
    "another version": {50706: Tag(BYTE, [1, 0, 0, 0])},
    "an unreadable version": {50706: Tag(99, [1])},
}


@pytest.mark.parametrize("tags", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_plain_is_left_to_libraw(path, tags):
    camera = {**dng_bytes.CAMERA, **{t: v for t, v in tags.items() if t == 50706}}
    mosaic = walk(40, 48)
    if 50706 in tags and tags[50706].kind == 99:
        camera[50706] = Tag(BYTE, [1, 4, 0, 0], count=0)
    stream = cases.encode(mosaic, 12)
    dng_bytes.write(path, cases.directory(mosaic, 12, [stream], tags=tags), camera=camera)
    took = Took(path)
    assert took.fast is not True
    assert took.ours == took.libraw


def test_colours_as_undefined_bytes_are_plain(path):
    cases.write(path, walk(40, 48), 12, tags={33422: Tag(7, b"\2\1\1\0")})
    took = Took(path)
    assert took.fast is True
    assert took.ours == took.libraw
    assert read_raw(path).pattern == "BGGR"


def test_a_second_frame_is_left_to_libraw(path):
    mosaic = walk(40, 48)
    frame = cases.directory(mosaic, 12, [cases.encode(mosaic, 12)])
    dng_bytes.write(path, frame, cases.directory(mosaic, 12, [cases.encode(mosaic[::-1], 12)]))
    took = Took(path)
    assert took.fast is not True
    assert took.ours == took.libraw


RESTARTS = b"\xff\xdd\0\4" + struct.pack(">H", 60000)
STREAMS = {
    "restarts": lambda mosaic: cases.encode(mosaic, 12, extra=RESTARTS),
    "a quantisation table": lambda mosaic: cases.encode(mosaic, 12, extra=b"\xff\xdb\0\3\0"),
    "three components": lambda mosaic: cases.encode(mosaic, 12, components=3),
    "a point transform": lambda mosaic: cases.encode(mosaic, 12).replace(
        b"\1\0\0\1\0\0", b"\1\0\0\1\0\1"
    ),
    "no predictor": lambda mosaic: cases.encode(mosaic, 12).replace(
        b"\1\0\0\1\0\0", b"\1\0\0\0\0\0"
    ),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_streams_that_are_not_plain_are_left_to_libraw(path, stream):
    mosaic = walk(40, 48)
    dng_bytes.write(path, cases.directory(mosaic, 12, [stream(mosaic)]))
    took = Took(path)
    assert took.fast is False
    assert took.ours == took.libraw


HALF = {
    "another size": lambda mosaic: cases.encode(mosaic[:-2], 12),
    "a baseline JPEG": lambda mosaic: cases.encode(mosaic, 12).replace(b"\xff\xc3", b"\xff\xc0"),
    "no JPEG": lambda mosaic: b"\0" * 4000,
    "nothing": lambda mosaic: b"",
}


ODD = {
    "two samples": {277: Tag(SHORT, 2)},
    "both strips and tiles": {324: Tag(LONG, 8), 325: Tag(LONG, 9), 322: Tag(LONG, 16)},
}


@pytest.mark.parametrize("tags", ODD.values(), ids=ODD)
def test_odd_tags_are_left_to_libraw(path, tags):
    mosaic = walk(40, 48)
    cases.write(path, mosaic, 12, tags=tags)
    assert Took(path).fast is not True


@pytest.mark.parametrize("stream", HALF.values(), ids=HALF)
def test_what_does_not_fill_the_picture_is_left_to_libraw(path, stream):
    # The rest of LibRaw's mosaic is then whatever was in memory, so there is nothing to compare.
    mosaic = walk(40, 48)
    dng_bytes.write(path, cases.directory(mosaic, 12, [stream(mosaic)]))
    assert Took(path).fast is False


@pytest.mark.parametrize("lengths", [cases.EVEN, cases.STEEP])
@pytest.mark.parametrize("first", [0, 4, 16])
@pytest.mark.parametrize("ending", [b"", b"\xff\xd9", b"\xff\xd0"])
@pytest.mark.parametrize("components", [1, 2])
def test_a_stream_that_ends_early_is_never_filled_up(path, lengths, first, ending, components):
    # First: the steps that zeros stand for, which is what libjpeg-turbo goes on with.
    symbols = (first, *(s for s in cases.USUAL if s != first))
    mosaic = walk(22, 24)
    sound = cases.encode(mosaic, 12, components=components, lengths=lengths, symbols=symbols)
    assert sound.endswith(b"\xff\xd9")
    start = sound.index(b"\xff\xda") + 8 + 2 * components
    trusted = 0
    for end in range(start, len(sound) + 1):
        stream = sound[:end] + ending
        decoded = lossless_jpeg._decoded(lossless_jpeg._decoder()[0], bytearray(stream))
        if decoded is not None:
            trusted += 1
            assert (decoded == mosaic).all()
    # Without its last marker or with two of them it is whole.
    assert trusted >= 1


def test_a_marker_within_the_data_is_left_to_libraw(path):
    mosaic = walk(40, 48)
    stream = cases.encode(mosaic, 12)
    middle = len(stream) // 2
    for marker in (b"\xff\xd9", b"\xff\xd0", b"\xff\xfe", b"\xff\xda"):
        damaged = stream[:middle] + marker + stream[middle + 2 :]
        dng_bytes.write(path, cases.directory(mosaic, 12, [damaged]))
        took = Took(path)
        assert took.fast is False
        assert took.ours == took.libraw


def test_a_tile_of_middle_grey_is_right_all_the_same(path):
    # The row beyond it may look like that of a stream that ended early.
    symbols = (0, *(s for s in cases.USUAL if s))
    mosaic = np.full((40, 48), 2048, np.uint16)
    cases.write(path, mosaic, 12, symbols=symbols)
    took = Took(path)
    assert took.fast is False
    assert took.ours == took.libraw
    assert (read_raw(path).mosaic == 2048).all()


def test_values_beyond_the_bits_are_damage(path):
    mosaic = walk(40, 48)
    stream = cases.encode(mosaic * 16, 16)
    at = stream.index(b"\xff\xc3") + 4
    damaged = stream[:at] + b"\x0c" + stream[at + 1 :]
    dng_bytes.write(path, cases.directory(mosaic, 12, [damaged]))
    took = Took(path)
    assert took.fast is False
    assert took.ours == took.libraw
    with DecodePool(1) as pool, pytest.raises(CorruptRawError, match="LibRaw"):
        pool.read(path)


@pytest.mark.parametrize("tile", [None, (60000, 60000), (2, 65000)])
def test_a_size_that_lies_takes_no_memory(path, monkeypatch, tile):
    mosaic = walk(40, 48)
    stream = bytearray(cases.encode(mosaic, 12))
    struct.pack_into(">HH", stream, stream.index(b"\xff\xc3") + 5, 20000, 20000)
    tags = {256: Tag(LONG, 20000), 257: Tag(LONG, 20000)}
    if tile is not None:
        tags = {}
        struct.pack_into(">HH", stream, stream.index(b"\xff\xc3") + 5, *tile)
    dng_bytes.write(path, cases.directory(mosaic, 12, [bytes(stream)], tile, tags))
    asked = []
    monkeypatch.setattr(lossless_jpeg, "_decoder", lambda: (asked.append, None))
    with path.open("rb") as file:
        directories = tiff.read_directories(file)
    with rawpy.RawPy() as decoder:
        assert lossless_jpeg.unpacked(decoder, str(path), directories) is None
    assert not asked


def test_a_stream_that_lies_beyond_the_file_is_truncated(path):
    mosaic = walk(40, 48)
    cases.write(path, mosaic, 12, tile=(16, 16))
    with path.open("rb") as file:
        (last, count) = lossless_jpeg.layout_of(tiff.read_directories(file)).streams[-1]
    path.write_bytes(path.read_bytes()[: last + count - 9])
    took = Took(path)
    assert took.fast is not True
    assert took.ours == took.libraw
    assert took.ours[0] is CorruptRawError


def test_damaged_files_meet_the_same_errors(path):
    mosaics = walk(22, 24), noise(22, 24, 14)
    originals = []
    for mosaic, bits, how in (
        (mosaics[0], 12, {"tile": (16, 8)}),
        (mosaics[0], 12, {"components": 2}),
        (mosaics[1], 14, {"tile": (8, 16), "predictor": 7, "components": 2, "tables": 2}),
    ):
        originals.append(cases.write(path, mosaic, bits, **how).read_bytes())
    plain = images = 0
    with pytest.MonkeyPatch.context() as patch, DecodePool(1) as ours, DecodePool(1) as libraw:
        for number in range(400):
            draw = random.Random(number)
            path.write_bytes(damaged_bytes(draw.choice(originals), draw))
            with path.open("rb") as file:
                if lossless_jpeg.layout_of(tiff.read_directories(file)) is None:
                    continue
            plain += 1
            # Workers start with the first file, and keep the environment they started in.
            patch.setenv(lossless_jpeg.ENVIRONMENT, "libraw")
            expected = from_pool(libraw, path)
            patch.delenv(lossless_jpeg.ENVIRONMENT)
            found = from_pool(ours, path)
            images += isinstance(found, dict)
            assert found == expected or "every pixel is 0" in str((found, expected)), number
    assert plain > 200
    assert images > 40


def from_pool(pool, path):
    """Every field but the pixels, since damage within them shows in neither; or the error."""
    try:
        return {**vars(pool.read(path)), "mosaic": None}
    except RawError as error:
        return type(error), error.reason


def test_libraw_alone_on_request(path, monkeypatch):
    cases.write(path, walk(40, 48), 12)
    assert Took(path).fast is True
    monkeypatch.setenv(lossless_jpeg.ENVIRONMENT, "libraw")
    assert lossless_jpeg.missing() == "ISP_DISTILL_DECODER is libraw"
    monkeypatch.setattr(lossless_jpeg, "_decoder", pytest.fail)
    read_raw(path)


def test_a_decoder_of_no_such_name(path, monkeypatch):
    monkeypatch.setenv(lossless_jpeg.ENVIRONMENT, "dcraw")
    cases.write(path, walk(40, 48), 12)
    with pytest.raises(ValueError, match='must be "auto" or "libraw", not \'dcraw\''):
        read_raw(path)
    with pytest.raises(ValueError, match="ISP_DISTILL_DECODER"):
        DecodePool(1)


def test_without_imagecodecs_libraw_reads(path, monkeypatch):
    cases.write(path, walk(40, 48), 12)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setattr(lossless_jpeg, "_decoder", lossless_jpeg._decoder.__wrapped__)
    assert "isp-distill[fast]" in lossless_jpeg.missing()
    assert Took(path).fast is False
    monkeypatch.undo()
    assert lossless_jpeg.missing() is None
    assert Took(path).fast is True


def test_a_decoder_that_fills_up_otherwise_is_not_trusted(monkeypatch):
    import imagecodecs

    def zeros_for_what_is_missing(stream, out=None):
        decoded = imagecodecs.jpeg8_decode(stream)
        decoded[decoded == 32768] = 0
        return decoded

    class Other:
        jpeg8_decode = staticmethod(zeros_for_what_is_missing)

    monkeypatch.setitem(sys.modules, "imagecodecs", Other)
    assert lossless_jpeg._decoder.__wrapped__()[0] is None
    assert "libjpeg-turbo 3.1" in lossless_jpeg._decoder.__wrapped__()[1]
    Other.jpeg8_decode = imagecodecs.jpeg8_decode
    assert lossless_jpeg._decoder.__wrapped__()[0] is not None


def test_the_pool_gives_what_read_raw_gives(path):
    mosaic = walk(64, 96, 14)
    cases.write(path, mosaic, 14, tile=(16, 32), components=2)
    with DecodePool(1) as pool:
        assert (pool.read(path).mosaic == mosaic).all()
    assert (isp_distill.read_raw(path.read_bytes()).mosaic == mosaic).all()


@pytest.mark.registry
def test_a_real_photograph(path):
    real = read_raw(colorchart())
    for tile, components in (((256, 256), 2), (None, 1)):
        cases.write(path, real.mosaic, 14, tile=tile, components=components)
        took = Took(path)
        assert took.fast
        assert took.ours == took.libraw
        assert (read_raw(path).mosaic == real.mosaic).all()
