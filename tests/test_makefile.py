"""``make help`` names every target, and ``make`` alone is it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

MAKEFILE = Path(__file__).resolve().parent.parent / "Makefile"


def listed(*targets):
    command = ["make", "-s", "-f", str(MAKEFILE), *targets]
    done = subprocess.run(command, cwd=MAKEFILE.parent, capture_output=True, text=True, check=True)
    return dict(re.match(r"make (\S+) +(\S.*)", line).groups() for line in done.stdout.splitlines())


def test_every_target_is_listed_with_what_it_does():
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE.read_text().replace("\\\n", ""), re.M)
    assert set(listed("help")) == set(phony.split())
    assert listed() == listed("help")


def test_bench_takes_options_of_pytest_benchmark():
    options = '-k "raw_conv and ours" --benchmark-compare'
    command = ["make", "-n", "-f", str(MAKEFILE), "bench", f"BENCH={options}"]
    done = subprocess.run(command, cwd=MAKEFILE.parent, capture_output=True, text=True, check=True)
    ran = done.stdout.replace("\\\n", "")
    assert re.search(rf"pytest .*benchmarks --benchmark-only .*{re.escape(options)}$", ran, re.M)
