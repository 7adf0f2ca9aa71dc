"""train(["a", "b"]): several folders as one dataset, in Python and in the shell."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_run import files, raw_image, teacher

import isp_distill
from isp_distill import ImageFolder, PackedRaw, RawFolder, SensorFolder, pack
from isp_distill.cli.main import main
from isp_distill.data.source import RowReader
from isp_distill.packs.stored_teachers import SeveralStoredTeachers
from isp_distill.raw.packings import pack_rows
from isp_distill.sources import open_source
from isp_distill.training.belonging import data_identity, differences
from isp_distill.training.config import RunConfig

SETTINGS = {
    "steps": 2, "batch_size": 2, "progress": False, "tensorboard": False, "checkpoint_every": 1,
}  # fmt: skip


@pytest.fixture
def roots(tmp_path):
    """Two folders of RAW files, with some classes in common, and one of sensor dumps."""
    files(tmp_path / "one" / "cat", 2).close()
    files(tmp_path / "one" / "dog", 1).close()
    files(tmp_path / "two" / "ape", 1).close()
    files(tmp_path / "two" / "dog", 2).close()
    dumps = tmp_path / "dumps"
    (dumps / "emu").mkdir(parents=True)
    raw = raw_image(8)
    codes = np.minimum(np.stack([raw.mosaic, raw.mosaic[::-1]]), 16383)
    (dumps / "emu" / "two.raw").write_bytes(pack_rows(codes, "mipi14").tobytes())
    (dumps / "sensor.toml").write_text(
        'packing = "mipi14"\nwidth = 48\nheight = 48\npattern = "RGGB"\nblack = 512\n'
    )
    return tmp_path


def packs(roots, **settings):
    made = []
    for name in ("one", "two"):
        made.append(roots / f"{name}-packed")
        pack(roots / name, made[-1], progress=False, workers=1, **settings)
    return made


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_items_of_all_folders_one_after_another(roots):
    parts = [open_source(roots / name) for name in ("one", "two", "dumps")]
    joined = open_source([str(roots / "one"), roots / "two", roots / "dumps"])
    assert len(joined) == 8
    assert joined.paths == [path for part in parts for path in part.paths]
    for index, raw in enumerate(raw for part in parts for raw in part):
        assert np.array_equal(joined[index].mosaic, raw.mosaic)
        assert joined[index].path == str(joined.paths[index])
    assert np.array_equal(joined[-1].mosaic, joined[7].mosaic)
    assert (joined.label(0), joined.label_maps, joined.classes) == (None, None, [])
    with pytest.raises(IndexError):
        joined[8]
    # Of dumps the rows of a view are enough; RAW files are decoded whole.
    assert isinstance(joined, RowReader)
    assert [joined.reads_rows(i) for i in range(8)] == [False] * 6 + [True] * 2
    assert np.array_equal(joined.rows(7, 4, 8).mosaic, joined[7].mosaic[4:8])
    joined.close()


def test_classes_are_numbered_over_all_folders_alike(roots):
    names = [roots / "one", roots / "two", roots / "dumps"]
    joined = open_source(names, labels="folder")
    assert joined.classes == ["ape", "cat", "dog", "emu"]
    assert [joined.label(i) for i in range(8)] == [1, 1, 2, 0, 2, 2, 3, 3]
    by_hand = open_source([RawFolder(names[0], labels="folder"), PackedRaw(
        packs(roots, labels="folder")[1]
    )])  # fmt: skip
    assert by_hand.classes == ["ape", "cat", "dog"]
    assert [by_hand.label(i) for i in range(6)] == [1, 1, 2, 0, 2, 2]
    numbers = RawFolder(names[1], labels=lambda path: 5)
    with pytest.raises(ValueError, match=r"two: its classes are numbers, and those of .*one have"):
        open_source([RawFolder(names[0], labels="folder"), numbers])
    some = open_source([RawFolder(names[0], labels="folder"), RawFolder(names[1])])
    assert [some.label(i) for i in range(6)] == [0, 0, 1, None, None, None]


def test_a_file_of_labels_over_several_folders(roots):
    """Its paths lie below the folder that holds all of them."""
    lines = ["path,label"]
    for path in sorted((*roots.glob("*/*/*.dng"), roots / "dumps/emu/two.raw")):
        lines.append(f"{path.relative_to(roots).as_posix()},{path.parent.parent.name}")
    (roots / "l.csv").write_text("\n".join(lines))
    names = [roots / "two", roots / "dumps"]
    joined = open_source(names, labels=roots / "l.csv")
    assert joined.classes == ["dumps", "one", "two"]
    assert [joined.label(i) for i in range(5)] == [2, 2, 2, 0, 0]


def test_label_maps_of_several_folders(roots):
    for number, path in enumerate(sorted(roots.glob("*/*/*.dng"))):
        place = (roots / "maps" / path.relative_to(roots)).with_suffix(".npy")
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, np.full((6, 6), number, np.uint8))
    joined = open_source([roots / "one", roots / "two"], roots / "maps")
    assert [int(joined.label(i)[0, 0]) for i in range(6)] == list(range(6))
    report = isp_distill.evaluate(
        lambda m, i: torch.zeros(len(m), 7, 4, 4), teacher(dense=True), joined, progress=False
    )
    assert report.label_iou is not None
    lacking = [
        RawFolder(roots / "one", label_maps=roots / "maps" / "one"),
        RawFolder(roots / "two"),
    ]
    with pytest.raises(ValueError, match="two: has no label maps, and other folders have"):
        open_source(lacking)


def test_packs_as_one_are_read_by_rows_and_train_as_the_files_do(roots, tmp_path):
    packed = packs(roots)
    joined = open_source(packed)
    assert isinstance(joined, RowReader)
    assert [joined.shape(i) for i in range(6)] == [(48, 48)] * 6
    assert np.array_equal(joined.rows(4, 2, 8).mosaic, joined[4].mosaic[2:8])
    assert joined.default_crop(4) is None
    whole = roots / "whole"
    whole.mkdir()
    for name in ("one", "two"):
        shutil.copytree(roots / name, whole / name)
    found = {}
    for name, data in {
        "packs": packed,
        "datasets": [PackedRaw(path) for path in packed],
        "folders": [str(roots / "one"), str(roots / "two")],
        "mixed": [RawFolder(roots / "one"), PackedRaw(packed[1])],
        "one root": whole,
    }.items():
        result = isp_distill.train(
            "rawify", teacher(), data, validation=data, out=tmp_path / "runs" / name, **SETTINGS
        )
        found[name] = losses(tmp_path / "runs" / name), result.after.kl, result.after.samples
    assert all(one == found["one root"] for one in found.values()), found
    assert found["packs"][2] == 6


def test_the_stored_teacher_of_several_packs(roots, tmp_path):
    packed = packs(roots, teacher=teacher(), views=2)
    isp_distill.train("rawify", teacher(), packed, out=tmp_path / "run", **SETTINGS)
    name = next((packed[0] / "teachers").iterdir()).name
    assert json.loads((tmp_path / "run/report.json").read_text())["stored_teacher"] == name
    with pytest.raises(ValueError, match="belong to another teacher"):
        isp_distill.train("rawify", teacher(5), packed, out=tmp_path / "other", **SETTINGS)
    shutil.rmtree(packed[1] / "teachers")
    with pytest.raises(ValueError, match=r"two-packed: has no stored logits, and .*one-packed has"):
        isp_distill.train("rawify", teacher(), packed, out=tmp_path / "other", **SETTINGS)
    live = open_source(packed, use_stored_teacher=False)
    assert not live.parts[0].use_stored_teacher
    with pytest.raises(FileNotFoundError, match="none of the folders is packed"):
        open_source([roots / "one", roots / "two"], use_stored_teacher=False)


def test_each_file_has_its_own_logits():
    class Stored:
        name, embedding = "same", False

        def __init__(self, start):
            self.start = start

        def view(self, index, number):
            return None, (self.start + index, number)

    joined = SeveralStoredTeachers([Stored(0), Stored(100)], [2, 3])
    assert [joined.view(i, 7)[1] for i in range(5)] == [
        (0, 7), (1, 7), (100, 7), (101, 7), (102, 7)
    ]  # fmt: skip
    assert joined.name == "same"


def test_a_checkpoint_belongs_to_its_folders(roots):
    def identity(*names, **settings):
        return {"data": data_identity(open_source([roots / name for name in names], **settings))}

    first = identity("one", "two")
    assert json.loads(json.dumps(first)) == identity("one", "two")
    assert differences(first, identity("two", "one")) == [
        "data: its files have other names or sizes"
    ]
    shutil.copytree(roots / "one", roots / "elsewhere" / "one")
    assert identity("elsewhere/one", "two") == first, "a folder may move"
    (said,) = differences(first, identity("one", "two", labels="folder"))
    assert said == "data: its labels are others"
    (roots / "one" / "cat" / "00.dng").write_bytes(b"another file")
    assert differences(first, identity("one", "two")) != []


def test_what_cannot_be_used_is_listed(roots, tmp_path):
    (roots / "two" / "dog" / "bad.dng").write_bytes(b"no photograph" * 100)
    (roots / "dumps" / "emu" / "bad.raw").write_bytes(b"1")
    data = [roots / "one", roots / "two", roots / "dumps"]
    report = isp_distill.evaluate(
        lambda m, i: torch.zeros(len(m), 7), teacher(), data, progress=False
    )
    assert report.samples == 8
    assert {Path(path).name for path in report.skipped} == {"bad.dng", "bad.raw"}
    parts = [RawFolder(roots / "one"), RawFolder(roots / "two", on_error="raise")]
    assert open_source(parts).on_error == "raise"


def test_what_does_not_go_together_is_refused(roots):
    pictures = roots / "pictures"
    pictures.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(pictures / "a.png")
    for names in (("one", "pictures"), ("pictures", "one")):
        with pytest.raises(ValueError, match=r"pictures: holds pictures, and .*one RAW data"):
            open_source([roots / name for name in names])
    shutil.copytree(pictures, roots / "more")
    assert len(open_source([pictures, roots / "more"])) == 2
    assert len(open_source([ImageFolder(pictures), ImageFolder(roots / "more")])) == 2
    for names in (("one", "one"), ("one", "one/cat"), ("one/cat", "one")):
        with pytest.raises(ValueError, match=r"lies in .*, or is it: its files would come twice"):
            open_source([roots / name for name in names])
    with pytest.raises(IsADirectoryError, match="is a folder in a list of files"):
        open_source([roots / "one", roots / "two" / "dog" / "00.dng"])
    assert isinstance(open_source([roots / "dumps"]), SensorFolder)


def test_the_shell_trains_on_several_folders_and_config_toml_says_so(roots, tmp_path, capsys):
    data = [str(roots / name) for name in ("one", "two", "dumps")]
    common = ["--teacher", "training_run:teacher", "--device", "cpu", "--batch-size", "2"]
    out = tmp_path / "run"
    run = ["--steps", "1", "--alpha", "0.5", "--labels", "--no-tensorboard", "--no-progress"]
    held_out = ["--validation", data[0]]
    assert main(["train", *data, *common, *run, *held_out, "--out", str(out)]) == 0
    capsys.readouterr()
    config = RunConfig.read(out / "config.toml")
    assert (config.data, config.labels) == (data, True)
    again = tmp_path / "again"
    assert main(["train", "--config", str(out / "config.toml"), "--out", str(again)]) == 0
    assert losses(again) == losses(out)
    assert main(["evaluate", *data, *common, "--labels"]) == 0
    assert "over 8 views" in capsys.readouterr().out


def test_config_toml_says_files_and_nothing_that_is_not_so(roots, tmp_path):
    two = [str(roots / "one/cat/00.dng"), str(roots / "two/dog/01.dng")]
    some = RawFolder(roots / "one", limit=2)
    for name, data, said in (
        ("files", two, two),
        ("some", some, None),
        ("whole", RawFolder(roots / "one"), str(roots / "one")),
        ("dumps", SensorFolder(roots / "dumps"), str(roots / "dumps")),
        ("made", [some, RawFolder(roots / "two")], None),
    ):
        isp_distill.train("rawify", teacher(), data, out=tmp_path / name, **SETTINGS)
        assert RunConfig.read(tmp_path / name / "config.toml").data == said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data = []", r"data must be a string"),
        ('data = ["a", 3]', "data must be a string, got 3"),
        ("labels = 3", "labels must be true or false"),
    ],
)
def test_a_config_that_lies_is_refused(tmp_path, text, message):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        RunConfig.read(tmp_path / "c.toml")
