"""Shapes on the device "meta", which computes nothing, as with any module of torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from isp_distill import (
    ISP,
    NoiseModel,
    RawStem,
    distill_loss,
    expose,
    linear_distill_loss,
    raw_conv,
    rawify,
    render,
    unprocess,
    upsampled_distill_loss,
)

META = torch.device("meta")
MOSAIC = torch.empty(2, 32, 48, dtype=torch.uint16, device=META)


def test_raw_conv_and_its_gradient():
    weight = torch.empty(8, 4, 3, 3, device=META, requires_grad=True)
    y = raw_conv(
        MOSAIC, weight, black=[0.0, 1.0, 2.0, 3.0], white=900.0, stride=2, padding=1,
        pattern=["RGGB", "BGGR"], curve="gamma", gamma=0.4, memory_format=torch.channels_last,
    )  # fmt: skip
    assert (y.shape, y.device, y.dtype) == ((2, 8, 8, 12), META, torch.float32)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.grad(y.sum(), weight)[0].shape == weight.shape


def test_the_stem_and_rawified_models():
    assert RawStem(8, 3, 2).to(META)(MOSAIC).shape == (2, 8, 7, 11)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    student = rawify(model).to(META)
    out = student(MOSAIC, ISP())
    out.sum().backward()
    assert out.shape == (2, 8)
    assert student.stem.weight.grad.device == META


@pytest.mark.parametrize("isp", [ISP(), ISP(demosaic="superpixel", orientation=6)])
def test_render(isp):
    side = (16, 24) if isp.demosaic == "malvar" else (24, 16)
    assert render(MOSAIC, isp, size=16, mean=[0.5] * 3).shape == (
        (2, 3, 16, 24) if isp.orientation == 1 else (2, 3, 24, 16)
    )
    assert render(MOSAIC, isp, size=side, resize_in="linear").shape == (2, 3, *side)


def test_expose_and_unprocess():
    assert expose(MOSAIC, 0.5, NoiseModel(), black=0.0, white=900.0).shape == (2, 32, 48)
    rgb = torch.empty(2, 3, 8, 8, device=META)
    assert unprocess(rgb, noise=NoiseModel())[0].shape == (2, 8, 8)


def test_losses():
    logits = torch.empty(4, 5, 8, 8, device=META, requires_grad=True)
    for loss in (
        distill_loss(logits, logits.detach()),
        upsampled_distill_loss(logits, logits.detach(), (16, 16)),
    ):
        assert loss.shape == ()
        assert torch.autograd.grad(loss, logits)[0].shape == logits.shape
    features = torch.empty(4, 6, device=META, requires_grad=True)
    head = torch.empty(10, 6, device=META)
    loss = linear_distill_loss(features, head, None, features.detach(), head, None)
    assert torch.autograd.grad(loss, features)[0].shape == features.shape
