"""The CUDA library: why it cannot be used where it cannot, and what its machine code holds."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from isp_distill import distill_loss, use_backend
from isp_distill.backends import choice, cuda_library
from isp_distill.doctor import doctor
from isp_distill.errors import BackendError

SPEC = find_spec("isp_distill._cuda")
TRITON = find_spec("triton")
# The Triton wheel ships one; the CUDA toolkit's command may come without it.
CUOBJDUMP = shutil.which("cuobjdump") or (
    str(Path(str(TRITON.origin)).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    if TRITON is not None
    else ""
)
dumped = pytest.mark.skipif(
    SPEC is None or not Path(CUOBJDUMP).is_file(), reason="needs the CUDA library and cuobjdump"
)


@functools.cache
def dump(*options: str) -> str:
    assert SPEC is not None
    command = [CUOBJDUMP, *options, str(SPEC.origin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dumped
def test_no_kernel_spills():
    """A spill is local memory: none is set aside. Every architecture has every kernel."""
    usage = dump("-res-usage")
    architectures = set(re.findall(r"arch = sm_(\d+)", usage))
    assert architectures
    kernel = r"Function (\S*(?:held|streamed|upsampled)\S*):\s+REG:(\d+) STACK:(\d+)"
    found = re.findall(kernel, usage)
    assert len(found) == (25 + 14) * len(architectures)
    assert {name: int(stack) for name, _, stack in found if stack != "0"} == {}


@dumped
def test_logits_move_16_bytes_at_a_time():
    usage = dump("-res-usage")
    newest = max(re.findall(r"arch = sm_(\d+)", usage), key=int)
    listing = dump("-sass", "-arch", f"sm_{newest}")
    functions = re.split(r"Function : ", listing)[1:]
    loss = [f for f in functions if "held" in f.split()[0] or "streamed" in f.split()[0]]
    assert len(loss) == 25
    for function in loss:
        assert re.search(r"LDG\.E(\.\w+)*\.128", function), function.split()[0]
        assert re.search(r"STG\.E(\.\w+)*\.128", function), function.split()[0]
    upsampled = [f for f in functions if "upsampled" in f.split()[0]]
    assert len(upsampled) == 14
    for function in upsampled:
        assert re.search(r"LDGSTS\.E(\.\w+)*\.128", function), function.split()[0]
        assert not re.search(r"\b(ATOM|RED)G?\b", function), function.split()[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_why():
    reason = cuda_library.missing()
    assert reason is not None
    assert reason.startswith("built, not usable here: torch") == (SPEC is not None)
    table = doctor().split("\n\n")[1].splitlines()
    (line,) = [x for x in table if x.split()[:2] == ["distill_loss", "cuda"]]
    assert line.endswith(f"no: {reason}")
    with use_backend("cuda"), pytest.raises(BackendError, match="not on cpu"):
        distill_loss(torch.randn(2, 3), torch.randn(2, 3))


def test_why_a_built_library_cannot_be_used(monkeypatch):
    monkeypatch.setattr(cuda_library, "built", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in str(cuda_library.missing())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "sm_75" in str(cuda_library.missing())
    monkeypatch.setattr(cuda_library, "built", lambda: False)
    assert "not built" in str(cuda_library.missing())
    assert choice.registered("distill_loss", "cuda") is not None
