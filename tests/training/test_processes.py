"""train() in several processes: torchrun, gloo, and what a killed process leaves."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import kills
import pytest
import torch
from spare_head import student_with_a_spare_head
from training_run import raw_image, run

from isp_distill.data.loader import ViewLoader
from isp_distill.data.views import View
from isp_distill.jobs import processes
from isp_distill.training.checkpoint import load_checkpoint, only_run, save_checkpoint

PROGRAM = """
import sys, torch
from spare_head import student_with_a_spare_head
from training_run import raw_image, run
torch.set_num_threads(1)
run(sys.argv[1], student=student_with_a_spare_head(), steps=8, batch_size=2, accumulate=2,
    dropout=False, exposure=None, ema=0.9, checkpoint_every=4, metrics_every=3,
    validation=[raw_image(i) for i in range(5)])
"""


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(program), str(tmp_path / "two")],
        env=kills.environment(tmp_path), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one = run(
        tmp_path / "one", student=student_with_a_spare_head(), steps=8, batch_size=4,
        accumulate=2, dropout=False, exposure=None, ema=0.9, checkpoint_every=4,
        validation=[raw_image(i) for i in range(5)],
    )  # fmt: skip
    a, b = (torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in ("one", "two"))
    assert (a["processes"], b["processes"]) == (1, 2)
    for name in ("student", "average"):
        for key, value in a[name].items():
            torch.testing.assert_close(b[name][key], value, rtol=1e-4, atol=1e-6)
    curves = [
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    assert [x["step"] for x in curves[1]] == list(range(1, 9))
    assert [x["loss"] for x in curves[1]] == pytest.approx([x["loss"] for x in curves[0]], rel=2e-4)
    assert len({x["loss"] for x in curves[0]}) == 8, "a constant would show nothing"
    for name in ("agreement", "lr"):
        assert [x[name] for x in curves[1]] == pytest.approx([x[name] for x in curves[0]])
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["after"]["samples"] == one.after.samples == 5
    assert report["after"]["kl"] == pytest.approx(one.after.kl, rel=1e-4)


@pytest.mark.parametrize(("target", "count"), [("trainer", 2), ("rank", 1), ("worker", 2)])
def test_killed_at_random_moments(tmp_path, target, count):
    killed, _ = kills.run(tmp_path, target, count)
    assert killed == count


def test_shares_of_a_batch_make_the_whole():
    loader = ViewLoader([raw_image(i) for i in range(7)], View(16), 4, seed=1)
    half = ViewLoader(loader.source, View(16), 2, seed=1)
    shares = [list(half.training(1, 4, rank, 2)) for rank in range(2)]
    for step, whole in enumerate(loader.training(1, 4)):
        parts = torch.cat([shares[rank][step].mosaic for rank in range(2)])
        assert torch.equal(parts, whole.mosaic)
    for views in (1, 3):
        whole = torch.cat([b.mosaic for b in half.fixed(views)]).flatten(1)
        shares = [b.mosaic for rank in range(3) for b in half.fixed(views, rank=rank, count=3)]
        found = torch.cat(shares).flatten(1)
        assert sorted(found.tolist()) == sorted(whole.tolist())


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path):
    run(tmp_path, steps=2)
    path = tmp_path / "checkpoint.pt"
    state = load_checkpoint(path)
    save_checkpoint(path, {**state, "processes": 2})
    with pytest.raises(ValueError, match="processes was 2, is 1"):
        run(tmp_path, steps=2)


def test_two_runs_do_not_mix_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr("isp_distill.training.checkpoint._LOCK_TIMEOUT_S", 0.1)
    (tmp_path / ".checkpoint.pt.1.tmp").write_bytes(b"what a kill left")
    with only_run(tmp_path):
        assert not list(tmp_path.glob("*.tmp"))
        with pytest.raises(RuntimeError, match="another run is writing there"):
            run(tmp_path, steps=2)
    run(tmp_path, steps=2)


def test_processes_agree_on_a_name_in_spite_of_what_others_left():
    """Two starts over one store, as torchrun's restarts are: the first one's keys are there."""
    names = []
    store = torch.distributed.HashStore()
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda rank: processes._agree(store, rank, 3), range(3)))
        assert len(set(found)) == 1
        names += found
    assert len(set(names)) == 2


def test_a_process_that_nobody_joins_says_so(monkeypatch):
    monkeypatch.setattr(processes, "_MEETING", timedelta(seconds=0.05))
    for rank, others in ((0, "processes \\[1\\]"), (1, "process 0")):
        with pytest.raises(RuntimeError, match=f"in vain for {others}"):
            processes._agree(torch.distributed.HashStore(), rank, 2)
