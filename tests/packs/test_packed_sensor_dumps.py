"""pack of a folder of sensor dumps: every frame a record, with the file and the number it has."""

import json
import pickle

import numpy as np
import pytest
import torch
from training_run import raw_image, teacher

import isp_distill
from isp_distill import PackedRaw, SensorFolder, SensorFormat, pack, verify, write_dng
from isp_distill.cli.main import main
from isp_distill.data.sensor_files import file_and_frame, frame_names, frame_order
from isp_distill.raw.packings import pack_rows

WIDTH, HEIGHT = 48, 40
TOML = f'format = "SRGGB10P"\nwidth = {WIDTH}\nheight = {HEIGHT}\nblack = 64\n'
SETTINGS = {"steps": 3, "batch_size": 2, "progress": False, "tensorboard": False, "seed": 1}


def codes(seed, frames=1):
    random = np.random.default_rng(seed)
    return random.integers(64, 1024, (frames, HEIGHT, WIDTH), dtype=np.uint16)


def dump(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack_rows(frames, "mipi10").tobytes())


@pytest.fixture
def root(tmp_path):
    """Three files of one, of eleven and of two frames, and two that are of no use."""
    folder = tmp_path / "dumps"
    folder.mkdir()
    (folder / "sensor.toml").write_text(TOML)
    dump(folder / "cat/one.raw", codes(1))
    dump(folder / "dog/many.raw", codes(2, 11))
    np.save(folder / "dog/two.npy", codes(3, 2))
    (folder / "dog/short.raw").write_bytes(bytes(77))
    np.save(folder / "cat/large.npy", codes(4)[0][:-2])
    return folder


def packed_again(root, out, **settings):
    return pack(root, out, progress=False, workers=2, **settings)


def test_names_of_frames_and_back():
    assert frame_names("a/b.raw", 1) == ["a/b.raw"]
    assert frame_names("a/b.raw", 2) == ["a/b.raw/0000", "a/b.raw/0001"]
    assert file_and_frame("a/b.RAW/12345") == ("a/b.RAW", 12345)
    for name in ("a/b.raw", "a/0003", "a/b.dng/0003", "a/b.raw/3"):
        assert file_and_frame(name) == (name, 0)
    many = frame_names("b.npy", 10002)
    assert sorted(["b.raw", *reversed(many), "a/z.raw"], key=frame_order) == [
        "a/z.raw", *many, "b.raw"
    ]  # fmt: skip


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_every_frame_is_a_record(root, tmp_path, compression):
    out = tmp_path / "packed"
    report = packed_again(root, out, labels="folder", compression=compression, shard_bytes=9000)
    assert (report.files, report.packed) == (14, 14)
    reasons = {name[len(str(root)) + 1 :]: why for name, why in report.skipped.items()}
    assert set(reasons) == {"dog/short.raw", "cat/large.npy"}
    assert "holds 77 bytes" in reasons["dog/short.raw"]
    folder, packed = SensorFolder(root, labels="folder"), PackedRaw(out)
    assert packed.names == folder.names
    assert packed.names[:3] == ["cat/one.raw", "dog/many.raw/0000", "dog/many.raw/0001"]
    assert (packed.paths, packed.frames) == (folder.paths, folder.frames)
    assert packed.classes == folder.classes == ["cat", "dog"]
    assert packed.skipped == report.skipped
    for index, raw in enumerate(folder):
        other = packed[index]
        assert np.array_equal(raw.mosaic, other.mosaic)
        assert {k: v for k, v in vars(raw).items() if k != "mosaic"} == {
            k: v for k, v in vars(other).items() if k != "mosaic"
        }
        assert packed.label(index) == folder.label(index)
    assert np.array_equal(packed[4].mosaic, codes(2, 11)[3])
    assert pickle.loads(pickle.dumps(packed)).frames == folder.frames
    assert verify(out, progress=False).records == 14
    assert packed_again(root, out, labels="folder", compression=compression).packed == 0


def test_what_changed_is_packed_again_and_nothing_else(root, tmp_path):
    out = tmp_path / "packed"
    packed_again(root, out)
    dump(root / "dog/many.raw", codes(5, 3))  # fewer frames
    dump(root / "dog/short.raw", codes(6))
    report = packed_again(root, out)
    assert (report.files, report.packed, report.missing) == (7, 4, [])
    assert set(report.skipped) == {str(root / "cat/large.npy")}
    dump(root / "cat/one.raw", codes(7, 2))  # one frame became two: none is there twice
    assert (packed_again(root, out).files, PackedRaw(out).names[:2]) == (
        8, ["cat/one.raw/0000", "cat/one.raw/0001"]
    )  # fmt: skip
    # What describes a file counts as the file does.
    (root / "dog/many.toml").write_text("iso = 800\n")
    assert packed_again(root, out).packed == 3
    (root / "sensor.toml").write_text(TOML.replace("black = 64", "black = 60"))
    assert packed_again(root, out).packed == 8
    packed = PackedRaw(out)
    assert {raw.black for raw in packed} == {(60.0,) * 4}
    assert [raw.iso for raw in packed][2:5] == [800] * 3
    (root / "dog/many.raw").unlink()
    report = packed_again(root, out)
    assert (report.files, report.missing[0]) == (8, "dog/many.raw/0000")
    assert packed_again(root, out, prune=True, labels="folder").files == 5
    (root / "dog/two.npy").write_bytes(b"no array")  # its frames are not packed any longer
    report = packed_again(root, out)
    assert (report.files, report.missing) == (3, [])
    assert "cannot be read" in report.skipped[str(root / "dog/two.npy")]


def test_damage_is_named_by_frame_and_mended(root, tmp_path):
    out = tmp_path / "packed"
    packed_again(root, out)
    shard = next(out.glob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # of one frame
    shard.write_bytes(data)
    found = verify(out, drop=True, progress=False)
    ((name,),) = found.damaged.values()
    assert name in SensorFolder(root).names
    assert packed_again(root, out).packed == 1
    assert verify(out, progress=False).sound


def test_a_damaged_frame_says_which_it_is(root, tmp_path):
    out = tmp_path / "packed"
    packed_again(root, out)
    packed = PackedRaw(out)
    next(out.glob("shard-*")).unlink()
    with pytest.raises(isp_distill.CorruptRawError, match="the record of its frame 3 in") as error:
        packed[4]
    assert error.value.path == str(root / "dog/many.raw")


def test_training_on_packed_frames_is_training_on_the_dumps(root, tmp_path):
    out = tmp_path / "packed"
    packed_again(root, out)
    results = [
        isp_distill.train(
            "rawify", teacher(), data, validation=data, out=tmp_path / name, **SETTINGS
        )
        for name, data in (("a", root), ("b", out))
    ]
    assert results[0].after.kl == results[1].after.kl
    assert results[1].after.samples == 14


def test_the_stored_teacher_of_frames(root, tmp_path):
    out = tmp_path / "packed"
    packed_again(root, out, teacher=teacher(), views=2)
    isp_distill.train("rawify", teacher(), out, out=tmp_path / "run", **SETTINGS)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["stored_teacher"] in [one.name for one in (out / "teachers").iterdir()]


def test_the_shell_packs_trains_and_evaluates_dumps_with_their_classes(root, tmp_path, capsys):
    out = str(tmp_path / "packed")
    assert main(["pack", str(root), out, "--labels", "--workers", "1"]) == 0
    assert "14 mosaics" in capsys.readouterr().out
    assert PackedRaw(out).classes == ["cat", "dog"]
    common = ["--teacher", "training_run:teacher", "--device", "cpu", "--batch-size", "2"]
    run = ["--steps", "1", "--out", str(tmp_path / "run"), "--alpha", "0.5", "--labels"]
    assert main(["train", str(root), *common, *run]) == 0
    assert main(["evaluate", str(root), *common, "--labels"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_a_format_by_hand_and_a_cameras_own_file(tmp_path):
    folder, raw = tmp_path / "dumps", raw_image(0)
    dump(folder / "a.raw", codes(1))
    made = write_dng(folder / "b.dng", raw.mosaic, pattern=raw.pattern, bits=14, white=16000)
    made.rename(folder / "b.raw")
    form = SensorFormat.named("SRGGB10P", width=WIDTH, height=HEIGHT, black=64)
    assert packed_again(folder, tmp_path / "packed", format=form).files == 2
    first, second = PackedRaw(tmp_path / "packed")
    assert np.array_equal(first.mosaic, codes(1)[0])
    assert np.array_equal(second.mosaic, raw.mosaic)
    assert packed_again(folder, tmp_path / "packed", format=form).packed == 0
    with pytest.raises(ValueError, match=r"extensions of sensor dumps are .*, not \.dng"):
        packed_again(folder, tmp_path / "other", format=form, extensions=[".dng"])


def test_arrays_without_a_description_say_what_to_write(tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "a.npy", codes(1))
    with pytest.raises(FileNotFoundError, match=r"write .*sensor\.toml, for example"):
        packed_again(folder, tmp_path / "packed")


def test_label_maps_of_frames(root, tmp_path):
    """A map of its own for every frame, for the dumps and for their pack alike."""
    out = tmp_path / "packed"
    packed_again(root, out)
    for number, name in enumerate(PackedRaw(out).names):
        path = (tmp_path / "maps" / name).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((4, 5), number, np.uint8))
    for data in (
        SensorFolder(root, label_maps=tmp_path / "maps"),
        PackedRaw(out, label_maps=tmp_path / "maps"),
    ):
        assert [int(data.label(i)[0, 0]) for i in range(len(data))] == list(range(14))


def test_evaluate_reads_a_pack_of_frames(root, tmp_path):
    packed_again(root, tmp_path / "packed")
    report = isp_distill.evaluate(
        lambda m, i: torch.zeros(len(m), 7), teacher(), tmp_path / "packed", progress=False
    )
    assert report.samples == 14
