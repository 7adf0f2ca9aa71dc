"""Benchmarks measure the package that is installed, and say on what and how far they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from floor import Floor, measure_floor
from installed_package import prefer_built_package

prefer_built_package(Path(__file__).resolve().parent.parent, sys.path)

_started = time.monotonic()


@pytest.fixture(scope="module")
def floor() -> Floor:
    """The machine's rates, measured once for each file: they change with its load."""
    return measure_floor(rounds=3)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Say what the figures depend on; a comparison with another machine then warns."""
    import torch

    from isp_distill.backends import cpu_library
    from isp_distill.exports.model_card import processor

    # The clock of the moment would make every comparison warn.
    for name in ("hz_actual", "hz_actual_friendly"):
        machine_info["cpu"].pop(name, None)
    missing = cpu_library.missing()
    machine_info["isp_distill"] = {
        "processor": processor(),
        "instructions": missing if missing is not None else cpu_library.vectors(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Hand the least time on to where progress is shown."""
    report = yield
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if report.when == "call" and report.passed and getattr(benchmark, "stats", None):
        found = benchmark.stats.stats
        report.user_properties.append(("benchmark", (found.min, found.rounds)))
    return report


def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, str] | None:
    """With ``-v``: the least time in place of PASSED, and how long all has taken."""
    measured: Any = dict(getattr(report, "user_properties", ())).get("benchmark")
    if getattr(report, "when", "") != "call" or not report.passed or measured is None:
        return None
    least, rounds = measured
    minutes, seconds = divmod(int(time.monotonic() - _started), 60)
    words = f"{1e3 * least:.4g} ms, the least of {rounds} rounds; {minutes}:{seconds:02} so far"
    return "passed", ".", words
