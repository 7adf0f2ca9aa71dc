"""Callbacks of train(): what they are told, in which order, and what happens when they fail."""

from __future__ import annotations

import json
import signal

import pytest
from training_run import raw_image, run, teacher

import isp_distill


class Diary(isp_distill.TrainCallback):
    """Writes down what it is told."""

    def __init__(self):
        self.told, self.values = [], []

    def on_start(self, settings, step):
        self.told.append(("start", settings.steps, step))

    def on_step(self, step, values):
        self.told.append(("step", step))
        self.values.append(values)

    def on_checkpoint(self, step, path):
        assert path.is_file()
        self.told.append(("checkpoint", step))

    def on_end(self, result):
        assert (result.out / "report.json").is_file()
        assert (result.out / "student" / "config.json").is_file()
        self.told.append(("end", result.steps))


def trained(folder, *callbacks, steps=4, **settings):
    data = [raw_image(i) for i in range(4)]
    return isp_distill.train(
        "rawify", teacher(), data, out=folder, steps=steps, batch_size=2, progress=False,
        callbacks=callbacks, **settings,
    )  # fmt: skip


def test_a_callback_is_told_of_every_step_in_order(tmp_path):
    diary = Diary()
    trained(tmp_path, diary, checkpoint_every=2)
    steps = [("step", number) for number in (1, 2, 3, 4)]
    assert diary.told == [
        ("start", 4, 0), *steps[:2], ("checkpoint", 2), *steps[2:], ("checkpoint", 4), ("end", 4),
    ]  # fmt: skip
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [{"step": number, **values} for (_, number), values in
            zip(steps, diary.values, strict=True)] == lines  # fmt: skip
    assert diary.values[0].keys() >= {"loss", "agreement", "lr", "stem_lr", "images_per_second"}


def test_steps_that_are_read_together_are_told_one_by_one(tmp_path):
    diary = Diary()
    trained(tmp_path, diary, metrics_every=3, steps=5)
    assert [told for told in diary.told if told[0] == "step"] == [("step", n) for n in range(1, 6)]


def test_several_callbacks_cannot_change_what_the_next_one_is_told(tmp_path):
    class Careless(isp_distill.TrainCallback):
        def on_step(self, step, values):
            values.clear()

    diary = Diary()
    trained(tmp_path, Careless(), diary, steps=1)
    assert diary.values[0]["loss"] > 0
    assert "loss" in json.loads((tmp_path / "metrics.jsonl").read_text())


def test_an_error_of_a_callback_ends_the_run_and_leaves_the_checkpoint_sound(tmp_path):
    class Failing(isp_distill.TrainCallback):
        def on_step(self, step, values):
            if step == 3:
                raise LookupError("the tracker is gone")

    with pytest.raises(LookupError, match="the tracker is gone"):
        trained(tmp_path, Failing(), checkpoint_every=2)
    diary = Diary()
    trained(tmp_path, diary, checkpoint_every=2)  # the same call goes on
    assert diary.told[0] == ("start", 4, 2)
    assert [told for told in diary.told if told[0] == "step"] == [("step", 3), ("step", 4)]


def test_a_callback_may_stop_the_run_as_ctrl_c_does(tmp_path):
    class Enough(isp_distill.TrainCallback):
        def on_step(self, step, values):
            if step == 2:
                signal.raise_signal(signal.SIGINT)

    diary = Diary()
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2 of 4: step 2 is saved"):
        trained(tmp_path, diary, Enough())
    assert diary.told[-1] == ("checkpoint", 2)


def test_callbacks_do_not_change_what_is_learned(tmp_path):
    plain = run(tmp_path / "plain", steps=3)
    told = run(tmp_path / "told", steps=3, callbacks=[Diary()])
    weights = told.student.state_dict()
    assert all(weights[name].equal(value) for name, value in plain.student.state_dict().items())


@pytest.mark.parametrize(
    ("callbacks", "said"),
    [
        (Diary(), r"callbacks is a list of TrainCallback, .*pass callbacks=\[yours\]"),
        ([print], "is no TrainCallback: derive its class"),
        ([Diary], "is no TrainCallback: derive its class from isp_distill.TrainCallback, and pass"),
        (3, "callbacks is a list of TrainCallback, got 3"),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_is_written(tmp_path, callbacks, said):
    with pytest.raises(TypeError, match=said):
        isp_distill.train("rawify", teacher(), [raw_image(0)], out=tmp_path / "x",
                          callbacks=callbacks)  # fmt: skip
    assert not (tmp_path / "x").exists()
