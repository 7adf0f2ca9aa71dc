"""kill -9 at random moments: ``python tests/kills.py trainer|rank|worker [COUNT]``.

A training run is killed again and again until it has been killed COUNT times and has then come to
its end; what it leaves must equal, bit for bit, what a run that nobody killed leaves: every
checkpoint and every line of the metrics once. ``trainer`` kills one process and starts it again;
``rank`` kills one of torchrun's two, drawn each time, and leaves the restart to torchrun;
``worker`` kills a process that decodes RAW files for a trainer, which must not even notice.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

TARGETS = ("trainer", "rank", "worker")


def command(target, out, steps, pause, restarts=0):
    program = ["-m", "training_run", str(out), str(steps), str(pause)]
    if target == "worker":
        program.append("--files")
    if target != "rank":
        return [sys.executable, *program]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [sys.executable, *launch, "--max-restarts", str(restarts), "--monitor-interval", "0.1",
            *program]  # fmt: skip


def environment(pids):
    tests = str(Path(__file__).parent)
    path = os.pathsep.join([tests, *(p for p in sys.path if p)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RUN_PIDS": str(pids)}


def start(target, out, pids, steps, pause, restarts=0):
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            command(target, out, steps, pause, restarts),
            env=environment(pids), stdout=log, stderr=log,
        )  # fmt: skip


def children(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def victims(target, pids):
    """Processes that may be killed now: those whose program is running."""
    try:
        # Read once: a process that starts anew empties its file before it writes.
        texts = [path.read_text() for path in sorted(pids.glob("rank-*"))]
        running = [int(text) for text in texts if text]
        if target == "worker":
            return [c for pid in running for c in children(pid)]
        return running
    except OSError:
        return []


def kill_until_done(target, out, count, steps, pause, rng):
    """Kill ``count`` times at random moments, then let the run end; how often it was killed.

    Where the run ends before, what it left stays, and there are no more moments to kill at.
    """
    pids = out.with_suffix(".pids")
    pids.mkdir()
    process = start(target, out, pids, steps, pause, restarts=count + 5)
    killed, deadline, gone = 0, time.monotonic() + 120 + 60 * count, set()
    while killed < count and time.monotonic() < deadline:
        fresh = [p for p in victims(target, pids) if p not in gone]
        if fresh and target != "worker":
            # From the moment that the program runs to well inside its steps.
            time.sleep(rng.uniform(0, 0.6))
        elif fresh:
            # A file that costs three workers is held to be damaged: a new one needs time to serve.
            time.sleep(rng.uniform(0.3, 0.9))
        if fresh:
            victim = rng.choice(fresh)
            gone.update(fresh if target == "rank" else [victim])
            try:
                os.kill(victim, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
        if process.poll() is not None:
            if process.returncode == 0:
                return killed
            assert target == "trainer", out.with_suffix(".log").read_text()[-4000:]
            process = start(target, out, pids, steps, pause)
        time.sleep(0.005)
    code = process.wait(timeout=900)
    if target == "trainer" and code == -signal.SIGKILL:
        code = start(target, out, pids, steps, pause).wait(timeout=300)
    assert code == 0, out.with_suffix(".log").read_text()[-4000:]
    return killed


def left(out):
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    return checkpoint, [(x["step"], x["loss"], x["agreement"]) for x in lines]


def check_equal(whole, killed):
    """What two runs left is the same, bit for bit, and each step is there once."""
    (a, a_lines), (b, b_lines) = left(whole), left(killed)
    assert [line[0] for line in b_lines] == list(range(1, a["step"] + 1))
    assert a_lines == b_lines
    assert a["step"] == b["step"]
    for name in ("student", "average"):
        assert a[name].keys() == b[name].keys()
        assert all(torch.equal(a[name][k], b[name][k]) for k in a[name])
    found = json.loads((killed / "report.json").read_text())
    assert found["skipped"] == {}
    assert not list(killed.glob(".*.tmp"))


def run(folder, target, count, pause=0.02, seed=0):
    """Kill a run ``count`` times, starting over where one ends too early; how often in all."""
    steps = 150 if target == "worker" else 45
    whole = folder / "whole"
    (folder / "whole.pids").mkdir()
    process = start(target, whole, folder / "whole.pids", steps, pause)
    assert process.wait(timeout=300) == 0, whole.with_suffix(".log").read_text()[-4000:]
    killed, rng, runs = 0, random.Random(seed), 0
    while killed < count:
        out = folder / f"killed-{runs}"
        killed += kill_until_done(target, out, count - killed, steps, pause, rng)
        check_equal(whole, out)
        runs += 1
    return killed, runs


if __name__ == "__main__":
    wanted = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    with tempfile.TemporaryDirectory() as temporary:
        times, runs = run(Path(temporary), sys.argv[1], wanted)
        print(f"{sys.argv[1]}: killed {times} times in {runs} runs, nothing lost or doubled")
