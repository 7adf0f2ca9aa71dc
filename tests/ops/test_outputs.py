"""Outputs are ordinary tensors, in memory that was used before too: whatever follows may change,
resize or refill them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import alexnet, squeezenet1_0, vgg11

from isp_distill import (
    ISP,
    NoiseModel,
    distill_loss,
    expose,
    raw_conv,
    rawify,
    release_memory,
    render,
    unprocess,
    upsampled_distill_loss,
)

MOSAIC = torch.randint(0, 900, (1, 768, 768), generator=torch.Generator().manual_seed(0))
MOSAIC = MOSAIC.to(torch.uint16)
LEVELS = {"black": 0.0, "white": 900.0}


def features() -> torch.Tensor:
    return raw_conv(MOSAIC, torch.ones(8, 4, 3, 3), **LEVELS)


def learnt_features() -> torch.Tensor:
    return raw_conv(MOSAIC, torch.ones(8, 4, 3, 3, requires_grad=True), **LEVELS)


def gradient_of_logits() -> torch.Tensor:
    student = torch.randn(32, 10000, requires_grad=True)
    (gradient,) = torch.autograd.grad(distill_loss(student, torch.randn(32, 10000)), student)
    return gradient


def gradient_of_maps() -> torch.Tensor:
    student = torch.randn(2, 21, 96, 96, requires_grad=True)
    loss = upsampled_distill_loss(student, torch.randn(2, 21, 96, 96), (192, 192))
    return torch.autograd.grad(loss, student)[0]


OUTPUTS = {
    "raw_conv": features,
    "raw_conv that learns": learnt_features,
    "render": lambda: render(MOSAIC, ISP(**LEVELS)),
    "unprocess": lambda: unprocess(torch.rand(1, 3, 768, 768))[0],
    "expose": lambda: expose(MOSAIC, 0.1, NoiseModel.preset("low"), **LEVELS),
    "distill_loss": gradient_of_logits,
    "upsampled_distill_loss": gradient_of_maps,
}


@pytest.fixture(autouse=True)
def nothing_kept():
    release_memory()
    yield
    release_memory()


@pytest.mark.parametrize("name", OUTPUTS)
@torch.no_grad()
def test_an_output_owns_its_storage(name):
    with torch.enable_grad():
        OUTPUTS[name]()
        y = OUTPUTS[name]()
    assert not y._is_view()
    assert y.storage_offset() == 0
    assert y.untyped_storage().nbytes() == y.numel() * y.element_size() >= 2**20
    assert y.untyped_storage().resizable()
    y = y.detach()
    size, first = y.shape, y.clone()
    if y.dtype != torch.uint16:  # torch adds nothing to it
        y += 1
        assert torch.equal(y, first + 1)
    torch.cat([first], out=y)
    assert torch.equal(y, first)
    y.resize_(2 * size[0], *size[1:])
    assert torch.equal(y[: size[0]], first)
    y.fill_(7)
    with torch.enable_grad():
        other = OUTPUTS[name]()
    assert bool((y == 7).all())
    assert other.data_ptr() != y.data_ptr()


@pytest.mark.parametrize(
    "activation", [torch.relu_, F.hardtanh_, F.elu_], ids=["relu", "tanh", "elu"]
)
def test_an_activation_in_place(activation):
    """From issue 14, with its numbers."""
    weight = torch.randn(32, 4, 3, 3, requires_grad=True)
    mosaic = torch.randint(0, 2, (1, 256, 256), dtype=torch.int16)
    found = []
    for act in (lambda y: activation(y), lambda y: activation(y.clone())):
        y = act(raw_conv(mosaic, weight, black=0.0, white=1.0))
        found.append(torch.autograd.grad(y.square().sum(), weight)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("model", [vgg11, alexnet, squeezenet1_0])
def test_a_training_step_of_a_model_with_an_activation_in_place_behind_its_stem(model):
    torch.manual_seed(0)
    with torch.device("meta"):
        start = model(weights=None).features[:2]
    # The rest of these models is not what is tested, and takes seconds.
    start = start.to_empty(device="cpu")
    for parameter in start.parameters():
        nn.init.normal_(parameter, std=0.1)
    head = nn.Linear(start[0].out_channels, 8)
    whole = nn.Sequential(start, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    student = rawify(whole)
    optimiser = torch.optim.SGD(student.parameters(), 0.1)
    before = student.stem.weight.detach().clone()
    for _ in range(2):
        out = student(torch.randint(0, 900, (2, 448, 448)).to(torch.uint16), ISP(**LEVELS))
        distill_loss(out, torch.randn(2, 8)).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert not torch.equal(student.stem.weight, before)
