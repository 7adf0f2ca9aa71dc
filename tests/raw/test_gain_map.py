"""Gain maps and what else a DNG's opcodes ask for: read, moved with the mosaic, applied."""

import dataclasses
import struct
import warnings
from contextlib import closing

import numpy as np
import pytest
import torch
from dng_cases import noise, rationals
from opcode_cases import (
    BLACK,
    GREY,
    WHITE,
    gain_map,
    grid,
    opcode_list,
    opcodes_tag,
    phone_dng,
    write,
)

import isp_distill
from isp_distill import ISP, PackedRaw, RawFolder, pack, read_raw, render
from isp_distill.data.batch import RawBatch
from isp_distill.data.draw import Draw
from isp_distill.data.loader import ViewLoader
from isp_distill.data.views import View
from isp_distill.errors import CorruptRawError
from isp_distill.isp.gain_maps import GainMaps
from isp_distill.packs.stored_teacher import StoredTeacher
from isp_distill.raw import camera_warnings
from isp_distill.raw.cfa import PATTERNS
from isp_distill.raw.changes import binned, corrected
from isp_distill.raw.decoding.pool import DecodePool
from isp_distill.raw.gain_map import GainMap
from isp_distill.raw.image import RawImage, crop, upright


@pytest.fixture(autouse=True)
def nothing_said():
    """What was said once is said again in each test."""
    camera_warnings._said.clear()


def made_up(pattern="RGGB", height=12, width=20, orientation=1, seed=0):
    """A mosaic with a gain map, both of noise; black differs for every plane."""
    rng = np.random.default_rng(seed)
    maps = GainMap(rng.uniform(0.5, 2.0, (4, 3, 5)), -0.7, 1.3, 4.1, 3.7)
    return RawImage(
        rng.integers(500, 3000, (height, width), dtype=np.uint16), pattern, (40, 50, 60, 70), 9000,
        orientation=orientation, gain_map=maps,
    )  # fmt: skip


def render_linear(raw, **settings):
    isp = ISP.from_raw(raw, tone="linear", **settings)
    return render(torch.from_numpy(raw.mosaic)[None], isp)[0].numpy()


AREAS = [None, (2, 4, 46, 58), (3, 5, 46, 59)]


@pytest.mark.parametrize("area", AREAS, ids=["whole", "even", "odd"])
@pytest.mark.parametrize("same", [False, True], ids=["four maps", "one map"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_grey_scene_is_grey_and_flat(tmp_path, area, same, byteorder):
    path = phone_dng(tmp_path / "a.dng", area=area, same=same, byteorder=byteorder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no usable colour matrix.*")
        raw = read_raw(path)
    for orientation in (1, 6):
        turned = upright(dataclasses.replace(raw, orientation=orientation))
        for mosaic in (turned, crop(turned, 3, 5, 20, 30), corrected(turned)):
            for demosaic in ("superpixel", "malvar"):
                picture = render_linear(mosaic, demosaic=demosaic)
                np.testing.assert_allclose(picture, GREY, atol=1e-4)
    shaded = dataclasses.replace(raw, gain_map=None)
    assert np.ptp(render_linear(shaded)) > 0.05


@pytest.mark.parametrize("pattern", PATTERNS)
def test_correcting_and_moving_change_places(pattern):
    for orientation in range(1, 9):
        raw = made_up(pattern, orientation=orientation)
        for move in (
            upright,
            lambda r: crop(r, 3, 5, 6, 10),
            lambda r: crop(upright(r), 2, 1, 8, 6),
        ):
            first, then = move(corrected(raw)), corrected(move(raw))
            assert (first.pattern, first.black) == (then.pattern, then.black)
            assert np.abs(first.mosaic.astype(int) - then.mosaic).max() <= 1
            assert (first.mosaic != then.mosaic).mean() < 0.01
            assert then.gain_map is None
    rendered = render_linear(raw), render_linear(corrected(raw))
    np.testing.assert_allclose(*rendered, atol=5e-4)  # half a step of 8900, sharpened


def test_the_gain_at_a_site_is_that_of_its_place():
    raw = made_up("GBRG")
    maps = raw.gain_map
    field = maps.field("GBRG", 12, 20)
    planes = {(0, 0): 2, (0, 1): 3, (1, 0): 0, (1, 1): 1}  # Gb B / R Gr
    for y in range(12):
        for x in range(20):
            gains = maps.gains[planes[y % 2, x % 2]]
            places = maps.top + maps.step_y * np.arange(3), maps.left + maps.step_x * np.arange(5)
            across = [np.interp(x, places[1], row) for row in gains]
            assert field[y, x] == pytest.approx(np.interp(y, places[0], across), rel=1e-5)
    np.testing.assert_array_equal(field[4:8], maps.field("GBRG", 4, 20, top=4))


def test_views_of_a_corrected_mosaic_are_corrected_views():
    rng = np.random.default_rng(1)
    smooth = GainMap(1 + rng.uniform(0, 0.3, (4, 3, 3)), 0, 0, 60.0, 80.0)
    raw = dataclasses.replace(made_up(height=120, width=160), gain_map=smooth)
    # A flat scene, so that binning and resizing average the gains alone.
    raw = dataclasses.replace(raw, mosaic=np.full((120, 160), 2000, np.uint16))
    for view in (View(24), View(40, binning=2), View(32, area=(0.2, 0.6))):
        for mirror, flip in ((False, False), (True, False), (True, True)):
            drawn = Draw((0.3, 0.8), mirror, flip, 0.4 if view.area else None, 1.2)
            whole, _ = view.cut_raw(corrected(raw), drawn)
            mosaic, camera = view.cut_raw(raw, drawn)
            seen = corrected(dataclasses.replace(camera, mosaic=np.ascontiguousarray(mosaic)))
            assert np.abs(whole.astype(int) - seen.mosaic).max() <= 30
    small = binned(raw, 3)
    assert small.mosaic.shape == (40, 52)
    difference = corrected(small).mosaic.astype(int) - binned(corrected(raw), 3).mosaic
    assert np.abs(difference).max() <= 30
    with pytest.raises(ValueError, match="cannot be binned by 61"):
        binned(raw, 61)


def test_values_stop_at_white():
    raw = RawImage(
        np.array([[900, 1100], [500, 100]], np.uint16), "RGGB", (100.0,) * 4, 1000.0,
        gain_map=GainMap(np.full((4, 1, 1), 2.0), 0, 0, 1, 1),
    )  # fmt: skip
    # 1700 stops at white; 1100 was above it before; 500 becomes 900; black stays black.
    assert corrected(raw).mosaic.tolist() == [[1000, 1100], [900, 100]]
    half = dataclasses.replace(raw, gain_map=GainMap(np.full((4, 1, 1), 0.5), 0, 0, 1, 1))
    assert corrected(half).mosaic.tolist() == [[500, 600], [300, 100]]
    shown = render_linear(raw, demosaic="superpixel", exposure=0.5)
    np.testing.assert_allclose(shown[:, 0, 0], [0.5, (1000 / 900 + 800 / 900) / 4, 0], atol=1e-6)


def test_batches_mix_files_with_and_without():
    raws = [made_up(seed=0), dataclasses.replace(made_up(seed=1), gain_map=None), made_up(seed=2)]
    raws[2] = dataclasses.replace(raws[2], gain_map=GainMap(np.ones((4, 6, 2)) * 1.5, 0, 3, 2, 5))
    raws[0] = dataclasses.replace(raws[0], baseline_exposure=1.0)
    isp = ISP.from_raw(raws)
    mosaic = torch.from_numpy(np.stack([r.mosaic for r in raws]))
    together = render(mosaic, isp)
    for index, raw in enumerate(raws):
        alone = render(mosaic[index : index + 1], ISP.from_raw(raw))
        assert torch.equal(together[index : index + 1], alone)
    double = render(mosaic, isp, dtype=torch.float64)
    torch.testing.assert_close(together.double(), double, atol=1e-4, rtol=0)
    assert len(isp.tensors()) == 8
    assert RawBatch(mosaic, isp).nbytes > mosaic.nbytes + isp.gain_maps.gains.nbytes
    meta = isp.to("meta").batched(3, "meta")
    assert meta.gain_maps.gains.device.type == "meta"
    assert isp.to("meta").gain_maps.place.device.type == "meta"
    assert render(mosaic.to("meta"), meta).shape == together.shape
    given = ISP(gain_map=raws[0].gain_map).batched(3).gain_maps
    assert given.gains.shape == (3, 4, 3, 5)
    joined = GainMaps.cat([(ISP.from_raw(r).gain_maps, 1) for r in raws])
    torch.testing.assert_close(render(mosaic, isp.replace(gain_map=joined)), together)
    assert ISP.from_raw(raws[1]).gain_map is None
    with pytest.raises(ValueError, match="gain_map has 3 maps: expected 1 or 2"):
        ISP(gain_map=[r.gain_map for r in raws]).batched(2)
    with pytest.raises(TypeError, match="must be a GainMap or None, not str"):
        ISP(gain_map=["a"])


def test_the_baseline_exposure_brightens(tmp_path):
    for stops, expected in ((None, 0.0), (1.5, 1.5), (-0.5, -0.5)):
        extra = () if stops is None else [(50730, "2i", 1, rationals([stops]), True)]
        raw = read_raw(write(tmp_path / "a.dng", noise((48, 64)), extra))
        assert raw.baseline_exposure == expected
        isp = ISP.from_raw(raw)
        exposure = torch.as_tensor(isp.exposure).item()
        assert exposure == pytest.approx(2 ** max(0.0, expected))
        assert ISP.from_raw(raw, exposure=1.0).exposure == 1.0
    extra = [(50730, "2i", 1, rationals([99]), True)]
    path = write(tmp_path / "a.dng", noise((48, 64)), extra)
    with pytest.warns(UserWarning, match=r"a\.dng: a baseline exposure of 99 stops makes no sense"):
        assert read_raw(path).baseline_exposure == 0
    with pytest.raises(ValueError, match="baseline_exposure must be finite, not nan"):
        dataclasses.replace(raw, baseline_exposure=float("nan"))


WHOLE = (0, 0, 48, 64)
SOUND = gain_map(grid(0), WHOLE)
POINTS = 32  # where the number of points is in the parameters


def with_points(rows, columns, planes=1):
    """SOUND with other numbers of points than it has."""
    head = SOUND[:POINTS] + struct.pack(">2I", rows, columns)
    return head + SOUND[POINTS + 8 : 72] + struct.pack(">I", planes) + SOUND[76:]


DAMAGED = {
    "no count": b"\0\0",
    "too many opcodes": struct.pack(">I", 2**32 - 1) + opcode_list((9, SOUND))[4:],
    "more bytes than there are": opcode_list((9, SOUND))[:-4],
    "no parameters": opcode_list((9, b"")),
    "no points": opcode_list((9, with_points(0, 5))),
    "more points than gains": opcode_list((9, with_points(2**31, 2**31))),
    "more planes than gains": opcode_list((9, with_points(4, 5, 2**32 - 1))),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_lists_that_lie_are_damaged_files(tmp_path, kind):
    path = write(tmp_path / "a.dng", noise((48, 64)), [opcodes_tag(2, DAMAGED[kind])])
    with pytest.raises(CorruptRawError, match=r"a\.dng: its (OpcodeList2|GainMap) .*copy the file"):
        read_raw(path)
    # In a list of which nothing is applied, a lie is harmless.
    path = write(tmp_path / "a.dng", noise((48, 64)), [opcodes_tag(3, DAMAGED[kind])])
    with pytest.warns(camera_warnings.CameraWarning, match="OpcodeList3"):
        assert read_raw(path).gain_map is None


OTHERS = {
    "of 1 x 600 points": gain_map(np.ones((1, 600)), WHOLE),
    "for a part of the picture": gain_map(grid(0), (0, 0, 20, 64)),
    "for every 3th row": gain_map(grid(0), WHOLE, (3, 1)),
    "for plane 1": gain_map(grid(0), WHOLE, plane=(1, 1)),
    "not positive": gain_map(-grid(0), WHOLE),
    "finite numbers, steps positive": gain_map(grid(0), WHOLE, spacing=(0.0, float("nan"))),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_maps_of_another_kind_are_named(tmp_path, kind):
    path = write(
        tmp_path / "a.dng", noise((48, 64)), [opcodes_tag(2, opcode_list((9, OTHERS[kind])))]
    )
    with pytest.warns(camera_warnings.CameraWarning, match=f"GainMap of OpcodeList2 .*{kind}"):
        assert read_raw(path).gain_map is None


def test_grids_that_differ_are_named(tmp_path):
    maps = [(9, gain_map(grid(n, (4, 5 + n)), (n, 0, 48, 64), (2, 1))) for n in range(2)]
    path = write(tmp_path / "a.dng", noise((48, 64)), [opcodes_tag(2, opcode_list(*maps))])
    with pytest.warns(camera_warnings.CameraWarning, match="of grids that differ"):
        assert read_raw(path).gain_map is None


def test_what_is_not_applied_is_named_once_a_camera(tmp_path):
    extra = [
        opcodes_tag(1, opcode_list((5, b"\0" * 8), (5, b""), (99, b"abc"))),
        opcodes_tag(3, opcode_list((1, b"\0" * 20), (3, b""), (9, SOUND))),
    ]
    (tmp_path / "raw").mkdir()
    for index in range(4):
        phone_dng(tmp_path / f"raw/{index}.dng", extra=extra)
    said = "FixBadPixelsList of OpcodeList1, number 99 of OpcodeList1, " \
        "WarpRectilinear of OpcodeList3, FixVignetteRadial of OpcodeList3, " \
        "GainMap of OpcodeList3"  # fmt: skip
    with (
        warnings.catch_warnings(record=True) as caught,
        closing(RawFolder(tmp_path / "raw")) as raws,
    ):
        warnings.simplefilter("always")
        found = list(ViewLoader(raws, View(32), 2, workers=2).fixed(1))
        raws[0]
    assert len(found) == 2
    notes = [str(w.message) for w in caught if w.category is camera_warnings.CameraWarning]
    assert len(notes) == 2, notes
    unseen, unapplied = sorted(notes, key=lambda note: said in note)
    assert said in unapplied
    assert "gain map that the student does not see" in unseen
    assert "gain_map=True" in unseen


def fields_equal(one, other):
    """Whether two RawImages have the same fields, gain maps and mosaics compared by value."""
    for field in dataclasses.fields(RawImage):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, GainMap) and isinstance(b, GainMap):
            a, b = a.as_json(), b.as_json()
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        else:
            assert (type(a), a) == (type(b), b), field.name


def test_decoders_caches_and_packs_carry_every_field(tmp_path):
    crop_tags = [
        (50719, "2I", 2, rationals([3, 5]), True), (50720, "2I", 2, rationals([40, 30]), True),
        (50730, "2i", 1, rationals([0.75]), True), (274, "H", 1, 6, True),
        (33434, "2I", 1, (1, 50), True), (34855, "H", 1, 200, True),
    ]  # fmt: skip
    (tmp_path / "raw").mkdir()
    path = phone_dng(tmp_path / "raw/a.dng", area=(2, 4, 46, 58), extra=crop_tags)
    raw = read_raw(path)
    defaults = {f.name: f.default for f in dataclasses.fields(RawImage)}
    unset = [n for n, v in defaults.items() if n in ("gain_map", "default_crop", "iso",
             "baseline_exposure", "exposure_time") and getattr(raw, n) == v]  # fmt: skip
    assert unset == []
    with DecodePool(1) as pool:
        fields_equal(raw, pool.read(path))
    turned = upright(raw)
    for _ in range(2):  # decoded, then kept
        with closing(RawFolder(tmp_path / "raw", cache=tmp_path / "kept")) as folder:
            fields_equal(turned, dataclasses.replace(folder[0], path=raw.path))
    pack(tmp_path / "raw", tmp_path / "packed", progress=False)
    packed = PackedRaw(tmp_path / "packed")
    fields_equal(turned, dataclasses.replace(packed[0], path=raw.path))
    assert packed.default_crop(0) == turned.default_crop
    part = packed.crop(0, 3, 1, 40, 42)
    fields_equal(dataclasses.replace(crop(turned, 3, 1, 40, 42), path=""),
                 dataclasses.replace(part, path=""))  # fmt: skip
    pack(tmp_path / "raw", tmp_path / "binned", binning=2, progress=False)
    fields_equal(binned(turned, 2),
                 dataclasses.replace(PackedRaw(tmp_path / "binned")[0], path=raw.path))  # fmt: skip


def test_loaders_correct_the_mosaic_for_the_student(tmp_path):
    (tmp_path / "raw").mkdir()
    for index in range(2):
        phone_dng(tmp_path / f"raw/{index}.dng")
    pack(tmp_path / "raw", tmp_path / "packed", progress=False)
    level = BLACK + (WHITE - BLACK) * GREY

    def sources(gain_map):
        yield RawFolder(tmp_path / "raw", gain_map=gain_map)
        yield RawFolder(tmp_path / "raw", gain_map=gain_map, cache=tmp_path / "kept")
        yield RawFolder(tmp_path / "raw", gain_map=gain_map, cache=tmp_path / "kept")
        yield PackedRaw(tmp_path / "packed", gain_map=gain_map)

    for wanted in (True, False):
        for source in sources(wanted):
            with closing(source), warnings.catch_warnings():
                warnings.simplefilter("error", camera_warnings.CameraWarning)
                (batch,) = ViewLoader(source, View(48), 2).fixed(1)
                flat = (batch.mosaic.float() - level).abs().max() < 3
                assert bool(flat) == wanted
                assert (source[0].gain_map is None) == wanted
                picture = render(batch.mosaic, batch.isp.replace(tone="linear"))
                np.testing.assert_allclose(picture.numpy(), GREY, atol=2e-4)
    with pytest.warns(camera_warnings.CameraWarning, match="does not see"):
        PackedRaw(tmp_path / "packed")[0]
    camera_warnings._said.clear()
    with pytest.warns(camera_warnings.CameraWarning, match="does not see"):
        list(ViewLoader([made_up(height=48, width=48)], View(24), 1).fixed(1))


def test_a_stored_teacher_saw_the_corrected_pictures(tmp_path):
    (tmp_path / "raw").mkdir()
    for index in range(2):
        phone_dng(tmp_path / f"raw/{index}.dng")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 24 * 24, 5))
    teacher = isp_distill.Teacher(model, size=24, tone="linear")
    settings = {"crop": 48, "views": 2, "progress": False, "device": "cpu"}
    pack(tmp_path / "raw", tmp_path / "packed", teacher=teacher, **settings)
    packed = PackedRaw(tmp_path / "packed", gain_map=False)
    stored = StoredTeacher.matching(packed, teacher, View(48), None)
    _, logits = stored.view(0, 0)
    with torch.no_grad():
        flat = teacher.logits(torch.full((1, 3, 24, 24), GREY))[0]
    np.testing.assert_allclose(logits, flat.numpy(), atol=5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": [3, 6]}, "60 gains for 4 x 3 x 6 points"),
        ({"points": [0, 0]}, "is no gain map"),
        ({"gains": "?"}, "is no gain map"),
        ({"place": [0, 0, 1]}, "is no gain map"),
        ({"place": [0, 0, 1, 0]}, "steps positive"),
        ({"place": [0, 0, 1, float("inf")]}, "steps positive"),
    ],
)
def test_json_that_is_no_gain_map(change, message):
    stored = made_up().gain_map.as_json()
    assert GainMap.from_json(stored).as_json() == stored
    with pytest.raises(ValueError, match=message):
        GainMap.from_json({**stored, **change})
