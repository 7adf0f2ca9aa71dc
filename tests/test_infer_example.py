"""examples/infer.cpp: built as its comment says, and told the same classes as onnxruntime."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from isp_distill import ISP, export, rawify

SOURCE = Path(__file__).resolve().parent.parent / "examples" / "infer.cpp"
COMPILER = shutil.which("g++")
CAMERA = ISP(black=64, white=1023, white_balance=(2.0, 1.0, 1.5))


@pytest.fixture(scope="module")
def infer(tmp_path_factory):
    """The program, compiled by the command that stands in it."""
    if COMPILER is None:
        pytest.skip("there is no g++ here")
    folder = tmp_path_factory.mktemp("infer")
    (line,) = re.findall(r"^//     (g\+\+ .*)$", SOURCE.read_text(), re.M)
    command = line.replace("examples/infer.cpp", shlex.quote(str(SOURCE)))
    libraries = os.path.dirname(importlib.util.find_spec("openvino").origin)
    subprocess.run(["sh", "-ec", f"OV={shlex.quote(libraries)}; {command}"], cwd=folder, check=True)

    def run(*arguments):
        return subprocess.run(
            [folder / "infer", *map(str, arguments)], capture_output=True, text=True
        )

    return run


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 11),
    )  # fmt: skip
    with torch.no_grad():
        model[-1].weight *= 20
    return rawify(model.eval())


def test_it_says_what_onnxruntime_says(infer, student, tmp_path):
    export(student, tmp_path / "x.onnx", isp=CAMERA, crop=32, size=(80, 70))
    mosaic = np.random.default_rng(0).integers(64, 1024, (80, 70), np.uint16)
    (tmp_path / "x.raw").write_bytes(mosaic.tobytes())
    found = infer(tmp_path / "x.onnx", tmp_path / "x.raw", 3)
    assert found.returncode == 0, found.stderr
    said = re.findall(r"^class (\d+) +(\S+)$", found.stdout, re.M)
    (logits,) = onnxruntime.InferenceSession(tmp_path / "x.onnx").run(
        None, {"mosaic": mosaic[None]}
    )
    shares = np.exp(logits[0] - logits[0].max())
    shares /= shares.sum()
    best = np.argsort(-logits[0])[:5]
    assert [int(number) for number, _ in said] == best.tolist()
    np.testing.assert_allclose([float(share) for _, share in said], shares[best], rtol=1e-3)
    assert re.search(r"^\d+(\.\d+)?(e-\d+)? ms$", found.stdout, re.M)


def test_what_does_not_fit_is_said(infer, student, tmp_path):
    export(student, tmp_path / "x.onnx", isp=CAMERA, crop=32)
    export(student, tmp_path / "any.onnx", crop=32)
    (tmp_path / "short.raw").write_bytes(bytes(100))
    for arguments, said in (
        (("x.onnx", "short.raw"), r"short.raw: holds 100 bytes, and \[1,32,32\].* take 2048"),
        (("x.onnx", "none.raw"), "none.raw: cannot be opened"),
        (("any.onnx", "short.raw"), "takes more than a mosaic: export it with one camera built in"),
        (("none.onnx", "short.raw"), "none.onnx"),
        ((), "infer STUDENT.onnx MOSAIC.raw"),
    ):
        found = infer(*(tmp_path / name for name in arguments))
        assert (found.returncode, found.stdout) == (2, "")
        assert re.search(said, found.stderr), found.stderr
