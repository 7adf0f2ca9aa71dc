"""The microbenchmarks as pytest-benchmark's users meet them: names, groups, parameters, options."""

from __future__ import annotations

import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import microbenchmark
import pytest
from floor import Floor

from isp_distill.backends import cpu_library

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"
#: A command of its own, for machines with a GPU: make bench-gpu.
SCRIPTS = {"bench_gpu.py"}
#: One small group of two, and its shortest possible run.
TINY = ("bench_raw_conv.py", "-k", "raw_conv and 0.3MP and not backward and (ours or eager)",
        "--benchmark-max-time", "0.001", "--benchmark-min-rounds", "2")  # fmt: skip
GROUP = "raw_conv, efficientnet stem 3x3 stride 2 to 32, 1x512x512 uint16 to float32, forward"


def run(*arguments, **environment):
    file, *options = arguments
    # Within a worker of pytest-xdist pytest-benchmark measures nothing.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(FOLDER / file), *options],
        cwd=ROOT, capture_output=True, text=True, env={**inherited, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    path = tmp_path_factory.mktemp("collected") / "groups.json"
    places = (str(ROOT / "tests" / "cases"), os.environ.get("PYTHONPATH", ""))
    run("", "--collect-only", "-q", "-p", "collected_groups",
        PYTHONPATH=os.pathsep.join(places), COLLECTED_GROUPS=str(path))  # fmt: skip
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run that was saved, and one of the same compared with it."""
    folder = tmp_path_factory.mktemp("saved")
    storage = ("--benchmark-storage", str(folder / "storage"))
    path = folder / "run.json"
    first = run(*TINY, *storage, "-v", "--benchmark-autosave", "--benchmark-json", str(path))
    second = run(*TINY, *storage, "--benchmark-compare", "--benchmark-columns", "min,rounds",
                 "--benchmark-group-by", "param:way")  # fmt: skip
    return json.loads(path.read_text()), first, second


def test_every_file_of_benchmarks_is_collected(collected):
    files = {path.name for path in FOLDER.glob("bench_*.py")}
    assert {one["file"] for one in collected} == files - SCRIPTS


def test_each_group_has_ours_beside_others_of_one_file_and_one_task(collected):
    groups = collections.defaultdict(list)
    for one in collected:
        groups[one["group"]].append(one)
    for name, members in groups.items():
        ways = [one["params"]["way"] for one in members]
        assert len(set(ways)) == len(ways) > 1, name
        assert any(way == "ours" or way.startswith("ours, ") for way in ways), name
        tasks = {(one["file"], *(v for k, v in one["params"].items() if k != "way"))
                 for one in members}  # fmt: skip
        assert len(tasks) == 1, name


def test_a_group_says_operation_and_shape(collected):
    for one in collected:
        assert re.search(r"\d+x\d+", one["group"]), one["group"]
        assert re.match(r"[\w ]+, ", one["group"]), one["group"]


def test_an_id_can_be_chosen_with_k(collected):
    for one in collected:
        assert re.fullmatch(r"[A-Za-z0-9+_.-]+", one["id"]), one["id"]
        way = microbenchmark.identifier(one["params"]["way"])
        assert one["id"].endswith(way), one["id"]


def test_the_docs_name_every_file():
    text = (ROOT / "docs" / "speed.md").read_text()
    files = [path.name for path in FOLDER.glob("bench_*.py")]
    assert [name for name in files if f"benchmarks/{name}" not in text] == []


def test_the_json_names_group_parameters_machine_and_floor(saved):
    found, _, _ = saved
    ours, eager = found["benchmarks"]
    assert ours["name"] == "test_raw_conv[efficientnet-0.3MP-forward-ours]"
    assert ours["group"] == eager["group"] == GROUP
    assert ours["params"] == {
        "stem": "efficientnet", "megapixels": 0.3, "direction": "forward", "way": "ours"
    }  # fmt: skip
    assert eager["params"] == {**ours["params"], "way": "eager"}
    # The mosaic of uint16, read, and 32 maps of float32, written.
    assert ours["extra_info"]["bytes"] == 512 * 512 * 2 + 32 * 128 * 128 * 4
    assert ours["extra_info"]["operations"] == 2 * 32 * 128 * 128 * 4 * 9
    share = ours["extra_info"]["floor_milliseconds"] / (1e3 * ours["stats"]["min"])
    assert ours["extra_info"]["share_of_floor"] == pytest.approx(share, rel=0.01, abs=1e-3)
    about = found["machine_info"]["isp_distill"]
    assert about["instructions"] == cpu_library.vectors()
    assert set(about) == {"processor", "instructions", "threads", "torch"}
    assert not {"hz_actual", "hz_actual_friendly"} & set(found["machine_info"]["cpu"])


def test_progress_says_the_time_of_each(saved):
    _, first, _ = saved
    shown = r"forward-ours\] [\d.]+ ms, the least of \d+ rounds; \d+:\d\d so far"
    assert re.search(shown, first)
    assert f"benchmark '{GROUP}': 2 tests" in first


def test_a_run_is_compared_with_the_saved_one_and_grouped_by_who(saved):
    _, _, second = saved
    assert "Comparing against benchmarks from" in second
    assert "machine_info is different" not in second
    for way in ("ours", "eager"):
        table = second.partition(f"benchmark 'way={way}': 2 tests")[2]
        assert "(NOW)" in table
        assert "(0001_" in table


def test_disabled_benchmarks_run_once():
    said = run(*TINY, "--benchmark-disable")
    assert "2 passed" in said
    assert "Min" not in said


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("dense 150 x 256²", "dense-150x256x256"),
        ("upsampled 128² to 512², 150", "upsampled-128x128-to-512x512-150"),
        ("12 MP", "12MP"),
        ("a camera's tensors (ADE20K)", "a-camera-s-tensors-ADE20K"),
        ("forward+backward", "forward+backward"),
    ],
)
def test_identifiers(value, wanted):
    assert microbenchmark.identifier(value) == wanted


def test_ways_share_a_workload_and_only_the_last_is_kept():
    made = []

    def make(name):
        made.append(name)
        return object()

    first = microbenchmark.workload(make, "a")
    assert microbenchmark.workload(make, "a") is first
    assert microbenchmark.workload(make, "b") is not first
    assert microbenchmark.workload(make, "a") is not first
    assert made == ["a", "b", "a"]


@pytest.mark.parametrize("enabled", [True, False])
def test_a_way_is_warm_before_it_is_timed(enabled):
    calls = []

    class Fixture:
        extra_info: dict
        stats = None

        def __call__(self, function):
            calls.append("timed")
            function()
            if enabled:
                self.stats = SimpleNamespace(stats=SimpleNamespace(min=4e-3))

    benchmark = Fixture()
    benchmark.enabled, benchmark.extra_info = enabled, {}
    floor = Floor(operations=1e9, bandwidth=1e9)
    microbenchmark.time_way(benchmark, lambda: calls.append("run"), floor, 5e5, 1e6)
    assert calls == (["run", "timed", "run"] if enabled else ["timed", "run"])
    wanted = {
        "bytes": 10**6,
        "operations": 500_000,
        "floor_milliseconds": 1.0,
        "share_of_floor": 0.25,
    }
    assert benchmark.extra_info == (wanted if enabled else {})
