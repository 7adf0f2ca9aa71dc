"""A short run of the fuzzer; ``make fuzz`` runs it longer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from isp_distill.backends import cpu_library

RUN = Path(__file__).parent / "fuzz" / "run.py"


@pytest.mark.skipif(cpu_library.missing() is not None, reason=str(cpu_library.missing()))
def test_no_fault_in_a_short_run():
    ran = subprocess.run(
        [sys.executable, str(RUN), "--seconds", "24", "--least", "10"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    counts = {name: int(tried) for name, tried in re.findall(r"^(\w+) +(\d+)", ran.stdout, re.M)}
    assert counts.keys() == {"kernel_calls", "raw_files", "packs", "checkpoints", "sensor_dumps"}
    assert min(counts.values()) >= 10
