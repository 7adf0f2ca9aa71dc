"""SensorFolder: frames of every kind of file come out as the codes that went in."""

import json

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from training_run import raw_image, teacher

import isp_distill
from isp_distill import RawError, SensorFolder, SensorFormat, write_dng
from isp_distill.raw.packings import PACKINGS, pack_rows, row_bytes
from isp_distill.raw.sensor_file import count_frames, read_pixels
from isp_distill.sources import open_source

TOML = 'format = "SRGGB10_CSI2P"\nwidth = 24\nheight = 16\nblack = 64\n'


def codes_of(form, seed=0, frames=None):
    size = (form.height, form.width) if frames is None else (frames, form.height, form.width)
    return np.random.default_rng(seed).integers(0, 1 << form.bits, size, dtype=np.uint16)


def file_bytes(codes, form, cut=0):
    """Frames as a sensor dumps them: header, rows, padding that holds anything."""
    shifted = codes << form.shift
    rows = pack_rows(shifted, form.packing)
    if form.byte_order == "big":
        rows = np.ascontiguousarray(rows.reshape(*rows.shape[:-1], -1, 2)[..., ::-1]).reshape(
            rows.shape
        )
    padding = form.stride - rows.shape[-1]
    rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, padding)], constant_values=0xA5)
    data = b"\x5a" * form.header + rows.tobytes()
    return data[: len(data) - cut]


@st.composite
def formats(draw):
    packing = draw(st.sampled_from(sorted(PACKINGS)))
    width, height = 2 * draw(st.integers(1, 9)), 2 * draw(st.integers(1, 5))
    most = PACKINGS[packing].bits
    bits = draw(st.integers(1, most)) if packing in ("uint8", "uint16") else most
    high = packing == "uint16"
    return SensorFormat(
        width, height, packing, draw(st.sampled_from(["RGGB", "GRBG", "GBRG", "BGGR"])), 0,
        bits=bits, header=draw(st.integers(0, 9)),
        stride=row_bytes(width, packing) + draw(st.integers(0, 5)),
        shift=draw(st.integers(0, 16 - bits)) if high else 0,
        byte_order=draw(st.sampled_from(["little", "big"])) if high else "little",
    )  # fmt: skip


@given(form=formats(), frames=st.integers(1, 3), cut=st.booleans(), seed=st.integers(0, 99))
def test_any_format_of_bytes(tmp_path_factory, form, frames, cut, seed):
    path = tmp_path_factory.mktemp("dump") / "a.raw"
    codes = codes_of(form, seed, frames)
    # The last row may end without its padding.
    path.write_bytes(
        file_bytes(codes, form, form.stride - row_bytes(form.width, form.packing) if cut else 0)
    )
    assert count_frames(path, form) == frames
    for frame in range(frames):
        assert np.array_equal(read_pixels(path, frame, 0, form.height, form).codes, codes[frame])
    top = form.height // 2
    assert np.array_equal(
        read_pixels(path, frames - 1, top, form.height, form).codes, codes[-1, top:]
    )


FORM = SensorFormat(24, 16, "uint16", "GBRG", (60, 61, 62, 63), bits=12, white=4000)


def write(path, codes):
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix
    if suffix in (".raw", ".bin"):
        path.write_bytes(codes.astype("<u2").tobytes())
    elif suffix == ".npy":
        np.save(path, codes)
    elif suffix == ".npz":
        np.savez_compressed(path, codes)
    elif suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, codes)
    elif suffix == ".pgm":
        header = f"P5\n{codes.shape[1]} {codes.shape[0]}\n65535\n".encode()
        path.write_bytes(header + codes.astype(">u2").tobytes())
    else:
        Image.fromarray(codes).save(path)
    return path


@pytest.mark.parametrize(
    "suffix", [".raw", ".bin", ".npy", ".npz", ".pgm", ".png", ".tif", ".tiff"]
)
def test_every_kind_of_file(tmp_path, suffix):
    codes = codes_of(FORM)
    write(tmp_path / f"a{suffix}", codes)
    folder = SensorFolder(tmp_path, FORM)
    raw = folder[0]
    assert np.array_equal(raw.mosaic, codes)
    assert (raw.pattern, raw.black, raw.white) == ("GBRG", (60, 61, 62, 63), 4000)
    assert raw.path == str(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_packed_bytes_and_of_several_frames(tmp_path, suffix):
    form = SensorFormat(24, 16, "mipi12", "RGGB", 0)
    codes = codes_of(form, frames=3)
    write(tmp_path / f"packed{suffix}", pack_rows(codes, "mipi12"))
    write(tmp_path / f"codes{suffix}", codes[:2])
    folder = SensorFolder(tmp_path, form)
    assert folder.frames == [0, 1, 0, 1, 2]
    for index, expected in enumerate([*codes[:2], *codes]):
        assert np.array_equal(folder[index].mosaic, expected)


def test_a_description_its_sections_and_what_lies_beside(tmp_path):
    (tmp_path / "sensor.toml").write_text(
        TOML
        + '[files."night"]\nexposure_time = 0.5\n'
        + '[files."*/b.raw"]\nblack = [60, 61, 62, 63]\nwhite_balance = [2, 1, 1.5]\n'
    )
    form = SensorFormat.named("SRGGB10_CSI2P", width=24, height=16, black=64)
    codes = codes_of(form)
    for name in ("a.raw", "night/b.raw", "day/b.raw"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(file_bytes(codes, form))
    (tmp_path / "day/b.raw.toml").write_text("iso = 800\norientation = 3\n")
    (tmp_path / "night/b.json").write_text(json.dumps({"exposure_time": 2, "camera": "X"}))
    assert isinstance(open_source(tmp_path), SensorFolder)
    a, day, night = SensorFolder(tmp_path)
    assert (a.black, a.white, a.exposure_time, a.white_balance) == (
        (64,) * 4,
        1023,
        None,
        (1, 1, 1),
    )
    assert (day.black, day.white_balance, day.iso) == ((60, 61, 62, 63), (2, 1, 1.5), 800)
    assert np.array_equal(day.mosaic, codes[::-1, ::-1]), "upright"
    assert (night.exposure_time, night.camera) == (2, "X")


def test_what_is_not_of_the_format_is_left_out_by_name(tmp_path):
    good = write(tmp_path / "0.npy", codes_of(FORM))
    write(tmp_path / "1.raw", codes_of(FORM)[:, :-1])
    write(tmp_path / "2.npy", codes_of(FORM)[:8])
    np.save(tmp_path / "3.npy", codes_of(FORM).astype(np.float32))
    write(tmp_path / "4.png", codes_of(FORM)[:8])
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(tmp_path / "5.png")
    (tmp_path / "6.raw").write_bytes(b"")
    write(tmp_path / "7.npy", codes_of(FORM) << 4)
    (tmp_path / "8.npz").write_bytes(b"PK\3\4 no zip")
    np.save(tmp_path / "9.npy", np.array([{"a": 1}]), allow_pickle=True)
    folder = SensorFolder(tmp_path, FORM)
    said = {}
    for index in range(len(folder)):
        try:
            folder[index]
        except RawError as error:
            said[error.path[-5:]] = error.reason
    said |= {path[-5:]: reason for path, reason in folder.skipped.items()}
    assert {p.name for p in folder.paths} - set(said) == {good.name}
    expected = {
        "1.raw": "holds 736 bytes: a frame of 16 x 24 pixels in uint16 takes 768, so it holds 0",
        "2.npy": r"holds uint16 [8, 24]: expected whole numbers [16, 24]",
        "3.npy": "holds float32",
        "4.png": "is 8 x 24 of mode I;16: expected one channel of 16 x 24",
        "5.png": "is 16 x 24 of mode RGB",
        "6.raw": "holds 0 bytes",
        "7.npy": "or the codes lie in the high bits (shift = 4)",
        "8.npz": "cannot be read",
        "9.npy": "cannot be read",
    }
    for name, words in expected.items():
        assert words in said[name], said[name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width = 24", "height, black, packing, pattern must be given"),
        (TOML + "depth = 3", "has no field 'depth'"),
        (TOML.replace("24", "25"), "width must be even"),
        (TOML.replace("SRGGB10_CSI2P", "SRGGB11"), "'SRGGB11' is no format of V4L2"),
        (TOML + "bits = 10", "SRGGB10_CSI2P says what bits is"),
        (TOML + "stride = 29", "stride is 29 bytes, and a row of 24 pixels in mipi10 takes 30"),
        (TOML + "files = 3", "files must be tables"),
        (TOML + '[files."a"]\nwhite = 3', r"\[files\.'a'\] white"),
        ("width: 3", "is no TOML"),
    ],
)
def test_a_description_that_lies_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "sensor.toml").write_text(text)
    (tmp_path / "a.raw").write_bytes(bytes(480))
    with pytest.raises(ValueError, match=message) as refused:
        SensorFolder(tmp_path)
    assert "sensor.toml" in str(refused.value)


def test_arrays_without_a_description_say_what_to_write(tmp_path):
    np.save(tmp_path / "a.npy", codes_of(FORM))
    with pytest.raises(FileNotFoundError) as refused:
        open_source(tmp_path)
    text = str(refused.value)
    example = "\n".join(line.strip() for line in text.split("\n\n")[1].splitlines())
    (tmp_path / "sensor.toml").write_text(example)
    assert np.array_equal(open_source(tmp_path)[0].mosaic, codes_of(FORM))


def test_a_raw_that_libraw_knows_stays_its_own(tmp_path):
    raw = raw_image(0)
    made = write_dng(tmp_path / "a.dng", raw.mosaic, pattern=raw.pattern, bits=14, white=16000)
    made.rename(tmp_path / "a.raw")
    (tmp_path / "sensor.toml").write_text(TOML)
    assert np.array_equal(SensorFolder(tmp_path)[0].mosaic, raw.mosaic)


def test_a_folder_of_dumps_is_trained_on_by_its_path(tmp_path, capsys):
    """Train and evaluate; the student agrees as well as on the same shots in memory."""
    raws = [raw_image(i) for i in range(6)]
    height, width = raws[0].mosaic.shape
    one = raws[0]
    form = SensorFormat(width, height, "mipi14", one.pattern, one.black, white=one.white)
    (tmp_path / "raw").mkdir()
    for index, raw in enumerate(raws):
        codes = np.minimum(raw.mosaic, (1 << 14) - 1)
        (tmp_path / "raw" / f"{index}.bin").write_bytes(pack_rows(codes, "mipi14").tobytes())
    (tmp_path / "raw" / "sensor.toml").write_text(
        f'packing = "mipi14"\nwidth = {width}\nheight = {height}\npattern = "{form.pattern}"\n'
        f"black = {list(form.black)}\nwhite = {form.white}\n"
    )
    settings = {"steps": 2, "batch_size": 2, "progress": False, "tensorboard": False}
    seen = isp_distill.train(
        "rawify", teacher(), tmp_path / "raw", validation=str(tmp_path / "raw"),
        out=tmp_path / "a", **settings,
    )  # fmt: skip
    same = [form.image(np.minimum(r.mosaic, (1 << 14) - 1)) for r in raws]
    other = isp_distill.train(
        "rawify", teacher(), same, validation=same, out=tmp_path / "b", **settings
    )
    assert seen.after.kl == other.after.kl
    assert seen.after.samples == 6
