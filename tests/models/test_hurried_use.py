"""What a hurried user hands to teachers and students: refused in a sentence, or right."""

import copy
import pickle
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn
from training_run import raw_image, teacher

import isp_distill
from isp_distill import ISP, Teacher, rawify


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"std": 0}, ValueError, r"std must be three numbers .*above 0, got 0"),
        ({"std": (1, -1, 1)}, ValueError, "std must be three numbers"),
        ({"mean": (1, 2)}, ValueError, r"mean must be three numbers .*got \(1, 2\)"),
        ({"mean": (1, 2, float("nan"))}, ValueError, "mean must be three numbers"),
        ({"mean": "grey"}, TypeError, "mean is 'grey': expected numbers"),
        ({"size": 64.5}, TypeError, "size must be a whole number, got 64.5"),
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"model": None}, TypeError, r"an nn\.Module or a function of pictures, not NoneType"),
    ],
)
def test_a_teacher_of_odd_numbers_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Teacher(**{"model": nn.Identity(), **settings})


def test_a_student_says_what_it_takes():
    raw = raw_image(0)
    student = rawify(teacher().model)
    with pytest.raises(TypeError, match=r"not RawImage: of a RawImage, student.*cut_view"):
        student(raw)
    with pytest.raises(TypeError, match="as a tensor, not ndarray"):
        student(raw.mosaic)
    with pytest.raises(TypeError, match=r"not RawImage: of a RawImage, isp_distill\.ISP"):
        student(torch.from_numpy(raw.mosaic)[None], raw)


def test_threads_that_share_a_student_get_their_own_answers():
    """Each call brings its mosaic and camera to the same stem."""
    torch.manual_seed(0)
    student = rawify(teacher().model, curve="gamma", white_balance=True).eval()
    inputs = [
        (
            torch.randint(500, 9000, (1, 64, 64), dtype=torch.int32).to(torch.uint16),
            ISP(black=64 * i, white=9000, white_balance=(1 + i / 4, 1, 2), pattern=pattern),
        )
        for i, pattern in enumerate(["RGGB", "GRBG", "GBRG", "BGGR"])
    ]
    with torch.no_grad():
        expected = [student(*one) for one in inputs]
    # Between what the model is told and what its stem reads, the others get their chance.
    student.stem.register_forward_pre_hook(lambda *_: time.sleep(1e-3))
    wrong = []

    def call(index):
        with torch.no_grad():
            for _ in range(10):
                if not torch.equal(student(*inputs[index]), expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_copy_of_a_student_has_turns_of_its_own():
    student = rawify(teacher().model).eval()
    for other in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert other._turns is not student._turns
        mosaic = torch.full((1, 64, 64), 900, dtype=torch.uint16)
        isp = ISP(black=64, white=1023)
        assert torch.equal(other(mosaic, isp), student(mosaic, isp))


def test_pictures_in_0_to_255_are_not_made_white():
    picture = torch.rand(1, 3, 64, 64) * 255
    with pytest.raises(ValueError, match=r"floats are in \[0, 1\], so divide by 255"):
        isp_distill.unprocess(picture)
    isp_distill.unprocess(picture / 255 * 1.1)
    isp_distill.unprocess(picture.byte())


class Rooted(nn.Module):
    """Its loss is finite, and the gradient of a root at 0 is not."""

    def __init__(self):
        super().__init__()
        self.conv, self.zero = nn.Conv2d(4, 7, 3), nn.Parameter(torch.zeros(()))

    def forward(self, planes):
        return self.conv(planes).mean((2, 3)) + self.zero.sqrt()


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    with pytest.raises(RuntimeError, match="weights are not finite after step 1: lower lr"):
        isp_distill.train(
            Rooted(), teacher(), [raw_image(0)], out=tmp_path, steps=1, batch_size=1,
            progress=False, tensorboard=False,
        )  # fmt: skip
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_name_that_is_no_text_is_printed(tmp_path):
    """As escapes, where the terminal's encoding has no letters for it."""
    import os
    import subprocess

    name = os.fsdecode(bytes(tmp_path / "r") + b"\xff.dng")
    isp_distill.write_dng(name, np.full((64, 64), 900, np.uint16), bits=12)
    run = subprocess.run(
        [sys.executable, "-m", "isp_distill", "render", name, name.replace("dng", "png")],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert b"r\\udcff.png" in run.stdout
