"""Ctrl-C and SIGTERM: the last whole step is saved, and nobody waits."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import kills
import pytest
import torch
from training_run import files, raw_image, run

import isp_distill
from isp_distill.cli import main

# Statistics that move in the middle of a step, and steps of several batches.
SETTINGS = {
    "steps": 7,
    "freeze_batch_norm": False,
    "accumulate": 2,
    "checkpoint_every": 1000,
    "metrics_every": 3,
}


def stop(number=signal.SIGINT):
    os.kill(os.getpid(), number)


def stop_at(monkeypatch, place, count):
    """Ctrl-C at the count-th time that a run comes to a place."""
    seen = []

    def counted(original):
        def called(*arguments, **options):
            seen.append(1)
            if len(seen) == count:
                stop()
            return original(*arguments, **options)

        return called

    owner, name = place
    monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    run(out, **SETTINGS)
    return out


@pytest.mark.parametrize(
    ("place", "count", "step"),
    [
        # Twice a step: in the second batch of the fifth, in its middle.
        ((isp_distill.models.stem.RawModel, "forward"), 10, 4),
        ((isp_distill.models.teacher.Teacher, "picture"), 9, 4),
        # In the optimiser: that step is finished first.
        ((torch.optim.AdamW, "step"), 3, 3),
        ((isp_distill.training.models.Average, "update"), 5, 5),
        # Between step and metrics.
        ((isp_distill.training.metrics.Metrics, "write"), 2, 3),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    tmp_path, monkeypatch, undisturbed, place, count, step
):
    with monkeypatch.context() as patched:
        stop_at(patched, place, count)
        with pytest.raises(KeyboardInterrupt, match=f"after step {step} of 7: step {step} is save"):
            run(tmp_path, **SETTINGS)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(tmp_path, **SETTINGS)
    kills.check_equal(undisturbed, tmp_path)


class Stopping(list):
    """A dataset that is interrupted where its items are read, by a thread."""

    def __init__(self, items, count, number=signal.SIGINT):
        super().__init__(items)
        self.left, self.number = count, number

    def __getitem__(self, index):
        self.left -= 1
        if not self.left:
            stop(self.number)
        return super().__getitem__(index)


def test_stopped_while_validating(tmp_path):
    images = [raw_image(i) for i in range(6)]
    settings = {"steps": 2, "checkpoint_every": 1000}
    with pytest.raises(KeyboardInterrupt, match="after step 0 of 2: nothing was saved"):
        run(tmp_path, validation=Stopping(images, 3), **settings)
    assert not (tmp_path / "checkpoint.pt").exists()
    # Six items before the first step, six after the last; the first one's label is looked at.
    with pytest.raises(KeyboardInterrupt, match="after step 2 of 2: step 2 is saved"):
        run(tmp_path, validation=Stopping(images, 13), **settings)


def test_sigterm_is_a_system_exit(tmp_path):
    data = Stopping([raw_image(i) for i in range(10)], 14, signal.SIGTERM)
    with pytest.raises(SystemExit, match=r"is saved in .*goes on") as stopped:
        # One batch ahead at most, so that a step is done by then.
        run(tmp_path, data=data, prefetch_bytes=1, checkpoint_every=1000)
    assert stopped.value.code == 143
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] > 0


def test_the_traceback_is_short_and_holds_no_batch(tmp_path):
    data = Stopping([raw_image(i) for i in range(10)], 14)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(tmp_path, data=data)
    assert len(stopped.traceback) < 10
    assert stopped.value.__context__.__traceback__ is None
    assert stopped.value.__suppress_context__


def test_a_second_ctrl_c_does_not_wait_for_the_checkpoint(tmp_path, monkeypatch):
    def saved_slowly(*_):
        stop()
        raise AssertionError("the second signal was not heeded")

    monkeypatch.setattr("isp_distill.training.state.save_checkpoint", saved_slowly)
    data = Stopping([raw_image(i) for i in range(10)], 14)
    with pytest.raises(KeyboardInterrupt, match="nothing was saved"):
        run(tmp_path, data=data, checkpoint_every=1000, prefetch_bytes=1)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_handler_of_the_callers_is_left_alone(tmp_path):
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        run(tmp_path, steps=2, data=Stopping([raw_image(i) for i in range(10)], 5))
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [1]


def test_a_command_that_is_stopped_is_one_line(tmp_path, monkeypatch, capsys):
    files(tmp_path / "raw").close()
    stop_at(monkeypatch, (isp_distill.models.teacher.Teacher, "picture"), 1)
    arguments = ["evaluate", str(tmp_path / "raw"), "--teacher", "training_run:teacher"]
    assert main([*arguments, "--device", "cpu"]) == 130
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "isp-distill" in line] == ["isp-distill: stopped"]


# A shell's background job ignores Ctrl-C, and so do its children, unless they ask for it.
PROGRAM = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
COMMAND = f"{PROGRAM}import sys; from isp_distill.cli import main; sys.exit(main())"
HANGING = f"""{PROGRAM}
import sys, slow_decoders
from training_run import run
from isp_distill import RawFolder
from isp_distill.raw.decoding.pool import DecodePool
data = RawFolder(sys.argv[1] + "/raw")
data._pool = DecodePool(2, 3600, decoder=slow_decoders.by_name)
run(sys.argv[1] + "/out", data=data)
"""


def wait_for(process, condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_full_pipe_does_not_keep_a_stopped_command(tmp_path):
    """Standard output and error are a pipe whose reader has stopped reading."""
    files(tmp_path / "raw").close()
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    size = fcntl.fcntl(writing, getattr(fcntl, "F_GETPIPE_SZ", 1032))
    metrics = tmp_path / "out" / "metrics.jsonl"
    # The child's end is its own, and waits where the pipe is full.
    child = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", str(tmp_path / "raw"), "--out",
         str(tmp_path / "out"), "--teacher", "training_run:teacher", "--steps", "100000",
         "--batch-size", "2", "--device", "cpu"],
        env=kills.environment(tmp_path), stdout=child, stderr=child,
    )  # fmt: skip
    try:

        def trained():
            with contextlib.suppress(BlockingIOError):
                os.read(reading, size)
            return metrics.exists() and len(metrics.read_text().splitlines()) > 2

        wait_for(process, trained)
        for _ in range(size // 16):
            try:
                os.write(writing, b"x" * 16)
            except BlockingIOError:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=240) == 130
    finally:
        process.kill()
        process.wait()
        for end in (reading, writing, child):
            os.close(end)
    step = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["step"]
    lines = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert lines == list(range(1, step + 1))


def test_a_decoder_that_hangs_does_not_keep_a_stopped_run(tmp_path):
    """Nothing is decoded yet; its decoders would take ten minutes for the first file."""
    (tmp_path / "raw").mkdir()
    for name in ("a", "b"):
        (tmp_path / "raw" / name).mkdir()
        (tmp_path / "raw" / name / "hang.dng").touch()
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, str(tmp_path)],
        env=kills.environment(tmp_path), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        decoders = []

        def decoding():
            decoders[:] = kills.children(process.pid)
            return len(decoders) == 2

        wait_for(process, decoding)
        time.sleep(0.5)  # for the decoders to be asked
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=240) == 143
    finally:
        process.kill()
        _, words = process.communicate()
    assert "Traceback" not in words
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_several_processes_stop_after_the_same_step(tmp_path):
    """SIGTERM to one of two: both end, and the checkpoint has the state of both."""
    out, pids = tmp_path / "out", tmp_path / "pids"
    pids.mkdir()
    process = kills.start("rank", out, pids, 100000, 0.02)
    metrics = out / "metrics.jsonl"
    try:
        wait_for(process, lambda: metrics.exists() and metrics.read_text().count("\n") > 4)
        os.kill(int((pids / "rank-1").read_text()), signal.SIGTERM)
        process.wait(timeout=240)
    finally:
        process.kill()
        process.wait()
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert len(state["random"]) == 2
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, state["step"] + 1))
    # The launcher may end the second one itself, once the first one is gone; then it lists one.
    assert "exitcode  : 143" in out.with_suffix(".log").read_text()
