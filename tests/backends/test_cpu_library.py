"""The compiled library: it loads, it says what it runs on, and what is wrong where it does not."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isp_distill.backends import cpu_library

built = pytest.mark.skipif(cpu_library.missing() is not None, reason=str(cpu_library.missing()))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@built
def test_the_best_instruction_set_is_used(monkeypatch):
    monkeypatch.delenv("ISP_DISTILL_CPU", raising=False)
    sets = cpu_library.instruction_sets()
    assert sets[0] == "generic"
    assert cpu_library.instruction_set() == sets[-1]


@built
def test_the_environment_overrides_the_instruction_set(monkeypatch):
    for name in cpu_library.instruction_sets():
        monkeypatch.setenv("ISP_DISTILL_CPU", name)
        assert cpu_library.instruction_set() == name


@built
def test_an_unknown_instruction_set_is_an_error(monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_CPU", "mmx")
    with pytest.raises(RuntimeError, match="expected generic, avx2 or avx512"):
        cpu_library.instruction_set()


@built
def test_the_library_is_built_for_every_python_from_3_10():
    library = importlib.import_module("isp_distill._C")
    assert Path(str(library.__file__)).name == "_C.abi3.so"


def test_a_missing_library_is_said_in_one_sentence_and_the_reference_serves():
    code = (
        "import sys; sys.modules['isp_distill._C'] = None\n"
        "import torch, isp_distill\n"
        "from isp_distill.backends import cpu_library\n"
        "print(cpu_library.missing())\n"
        "mosaic = torch.randint(0, 1023, (1, 8, 8), dtype=torch.int32)\n"
        "y = isp_distill.raw_conv(mosaic, torch.ones(2, 4, 3, 3), black=64, white=1023)\n"
        "print(tuple(y.shape))\n"
        "try:\n"
        "    with isp_distill.use_backend('cpu'):\n"
        "        isp_distill.raw_conv(mosaic, torch.ones(2, 4, 3, 3), black=64, white=1023)\n"
        "except isp_distill.BackendError as error:\n"
        "    print(error)\n"
    )
    result = run_python(code, ISP_DISTILL_BACKEND="")
    assert result.returncode == 0, result.stderr
    missing, shape, message = result.stdout.splitlines()
    assert "were not built" in missing
    assert shape == "(1, 2, 2, 2)"
    assert "cannot serve raw_conv" in message


def test_a_library_of_other_sources_is_said_in_one_sentence():
    code = (
        "import sys, types; sys.modules['isp_distill._C'] = types.ModuleType('isp_distill._C')\n"
        "from isp_distill.backends import cpu_library\n"
        "print(cpu_library.missing())"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "another version" in result.stdout
    assert len(result.stdout.splitlines()) == 1
