"""``doctor()`` tells the truth about this machine, and reports a broken one instead of failing."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from isp_distill.backends import choice, cpu_library
from isp_distill.doctor import doctor


def served(text: str) -> dict[tuple[str, str], str]:
    """The lower table, by operation and backend."""
    lines = text.split("\n\n")[1].splitlines()
    cells = [line.split(maxsplit=2) for line in lines]
    assert cells[0] == ["operation", "backend", "served here"]
    return {(operation, name): answer for operation, name, answer in cells[1:]}


def test_prints_what_it_returns(capsys):
    text = doctor()
    assert capsys.readouterr().out == text + "\n"
    assert torch.__version__ in text
    assert "LibRaw" in text


def test_every_operation_on_every_backend():
    table = served(doctor())
    assert set(table) == {(o, b) for o in choice.OPERATIONS for b in choice.BACKENDS}
    for (operation, name), answer in table.items():
        implementation = choice.registered(operation, name)
        serves = implementation is not None and implementation.missing() is None
        if name == "reference":
            assert answer == "yes, any device"
        elif name == "cpu":
            assert answer.startswith("yes, cpu" if serves else "no: ")
        elif not torch.cuda.is_available() and (implementation is None or implementation.devices):
            assert answer.startswith(("no: ", "yes, cpu"))


def test_reasons(monkeypatch):
    def broken() -> str | None:
        raise OSError("bad library\nsecond line")

    def add(name, **settings):
        implementation = choice.Implementation("render", name, None, **settings)
        monkeypatch.setitem(choice._implementations, ("render", name), implementation)

    add("cpu", devices=("cpu",), missing=broken)
    add("triton", devices=("cuda",), missing=lambda: "triton is not installed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    add("cuda", devices=("cuda",))
    monkeypatch.delitem(choice._implementations, ("unprocess", "cuda"), raising=False)
    table = served(doctor())
    assert table["render", "cpu"] == "no: OSError: bad library"
    assert table["render", "triton"] == "no: triton is not installed"
    assert table["render", "cuda"] == "no: it takes tensors on cuda, and torch sees none here"
    assert table["unprocess", "cuda"] == f"no: {choice.NOT_THERE}"
    add("cpu", devices=("cpu",))
    assert served(doctor())["render", "cpu"] == "yes, cpu"


@pytest.mark.parametrize("module", ["triton", "rawpy"])
def test_a_missing_package_is_said(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)  # what makes an import fail
    (line,) = [line for line in doctor().splitlines() if line.startswith(module)]
    assert "no: " in line
    assert module in line.split("no: ")[1]


def test_a_broken_machine_is_reported(monkeypatch):
    def fail(*_):
        raise RuntimeError("driver too old")

    monkeypatch.setenv("ISP_DISTILL_BACKEND", "warp")
    monkeypatch.setattr(torch.cuda, "is_available", fail)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cpu_library, "missing", fail)
    text = doctor()
    assert "no: RuntimeError: driver too old" in text
    assert "unknown backend 'warp'" in text


def test_gpus_are_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: (9, index))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    assert "CUDA         13.0, GPU 0 (sm_90), GPU 1 (sm_91)" in doctor()


def test_compiled_kernels(monkeypatch):
    library = SimpleNamespace(
        instruction_set=lambda: "avx2", instruction_sets=lambda: ["avx2", "generic"]
    )
    monkeypatch.setattr(cpu_library, "_load", lambda: (library, None))
    assert "avx2 (this processor can run: avx2, generic)" in doctor()


def test_kernels_on_arm(monkeypatch):
    library = SimpleNamespace(
        instruction_set=lambda: "generic", instruction_sets=lambda: ["generic"], baseline="NEON"
    )
    monkeypatch.setattr(cpu_library, "_load", lambda: (library, None))
    assert "CPU kernels  generic, NEON (this processor can run: generic)" in doctor()
