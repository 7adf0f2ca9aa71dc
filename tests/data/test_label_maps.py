"""Label maps: a view of one shows what the view of its mosaic shows; files that hold none."""

import builtins
import pickle
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from label_map_cases import patches, raw_of, write_map, write_scene
from PIL import Image
from training_run import raw_image

import isp_distill
from isp_distill import ImageFolder, PackedRaw, RawFolder, pack, render
from isp_distill.data.draw import Draw
from isp_distill.data.label_maps import IGNORED, LabelGrid, LabelMaps, Shown, map_view
from isp_distill.data.loader import ViewLoader
from isp_distill.data.views import View
from isp_distill.raw.cfa import PATTERNS


def check_view(batch, grid):
    """The rendered picture has the colour of the label, but for two pixels beside an edge."""
    picture = render(batch.mosaic, batch.isp, size=(grid.height, grid.width))
    colours, labels = picture.argmax(1), batch.labels
    assert labels.dtype == torch.int64
    assert labels.shape == (len(batch.mosaic), grid.height, grid.width)
    high, low = (F.max_pool2d(x.float(), 5, 1, 2) for x in (labels, -labels))
    inside = high == -low
    assert inside.float().mean() > 0.3
    assert (colours == labels)[inside].all()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """RAW files of all orientations and patterns, and their label maps in several forms."""
    root = tmp_path_factory.mktemp("scenes")
    (root / "maps/deep").mkdir(parents=True)
    for orientation in range(1, 9):
        for code, pattern in enumerate(PATTERNS):
            scene = patches(120, 176, 10 * orientation + code)
            name = f"deep/{orientation}-{pattern}"
            write_scene(root, name, scene, pattern, orientation)
            # A label map of every kind and resolution.
            if code == 0:
                write_map(root, name, scene)
            elif code == 1:
                write_map(root, name, np.kron(scene, np.ones((3, 3), np.uint16)))
            elif code == 2:
                np.save(root / f"maps/{name}.npy", scene[::2, ::2].astype(np.int32))
            else:
                paletted = Image.fromarray(scene, "P")
                paletted.putpalette([255, 0, 0, 0, 0, 0, 9, 9, 9])
                paletted.save(root / f"maps/{name}.png")
    return root


VIEWS = [View(48, flip=True), View(40, binning=2, flip=True), View(64, area=(0.2, 0.6), flip=True)]


@pytest.mark.parametrize("view", VIEWS, ids=["keyhole", "binned", "resized"])
@pytest.mark.parametrize("kind", ["folder", "cached", "packed", "packed-zstd"])
def test_a_view_of_the_labels_is_the_view_of_the_picture(scenes, tmp_path, kind, view):
    grid = LabelGrid(36, 44, 3)
    if kind.startswith("packed"):
        compression = "zstd" if kind.endswith("zstd") else "none"
        pack(scenes / "raw", tmp_path / "packed", compression=compression, progress=False)
        source = PackedRaw(tmp_path / "packed", label_maps=scenes / "maps")
    else:
        cache = tmp_path / "cache" if kind == "cached" else None
        source = RawFolder(scenes / "raw", label_maps=scenes / "maps", cache=cache)
    drawn = set()
    with closing(source):
        loader = ViewLoader(source, view, 8, seed=3, grid=grid)
        draw = view.draw
        object.__setattr__(view, "draw", lambda rng: drawn.add(d := draw(rng)) or d)
        try:
            for batch in loader.training(0, 8):
                check_view(batch, grid)
        finally:
            object.__delattr__(view, "draw")
        for batch in loader.fixed(5, files=4):
            check_view(batch, grid)
    assert len({(d.mirror, d.flip) for d in drawn}) == 4
    assert len({d.place for d in drawn}) == 64


def test_views_of_a_binned_pack(scenes, tmp_path):
    pack(scenes / "raw", tmp_path / "packed", binning=2, progress=False)
    source = PackedRaw(tmp_path / "packed", label_maps=scenes / "maps")
    grid = LabelGrid(20, 24, 3)
    for batch in ViewLoader(source, View(32, flip=True), 8, grid=grid).training(0, 4):
        check_view(batch, grid)


@pytest.mark.parametrize("view", VIEWS[::2], ids=["scaled", "resized"])
def test_pictures_and_pairs_in_memory(tmp_path, view):
    grid = LabelGrid(30, 30, 3)
    found = [patches(120, 176, seed) for seed in range(8)]
    colours = np.array([[230, 20, 20], [20, 230, 20], [20, 20, 230]], np.uint8)
    (tmp_path / "pictures").mkdir()
    for index, scene in enumerate(found):
        Image.fromarray(colours[scene]).save(tmp_path / f"pictures/{index}.png")
        write_map(tmp_path, index, scene[::2, ::2])
    folder = ImageFolder(tmp_path / "pictures", label_maps=tmp_path / "maps")
    pairs = [(colours[s], torch.from_numpy(s).long() if i % 2 else s) for i, s in enumerate(found)]
    raws = [
        (raw_of(s, i), Image.fromarray(s) if i % 2 else s.astype(np.int16))
        for i, s in enumerate(found)
    ]
    for source in (folder, pairs, raws):
        for batch in ViewLoader(source, view, 8, seed=1, grid=grid).training(0, 3):
            check_view(batch, grid)


@given(st.data())
def test_every_pixel_takes_the_class_at_its_centre(data):
    sides = st.integers(1, 40)
    label_map = np.arange(data.draw(sides) * data.draw(sides)).reshape(-1, 1)
    label_map = label_map.reshape(data.draw(st.sampled_from(_divisors(len(label_map)))), -1)
    scale = data.draw(st.integers(1, 5))
    picture = tuple(scale * side for side in label_map.shape)
    top, left = (data.draw(st.integers(0, side - 1)) for side in picture)
    height = data.draw(st.integers(1, picture[0] - top))
    width = data.draw(st.integers(1, picture[1] - left))
    grid = LabelGrid(data.draw(sides), data.draw(sides), label_map.size)
    mirror, flip = data.draw(st.booleans()), data.draw(st.booleans())
    shown = Shown(picture, (top, left, height, width), Draw((0, 0), mirror, flip))
    got = map_view(label_map, shown, grid, "map")
    expected = np.empty_like(got)
    for row in range(grid.height):
        for column in range(grid.width):
            # Twice the place times both numbers of parts, so that nothing is rounded.
            y = (2 * grid.height * top + height * (2 * row + 1)) // (2 * grid.height * scale)
            x = (2 * grid.width * left + width * (2 * column + 1)) // (2 * grid.width * scale)
            place = grid.height - 1 - row if flip else row, \
                grid.width - 1 - column if mirror else column  # fmt: skip
            expected[place] = label_map[y, x]
    np.testing.assert_array_equal(got, expected)


def _divisors(number):
    return [d for d in range(1, number + 1) if number % d == 0]


WHOLE = Shown((8, 12), (0, 0, 8, 12), Draw((0, 0)))


@pytest.mark.parametrize(
    ("dtype", "ignored"),
    [(np.uint8, 255), (np.uint16, 65535), (np.int8, -100), (np.int64, -100)],
)
def test_pixels_of_no_class(dtype, ignored):
    label_map = np.arange(96).astype(dtype).reshape(8, 12) % 5
    label_map[2:4] = ignored
    view = map_view(label_map, WHOLE, LabelGrid(8, 12, 5), "map")
    assert (view[2:4] == IGNORED).all()
    assert (view == label_map)[[0, 1, 4, 5, 6, 7]].all()
    for wrong, dtypes in ((5, ()), (255, (np.uint8, np.int8)), (-1, (np.uint8, np.uint16))):
        if dtype not in dtypes:
            label_map[7, 11] = wrong
            with pytest.raises(ValueError, match=rf"map: holds the class {wrong}, but the teacher "
                               rf"knows 5 \(0 to 4\).*{ignored} stands for no class"):  # fmt: skip
                map_view(label_map, WHOLE, LabelGrid(8, 12, 5), "map")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 12)), "must be integers .* not float64"),
        (np.zeros((8, 12, 1), np.uint8), r"must be integers .* not uint8 \[8, 12, 1\]"),
        (np.zeros((0, 12), np.uint8), "must be integers"),
        (np.zeros((12, 8), np.uint8), "12 x 8 does not fit .* 8 x 12: it lies on its side"),
        (np.zeros((80, 90), np.uint8), "80 x 90 does not fit .* 8 x 12: draw it over"),
    ],
)
def test_arrays_that_are_no_label_map(array, message):
    with pytest.raises(ValueError, match=f"here: a label map .*{message}"):
        map_view(array, WHOLE, LabelGrid(4, 4, 3), "here")


def test_sides_are_rounded_and_odd_ones_cut():
    for picture, fine, wrong in (
        ((3000, 4000), [(75, 100), (375, 500), (333, 444), (3001, 4000), (6002, 8000)],
         [(3000, 4020), (370, 500), (4000, 3000)]),
        ((2010, 4016), [(2011, 4017), (502, 1004), (503, 1003)], [(1010, 2000)]),
    ):  # fmt: skip
        shown = Shown(picture, (0, 0, *picture), Draw((0, 0)))
        for size in fine:
            map_view(np.zeros(size, np.uint8), shown, LabelGrid(4, 4, 3), "map")
        for size in wrong:
            with pytest.raises(ValueError, match="does not fit"):
                map_view(np.zeros(size, np.uint8), shown, LabelGrid(4, 4, 3), "map")


def grey_png(path, array, depth):
    """A greyscale PNG of 1, 2 or 4 bits, which Pillow does not write."""
    bits = (array[..., None] >> np.arange(depth)[::-1] & 1).reshape(len(array), -1)
    rows = np.packbits(bits.astype(np.uint8), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = np.array(array.shape[::-1], ">u4").tobytes() + bytes([depth, 0, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        data += len(body).to_bytes(4, "big") + name + body
        data += zlib.crc32(name + body).to_bytes(4, "big")
    path.write_bytes(data)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16, "palette", "2 bit palette", "bool", "int64"])
def test_what_a_file_holds(tmp_path, depth):
    classes = {1: 2, 2: 4, 4: 16, "2 bit palette": 4, "bool": 2}.get(depth, 200)
    array = np.random.default_rng(0).integers(0, classes, (9, 13)).astype(np.uint8)
    path = tmp_path / "a.png"
    if depth in (1, 2, 4):
        grey_png(path, array, depth)
    elif depth in (8, 16):
        Image.fromarray(array.astype(f"uint{depth}")).save(path)
    elif depth in ("palette", "2 bit palette"):
        image = Image.fromarray(array, "P")
        image.putpalette([7, 7, 7] * classes)
        image.save(path, **({"bits": 2} if classes == 4 else {}))
    else:
        np.save(tmp_path / "a.npy", array.astype(depth))
    maps = LabelMaps(tmp_path, [Path("a.dng")])
    np.testing.assert_array_equal(maps[0], array)
    assert maps[0].dtype == np.int64
    assert pickle.loads(pickle.dumps(maps)).paths == maps.paths


def test_files_that_are_missing(scenes, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
        RawFolder(scenes / "raw", label_maps=tmp_path / "nowhere")
    (tmp_path / "deep").mkdir()
    for path in (scenes / "maps/deep").iterdir():
        if not path.name.startswith("2-G"):
            (tmp_path / "deep" / path.name).symlink_to(path)
    with pytest.raises(FileNotFoundError, match=r"deep/2-GBRG\.png: .* 2 of 32 files have none"):
        RawFolder(scenes / "raw", label_maps=tmp_path)
    pack(scenes / "raw", tmp_path / "packed", progress=False)
    with pytest.raises(FileNotFoundError, match=r"deep/2-GBRG\.png: .* 2 of 32 files have none"):
        PackedRaw(tmp_path / "packed", label_maps=tmp_path)
    with pytest.raises(ValueError, match="give one"):
        RawFolder(scenes / "raw", labels="folder", label_maps=scenes / "maps")


def test_without_pillow_maps_are_arrays(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *rest):
        if name == "PIL":
            raise ImportError(name)
        return original(name, *rest)

    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.uint8))
    (tmp_path / "b.png").touch()
    monkeypatch.setattr(builtins, "__import__", without)
    assert LabelMaps(tmp_path, [Path("a.dng")])[0].shape == (3, 4)
    with pytest.raises(ImportError, match=r"isp-distill\[images\]"):
        LabelMaps(tmp_path, [Path("b.dng")])


def labelled_folder(tmp_path):
    """Four RAW files of 48 x 48, and a map for each."""
    (tmp_path / "raw").mkdir()
    for index in range(4):
        raw = raw_image(index)
        isp_distill.write_dng(tmp_path / f"raw/{index}.dng", raw.mosaic, white=16383, bits=14)
        write_map(tmp_path, index, np.full((48, 48), index, np.uint8))
    return tmp_path / "raw", tmp_path / "maps"


@pytest.mark.parametrize("damage", ["truncated", "empty", "not an image", "an npz"])
def test_damaged_maps_are_damaged_files(tmp_path, damage):
    raw, maps = labelled_folder(tmp_path)
    path = maps / "2.png"
    sound = path.read_bytes()
    path.unlink()
    if damage == "an npz":
        with open(maps / "2.npy", "wb") as file:
            np.savez(file, np.zeros((48, 48), np.uint8))
    else:
        left = {"truncated": sound[:-30], "empty": b"", "not an image": b"class,pixel\n" * 9}
        path.write_bytes(left[damage])
    with closing(RawFolder(raw, label_maps=maps)) as source:
        loader = ViewLoader(source, View(32), 4, grid=LabelGrid(8, 8, 7))
        (batch,) = loader.fixed(1)
        assert batch.labels[:, 0, 0].tolist() == [0, 1, 3]
        assert "maps/2." in loader.report()
        assert "cannot be read as a label map" in loader.report()
        assert len(list(loader.training(0, 3))) == 3
        source.on_error = "raise"
        with pytest.raises(
            isp_distill.RawError, match=r"maps/2\.\w+: cannot be read as a label map"
        ):
            list(loader.fixed(1))


def test_what_a_user_has_to_put_right_ends_the_run(tmp_path):
    raw, maps = labelled_folder(tmp_path)

    def view(grid=LabelGrid(8, 8, 7), **settings):  # noqa: B008 - frozen
        with closing(RawFolder(raw, label_maps=maps, **settings)) as source:
            return list(ViewLoader(source, View(32), 4, grid=grid).fixed(1))

    (batch,) = view()
    assert batch.labels.shape == (4, 8, 8)
    assert batch.nbytes > batch.labels.nbytes + batch.mosaic.nbytes
    with pytest.raises(ValueError, match=r"maps/3\.png: holds the class 3, but the teacher knows"):
        view(LabelGrid(8, 8, 3))
    assert view(None)[0].labels is None
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(maps / "1.png")
    with pytest.raises(ValueError, match=r"maps/1\.png: is a PNG of mode RGB"):
        view()
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(maps / "1.png")
    with pytest.raises(ValueError, match=r"maps/1\.png: .* 48 x 64 does not fit .* 48 x 48"):
        view()
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(maps / "1.png")
    side = raw_image(1).mosaic
    isp_distill.write_dng(raw / "1.dng", side, white=16383, bits=14, orientation=6)
    assert len(view()[0].labels) == 4
    with pytest.raises(ValueError, match=r"raw/1\.dng: its mosaic lies on its side"):
        view(upright=False)
    mixed = [(raw_image(0), np.zeros((48, 48), np.uint8)), (raw_image(1), None)]
    grid = LabelGrid(8, 8, 7)
    (batch,) = ViewLoader(mixed, View(32), 2, grid=grid).fixed(1)
    assert (batch.labels[1] == IGNORED).all()
    mixed.append((raw_image(2), 4))
    with pytest.raises(ValueError, match=r"gives a class \(4\)"):
        list(ViewLoader(mixed, View(32), 3, grid=grid).fixed(1))
    mixed[1:] = [(raw_image(1), np.full((48, 48), 9))]
    with pytest.raises(ValueError, match="label map of dataset item 1: holds the class 9"):
        list(ViewLoader(mixed, View(32), 2, grid=grid).fixed(1))
