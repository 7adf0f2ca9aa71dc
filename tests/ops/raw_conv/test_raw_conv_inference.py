"""raw_conv without a gradient: what is remembered of one call holds for the next, or is seen."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from raw_conv_cases import cases
from seen_operators import SeenOperators
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from isp_distill import BackendError, raw_conv, use_backend
from isp_distill.backends import cpu_library
from isp_distill.ops.raw_conv import call as raw_conv_call

pytestmark = [
    pytest.mark.skipif(cpu_library.missing() is not None, reason=str(cpu_library.missing())),
    pytest.mark.skipif(
        os.environ.get("ISP_DISTILL_BACKEND", "auto") not in ("auto", "cpu"),
        reason="another backend is asked for",
    ),
]

MOSAIC = torch.randint(0, 1000, (2, 12, 16), generator=torch.Generator().manual_seed(0))
MOSAIC = MOSAIC.to(torch.uint16)


def call(**changed):
    """A call with everything in it; tensors are new ones."""
    usual = {
        "mosaic": MOSAIC.clone(),
        "weight": torch.arange(72.0).reshape(2, 4, 3, 3) / 72,
        "bias": torch.tensor([0.1, -0.2]),
        "black": torch.tensor([20.0, 24.0, 18.0, 22.0]),
        "white": torch.tensor(1000.0),
        "pattern": torch.tensor([0, 3]),
        "gain": torch.tensor([[2.0, 1.0, 1.0, 1.5], [1.0, 1.0, 1.0, 1.0]]),
        "mix": torch.eye(4) + 0.1,
        "padding": (1, 2, 0, 1),
        "padding_value": torch.tensor([0.1, 0.2, 0.3, 0.4]),
        "stride": 2,
        "curve": "gamma",
        "gamma": torch.tensor(0.45),
    }
    return {**usual, **changed}


def by_the_operator(arguments):
    """The same through torch's dispatch, where nothing is remembered."""
    with SeenOperators() as seen:
        out = raw_conv(**arguments)
    assert "isp_distill::raw_conv" in seen.names
    return out


def check(arguments):
    with torch.no_grad():
        assert torch.equal(raw_conv(**arguments), by_the_operator(arguments))


@pytest.fixture
def at_once(monkeypatch):
    """How many calls were served without the long way."""
    served = []
    real = raw_conv_call.inferred

    def spy(given):
        features = real(given)
        served.append(features is not None)
        return features

    monkeypatch.setattr(raw_conv_call, "inferred", spy)
    return served


@given(cases(largest=30))
@settings(max_examples=60, deadline=None)
def test_the_same_bits_as_the_operator(case):
    mosaic, parameters, others = case.inputs()
    with torch.no_grad():
        fast = raw_conv(mosaic, **parameters, **others)
        with SeenOperators() as seen:
            slow = raw_conv(mosaic, **parameters, **others)
    assert "isp_distill::raw_conv" in seen.names
    assert fast.stride() == slow.stride()
    assert torch.equal(fast, slow)


CHANGES = [
    {},
    {"black": 20, "white": 1000.0, "gain": 1.5, "pattern": "BGGR", "gamma": 0.45},
    {"black": (20.0, 24, 18, 22), "white": [1000.0, 900.0], "gain": [2.0, 1, 1, 1.5], "pattern": 2},
    {"pattern": torch.tensor(1), "gain": None, "mix": None, "bias": None, "padding_value": 0.5},
    {"curve": "linear", "gamma": None, "clip": False, "padding": 1, "activation": "silu"},
    {"mosaic": MOSAIC[:, None], "out_dtype": torch.bfloat16},
    {"mosaic": MOSAIC.to(torch.int32), "memory_format": torch.channels_last},
    {"mosaic": MOSAIC.float()[:, 2:10, 4:14]},
    {"weight": torch.ones(2, 3, 3, 4).permute(0, 3, 1, 2)},
    {"weight": torch.nn.Parameter(torch.ones(3, 4, 1, 1)), "bias": None},
    {"black": torch.full((2, 1), 20.0).expand(2, 4), "gain": torch.ones(8)[::2]},
    {"mosaic": MOSAIC.float()[..., ::2]},
    {"mix": (torch.eye(4) + 0.1).T.expand(2, 4, 4), "stride": 60000},
]


def test_one_call_after_another(at_once):
    """Each is right whatever came before, and all of them are served at once."""
    for changed in [*CHANGES, *reversed(CHANGES)]:
        check(call(**changed))
    # Every other call was looked at, by check().
    assert at_once[::2] == [True] * (2 * len(CHANGES))


def test_what_is_rare_goes_the_long_way(at_once):
    for changed in (
        {"black": torch.zeros(4, dtype=torch.float64)},
        {"white": np.float32(1000)},
        {"mix": [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]},
        {"pattern": ["RGGB", "BGGR"]},
        {"weight": torch.ones(2, 4, 3, 3, dtype=torch.bfloat16)},
    ):
        check(call(**changed))
    assert not any(at_once)


@torch.no_grad()
def test_values_that_change_in_place_are_read_again():
    arguments = call()
    before = raw_conv(**arguments)
    for name in ("weight", "bias", "black", "white", "gain", "mix", "padding_value", "gamma"):
        arguments[name].data.mul_(0.5)  # no version counter tells
        check(arguments)
        assert not torch.equal(raw_conv(**arguments), before), name
        before = raw_conv(**arguments)
    arguments["pattern"].data.fill_(1)
    check(arguments)
    assert not torch.equal(raw_conv(**arguments), before)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("black", 2000.0, "must be below white"),
        ("black", float("nan"), "must be below white"),
        ("white", float("inf"), "both finite"),
        ("pattern", 99, "pattern codes must be in"),
    ],
)
@torch.no_grad()
def test_values_that_turn_wrong_in_place_are_refused(name, value, message):
    arguments = call()
    raw_conv(**arguments)
    arguments[name].fill_(value)
    with pytest.raises(ValueError, match=message):
        raw_conv(**arguments)


@pytest.mark.parametrize("name", ["mosaic", "weight", "bias", "black", "gain", "mix"])
@pytest.mark.parametrize("left", [0, 4])
@torch.no_grad()
def test_a_storage_that_was_made_smaller_is_refused(name, left):
    arguments = call()
    raw_conv(**arguments)
    arguments[name].untyped_storage().resize_(left)
    with pytest.raises(RuntimeError, match="storage"):
        raw_conv(**arguments)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"stride": True}, TypeError),
        ({"stride": 1.0}, TypeError),
        ({"padding": True}, TypeError),
        ({"padding": (1, True, 0, 0)}, TypeError),
        ({"padding": (1.0, 1, 0, 0)}, TypeError),
        ({"clip": 2}, TypeError),
        ({"black": 1 + 0j}, TypeError),
        ({"gain": (1 + 0j, 1, 1, 1)}, TypeError),
        ({"pattern": 1.0}, TypeError),
        ({"pattern": True}, TypeError),
        ({"width": 16}, ValueError),
        ({"packing": "mipi10"}, ValueError),
        ({"gamma": 0.45}, ValueError),
    ],
)
@torch.no_grad()
def test_what_only_looks_like_what_was_remembered(change, error):
    """True and 1.0 are equal to 1, and have its hash."""
    usual = call(
        stride=1, padding=(1, 1, 0, 0), black=1.0, gain=(1.0, 1, 1, 1), pattern=1, clip=True,
        curve="linear", gamma=None,
    )  # fmt: skip
    raw_conv(**usual)
    raw_conv(**{**usual, "padding": 1})
    raw_conv(**usual)
    with pytest.raises(error):
        raw_conv(**{**usual, **change})


@torch.no_grad()
def test_a_backend_that_is_asked_for_is_asked():
    arguments = call()
    raw_conv(**arguments)
    with use_backend("cuda"), pytest.raises(BackendError):
        raw_conv(**arguments)
    with use_backend("reference"), SeenOperators() as seen:
        raw_conv(**arguments)
    assert "aten::convolution" in seen.names


def test_gradients_after_calls_without():
    """Numbers were made tensors inside inference mode, which autograd would refuse to save."""
    arguments = call(black=21.0, white=1001.0, gain=1.25)
    with torch.inference_mode():
        raw_conv(**arguments)
    arguments["weight"].requires_grad_()
    out = raw_conv(**arguments)
    (gradient,) = torch.autograd.grad(out.sum(), arguments["weight"])
    assert bool(gradient.any())
    for name in ("bias", "gain", "mix", "gamma", "black"):
        arguments = call()
        raw_conv(**arguments)
        arguments[name].requires_grad_()
        assert raw_conv(**arguments).requires_grad, name
        with torch.no_grad():
            assert not raw_conv(**arguments).requires_grad


def test_whoever_looks_on_sees_the_operator():
    arguments = call()
    raw_conv(**arguments)
    numbers = {"black": 23.0, "white": 1003.0, "pattern": "GRBG", "gain": 1.125}
    mode, fake = FakeTensorMode(), call(**numbers)
    for name, value in fake.items():
        if isinstance(value, torch.Tensor):
            fake[name] = mode.from_tensor(value)
    with mode:
        assert isinstance(raw_conv(**fake), FakeTensor)
    check(call(**numbers))  # nothing fake was remembered
    with torch.autocast("cpu", torch.bfloat16):
        assert raw_conv(**arguments).dtype == torch.bfloat16
    assert raw_conv(**arguments).dtype == torch.float32
    each = torch.func.vmap(lambda m: raw_conv(**{**arguments, "mosaic": m}))(MOSAIC[None])
    torch.testing.assert_close(each[0], raw_conv(**arguments))
    arguments["mosaic"] = arguments["mosaic"].to("meta")
    with pytest.raises(ValueError, match="weight is on cpu"):
        raw_conv(**arguments)


@torch.no_grad()
def test_threads_do_not_get_one_anothers_numbers():
    levels = [(float(k), 900.0 + k) for k in range(40)]
    expected = [by_the_operator(call(black=b, white=w)) for b, w in levels]

    def work(k):
        return all(
            torch.equal(raw_conv(**call(black=b, white=w)), y)
            for (b, w), y in zip(levels[k:] + levels[:k], expected[k:] + expected[:k], strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_an_iterator_is_not_used_up():
    """What was looked at once must be there for the long way."""
    mosaic, weight = torch.rand(1, 8, 8), torch.randn(3, 4, 3, 3)
    expected = raw_conv(mosaic, weight, black=0, white=1, padding=(1, 1))
    for learning in (False, True):
        with torch.set_grad_enabled(learning):
            found = raw_conv(mosaic, weight, black=0, white=1, padding=iter([1, 1]))
        assert torch.equal(found, expected)


def test_storages_that_were_shrunk_are_refused_before_torch_copies_them():
    weight = torch.rand(3, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    weight.untyped_storage().resize_(0)
    with torch.no_grad(), pytest.raises((ValueError, RuntimeError), match="storage"):
        raw_conv(torch.rand(2, 8, 12), weight, black=0, white=1)
    pattern = torch.tensor([0, 1])
    pattern.untyped_storage().resize_(8)
    with pytest.raises(ValueError, match=r"pattern has shape \[2\] and a storage of 8 bytes"):
        raw_conv(torch.rand(2, 8, 12), torch.rand(3, 4, 3, 3), black=0, white=1, pattern=pattern)
    black = torch.zeros(4, dtype=torch.float64)
    black.untyped_storage().resize_(8)
    with pytest.raises(ValueError, match="black has shape"):
        raw_conv(torch.rand(2, 8, 12), torch.rand(3, 4, 3, 3), black=black, white=1)


def test_tensors_in_a_list_keep_their_history():
    """As the same tensors stacked."""
    one, weight = torch.rand(1, 8, 8), torch.rand(3, 4, 3, 3)
    gains = [torch.tensor(g, requires_grad=True) for g in (2.0, 1.0, 1.0, 1.5)]
    raw_conv(one, weight, black=0, white=1, gain=gains).sum().backward()
    assert all(gain.grad is not None for gain in gains)
    level = torch.tensor(0.1, requires_grad=True)
    outcomes = []
    for black in ([level] * 4, torch.stack([level] * 4)):
        try:
            outcomes.append(raw_conv(one, weight, black=black, white=1).requires_grad)
        except (ValueError, RuntimeError) as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]
