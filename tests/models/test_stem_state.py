"""What a stem is, computes with and was calibrated to: attributes, state, and refusals."""

import copy
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn
from training_run import raw_image, run, teacher

import isp_distill
from isp_distill import ISP, RawStem, cut_view, rawify
from isp_distill.models.student import student_module
from isp_distill.training.checkpoint import load_checkpoint
from isp_distill.training.models import Average

CAMERA = ISP(black=500.0, white=16000.0, pattern="GRBG", white_balance=(2.0, 1.0, 1.5))


def mosaics(count=2, side=32):
    draw = torch.Generator().manual_seed(0)
    values = torch.randint(400, 16383, (count, side, side), generator=draw, dtype=torch.int32)
    return values.to(torch.uint16)


def without_record(state):
    return {k: v for k, v in state.items() if not k.endswith("_extra_state")}


def test_a_stem_has_the_attributes_of_a_convolution():
    stem = RawStem(8, 3, 2, 1)
    beside = nn.Conv2d(4, 8, 3, 2, 1)
    names = "in_channels out_channels kernel_size stride padding dilation groups transposed"
    for name in (*names.split(), "output_padding"):
        assert getattr(stem, name) == getattr(beside, name), name
    assert stem.weight.shape == beside.weight.shape
    # Whatever padding it says it can be made with.
    for padding in (0, (1, 2), (0, 1, 0, 1), "same"):
        one = RawStem(8, (3, 3), (2, 2), padding)
        again = RawStem(8, one.kernel_size, one.stride, one.padding)
        assert again.settings() == one.settings()
        assert again.padding == one.padding
    assert RawStem(8, 3, padding=(1, 2)).padding == (1, 2)
    assert RawStem(8, 3, padding=(0, 1, 0, 1)).padding == (0, 1, 0, 1)
    assert "kernel_size=(3, 3)" in repr(stem)


@pytest.mark.parametrize(
    "settings", [{"kernel_size": (3, 5)}, {"kernel_size": 3, "stride": (1, 2)}]
)
def test_a_stem_of_unequal_sides_is_refused(settings):
    with pytest.raises(ValueError, match="two equal ones"):
        RawStem(8, **settings)


def test_a_call_without_a_camera_on_a_stem_that_has_none_is_refused():
    student = rawify(teacher().model).eval()
    stem = RawStem(8, 3, 2, 1)
    for model in (student, stem, nn.Sequential(stem, nn.ReLU())):
        with pytest.raises(ValueError, match=r"ISP.from_raw\(raw\).*calibrate\(isp\)"):
            model(mosaics())
    student.calibrate(CAMERA)
    stem.calibrate(ISP())
    with torch.no_grad():
        kept = student(mosaics())
        torch.testing.assert_close(kept, student(mosaics(), CAMERA))
        assert stem(mosaics()).shape == (2, 8, 8, 8)
        # A kept camera goes where the weights go.
        fresh = rawify(teacher().model).eval()
        fresh.load_state_dict(student.state_dict())
        assert torch.equal(fresh(mosaics()), kept)
        assert torch.equal(copy.deepcopy(fresh)(mosaics()), kept)
        fresh.load_state_dict(rawify(teacher().model).state_dict())
        with pytest.raises(ValueError, match="calibrate"):
            fresh(mosaics())


def test_a_trained_student_does_not_load_into_one_that_computes_otherwise(tmp_path):
    trained = student_module("rawify", teacher(), demosaic="superpixel")
    other = rawify(teacher().model)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"model\.0\._extra_state") as error:
            other.load_state_dict(trained.state_dict(), strict=strict)
        assert "with colour_matrix=True, curve='gamma', this one" in str(error.value)
        assert "has colour_matrix=False, curve='linear'" in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    # A stem in a model of one's own, through the file formats that know tensors only.
    own = nn.Sequential(RawStem(8, 3, 2, 1, clip=False), nn.ReLU())
    torch.save(own.state_dict(), tmp_path / "own.pt")
    safetensors.torch.save_file(own.state_dict(), tmp_path / "own.safetensors")
    for state in (
        torch.load(tmp_path / "own.pt", weights_only=True),
        safetensors.torch.load_file(tmp_path / "own.safetensors"),
        {k: v.half() for k, v in own.state_dict().items()},
    ):
        nn.Sequential(RawStem(8, 3, 2, 1, clip=False), nn.ReLU()).load_state_dict(state)
        with pytest.raises(RuntimeError, match=r"clip=False.*clip=True"):
            nn.Sequential(RawStem(8, 3, 2, 1), nn.ReLU()).load_state_dict(state)


@pytest.mark.parametrize(
    "settings",
    [
        *({"curve": "gamma"}, {"white_balance": False}, {"learn_camera": True}, {"clip": False}),
        *({"activation": "relu"}, {"stride": 2}, {"padding": "same"}, {"colour_matrix": True}),
    ],
)
def test_every_setting_of_a_stem_is_checked(settings):
    with pytest.raises(RuntimeError, match="make it with what they were trained with"):
        RawStem(8, 3).load_state_dict(RawStem(8, 3, **settings).state_dict())


def test_what_does_not_change_the_result_may_differ():
    trained = RawStem(8, 3, colour_matrix=True, learn_camera=True)
    RawStem(8, 3, colour_matrix=True, learn_camera=False).load_state_dict(trained.state_dict())


def test_the_grid_of_a_model_is_checked():
    def model(grid):
        return rawify(nn.Sequential(nn.Conv2d(3, 8, 2, 2)), grid=grid)

    with pytest.raises(RuntimeError, match="grid='sensor'"):
        isp_distill.RawModel(RawStem(8, 1), "packed").load_state_dict(
            isp_distill.RawModel(RawStem(8, 1), "sensor").state_dict()
        )
    model("sensor").load_state_dict(model("sensor").state_dict())


def test_a_record_that_was_edited_is_named():
    stem = RawStem(8, 3)
    for edited in (
        torch.zeros(1024, dtype=torch.uint8),
        {"curve": "gamma"},
        torch.tensor([91, 93]),
    ):
        with pytest.raises(RuntimeError, match="_extra_state: cannot be read"):
            stem.load_state_dict({**stem.state_dict(), "_extra_state": edited})


def test_weights_of_version_0_1_load_with_a_warning():
    saved = rawify(teacher().model)
    fresh = rawify(teacher().model).eval()
    with pytest.warns(UserWarning, match="do not say what they were trained with.*curve=linear"):
        fresh.load_state_dict(without_record(saved.state_dict()))
    with pytest.raises(ValueError, match="calibrate"):
        fresh(mosaics())
    saved.calibrate(CAMERA)
    with pytest.warns(UserWarning, match="do not say"):
        fresh.load_state_dict(without_record(saved.state_dict()))
    with torch.no_grad():
        assert torch.equal(fresh(mosaics()), saved.eval()(mosaics()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.load_state_dict({}, strict=False)


def test_shapes_on_the_meta_device():
    model = rawify(teacher().model).eval()
    shape = model(mosaics(), CAMERA).shape
    model = model.to("meta")
    model.load_state_dict(model.state_dict())
    mosaic = mosaics().to("meta")
    with torch.no_grad():
        assert model(mosaic).shape == model(mosaic, CAMERA).shape == shape
        assert RawStem(8, 3, 2, 1).to("meta")(mosaic).shape == (2, 8, 8, 8)


def test_averages_and_checkpoints_keep_what_a_student_computes_with(tmp_path):
    result = run(tmp_path, steps=4, ema=0.5, crop=24)
    view = result.student.view
    assert (view.crop, view.binning) == (24, None)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    mosaic, isp = cut_view([raw_image(1)], result.student)
    for name in ("average", "student"):
        fresh = student_module("rawify", teacher()).eval()
        fresh.load_state_dict(state[name])
        assert fresh.view == view
        with pytest.raises(RuntimeError, match="colour_matrix=True"):
            rawify(teacher().model).load_state_dict(state[name])
    fresh.load_state_dict(state["average"])
    with torch.no_grad():
        assert torch.equal(fresh(mosaic, isp), result.student(mosaic, isp))
    # The record changes during a run without changing its length.
    average = Average(fresh, 0.5)
    fresh.view = isp_distill.View(1234, area=(0.25, 1.0), flip=True)
    fresh.calibrate(CAMERA)
    average.update(fresh)
    torch.save(average.weights, tmp_path / "one.pt")
    average.load(torch.load(tmp_path / "one.pt", weights_only=True))
    again = student_module("rawify", teacher())
    average.write(again)
    assert again.view == fresh.view
    assert again.stem.calibrated


def test_half_precision_says_what_to_do(tmp_path):
    student = rawify(teacher().model).half().train()
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"float16 weights.*model.float\(\)"),
    ):
        student(mosaics(), CAMERA)
    data = [raw_image(i) for i in range(2)]
    with pytest.raises(ValueError, match=r"student.float\(\)"):
        isp_distill.train(student, teacher(), data, out=tmp_path, steps=2, progress=False)
