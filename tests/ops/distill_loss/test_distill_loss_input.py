"""What the losses are given wrongly: one sentence that names it, before any memory is touched."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from isp_distill import DistillLoss, distill_loss, linear_distill_loss, upsampled_distill_loss

X = torch.zeros(2, 3)
NUMBER = torch.tensor(2.0, requires_grad=True)


def call_of(form, **change):
    """One form of the loss on small zeros, with options or tensors changed."""
    if form == "linear":
        weight = torch.zeros(3, 4)
        tensors = [torch.zeros(2, 4), weight, None, torch.zeros(2, 4), weight, None]
        return linear_distill_loss(*tensors, **change)
    if form == "upsampled":
        maps = torch.zeros(2, 3, 1, 1)
        if "labels" in change and isinstance(change["labels"], torch.Tensor):
            change["labels"] = change["labels"].reshape(2, 1, 1)
        return upsampled_distill_loss(maps, maps, 1, **change)
    if form == "module":
        return DistillLoss(**change)(X, X)
    return distill_loss(X, X, **change)


@pytest.mark.parametrize("form", ["logits", "upsampled", "linear", "module"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"temperature": NUMBER}, TypeError, "temperature requires grad, .* has no gradient in it"),
        ({"temperature": 1e-39}, ValueError, r"temperature must lie in \[0.001, 1000\], got 1e-39"),
        ({"temperature": 1e39}, ValueError, "temperature must lie in .* got 1e.39"),
        ({"temperature": True}, TypeError, "temperature must be a number, not bool True"),
        ({"temperature": "4"}, TypeError, "temperature must be a number, not str '4'"),
        ({"temperature": [4.0]}, TypeError, "temperature must be a number, not list"),
        ({"temperature": torch.ones(2)}, TypeError, "temperature must be a number, not a tensor"),
        ({"alpha": torch.tensor(0.5, requires_grad=True)}, TypeError, "alpha requires grad"),
        ({"alpha": math.nan}, ValueError, "alpha must lie in .* got nan"),
        ({"alpha": None}, TypeError, "alpha must be a number, not NoneType"),
        ({"label_smoothing": NUMBER}, TypeError, "label_smoothing requires grad"),
        ({"label_smoothing": math.nan}, ValueError, "label_smoothing must lie in"),
        ({"label_smoothing": True}, TypeError, "label_smoothing must be a number"),
        ({"ignore_index": 2**70}, ValueError, f"ignore_index is {2**70}: it must fit in 64 bits"),
        ({"ignore_index": -100.0}, TypeError, "ignore_index must be a whole number, not float"),
        ({"ignore_index": True}, TypeError, "ignore_index must be a whole number, not bool"),
        ({"ignore_index": "255"}, TypeError, "ignore_index must be a whole number, not str"),
        ({"ignore_index": torch.tensor(1.0)}, TypeError, "whole number, not a tensor of shape"),
        ({"objective": "jsd(nan)"}, ValueError, "beta must lie in"),
        ({"objective": "jsd(1e-39)"}, ValueError, "beta must lie in"),
        ({"objective": "jsd(0.9999999999)"}, ValueError, "beta must lie in"),
        ({"objective": "dkd(1, 1e39)"}, ValueError, "alpha and beta must be finite"),
        ({"objective": "dkd(nan, 1)"}, ValueError, "alpha and beta must be finite"),
        ({"return_agreement": X}, TypeError, "return_agreement must be True or False"),
        ({"reduction": ["mean"]}, ValueError, "unknown reduction"),
    ],
)
def test_options(form, change, error, message):
    with pytest.raises(error, match=message) as raised:
        call_of(form, **change)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["logits", "upsampled", "linear"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": [0, 1]}, TypeError, "labels must be a tensor, not list"),
        ({"labels": np.array([0, 1])}, TypeError, "labels must be a tensor, not ndarray"),
        ({"labels": torch.tensor([0.0, 1.0])}, TypeError, "labels are torch.float32"),
        ({"labels": torch.tensor([0.0, 1.0], requires_grad=True)}, TypeError, "integer dtype"),
        ({"labels": torch.tensor([True, False])}, TypeError, "labels are torch.bool"),
        ({"mask": [True, False]}, TypeError, "mask must be a tensor, not list"),
        ({"mask": torch.ones(2)}, TypeError, "mask must be bool or an integer"),
        ({"mask": torch.ones(2).to(torch.complex64)}, TypeError, "mask must be bool or"),
        ({"mask": torch.ones(2).to_sparse()}, TypeError, "mask is sparse_coo: give a dense"),
        ({"weight": [1.0, 1.0]}, TypeError, "weight must be a tensor, not list"),
        ({"weight": torch.ones(2).to(torch.float8_e4m3fn)}, TypeError, "not torch.float8_e4m3fn"),
        ({"weight": torch.ones(2).to(torch.complex64)}, TypeError, "weight must be a floating"),
        ({"weight": torch.ones(2, requires_grad=True)}, TypeError, "weight requires grad"),
    ],
)
def test_rows(form, change, error, message):
    with pytest.raises(error, match=message):
        call_of(form, **change)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([[0.0, 1.0]], "must be a tensor, not list"),
        (np.zeros((2, 3)), "must be a tensor, not ndarray"),
        (X.to_sparse(), r"is sparse_coo: give a dense tensor, \w+.to_dense\(\)"),
        (torch.nested.nested_tensor([torch.zeros(3), torch.zeros(3)]), "is nested"),
        (torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), "has dtype torch.quint8"),
        (X.to(torch.complex64), "has dtype torch.complex64"),
        (X.to(torch.complex64).conj(), "has dtype torch.complex64"),
        (X.to(torch.float8_e4m3fn), "has dtype torch.float8"),
        (X.bool(), "has dtype torch.bool"),
    ],
)
def test_logits(wrong, message):
    for given, name in (((wrong, X), "student"), ((X, wrong), "teacher")):
        with pytest.raises(TypeError, match=f"{name} {message}"):
            distill_loss(*given)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": True}, TypeError, "size must be a whole number, not bool"),
        ({"size": 8.0}, TypeError, "size must be a whole number, not float"),
        ({"size": (8, 3.7)}, TypeError, "size must be a whole number, not float 3.7"),
        ({"size": (8, 8, 8)}, ValueError, "expected one number or"),
        ({"size": "88"}, TypeError, "size must be a whole number, not str"),
        ({"align_corners": None}, TypeError, "align_corners must be True or False"),
        ({"student": [1.0]}, TypeError, "student must be a tensor, not list"),
        ({"teacher": torch.zeros(1, 2, 3, 3).to_sparse()}, TypeError, "teacher is sparse_coo"),
    ],
)
def test_the_upsampled_form(change, error, message):
    call = {"student": torch.zeros(1, 2, 3, 3), "teacher": torch.zeros(1, 2, 3, 3), "size": 4}
    with pytest.raises(error, match=message):
        upsampled_distill_loss(**{**call, **change})


@pytest.mark.parametrize("chunk_rows", [True, 2.0, "2"])
def test_chunks(chunk_rows):
    with pytest.raises(TypeError, match="chunk_rows must be a whole number"):
        call_of("linear", chunk_rows=chunk_rows)


@pytest.mark.parametrize("part", range(6))
@pytest.mark.parametrize("wrong", [[0.0, 0.0, 0.0], torch.zeros(3, 4).to_sparse()])
def test_the_linear_forms_tensors(part, wrong):
    heads = [torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(3)] * 2
    heads[part] = wrong
    name = ("student", "teacher")[part // 3] + ("_features", "_weight", "_bias")[part % 3]
    with pytest.raises(TypeError, match=rf"{name} (must be a tensor|is sparse_coo)"):
        linear_distill_loss(*heads)


def test_numbers_of_other_kinds_are_numbers():
    s, t = torch.randn(2, 3), torch.randn(2, 3)
    expected = distill_loss(s, t, temperature=2.0)
    for two in (2, np.float32(2), np.int64(2), torch.tensor(2.0)):
        assert torch.equal(distill_loss(s, t, temperature=two), expected)
    labels = torch.tensor([0, 255])
    expected = distill_loss(s, t, labels, alpha=0.5, ignore_index=255)
    for index in (np.uint8(255), torch.tensor(255)):
        found = distill_loss(s, t, labels, alpha=0.5, ignore_index=index)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd", "tvd", "dkd", "mse"])
def test_the_ends_of_every_range_are_finite(objective):
    torch.manual_seed(0)
    t = 3 * torch.randn(4, 5)
    ends = [objective]
    if objective == "jsd":
        ends += ["jsd(0.000001)", "jsd(0.999999)"]
    if objective == "dkd":
        ends += ["dkd(0, 0)", "dkd(1e6, 1e6)"]
    for name in ends:
        for temperature in (1e-3, 1e3):
            s = (3 * torch.randn(4, 5)).requires_grad_()
            loss = distill_loss(s, t, objective=name, temperature=temperature)
            loss.backward()
            assert loss.isfinite()
            assert bool(s.grad.isfinite().all())


def test_a_teacher_gets_no_gradient():
    s, t = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    distill_loss(s, t).backward()
    assert t.grad is None
    assert s.grad is not None


def test_a_negated_view_is_its_values():
    z = torch.randn(4, 3, dtype=torch.complex64).conj().imag
    assert z.is_neg()
    plain, t = z.resolve_neg(), torch.randn(4, 3)
    assert torch.equal(distill_loss(z, t), distill_loss(plain, t))
    assert torch.equal(distill_loss(t, z), distill_loss(t, plain))
    weight = torch.complex(torch.zeros(4), -torch.rand(4)).conj().imag
    assert weight.is_neg()
    found = distill_loss(t, plain, weight=weight)
    assert torch.equal(found, distill_loss(t, plain, weight=weight.resolve_neg()))


# ------------------------------------------------------------- three axes


def test_three_axes_are_refused_by_the_module():
    """``[N, T, C]`` tokens and ``[N, C, L]`` maps look the same; the function takes the latter."""
    tokens, other = torch.randn(2, 16, 10), torch.randn(2, 16, 10)
    module = DistillLoss()
    message = re.escape("student has shape [2, 16, 10], and three axes do not say which")
    with pytest.raises(ValueError, match=message + r".*flatten\(0, 1\).*unsqueeze\(-1\)"):
        module(tokens, other)
    assert distill_loss(tokens, other).isfinite()
    of_tokens = module(tokens.flatten(0, 1), other.flatten(0, 1))
    assert of_tokens.item() == distill_loss(tokens.mT, other.mT).item()
    of_maps = module(tokens.unsqueeze(-1), other.unsqueeze(-1))
    torch.testing.assert_close(of_maps, distill_loss(tokens, other))


# ------------------------------------------------------------- the meta device


@pytest.mark.parametrize("requires_grad", [False, True])
def test_shapes_on_the_meta_device(requires_grad):
    s = torch.zeros(4, 3, 2, 2, device="meta", requires_grad=requires_grad)
    t = torch.zeros(4, 3, 2, 2, device="meta")
    labels = torch.zeros(4, 2, 2, dtype=torch.int64, device="meta")
    rows = {"mask": labels, "weight": torch.ones(4, device="meta"), "alpha": 0.5}
    wide = torch.zeros(4, 8, 8, dtype=torch.int64, device="meta")
    features = torch.zeros(4, 6, device="meta", requires_grad=requires_grad)
    matrix = torch.zeros(3, 6, device="meta", requires_grad=requires_grad)
    head = (features, matrix, None)
    losses = [
        distill_loss(s, t, labels, **rows),
        distill_loss(s, t, labels, reduction="none", alpha=0.5).sum(),
        distill_loss(s * 1, t, inplace_grad=True),
        distill_loss(s, t, objective="cwd"),
        upsampled_distill_loss(s, t, 8, wide, alpha=0.5),
        linear_distill_loss(*head, *head),
        DistillLoss(size=8)(s, t),
    ]
    for loss in losses:
        assert loss.is_meta
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        if requires_grad:
            loss.backward()
    if requires_grad:
        assert s.grad.shape == s.shape
        assert features.grad.shape == features.shape
        assert matrix.grad.shape == matrix.shape
