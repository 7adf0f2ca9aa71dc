"""Which backend serves a call, and what a refusal says."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

import isp_distill
import isp_distill.ops.render.call
import isp_distill.ops.unprocess.call
from isp_distill.backends import choice
from isp_distill.backends.choice import Implementation, choose, use_backend

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("ISP_DISTILL_BACKEND", raising=False)


@pytest.fixture
def empty(monkeypatch):
    """No implementation but those that a test registers."""
    monkeypatch.setattr(choice, "_implementations", {})


def test_use_backend_nests_and_unwinds():
    assert choice.requested() == "auto"
    with use_backend("triton"):
        with use_backend("reference"):
            assert choice.requested() == "reference"
            with use_backend("auto"):
                assert choice.requested() == "auto"
        assert choice.requested() == "triton"
        with pytest.raises(RuntimeError, match="stop"), use_backend("cuda"):
            raise RuntimeError("stop")
        assert choice.requested() == "triton"
    assert choice.requested() == "auto"


def test_use_backend_ends_at_its_thread():
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(choice.requested()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_environment_and_who_wins(monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_BACKEND", "cuda")
    assert choice.requested() == "cuda"
    with use_backend("reference"):
        assert choice.requested() == "reference"
    monkeypatch.setenv("ISP_DISTILL_BACKEND", "")
    assert choice.requested() == "auto"


def test_unknown_names(monkeypatch):
    with (
        pytest.raises(ValueError, match=r"use_backend: unknown backend 'gpu', expected auto, ref"),
        use_backend("gpu"),
    ):
        pytest.fail("an unknown backend was accepted")
    monkeypatch.setenv("ISP_DISTILL_BACKEND", "fast")
    with pytest.raises(ValueError, match="ISP_DISTILL_BACKEND: unknown backend 'fast'"):
        choose("raw_conv", CPU)


def test_register_refuses_unknown_names():
    with pytest.raises(ValueError, match="unknown: sharpen on cpu"):
        choice.register(Implementation("sharpen", "cpu", None))
    with pytest.raises(ValueError, match="unknown: render on metal"):
        choice.register(Implementation("render", "metal", None))


@pytest.mark.parametrize("operation", choice.OPERATIONS)
def test_the_reference_serves_everything(operation):
    with use_backend("reference"):
        assert choose(operation, CPU).backend == "reference"


@pytest.mark.usefixtures("empty")
def test_auto_prefers_the_fast_one_and_skips_what_refuses():
    slow = Implementation("render", "reference", None)
    fast = Implementation(
        "render",
        "cpu",
        None,
        devices=("cpu",),
        refuses=lambda dtype: "float64 is not built" if dtype == torch.float64 else None,
    )
    choice.register(slow)
    choice.register(fast)
    assert choose("render", CPU, dtype=torch.float32) is fast
    assert choose("render", CPU, dtype=torch.float64) is slow
    assert choose("render", torch.device("meta"), dtype=torch.float32) is slow
    with (
        use_backend("cpu"),
        pytest.raises(
            isp_distill.BackendError,
            match=r"^backend 'cpu' cannot serve render here: float64 is not built$",
        ),
    ):
        choose("render", CPU, dtype=torch.float64)


@pytest.mark.usefixtures("empty")
def test_what_is_asked_for_is_never_replaced():
    choice.register(Implementation("render", "reference", None))
    with use_backend("triton"), pytest.raises(isp_distill.BackendError, match="no kernels"):
        choose("render", CPU)
    gpu = Implementation("render", "cuda", None, devices=("cuda",))
    choice.register(gpu)
    with (
        use_backend("cuda"),
        pytest.raises(isp_distill.BackendError, match="takes tensors on cuda, not on cpu"),
    ):
        choose("render", CPU)
    with use_backend("cuda"):
        assert choose("render", torch.device("cuda")) is gpu


@pytest.mark.usefixtures("empty")
def test_missing_is_said():
    choice.register(
        Implementation("render", "cpu", None, devices=("cpu",), missing=lambda: "it was not built")
    )
    with (
        pytest.raises(
            isp_distill.BackendError,
            match=r"^backend 'cpu' cannot serve render here: it was not built$",
        ),
        use_backend("cpu"),
    ):
        choose("render", CPU)


def test_a_question_asked_once_is_marked_as_torch_marks_it():
    def ours() -> str:
        return "cpu"

    def theirs() -> str:
        return "cpu"

    assert choice.asked_once(ours) is ours
    assert vars(ours) == vars(torch.compiler.assume_constant_result(theirs)) != {}


def test_the_compiler_is_not_imported_before_it_is_used():
    code = "import sys, isp_distill; print('torch._dynamo' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
