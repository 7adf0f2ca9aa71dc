"""The fuzzer: drawn kernel calls and damaged files, for a given time, from a given seed.

    python tests/fuzz/run.py --seconds 60
    python tests/fuzz/run.py --area packs --only 1234     # one input again

Each area runs in a process of its own, which notes the number of the input that it is about to
try: where a process dies, that input is the fault.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
#: The areas and their shares of the time.
AREAS = {
    "kernel_calls": 0.35,
    "raw_files": 0.2,
    "packs": 0.2,
    "checkpoints": 0.15,
    "sensor_dumps": 0.1,
}


def run_area(name: str, seconds: float, least: int, seed: int, only: int | None, note: Path) -> int:
    """Try inputs of one area until the time is over, ``least`` at the least; the exit code."""
    from fuzz.area import Tally, attempt_one

    area = importlib.import_module(f"fuzz.{name}")
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="isp-distill-fuzz-") as folder:
        number = seed << 32 if only is None else only
        began = time.monotonic()
        each = getattr(area, "CALLS", 1)
        while True:
            note.write_text(json.dumps({"number": number}))
            attempt_one(area.attempt, number, Path(folder), tally)
            number += 1
            over = time.monotonic() - began > seconds and each * tally.tried >= least
            if only is not None or over:
                break
    summary = {"tried": each * tally.tried, "refused": tally.refused, "faults": tally.faults}
    note.write_text(json.dumps(summary))
    return 1 if tally.faults else 0


def main() -> int:
    """Run the areas one after the other and print a table; 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all areas together")
    parser.add_argument(
        "--least", type=int, default=1, help="inputs of each area, however long they take"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--area", choices=AREAS, help="this one alone")
    parser.add_argument("--only", type=int, help="this input alone, by its number")
    parser.add_argument("--note", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.note is not None:
        sys.path[:0] = [str(TESTS), str(TESTS / "cases")]
        return run_area(
            chosen.area, chosen.seconds, chosen.least, chosen.seed, chosen.only, chosen.note
        )
    names = list(AREAS) if chosen.area is None else [chosen.area]
    share = sum(AREAS[name] for name in names)
    failed = 0
    print(f"{'area':14}{'tried':>9}{'refused':>9}{'faults':>8}")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            note = Path(folder) / "note.json"
            command = [sys.executable, __file__, "--area", name, "--note", str(note)]
            command += ["--seconds", str(chosen.seconds * AREAS[name] / share)]
            command += ["--least", str(chosen.least), "--seed", str(chosen.seed)]
            if chosen.only is not None:
                command += ["--only", str(chosen.only)]
            # One thread: the kernels are small, and another process may be measuring.
            ran = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
            summary = json.loads(note.read_text()) if note.exists() else {}
        if "tried" not in summary:
            failed += 1
            print(
                f"{name}: the process ended with {ran.returncode} at input "
                f"{summary.get('number', 'none')}"
            )
            continue
        faults = summary["faults"]
        failed += len(faults)
        print(f"{name:14}{summary['tried']:9}{summary['refused']:9}{len(faults):8}", flush=True)
        for number, text in list(faults.items())[:5]:
            print(f"  again: python tests/fuzz/run.py --area {name} --only {number}\n{text}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
