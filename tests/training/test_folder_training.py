"""train() on folders of real files: damaged ones among them, and the command line."""

import json
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image
from raw_folders import write_folder, write_xtrans
from training_run import files, teacher

import isp_distill
from isp_distill.cli import main
from isp_distill.data.loader import ViewLoader
from isp_distill.reports.contact_sheet import contact_sheet


def test_damaged_files_are_listed_and_the_rest_is_trained_on(tmp_path, capsys):
    folder = tmp_path / "raw"
    write_folder(folder, 45)
    sound = (folder / "00.dng").read_bytes()
    (folder / "truncated.dng").write_bytes(sound[: len(sound) // 2])
    (folder / "zeroed.dng").write_bytes(bytes(len(sound)))
    flipped = bytearray(sound)
    for place in range(8, 300):  # the directory of tags
        flipped[place] ^= 0xA5
    (folder / "flipped.dng").write_bytes(flipped)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "renamed.jpg")
    (folder / "renamed.jpg").rename(folder / "renamed.dng")
    write_xtrans(folder / "xtrans.dng")
    with closing(isp_distill.RawFolder(folder, cache_bytes=1 << 24)) as data:
        result = isp_distill.train(
            "rawify", teacher(), data, out=tmp_path / "out", steps=26, batch_size=4,
            validation=data, tensorboard=False,
        )  # fmt: skip
    bad = {"truncated.dng", "zeroed.dng", "flipped.dng", "renamed.dng", "xtrans.dng"}
    assert {path.rsplit("/", 1)[-1] for path in result.skipped} == bad
    assert result.after.samples == 45
    assert {p.rsplit("/", 1)[-1] for p in result.after.skipped} == bad
    shown = capsys.readouterr()
    for name in bad:
        assert name in shown.out + shown.err, f"{name} was skipped in silence"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["skipped"]) == 5


def test_a_damaged_file_stops_the_run_on_request(tmp_path):
    folder = tmp_path / "raw"
    write_folder(folder, 3)
    (folder / "zeroed.dng").write_bytes(bytes(5000))
    with (
        closing(isp_distill.RawFolder(folder, on_error="raise")) as data,
        pytest.raises(isp_distill.RawError, match=r"zeroed\.dng"),
    ):
        isp_distill.train("rawify", teacher(), data, out=tmp_path / "out", steps=9, progress=False)


def test_render_command_is_upright_and_coloured(tmp_path, capsys):
    """A red scene with a white top, written lying on its side, comes out red and upright."""
    camera = np.empty((64, 96), np.uint16)
    camera[0::2, 0::2], camera[1::2, 1::2] = 8000, 900  # red, blue
    camera[0::2, 1::2] = camera[1::2, 0::2] = 900
    camera[:, :32] = 9000  # orientation 6: the left column of the sensor is the top
    path = isp_distill.write_dng(tmp_path / "side.dng", camera, white=9000, bits=14, orientation=6)
    assert main(["render", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "side.png")
    picture = np.asarray(Image.open(tmp_path / "side.png"), dtype=float)
    assert picture.shape == (96, 64, 3)
    assert picture[:24].mean() > 250
    red, green, blue = picture[40:].reshape(-1, 3).mean(0)
    assert red > 1.5 * green
    assert red > 1.5 * blue


def test_unprocess_command_writes_files_that_read_back(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(4):
        Image.fromarray(np.full((40, 50, 3), 60 + 40 * index, np.uint8)).save(
            pictures / f"{index}.png"
        )
    assert main(["unprocess", str(pictures), str(tmp_path / "raw"), "--bits", "12"]) == 0
    patterns = [isp_distill.read_raw(tmp_path / "raw" / f"{i}.dng").pattern for i in range(4)]
    assert patterns == ["RGGB", "GRBG", "GBRG", "BGGR"]


def test_errors_are_one_line(tmp_path, capsys):
    assert main(["render", str(tmp_path / "missing.dng")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("isp-distill: ")
    assert "missing.dng" in message
    assert message.count("\n") == 1


def test_doctor_command(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in ("raw_conv", "distill_loss", "render", "unprocess", "reference", "triton"):
        assert word in shown


def test_the_shell_prints_figures_for_a_program(tmp_path, capsys):
    files(tmp_path / "raw", 2).close()
    data, out = str(tmp_path / "raw"), str(tmp_path / "run")
    run = [
        "--teacher",
        "training_run:teacher",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--device",
        "cpu",
    ]
    assert main(["train", data, *run, "--validation", data, "--out", out, "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    figures = json.loads(shown.out)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {name: figures[name] for name in ("before", "after", "steps")} == {
        name: report[name] for name in ("before", "after", "steps")
    }
    assert (figures["out"], shown.err) == (out, "")
    both = ["evaluate", data, "--teacher", "training_run:teacher", "--run", out]
    with pytest.raises(SystemExit):
        main([*both, "--checkpoint", out])
    assert "not allowed with argument" in capsys.readouterr().err


def test_the_contact_sheet_names_files_and_says_whether_both_agree(tmp_path):
    """In the colours of its marks, and with names that fit."""

    class Fixed(torch.nn.Module):
        def __init__(self, best):
            super().__init__()
            self.best = best

        def forward(self, mosaic, isp=None):
            return torch.eye(3)[self.best].repeat(len(mosaic), 1)

    with closing(files(tmp_path / ("a-long-name-of-a-folder" * 2), 1)) as one:
        (path,) = one.paths
        long = path.rename(path.with_name("x" * 90 + "-the-end.dng"))
    drawn = {}
    for best in (0, 2):
        with closing(isp_distill.RawFolder(long.parent)) as folder:
            loader = ViewLoader(folder, isp_distill.View(32), 1)
            path = contact_sheet(
                tmp_path / f"{best}.png", Fixed(best), isp_distill.Teacher(Fixed(0), size=16),
                loader, torch.device("cpu"),
            )  # fmt: skip
        with Image.open(path) as sheet:
            drawn[best] = np.asarray(sheet.convert("RGB")).reshape(-1, 3).tolist()
    same, other, name = [0, 120, 40], [190, 20, 20], [110, 110, 110]
    assert (same in drawn[0], other in drawn[0]) == (True, False)
    assert (same in drawn[2], other in drawn[2]) == (False, True)
    assert name in drawn[0]
