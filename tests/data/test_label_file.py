"""labels="labels.csv" and its kin in JSON lines, for every kind of folder and in the shell."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from training_run import files

import isp_distill
from isp_distill import ImageFolder, PackedRaw, RawFolder, SensorFolder, SensorFormat, pack
from isp_distill.cli.main import main
from isp_distill.data.label_file import LabelFile


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "raw"
    files(folder / "a", 2).close()
    files(folder / "b", 1).close()
    return folder


NAMES = ["a/00.dng", "a/01.dng", "b/00.dng"]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text", "labels", "classes"),
    [
        ("l.csv", "path,label\na/00.dng,3\nb/00.dng,0\na/01.dng,-100\n", [3, -100, 0], []),
        ("l.csv", "\ufefflabel, path\r\ndog,b/00.dng\r\ncat,a/01.dng\r\n\r\ndog,./a/00.dng\r\n",
         [1, 0, 1], ["cat", "dog"]),
        ("l.CSV", 'path,who,label\n"a/00.dng",me,"a, b"\nb/00.dng,,x\na/01.dng,"you\n2",x\n',
         [0, 1, 1], ["a, b", "x"]),
        ("l.jsonl", '{"path": "a/00.dng", "label": 2}\n\n{"label": 1, "path": "b/00.dng", "z": 0}\n'
         '{"path": "a/01.dng", "label": 0}', [2, 0, 1], []),
        ("l.ndjson", '{"path": "a/00.dng", "label": "9"}\n{"path": "b/00.dng", "label": "10"}\n'
         '{"path": "a/01.dng", "label": "9"}\n{"path": "elsewhere/1.dng", "label": "8"}',
         [2, 2, 0], ["10", "8", "9"]),
    ],
)  # fmt: skip
def test_a_file_of_labels(root, tmp_path, name, text, labels, classes):
    file = write(tmp_path / name, text)
    for given in (file, str(file)):
        folder = RawFolder(root, labels=given)
        assert [folder.label(i) for i in range(3)] == labels
        assert folder.classes == classes
        folder.close()


def test_every_kind_of_folder_and_a_pack(root, tmp_path):
    file = write(tmp_path / "l.csv", "path,label\na/00.dng,x\na/01.dng,y\nb/00.dng,x\n")
    pack(root, tmp_path / "packed", labels=file, workers=1, progress=False)
    packed = PackedRaw(tmp_path / "packed")
    assert ([packed.label(i) for i in range(3)], packed.classes) == ([0, 1, 0], ["x", "y"])
    pictures = tmp_path / "pictures"
    for name in ("a/0.png", "b/1.png"):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(pictures / name)
    file = write(tmp_path / "p.csv", "path,label\na/0.png,7\nb/1.png,8\n")
    assert [ImageFolder(pictures, labels=file).label(i) for i in range(2)] == [7, 8]
    by_folder = ImageFolder(pictures, labels="folder")
    assert ([by_folder.label(i) for i in range(2)], by_folder.classes) == ([0, 1], ["a", "b"])
    assert ImageFolder(pictures).label(0) is None
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    np.save(dumps / "two.npy", np.full((2, 8, 8), 5, np.uint16))
    file = write(tmp_path / "s.csv", "path,label\ntwo.npy,4\n")
    form = SensorFormat(8, 8, "uint16", "RGGB", 0, bits=10)
    folder = SensorFolder(dumps, form, labels=file)
    assert [folder.label(i) for i in range(2)] == [4, 4], "every frame has its file's class"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "", r"line 1: its header is '': expected path,label"),
        ("l.csv", "file,label\na,1\n", r"line 1: its header is 'file,label'"),
        ("l.csv", "path,label,label\n", r"line 1: its header"),
        ("l.csv", "path,label\n", "holds no label"),
        ("l.csv", "path,label\na/00.dng,1\na/01.dng\n", r"line 3: has 1 fields, and the header 2"),
        ("l.csv", "path,label\na/00.dng,\n", "line 2: label is '': expected a whole number"),
        ("l.csv", "path,label\n,1\n", "line 2: path is '': expected one below the folder"),
        ("l.csv", "path,label\n../a.dng,1\n", r"line 2: path is '\.\./a\.dng'"),
        ("l.csv", "path,label\n/a.dng,1\n", "line 2: path is '/a.dng'"),
        ("l.csv", "path,label\na/00.dng,1\nb.dng,2\n./a/00.dng,1\n",
         "line 4: a/00.dng has a label already, on line 2"),
        ("l.csv", "path,label\na/00.dng,1\nb/00.dng,dog\n",
         "line 3: label is 'dog', and line 2 has 1: classes are all whole numbers, or all names"),
        ("l.csv", "path,label\na/00.dng,1\nb/00.dgn,1\na/01.dng,2\n",
         r"b/00\.dng: no label for it in .*l\.csv; 1 of 3 files have none .*line 3 names b/00\.dgn,"
         " which is not there"),
        ("l.csv", "path,label\na/00.dng,9999999999999999999\n", "line 2: .* no class is so large"),
        ("l.csv", 'path,label\n"a/00.dng,1\n', r"l\.csv: cannot be read as labels"),
        ("l.jsonl", '{"path": "a", "label": 1}\nwords\n', "line 2: is no JSON"),
        ("l.jsonl", '{"path": "a"}\n', "line 1: must be an object such as"),
        ("l.jsonl", "[1]\n", "line 1: must be an object"),
        ("l.jsonl", '{"path": 3, "label": 1}\n', "line 1: path is 3: expected a text"),
        ("l.jsonl", '{"path": "a", "label": 1.5}\n', "line 1: label is 1.5: expected a whole"),
        ("l.jsonl", '{"path": "a", "label": true}\n', "line 1: label is True"),
        ("l.jsonl", '{"path": "a", "label": null}\n', "line 1: label is None"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(root, tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message) as refused:
        RawFolder(root, labels=write(tmp_path / name, text))
    assert name in str(refused.value)


def test_a_missing_file_and_one_that_is_no_text(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.csv: there is no such file of labels$"):
        RawFolder(root, labels=tmp_path / "no.csv")
    write(root / "here.csv", "path,label\n")
    with pytest.raises(FileNotFoundError, match=r"here\.csv: .*raw/here\.csv is one"):
        RawFolder(root, labels="here.csv")
    (tmp_path / "b.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="cannot be read as labels"):
        RawFolder(root, labels=tmp_path / "b.csv")
    with pytest.raises(ValueError, match="labels must be None"):
        RawFolder(root, labels="folders")


def test_a_folder_with_a_function_of_labels_still_pickles(root):
    folder = RawFolder(root, labels=lambda path: len(path.name))
    assert pickle.loads(pickle.dumps(folder)).label(0) == 6


def test_the_labels_below_a_folder_keep_their_numbers(tmp_path):
    from pathlib import PurePosixPath

    file = LabelFile.read(write(tmp_path / "l.csv", "path,label\na/x,p\nb/x,q\nab/x,r\n"))
    below = file.below(PurePosixPath("b"))
    assert (dict(below.labels), below.classes) == ({"x": (1, 3)}, ["p", "q", "r"])
    assert file.below(PurePosixPath(".")).labels == file.labels


def test_the_shell_takes_a_file_of_labels(root, tmp_path, capsys):
    shutil.copytree(root, tmp_path / "held-out")
    file = str(write(tmp_path / "l.csv", "path,label\na/00.dng,0\na/01.dng,1\nb/00.dng,6\n"))
    common = ["--teacher", "training_run:teacher", "--device", "cpu", "--batch-size", "2"]
    out = tmp_path / "run"
    run = ["--alpha", "0.5", "--steps", "1", "--labels", file, "--out", str(out)]
    held_out = ["--validation", str(tmp_path / "held-out"), "--validation-labels", file]
    assert main(["train", str(root), *common, *run, *held_out]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["train", "--config", str(out / "config.toml"), "--steps", "2"]) == 2
    assert "steps" in capsys.readouterr().err, "only the steps differ: the labels are the same"
    assert main(["evaluate", str(root), *common, "--labels", file]) == 0
    assert "accuracy" in capsys.readouterr().out
    packed = str(tmp_path / "packed")
    assert main(["pack", str(root), packed, "--labels", file, "--workers", "1"]) == 0
    assert [PackedRaw(packed).label(i) for i in range(3)] == [0, 1, 6]
    assert main(["evaluate", packed, *common, "--labels", file]) == 2
    assert "is packed with its labels: pack it again with --labels" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", *common, "--labels", str(root)])
    assert "give the data first" in capsys.readouterr().err


def test_training_sees_the_classes_of_a_file(root, tmp_path):
    """As it sees the same classes of a mapping."""
    file = write(tmp_path / "l.csv", "path,label\na/00.dng,0\na/01.dng,1\nb/00.dng,6\n")
    losses = []
    for labels in (file, dict(zip(NAMES, [0, 1, 6], strict=True))):
        with_labels = RawFolder(root, labels=labels)
        result = isp_distill.train(
            "rawify", __import__("training_run").teacher(), with_labels, alpha=0.5, steps=1,
            batch_size=2, out=tmp_path / f"run-{len(losses)}", progress=False, tensorboard=False,
            validation=with_labels,
        )  # fmt: skip
        with_labels.close()
        losses.append((result.after.kl, result.after.accuracy))
    assert losses[0] == losses[1]
