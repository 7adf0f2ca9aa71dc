"""Quad-Bayer and its 3x3 kin: frames whose blocks of one colour are read as binned Bayer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_run import teacher

import isp_distill
from isp_distill import SensorFolder, SensorFormat
from isp_distill.raw.binning import sum_blocks
from isp_distill.raw.packings import pack_rows


def test_by_hand():
    """A Quad-Bayer frame of one period: red, green, green and blue in 2x2 blocks."""
    codes = np.array(
        [
            [1, 2, 10, 20],
            [3, 4, 30, 40],
            [100, 0, 1000, 1],
            [0, 200, 2, 1020],
        ],
        np.uint16,
    )
    form = SensorFormat(4, 4, "uint16", "RGGB", (1, 2, 3, 4), bits=10, block=2)
    raw = form.image(codes)
    assert raw.mosaic.tolist() == [[10, 100], [300, 2023]]
    assert (raw.pattern, raw.black, raw.white) == ("RGGB", (4, 8, 12, 16), 4092)
    three = SensorFormat(6, 6, "uint8", "GBRG", 0, block=3, white=200)
    raw = three.image(np.arange(36, dtype=np.uint16).reshape(6, 6))
    assert raw.mosaic.tolist() == [[63, 90], [225, 252]]
    assert (raw.pattern, raw.black, raw.white) == ("GBRG", (0,) * 4, 1800)


def slow_sums(codes, block):
    """The definition, one site at a time."""
    height, width = codes.shape[0] // block, codes.shape[1] // block
    sums = np.zeros((height, width), np.uint16)
    for row in range(height):
        for column in range(width):
            total = 0
            for down in range(block):
                for right in range(block):
                    total += int(codes[block * row + down, block * column + right])
            sums[row, column] = min(total, 65535)
    return sums


@given(
    block=st.integers(1, 3),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    bits=st.integers(1, 16),
    seed=st.integers(0, 99),
)
def test_any_frame(block, rows, columns, bits, seed):
    random = np.random.default_rng(seed)
    shape = (2 * block * rows, 2 * block * columns)
    codes = random.integers(0, 1 << bits, shape, dtype=np.uint16)
    found = sum_blocks(codes, block)
    assert found.dtype == np.uint16
    assert np.array_equal(found, slow_sums(codes, block))


def test_every_site_of_a_block_has_its_colour():
    """A frame that is bright in one colour alone is bright in that colour's sites alone."""
    for block in (2, 3):
        for pattern in ("RGGB", "BGGR", "GRBG", "GBRG"):
            form = SensorFormat(
                4 * block, 4 * block, "uint16", pattern, 0, bits=10, block=block, orientation=6
            )
            period = np.array([1000 if colour == "R" else 10 for colour in pattern], np.uint16)
            colours = np.tile(period.reshape(2, 2), (2, 2))
            raw = isp_distill.upright(form.image(np.kron(colours, np.ones((block, block), int))
                                                 .astype(np.uint16)))  # fmt: skip
            red = raw.pattern.index("R")
            sites = raw.mosaic[red // 2 :: 2, red % 2 :: 2]
            assert (sites == 1000 * block**2).all()
            assert int(raw.mosaic.sum()) == block**2 * (4 * 1000 + 12 * 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 4}, "block must be 1, 2 or 3 sites a side, got 4"),
        ({"block": 0}, "block must be at least 1"),
        ({"block": True}, "block must be a whole number"),
        ({"block": 3}, "width must be a multiple of 6, a whole number of periods, got 16"),
        ({"block": 2, "height": 6}, "height must be a multiple of 4"),
        (
            {"block": 2, "bits": 16},
            "white is 65535, and the sum of a block of 2 x 2 such codes 262140: a mosaic holds up "
            "to 65535. Write the frames with codes shifted down by 2 bits",
        ),
        ({"block": 3, "bits": 14, "width": 12, "height": 12}, "147447: .* shifted down by 2 bits"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    given_fields = {"width": 16, "height": 8, "packing": "uint16", "pattern": "RGGB", "black": 0}
    with pytest.raises((TypeError, ValueError), match=message):
        SensorFormat(**{**given_fields, "bits": 10, **changes})


def test_sums_above_white_stop_at_what_a_mosaic_holds():
    """Where codes go on above white: all of them are saturated, so nothing is lost."""
    form = SensorFormat(4, 4, "uint16", "RGGB", 64, bits=16, white=16000, block=2)
    raw = form.image(np.full((4, 4), 65535, np.uint16))
    assert (int(raw.mosaic.min()), raw.white) == (65535, 64000)


@pytest.mark.parametrize("packing", ["mipi10", "uint16"])
def test_a_folder_of_such_frames_is_trained_on_and_packed(tmp_path, packing):
    """As on the same shots that were binned before."""
    root, binned = tmp_path / "quad", tmp_path / "binned"
    root.mkdir()
    binned.mkdir()
    text = 'pattern = "GRBG"\nwhite_balance = [2.0, 1.0, 1.5]\n'
    (root / "sensor.toml").write_text(
        f'{text}packing = "{packing}"\nbits = 10\nwidth = 96\nheight = 80\nblack = 64\nblock = 2\n'
    )
    (binned / "sensor.toml").write_text(
        f'{text}packing = "uint16"\nbits = 12\nwidth = 48\nheight = 40\nblack = 256\nwhite = 4092\n'
    )
    random = np.random.default_rng(0)
    for number in range(4):
        codes = random.integers(64, 1024, (80, 96), dtype=np.uint16)
        (root / f"{number}.raw").write_bytes(pack_rows(codes, packing).tobytes())
        np.save(binned / f"{number}.npy", slow_sums(codes, 2))
    isp_distill.pack(root, tmp_path / "packed", progress=False)
    settings = {"steps": 2, "batch_size": 2, "progress": False, "tensorboard": False}
    measured = [
        isp_distill.train(
            "rawify", teacher(), data, validation=data, out=tmp_path / f"run-{number}", **settings
        ).after.kl
        for number, data in enumerate((root, binned, tmp_path / "packed"))
    ]
    assert measured[0] == measured[1] == measured[2]
    assert SensorFolder(root)[0].mosaic.shape == (40, 48)
