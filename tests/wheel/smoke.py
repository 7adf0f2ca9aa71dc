"""What an installed isp-distill has to be able to do: run in the environment that has it."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

import isp_distill
from isp_distill import ISP, distill_loss, feature_loss, raw_conv, render, unprocess, use_backend
from isp_distill.backends import cpu_library


def results() -> list[torch.Tensor]:
    """Every operation once, with the backend in force."""
    g = torch.Generator().manual_seed(0)
    mosaic = torch.randint(0, 1100, (2, 64, 80), generator=g).to(torch.uint16)
    weight = torch.randn(8, 4, 3, 3, generator=g).requires_grad_()
    features = raw_conv(mosaic, weight, black=64.0, white=1023.0, stride=2, padding=1)
    (gradient,) = torch.autograd.grad(features.square().mean(), weight)
    isp = ISP(black=64.0, white=1023.0, white_balance=(1.9, 1.0, 1.5))
    picture = render(mosaic, isp, size=(24, 30))
    student, teacher = torch.randn(2, 6, 20, generator=g)
    losses = (
        distill_loss(student, teacher, temperature=2.0),
        feature_loss(student, teacher, objective="cosine"),
    )
    camera, _ = unprocess(picture.clamp(0, 1), seed=3)
    return [features.detach(), gradient, picture, *losses, camera.float()]


def main() -> None:
    """Fails where the libraries do not load, or compute something else than the reference."""
    where = Path(isp_distill.__file__).parent
    assert (reason := cpu_library.missing()) is None, reason
    if (where / "_cuda.abi3.so").exists() and torch.version.cuda is not None:
        importlib.import_module("isp_distill._cuda")  # loads where there is no GPU as well
    with use_backend("cpu"):
        found = results()
    with use_backend("reference"):
        expected = results()
    for ours, theirs in zip(found[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    # Of a picture that the two rendered: a code of the sensor's may differ by its rounding.
    assert (found[-1] - expected[-1]).abs().max() <= 3
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten())
    student = isp_distill.rawify(network)
    mosaic = torch.randint(0, 1100, (1, 16, 16)).to(torch.uint16)
    student(mosaic, ISP(black=64.0, white=1023.0)).sum().backward()
    print(f"isp-distill {isp_distill.__version__} works with torch {torch.__version__}")


if __name__ == "__main__":
    main()
