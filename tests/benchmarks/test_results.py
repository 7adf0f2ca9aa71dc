"""The files of results, and the docs' table that is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import report
from results import FOLDER, Results, Row, all_results, generation, row_of, table


def result(**changes):
    row = row_of("raw_conv", "12 MP", {"ours": 2e-3, "eager": 3e-2, "floor": 1e-3}, ("eager", "x"))
    kept = {"processor": "A 9000", "instructions": "avx2", "chosen": False, "threads": 2,
            "torch": "2.14.1", "day": "2026-01-02", "load": 0.1, "rows": (row,)}  # fmt: skip
    return Results(**{**kept, **changes})


def test_a_row_says_how_many_times_as_long_the_others_took():
    (row,) = result().rows
    assert row == Row("raw_conv", "12 MP", 2.0, {"eager": 15.0}, 0.5)


def test_results_are_kept_by_processor_and_instructions_and_read_again(tmp_path):
    first, wide = result(), result(processor="B", instructions="avx512", chosen=True, rows=())
    assert first.write(tmp_path).name == "a-9000-avx2.json"
    wide.write(tmp_path)
    result().write(tmp_path)  # in place of the first
    assert all_results(tmp_path) == [wide, first]


def test_a_machine_that_was_held_to_other_instructions_has_a_file_of_its_own(tmp_path):
    own, held = result(), result(chosen=True)
    assert own.write(tmp_path) != held.write(tmp_path)
    assert all_results(tmp_path) == [own, held]


def test_a_processor_whose_model_is_hidden_is_told_by_its_family():
    cpuinfo = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\n"
    assert generation("AMD EPYC", cpuinfo) == "AMD EPYC (family 25)"
    assert generation("AMD EPYC 7763 64-Core Processor", cpuinfo) == (
        "AMD EPYC 7763 64-Core Processor"
    )
    assert generation("AMD EPYC", "") == "AMD EPYC"
    assert generation("Intel(R) Xeon(R) Processor", "cpu family : 6\n") == (
        "Intel(R) Xeon(R) Processor"
    )


def test_the_table_has_a_column_for_each_machine_and_for_those_that_nobody_measured(tmp_path):
    other = Row("render", "full", 1.0, {}, 0.25)
    lines = table([result(), result(processor="B", rows=(other,), chosen=True)]).splitlines()
    assert lines[0] == (
        "| operation | task | A 9000, avx2, 2 threads | B, held to avx2, 2 threads | ARM64 "
        "| NVIDIA GPU |"
    )
    assert lines[2] == "| `raw_conv` | 12 MP | **2.00 ms**; eager 15.0; floor 0.50 | - | - | - |"
    assert lines[3] == "| `render` | full | - | **1.00 ms**; floor 0.25 | - | - |"


def test_a_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"rows": [{"operation": "x"}]}))
    with pytest.raises(ValueError, match=r"x\.json: is no benchmark's result"):
        all_results(tmp_path)


def test_the_docs_table_is_that_of_the_files():
    assert (FOLDER / "table.md").read_text() == table(all_results())
    assert "benchmarks/results/table.md" in Path("docs/speed.md").read_text()


def test_every_task_of_the_report_has_a_name_of_its_own(tmp_path):
    names = [name for name, _ in report.tasks(tmp_path)]
    assert len(set(names)) == len(names) >= 15


def test_a_report_is_measured_written_and_drawn(tmp_path, monkeypatch, capsys):
    small = report._features("tokens 64 x 257 x 768, cosine")
    monkeypatch.setattr(report.bench_feature_loss, "timed",
                        lambda work, rounds: {"ours": 1e-3, "eager": 9e-3, "compile": 4e-3,
                                              "floor": 6e-4})  # fmt: skip
    monkeypatch.setattr(report, "tasks", lambda folder: iter([small]))
    out, picture = tmp_path / "results", tmp_path / "speed.png"
    monkeypatch.setattr("sys.argv", ["report.py", "--results", str(out), "--picture", str(picture)])
    assert report.main() == 0
    (found,) = all_results(out)
    assert found.rows[0].ratios == {"eager": 9.0, "compile": 4.0}
    assert found.torch in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_some_tasks_measured_anew_leave_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "tasks", lambda folder: iter(
        [("one", lambda rounds: report.Row("loss", "one", 1.0 * rounds, {"eager": 2.0}, 0.5)),
         ("other", lambda rounds: report.Row("loss", "other", 2.0 * rounds, {"eager": 3.0}, 0.4))]
    ))  # fmt: skip
    arguments = ["--results", str(tmp_path), "--picture", str(tmp_path / "speed.png")]
    for more in ([], ["--only", "oth", "--rounds", "9"]):
        monkeypatch.setattr("sys.argv", ["report.py", *arguments, *more])
        assert report.main() == 0
    (found,) = all_results(tmp_path)
    assert [(row.task, row.milliseconds) for row in found.rows] == [("one", 7.0), ("other", 18.0)]
    monkeypatch.setattr("sys.argv", ["report.py", *arguments, "--only", "nothing"])
    with pytest.raises(SystemExit):
        report.main()
    assert "no task's name holds 'nothing'" in capsys.readouterr().err


def test_a_report_that_is_broken_off_leaves_what_it_measured(tmp_path, monkeypatch):
    def breaks(rounds):
        raise KeyboardInterrupt

    one = ("one", lambda rounds: report.Row("loss", "one", 1.0 * rounds, {"eager": 2.0}, 0.5))
    other = ("other", lambda rounds: report.Row("loss", "other", 2.0, {"eager": 3.0}, 0.4))
    arguments = ["--results", str(tmp_path), "--picture", str(tmp_path / "speed.png")]
    for every, rounds in (([one, other], 1), ([one, ("other", breaks)], 5)):
        monkeypatch.setattr(report, "tasks", lambda folder, every=every: iter(every))
        monkeypatch.setattr("sys.argv", ["report.py", *arguments, "--rounds", str(rounds)])
        if rounds == 1:
            assert report.main() == 0
        else:
            with pytest.raises(KeyboardInterrupt):
                report.main()
    (found,) = all_results(tmp_path)
    assert [(row.task, row.milliseconds) for row in found.rows] == [("one", 5.0), ("other", 2.0)]


def test_without_results_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    arguments = ["--results", str(tmp_path / "none"), "--picture", str(tmp_path / "x.png")]
    monkeypatch.setattr("sys.argv", ["report.py", "--only-table", *arguments])
    assert report.main() == 2
    assert "holds no results: measure some first" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
