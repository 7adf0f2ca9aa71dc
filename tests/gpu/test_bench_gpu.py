"""benchmarks/bench_gpu.py, dry: what a machine with a GPU will run must not rot meanwhile."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from isp_distill.backends import choice, cpu_library

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_gpu

    yield bench_gpu
    for name in (
        "bench_gpu",
        "gpu_tasks",
        "gpu_task",
        "gpu_loss_tasks",
        "gpu_feature_tasks",
        "device_timer",
        "floor",
    ):
        sys.modules.pop(name, None)


DRY = ["--device", "cpu", "--small", "--rounds", "1", "--compiler", "eager"]


@pytest.mark.skipif(cpu_library.missing() is not None, reason="there is no CPU backend to run")
def test_a_dry_run_checks_and_times_everything(bench, tmp_path, capsys):
    assert bench.main([*DRY, "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "bench_gpu.json").read_text())["rows"]
    assert {row["operation"] for row in found} == set(choice.OPERATIONS)
    for row in found:
        assert set(row["verdicts"]) == {"cpu"}
        # Both peers run wherever there are two; what they compute is compared as well.
        assert {"cpu", "eager"} <= set(row["milliseconds"]), row
        if row["operation"] != "unprocess":
            assert "compile" in row["milliseconds"], row
        assert "triton" in row["skipped"]
    text = (tmp_path / "bench_gpu.md").read_text()
    assert "a dry run" in text
    assert "WRONG" not in text
    assert text in capsys.readouterr().out
    for operation in choice.OPERATIONS:
        picture = (tmp_path / f"bench_gpu_{operation}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")


@pytest.mark.skipif(cpu_library.missing() is not None, reason="there is no CPU backend to run")
def test_a_wrong_backend_is_noticed(bench, tmp_path, monkeypatch, capsys):
    right = choice.registered("render", "cpu")
    wrong = dataclasses.replace(right, functions=lambda *a: right.functions(*a) + 1e-3)
    monkeypatch.setitem(choice._implementations, ("render", "cpu"), wrong)
    assert bench.main([*DRY, "--only", "resized in linear", "--out", str(tmp_path)]) == 1
    assert "**WRONG**" in (tmp_path / "bench_gpu.md").read_text()
    assert bench.main([*DRY, "--only", "no such task", "--out", str(tmp_path)]) == 1


def test_differences(bench):
    one = torch.tensor([1.0, -4.0])
    assert bench.difference((one,), (one,)) == 0
    assert bench.difference((one + 0.4,), (one,)) == pytest.approx(0.1)
    assert bench.difference((one[:1],), (one,)) == float("inf")
    assert bench.difference((one * float("nan"),), (one,)) == float("inf")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(bench, tmp_path, capsys):
    assert bench.main(["--out", str(tmp_path)]) == 2
    assert "sees no GPU" in capsys.readouterr().err
