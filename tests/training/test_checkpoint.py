"""Checkpoints: what they belong to, files that lie, and disks that refuse."""

import errno
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_run import files, raw_image, run, teacher

import isp_distill
from isp_distill.cli import main
from isp_distill.files.atomic import write_atomically
from isp_distill.files.disk import check_writable
from isp_distill.models.teacher import Teacher
from isp_distill.training.checkpoint import load_checkpoint, save_checkpoint
from isp_distill.training.metrics import Metrics


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """What a run left, as bytes."""
    out = tmp_path_factory.mktemp("run")
    run(out, steps=2)
    return (out / "checkpoint.pt").read_bytes()


def other_teacher():
    chosen = teacher()
    with torch.no_grad():
        chosen.model[-1].weight[0, 0] += 1e-3
    return chosen


def student(width=8, activation=nn.ReLU):
    return nn.Sequential(
        nn.Conv2d(4, width, 4, 4), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, 7),
    )  # fmt: skip


def train(out, chosen=None, data=None, pupil="rawify", **settings):
    data = [raw_image(i) for i in range(4)] if data is None else data
    options = {"steps": 1, "batch_size": 2, "progress": False, "tensorboard": False, **settings}
    return isp_distill.train(pupil, chosen or teacher(), data, out=out, **options)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({}, {"chosen": other_teacher()}, "teacher: its weights are others"),
        ({}, {"chosen": Teacher(teacher().model, size=20)}, "teacher: size was 16, is 20"),
        ({"pupil": student()}, {"pupil": student(9)}, r"0.weight was .*\[8, 4, 4, 4\].*\[9, 4, 4"),
        ({"pupil": student()}, {"pupil": student(8, nn.GELU)}, "1 was .*ReLU, is .*GELU"),
        ({}, {"data": [raw_image(i) for i in range(1, 5)]}, "data: its items are others"),
        ({}, {"data": [raw_image(i) for i in range(5)]}, "data: .*length was 4, is 5"),
        ({}, {"validation": [raw_image(9)]}, "validation: there was none before"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, first, second, words):
    settings = {"crop": 32}
    train(tmp_path, **first, **settings)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=words) as refused:
        train(tmp_path, **second, **settings)
    assert "checkpoint.pt belongs to another run" in str(refused.value)
    assert "resume=False" in str(refused.value)
    assert len(str(refused.value)) < 900
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    train(tmp_path, **second, **settings, resume=False)


def test_folders_may_move_and_may_not_change(tmp_path):
    files(tmp_path / "raw", 3).close()
    train(tmp_path / "out", data=tmp_path / "raw")
    (tmp_path / "raw").rename(tmp_path / "moved")
    for path in (tmp_path / "moved").iterdir():
        os.utime(path, (1, 1))
    train(tmp_path / "out", data=tmp_path / "moved")
    with open(tmp_path / "moved" / "01.dng", "ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=r"data: bytes was .*, its files have other names"):
        train(tmp_path / "out", data=tmp_path / "moved")


def test_packed_folders_are_known_by_their_checksums(tmp_path):
    for name, start in (("a", 0), ("b", 1)):
        folder = tmp_path / name
        folder.mkdir()
        for index in range(2):
            raw = raw_image(index + start)
            isp_distill.write_dng(folder / f"{index}.dng", raw.mosaic, bits=14)
        isp_distill.pack(folder, tmp_path / f"packed-{name}", workers=1)
    train(tmp_path / "out", data=tmp_path / "packed-a")
    (tmp_path / "packed-a").rename(tmp_path / "moved")
    train(tmp_path / "out", data=tmp_path / "moved")
    # Files of the same names and sizes, with other pixels.
    with pytest.raises(ValueError, match="data: its files have other names or sizes"):
        train(tmp_path / "out", data=tmp_path / "packed-b")


def test_every_flipped_bit_is_noticed(tmp_path, checkpoint):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(checkpoint)
    assert load_checkpoint(path)["step"] == 2
    rng = random.Random(0)
    # Anywhere, and in the checksum and what ends the ZIP.
    places = [rng.randrange(len(checkpoint)) for _ in range(60)]
    for place in [*places, *range(len(checkpoint) - 120, len(checkpoint), 4)]:
        damaged = bytearray(checkpoint)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint\.pt: (is|was) "):
            load_checkpoint(path)


def test_what_torch_reads_is_what_was_saved(tmp_path, checkpoint):
    """The checksum is the comment of an ordinary ZIP."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(checkpoint)
    assert torch.load(path, weights_only=True)["step"] == 2


def edited(change):
    def written(path, content):
        path.write_bytes(content)
        state = load_checkpoint(path)
        change(state)
        save_checkpoint(path, state)

    return written


def resaved(path, content):
    path.write_bytes(content)
    torch.save({**load_checkpoint(path), "step": 1}, path)


def newer(path, content):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("isp_distill.training.checkpoint.VERSION", 99)
        save_checkpoint(path, {"step": 1})


# Written how, the words, and whether it may be replaced.
NOT_SOUND = {
    "empty": (lambda path, _: path.touch(), "is empty", True),
    "truncated": (lambda path, c: path.write_bytes(c[:500]), "is damaged, or no checkpoint", False),
    "cut": (lambda path, c: path.write_bytes(c[:-1]), "was changed after|is damaged", None),
    "text": (lambda path, _: path.write_text("hello"), "is no checkpoint of isp-distill", False),
    "dng": (
        lambda path, _: isp_distill.write_dng(path, raw_image(0).mosaic, bits=14),
        "is no checkpoint of isp-distill",
        False,
    ),
    "weights": (
        lambda path, _: torch.save(student().state_dict(), path),
        "is a file of torch's, but no checkpoint",
        False,
    ),
    "a list": (lambda path, _: torch.save([1], path), "is a file of torch's", False),
    "of 0.1.0": (
        lambda path, _: torch.save(
            {"step": 1, "options": {}, "student": {}, "optimizer": {}}, path
        ),
        r"was written by isp-distill 0\.1\.0",
        True,
    ),
    "saved again": (resaved, "was changed after isp-distill wrote it", True),
    "newer": (newer, "is a checkpoint of version 99, and this isp-distill reads", True),
    "without a part": (edited(lambda s: s.pop("random")), "lacks 'random'", True),
    "a step of text": (edited(lambda s: s.update(step="2")), "its 'step' is a str", True),
    "no weights": (edited(lambda s: s.update(student={"a": 1})), "'student' holds 'a'", True),
    "no optimiser": (edited(lambda s: s.update(optimizer={})), "its 'optimizer'", True),
    "random numbers": (edited(lambda s: s.update(random=[3])), "its 'random' holds", True),
    "too few": (edited(lambda s: s.update(random=[])), "its parts do not fit together", True),
    "another report": (
        edited(lambda s: s.update(before={"a": 1})),
        "its parts do not fit together",
        True,
    ),
    "another optimiser": (
        edited(lambda s: s.update(optimizer={"state": {}, "param_groups": []})),
        "its parts do not fit together",
        True,
    ),
}


@pytest.mark.parametrize("kind", NOT_SOUND)
def test_a_checkpoint_that_is_not_sound_is_one_sentence(tmp_path, checkpoint, kind):
    write, words, ours = NOT_SOUND[kind]
    path = tmp_path / "checkpoint.pt"
    write(path, checkpoint)
    with pytest.raises(ValueError, match=rf"checkpoint\.pt: .*({words})") as refused:
        run(tmp_path, steps=2)
    message = str(refused.value)
    assert "another folder" in message
    assert "delete" not in message
    if ours is not None:
        assert ("resume=False" in message) == ours


def test_what_is_given_as_a_checkpoint_and_is_none(tmp_path, capsys):
    """Each case its own sentence, and nobody is told to delete a file of theirs."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"text")
    dng = isp_distill.write_dng(tmp_path / "photo.dng", raw_image(0).mosaic, bits=14)
    words = {
        tmp_path / "missing.pt": "there is no such checkpoint",
        tmp_path: "is a folder, no checkpoint: give a checkpoint.pt",
        dng: "is no checkpoint of isp-distill",
    }
    for path, expected in words.items():
        command = ["export", str(tmp_path / "x.onnx"), "--teacher", "training_run:teacher"]
        assert main([*command, "--checkpoint", str(path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"isp-distill: {path}: {expected}")
        assert said.count("\n") == 1
        assert "delete" not in said
    # A run's folder stands for the checkpoint in it.
    assert main([*command, "--checkpoint", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"isp-distill: {tmp_path}/run/checkpoint.pt: is no checkpoint")


def test_a_checkpoint_of_another_shape_names_path_and_advice(tmp_path, capsys, checkpoint):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(checkpoint)
    command = ["export", str(tmp_path / "x.onnx"), "--teacher", "test_checkpoint:eight_classes"]
    assert main([*command, "--checkpoint", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"{path}: is of another student: model.6.bias is [7] there, [8] here" in said
    assert "give the teacher" in said


def eight_classes():
    return teacher(classes=8)


def full(path):
    """What is written to a path from now on meets a full disk."""
    name = f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"
    (path.parent / name).symlink_to("/dev/full")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_checkpoint(path, {"student": {"a": torch.zeros(1 << 18)}}),
        lambda path: write_atomically(path, b"x" * 100),
    ],
)
def test_a_full_disk_is_named_and_keeps_what_was_there(tmp_path, write):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    full(path)
    with pytest.raises(OSError, match=r"file: cannot be written: No space left .*MB free") as said:
        write(path)
    assert said.value.errno == errno.ENOSPC
    assert "disk /" in str(said.value)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_under_the_metrics_keeps_the_lines_before(tmp_path):
    metrics = Metrics(tmp_path, 0, tensorboard=False)
    metrics.write(1, {"loss": 1.0})
    metrics._file.close()
    metrics._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 - the metrics close it
    with pytest.raises(OSError, match=r"metrics\.jsonl: cannot be written: No space left"):
        metrics.write(2, {"loss": 1.0})
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("name", ["report.json", "contact_sheet.png", "checkpoint.pt"])
def test_a_run_on_a_full_disk_names_the_file(tmp_path, monkeypatch, name):
    """The disk fills up when this file's turn comes; the checkpoint before it stays."""
    fsync = os.fsync

    def fills(descriptor):
        if f".{name}." in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    train(tmp_path, steps=1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(os, "fsync", fills)
    with pytest.raises(OSError, match=rf"{name}: cannot be written: No space left"):
        train(tmp_path, steps=1, resume=name != "checkpoint.pt")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def never():
    raise AssertionError("a teacher was made before out was looked at")


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file", "is a file: give a folder"),
        ("file/below/it", "is a file, and .*file/below/it would lie below it"),
        ("/proc/isp-distill", "/proc/isp-distill: cannot be written to"),
    ],
)
def test_an_out_that_cannot_be_written_is_said_first(tmp_path, capsys, out, words, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=words):
        # Neither the teacher nor the data is looked at.
        isp_distill.train("rawify", "no such teacher", "no such folder", out=out)
    assert main(["train", "nowhere", "--teacher", "test_checkpoint:never", "--out", out]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_looking_whether_a_folder_can_be_written_leaves_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_list_is_known_by_what_is_in_it():
    from isp_distill.training.belonging import data_identity

    images = [raw_image(i) for i in range(3)]
    same = data_identity(images)
    assert data_identity([raw_image(i) for i in range(3)]) == same
    pictures = [np.full((4, 4, 3), i, np.uint8) for i in range(3)]
    for other in (
        images[::-1],
        [(image, 1) for image in images],
        pictures,
        [(image, label) for label, image in enumerate(images)],
    ):
        assert data_identity(other) != same
    assert data_identity([(p, np.zeros((4, 4), np.int64)) for p in pictures]) != data_identity(
        [(p, np.ones((4, 4), np.int64)) for p in pictures]
    )


def test_a_path_is_named_when_it_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_atomically(Path(tmp_path / "file" / "x"), b"")
