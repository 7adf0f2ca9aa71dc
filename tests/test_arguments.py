"""Arguments of a wrong kind are refused in one sentence of ours, before memory is touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isp_distill import ISP, NoiseModel, expose, raw_conv, render, unprocess
from isp_distill.data.exposure import ShortExposure

MOSAIC = torch.rand(1, 8, 8) * 900
WEIGHT = torch.randn(2, 4, 3, 3)
LEVELS = {"black": 0.0, "white": 900.0}
NAN, INF = float("nan"), float("inf")


def sparse(*shape: int) -> torch.Tensor:
    return torch.ones(shape).to_sparse()


def convolve(**settings):
    return raw_conv(**{"mosaic": MOSAIC, "weight": WEIGHT, **LEVELS, **settings})


def picture(**settings):
    return render(MOSAIC, ISP(**LEVELS), **settings)


def picture_of(**settings):
    return render(MOSAIC, ISP(**{**LEVELS, **settings}))


def exposed(**settings):
    noise = NoiseModel.preset("low")
    return expose(MOSAIC, **{"factor": 0.5, "noise": noise, **LEVELS, **settings})


def unprocessed(**settings):
    return unprocess(**{"rgb": torch.rand(1, 3, 8, 8), **settings})


WHOLE = "must be a whole number, got"
NUMBERS = "expected numbers"
LAYOUT = "has layout sparse_coo: give .*to_dense"
REFUSED = [
    (convolve, "stride", 2.0, f"stride {WHOLE} 2.0"),
    (convolve, "stride", "2", WHOLE),
    (convolve, "stride", True, WHOLE),
    (convolve, "stride", 2**70, "too large"),
    (convolve, "padding", 1.0, "padding must be whole numbers, got 1.0"),
    (convolve, "padding", (1.5, 1), f"padding {WHOLE} 1.5"),
    (convolve, "padding", "same", "padding must be whole numbers"),
    (convolve, "padding_value", [1, 2, 3], "padding_value has shape"),
    (convolve, "padding_value", "x", NUMBERS),
    (convolve, "bias", 1.0, "bias has shape"),
    (convolve, "bias", sparse(2), LAYOUT),
    (convolve, "bias", torch.zeros(2, dtype=torch.complex64), "expected real numbers"),
    (convolve, "mix", "x", NUMBERS),
    (convolve, "mix", [[1, 2], [3]], NUMBERS),
    (convolve, "mix", sparse(4, 4), LAYOUT),
    (convolve, "gain", 1j, "gain is 1j: expected numbers"),
    (convolve, "gain", sparse(4), LAYOUT),
    (convolve, "black", None, "black is None: expected numbers"),
    (convolve, "black", sparse(4), LAYOUT),
    (convolve, "black", 10**400, "too large"),
    (convolve, "pattern", None, f"pattern code {WHOLE}"),
    (convolve, "pattern", 1.0, f"pattern code {WHOLE}"),
    (convolve, "clip", "no", "clip must be True or False"),
    (convolve, "out_dtype", "float16", "out_dtype must be a floating-point type"),
    (convolve, "out_dtype", torch.float8_e4m3fn, "out_dtype must be a floating-point type"),
    (convolve, "weight", WEIGHT.tolist(), "weight must be a floating-point tensor, not list"),
    (convolve, "weight", sparse(2, 4, 3, 3), LAYOUT),
    (convolve, "mosaic", sparse(1, 8, 8), LAYOUT),
    (convolve, "mosaic", torch.nested.nested_tensor([MOSAIC[0]], layout=torch.jagged), "nested"),
    (convolve, "black", NAN, "must be below white"),
    (convolve, "white", NAN, "must be below white"),
    (convolve, "black", -INF, "must be below white"),
    (convolve, "black", [0.0, 0.0, 0.0, 950.0], "must be below white"),
    (convolve, "white", torch.tensor([0.0]), "must be below white"),
    (picture, "size", 4.0, f"size {WHOLE} 4.0"),
    (picture, "size", (4.5, 4), f"size {WHOLE} 4.5"),
    (picture, "size", "4", "size must be whole numbers"),
    (picture, "crop", (0.5, 0, 4, 4), f"crop {WHOLE} 0.5"),
    (picture, "crop", 4, "crop must be whole numbers"),
    (picture, "dtype", "float32", "dtype must be a floating-point type"),
    (picture, "mean", "x", "mean is 'x': expected numbers"),
    (picture, "std", sparse(3), LAYOUT),
    (picture_of, "orientation", 1.0, f"orientation {WHOLE} 1.0"),
    (picture_of, "orientation", True, f"orientation {WHOLE} True"),
    (picture_of, "white_balance", "x", NUMBERS),
    (picture_of, "ccm", sparse(3, 3), LAYOUT),
    (picture_of, "exposure", None, NUMBERS),
    (exposed, "seed", 1.5, f"seed {WHOLE} 1.5"),
    (exposed, "seed", torch.tensor(1), WHOLE),
    (exposed, "factor", INF, "positive and finite"),
    (exposed, "factor", torch.tensor(NAN), "positive and finite"),
    (exposed, "factor", None, NUMBERS),
    (exposed, "noise", None, "noise must be an isp_distill.NoiseModel"),
    (unprocessed, "seed", 1.5, f"seed {WHOLE} 1.5"),
    (unprocessed, "bits", 14.5, f"bits {WHOLE} 14.5"),
    (unprocessed, "noise", 1.0, "noise must be an isp_distill.NoiseModel"),
    (unprocessed, "rgb", sparse(1, 3, 8, 8), LAYOUT),
    (NoiseModel, "shot", "x", "shot noise must be a number, got 'x'"),
    (ShortExposure, "factor", "x", "exposure factor must be a number, got 'x'"),
]


@pytest.mark.parametrize(
    ("call", "name", "value", "message"),
    REFUSED,
    ids=[f"{call.__name__}-{name}-{number}" for number, (call, name, *_) in enumerate(REFUSED)],
)
def test_refused_in_one_sentence(call, name, value, message):
    with pytest.raises((TypeError, ValueError), match=message) as found:
        call(**{name: value})
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 200


def test_numbers_of_any_kind_are_taken():
    bias, mix = [0.5, -0.5], torch.eye(4).tolist()
    expected = convolve(bias=torch.tensor(bias), mix=torch.eye(4), stride=2, padding=(0, 1, 0, 1))
    found = convolve(
        bias=bias, mix=mix, stride=np.int64(2), padding=np.array([0, 1, 0, 1]), clip=np.True_
    )
    assert torch.equal(found, expected)
    assert ISP(orientation=np.int16(6)).orientation == 6
    assert torch.equal(picture(size=np.int32(4)), picture(size=4))


def test_a_view_with_its_sign_in_a_bit():
    """torch keeps the minus of an imaginary part as one bit of the view."""
    found = convolve(mosaic=torch._neg_view(-MOSAIC), weight=torch._neg_view(-WEIGHT))
    assert torch.equal(found, convolve())


def test_the_backward_pass_leaves_packed_tensors_alone():
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((tensor, tensor.clone()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gain = torch.ones(4, requires_grad=True)
        y = convolve(weight=WEIGHT.clone().requires_grad_(), gain=gain, activation="relu")
    for _ in range(2):
        y.backward(torch.full_like(y, 3.0), retain_graph=True)
    assert kept
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)
