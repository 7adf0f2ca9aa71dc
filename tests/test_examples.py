"""Every example does what its docstring says: on data that it makes, and on a folder of one's own.

They are run as ``python examples/X.py`` runs them, in this process, which has imported torch.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
import wandb

import isp_distill

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "stand_ins")


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run an example in an empty folder; what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    yield run
    sys.modules.pop("stand_ins", None)


@pytest.fixture
def dngs(tmp_path, monkeypatch):
    """A folder with a RAW file of each of the example's made-up cameras."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import stand_ins

    folder = tmp_path / "photos"
    folder.mkdir()
    for number, raw in enumerate(stand_ins.raw_photographs(448)):
        colours = {"white_balance": raw.white_balance, "ccm": raw.ccm}
        levels = {"black": raw.black, "white": raw.white, "bits": 14}
        path = folder / f"{number}.dng"
        isp_distill.write_dng(path, raw.mosaic, pattern=raw.pattern, **levels, **colours)
    return folder


def losses(printed):
    return [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", printed)]


@pytest.mark.parametrize("name", ["kernels_in_a_loop", "lightning_module", "accelerate_loop"])
def test_a_loop_of_ones_own_lowers_the_loss(run, name):
    found = losses(run(name, "--epochs", 3))
    assert len(found) == 3
    assert 0 < found[-1] < found[0]


def test_a_loop_of_ones_own_takes_a_folder_of_raw_files(run, dngs):
    assert len(losses(run("kernels_in_a_loop", dngs, "--epochs", 1))) == 1


def test_a_dense_teacher(run):
    printed = run("dense_teacher", "--size", 64, "--steps", 16, "--out", "out")
    before, after = (float(kl) for kl in re.findall(r"KL (\d+\.\d+), mIoU", printed))
    assert after < before
    written = json.loads(Path("out/report.json").read_text())
    assert written["settings"]["dense_size"] == 64
    assert Path("out/contact_sheet.png").stat().st_size > 1000


def test_sensor_arrays(run):
    printed = run("sensor_arrays", "--size", 64, "--steps", 3, "--out", "out")
    assert re.search(r"4 frames: top-1 agreement [01]\.\d+, .* over 4 views", printed)
    assert json.loads(Path("out/report.json").read_text())["steps"] == 3


def test_sensor_arrays_of_ones_own(run, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(2):
        draw = np.random.default_rng(number)
        np.save(frames / f"{number}.npy", draw.integers(240, 4096, (128, 130)).astype(np.uint16))
    printed = run("sensor_arrays", frames, "--size", 64, "--steps", 1, "--out", "out")
    assert "2 frames: top-1 agreement" in printed
    assert json.loads(Path("out/report.json").read_text())["skipped"] == {}


def test_an_export_answers_as_torch_does(run, dngs):
    printed = run("export_onnxruntime", dngs / "1.dng", "--crop", 128, "--out", "x.onnx")
    ours, torchs = re.search(r"onnxruntime: class (\d+), torch: class (\d+)", printed).groups()
    assert ours == torchs
    difference, largest = re.search(r"logit: (\S+), of logits up to (\S+)", printed).groups()
    assert float(difference) < 1e-4 * float(largest)
    inputs = [given.name for given in onnx.load("x.onnx").graph.input]
    assert inputs == ["mosaic", "black", "white", "gain", "pattern", "ccm"]


def test_weights_and_biases_gets_the_run_without_a_network(run, monkeypatch):
    logged = []
    log = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run,
        "log",
        lambda self, data, step=None, **rest: (
            logged.append((step, set(data))), log(self, data, step=step, **rest),
        )[-1],
    )  # fmt: skip
    assert "2 steps, written to" in run("weights_and_biases", "--steps", 2, "--out", "out")
    assert [step for step, _ in logged] == [1, 2, None]
    assert {"loss", "agreement"} <= logged[0][1]
    assert logged[2][1] == {"contact sheet"}
    (kept,) = Path("wandb").glob("offline-run-*/*.wandb")
    # Another process writes it, and may still do so when the run has ended.
    deadline = time.monotonic() + 60
    while b"batch_size" not in kept.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"batch_size" in kept.read_bytes()


def test_mlflow_keeps_the_run_and_its_student(run):
    printed = run("mlflow_tracking", "--steps", 2, "--out", "out")
    client = mlflow.MlflowClient()
    kept = client.get_run(re.search(r"MLflow's run (\w+)", printed)[1])
    assert kept.data.params["steps"] == "2"
    losses = client.get_metric_history(kept.info.run_id, "loss")
    lines = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert [(m.step, m.value) for m in losses] == [(line["step"], line["loss"]) for line in lines]
    files = {file.path for file in client.list_artifacts(kept.info.run_id, "student")}
    assert files == {"student/config.json", "student/model.safetensors"}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_takes_public_names_alone(name):
    source = (EXAMPLES / f"{name}.py").read_text()
    assert f"python examples/{name}.py" in source.split('"""')[1]
    assert not re.search(r"isp_distill\.\w+ import|import isp_distill\.", source)
    taken = re.findall(r"^from isp_distill import (.+)$", source, re.M)[0].split(", ")
    assert set(taken) <= set(isp_distill.__all__)
    assert len(source.splitlines()) <= 75
