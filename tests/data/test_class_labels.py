"""Classes as datasets give them: whole numbers, or a sentence that names file and value."""

import numpy as np
import pytest
import torch
from training_run import files, raw_image, run
from unreadable import Unreadable

import isp_distill
from isp_distill.cli import main
from isp_distill.data.class_labels import as_class, has_labels


@pytest.mark.parametrize(
    "label",
    [3, np.int64(3), np.uint8(3), torch.tensor(3), torch.tensor([3]), np.array([3]), 3.0,
     np.float32(3)],
)  # fmt: skip
def test_whole_numbers_are_classes(label):
    assert as_class(label, "x") == 3
    assert type(as_class(label, "x")) is int


BAD = [
    (3.7, r"label is 3\.7 \(a fraction\)"),
    (np.float32(0.5), r"label is 0\.5 \(a fraction\)"),
    (float("nan"), "label is nan"),
    ("cat", r"label is 'cat' \(str\)"),
    ([0.1, 0.2, 0.7], r"label has 3 values \(\[0\.1, 0\.2, 0\.7\]\)"),
    (np.array([0.1, 0.9]), "label has 2 values"),
    (torch.tensor([0.1] * 7), "label has 7 values"),
    ([[1, 2], [3]], "label has 2 values"),
    (torch.tensor(2.5), r"label is tensor\(2\.5"),
    ({"class": 1}, r"label is \{'class': 1\} \(dict\)"),
]


@pytest.mark.parametrize(("label", "words"), BAD)
def test_what_is_no_class_is_named(tmp_path, label, words):
    data = [(raw_image(i), 1 if i else label) for i in range(4)]
    said = f"item 0: its {words}.*whole number|label of dataset item 0 is (a list|of the type)"
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "out", steps=3, data=data, alpha=0.5)
    with pytest.raises(ValueError, match=said):
        isp_distill.evaluate(lambda m, _: torch.zeros(len(m), 7), _teacher(), data, progress=False)


@pytest.mark.parametrize(("label", "words"), BAD[:5])
def test_labels_of_folders_are_whole_numbers_too(tmp_path, label, words):
    files(tmp_path / "raw", 2).close()
    for labels in ({"00.dng": 0, "01.dng": label}, lambda p: label if p.stem == "01" else 0):
        with pytest.raises(ValueError, match=rf"raw/01\.dng: its {words}"):
            isp_distill.RawFolder(tmp_path / "raw", labels=labels)
    with pytest.raises(ValueError, match=rf"raw/01\.dng: its {words}"):
        isp_distill.pack(tmp_path / "raw", tmp_path / "out", labels={"00.dng": 0, "01.dng": label})


def _teacher():
    from training_run import teacher

    return teacher()


def test_labels_that_are_needed_and_missing_are_said_at_once(tmp_path):
    files(tmp_path / "raw", 2).close()
    for data in (Unreadable(tmp_path / "raw"), [raw_image(0)], [(raw_image(0), None)]):
        with pytest.raises(ValueError, match=r"alpha=0\.5 .* the data have no labels: give some"):
            run(tmp_path / "out", data=data, alpha=0.5)
    assert not (tmp_path / "out").exists()


def test_which_datasets_have_labels(tmp_path):
    from PIL import Image

    files(tmp_path / "raw" / "a", 2).close()
    folder = tmp_path / "raw"
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "pictures" / "a.png")
    assert not has_labels(isp_distill.ImageFolder(tmp_path / "pictures"))
    for labels in (None, "folder"):
        assert has_labels(Unreadable(folder, labels=labels)) == (labels is not None)
        out = tmp_path / f"packed-{labels}"
        isp_distill.pack(folder, out, labels=labels, workers=1)
        assert has_labels(isp_distill.PackedRaw(out)) == (labels is not None)
    assert has_labels([(raw_image(0), None), (raw_image(1), 2)])


def test_the_shell_takes_classes_from_folders(tmp_path, capsys):
    for name in ("a", "b"):
        files(tmp_path / "raw" / name, 2).close()
    isp_distill.pack(tmp_path / "raw", tmp_path / "bare", workers=1)
    isp_distill.pack(tmp_path / "raw", tmp_path / "packed", labels="folder", workers=1)
    common = ["--teacher", "training_run:teacher", "--device", "cpu", "--batch-size", "2"]
    for name in ("raw", "packed"):
        out, data = str(tmp_path / f"out-{name}"), str(tmp_path / name)
        options = ["--labels", "--alpha", "0.5", "--steps", "1", "--checkpoint-every", "1"]
        assert main(["train", data, *common, *options, "--validation", data, "--out", out]) == 0
        assert "accuracy" in capsys.readouterr().out
        assert main(["evaluate", data, *common, "--labels"]) == 0
        assert "accuracy" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "bare"), *common, "--labels"]) == 2
    assert "was packed without labels: pack it again" in capsys.readouterr().err
