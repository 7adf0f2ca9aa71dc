"""Pictures from files: 16 bits are scaled, and what is no photograph is refused by what it is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from isp_distill import ImageFolder, View
from isp_distill.data.loader import ViewLoader
from isp_distill.data.pictures import read_picture
from isp_distill.errors import RawError

RAMP = np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16)
COLOURS = np.stack([RAMP, RAMP // 2, RAMP // 4], -1)


def test_sixteen_bits_of_colour_are_scaled(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), COLOURS[..., ::-1])
    tifffile.imwrite(tmp_path / "a.tif", COLOURS, photometric="rgb")
    for name in ("a.png", "a.tif"):
        picture = read_picture(tmp_path / name)
        assert picture.dtype == np.uint8
        np.testing.assert_allclose(picture, COLOURS / 257, atol=1)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("m.png", lambda path: cv2.imwrite(path, RAMP)),
        ("m.tif", lambda path: tifffile.imwrite(path, RAMP)),
        ("m.tiff", lambda path: tifffile.imwrite(path, RAMP, byteorder=">")),
        ("i.tif", lambda path: tifffile.imwrite(path, RAMP.astype(np.int32))),
    ],
)
def test_one_channel_of_more_than_8_bits_is_taken_for_a_mosaic(tmp_path, name, write):
    """Pillow clips it at 255: all white. A folder reports it with the way to read mosaics."""
    path = str(tmp_path / name)
    write(path)
    folder = ImageFolder(tmp_path)
    with pytest.raises(RawError, match=r"one channel of (16|32) bits.*RawImage"):
        folder[0]
    assert path in folder.skipped
    assert "RawImage" in folder.report()


def test_floats_and_misread_planes_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "f.tif", (RAMP / 65535).astype(np.float32))
    with pytest.raises(RawError, match="floating-point"):
        read_picture(tmp_path / "f.tif")
    planes = np.ascontiguousarray(np.moveaxis(COLOURS, -1, 0))
    tifffile.imwrite(tmp_path / "p.tif", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(RawError, match="separate planes"):
        read_picture(tmp_path / "p.tif")


def test_8_bits_are_read_as_ever(tmp_path):
    grey = (RAMP >> 8).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "g.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "g.png"), np.stack([grey] * 3, -1))
    colours = np.stack([grey, grey[::-1], grey[:, ::-1]], -1)
    tifffile.imwrite(
        tmp_path / "p.tif", np.moveaxis(colours, -1, 0), photometric="rgb", planarconfig="separate"
    )
    np.testing.assert_array_equal(read_picture(tmp_path / "p.tif"), colours)


def test_what_is_measured_on_pictures_does_not_depend_on_the_batch_size(tmp_path):
    """Each view's made-up camera is its own, whatever stands beside it."""
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 56, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    names = ("pattern", "black", "white", "white_balance", "ccm", "exposure")
    found = []
    for size in (1, 2, 3, 10):
        batches = list(ViewLoader(ImageFolder(tmp_path), View(32), size).fixed(2))
        cameras = [batch.isp.batched(len(batch.mosaic)) for batch in batches]
        mosaics = torch.cat([batch.mosaic.to(torch.int32) for batch in batches])
        found.append([mosaics, *(torch.cat([getattr(c, n) for c in cameras]) for n in names)])
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))
    assert len(set(map(str, found[0][4]))) == 10  # no two views have one camera
