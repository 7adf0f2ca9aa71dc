"""A student's call without a gradient: whatever changed since the last one is seen."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from seen_operators import SeenOperators
from torch import nn

from isp_distill import ISP, RawModel, RawStem
from isp_distill.isp.matrices import after_planes, planes_matrix

MOSAIC = torch.randint(0, 1000, (2, 12, 16), generator=torch.Generator().manual_seed(0))
MOSAIC = MOSAIC.to(torch.uint16)
CAMERA = ISP(
    black=torch.tensor([[20.0, 24, 18, 22]]), white=1000.0, pattern=["RGGB", "BGGR"],
    white_balance=(2.0, 1.0, 1.5), ccm=((1.4, -0.3, -0.1), (-0.2, 1.5, -0.3), (0.0, -0.4, 1.4)),
    exposure=torch.tensor([1.0, 1.5]),
)  # fmt: skip


def student(**settings):
    torch.manual_seed(0)
    return RawModel(nn.Sequential(RawStem(4, 3, **settings), nn.ReLU())).eval()


def by_the_operator(model, *inputs):
    """The same through torch's dispatch, where nothing is remembered."""
    with SeenOperators() as seen:
        out = model(*inputs)
    assert "isp_distill::raw_conv" in seen.names
    return out


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"colour_matrix": True, "learn_camera": True, "curve": "gamma"},
        {"white_balance": False, "padding": "same", "stride": 2, "bias": False},
    ],
)
@pytest.mark.parametrize("isp", [CAMERA, CAMERA.batched(2), ISP(black=[3, 4, 5, 6.0], white=900)])
@torch.no_grad()
def test_the_same_bits_as_the_operator(settings, isp):
    model = student(**settings)
    for _ in range(2):
        assert torch.equal(model(MOSAIC, isp), by_the_operator(model, MOSAIC, isp))
    model.calibrate(ISP(black=7.0, white=800.0, pattern="GBRG"))
    assert torch.equal(model(MOSAIC), by_the_operator(model, MOSAIC))


@torch.no_grad()
def test_what_changes_between_two_calls_is_seen():
    model = student(colour_matrix=True, curve="gamma")
    stem, isp = model.stem, CAMERA.batched(2)
    names = ("black", "white", "white_balance", "ccm", "exposure")
    isp = isp.replace(**{name: getattr(isp, name).clone() for name in names})
    model(MOSAIC, isp)
    for tensor in (
        stem.weight, stem.bias, stem.gain, stem.mix, stem.gamma,
        isp.black, isp.white, isp.white_balance, isp.ccm, isp.exposure,
    ):  # fmt: skip
        before = model(MOSAIC, isp)
        tensor.data.mul_(0.75)  # no version counter tells
        after = model(MOSAIC, isp)
        assert not torch.equal(before, after)
        assert torch.equal(after, by_the_operator(model, MOSAIC, isp))
    isp.black.fill_(5000)
    with pytest.raises(ValueError, match="must be below white"):
        model(MOSAIC, isp)
    model.calibrate(ISP(black=7.0, white=800.0))
    first = model(MOSAIC)
    model.calibrate(ISP(black=70.0, white=900.0, pattern="BGGR", white_balance=(2.0, 1.0, 2.0)))
    assert not torch.equal(model(MOSAIC), first)
    assert torch.equal(model(MOSAIC), by_the_operator(model, MOSAIC))
    stem.black.fill_(5000)
    with pytest.raises(ValueError, match="must be below white"):
        model(MOSAIC)


@torch.no_grad()
def test_a_stem_that_came_after_the_first_call_reads_the_mosaic():
    model = student()
    model(MOSAIC, CAMERA)
    other = RawStem(4, 3, stride=2)
    model.model[0] = other
    assert model.stems == [other]
    assert model(MOSAIC, CAMERA).shape == (2, 4, 2, 3)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.ModuleList([RawStem(4, 3)]), RawStem(4, 3)
            self.two.gain, self.two.mix, self.two.gamma = (
                self.one[0].gain, self.one[0].mix, self.one[0].gamma
            )  # fmt: skip

        def forward(self, x):
            return self.one[0](x) + self.two(x)

    model.model = Both()
    assert model.stems == [model.model.one[0], model.model.two]
    assert model.stems == [m for m in model.modules() if isinstance(m, RawStem)]
    assert model(MOSAIC, CAMERA).shape == (2, 4, 4, 6)


@torch.no_grad()
def test_copies_and_threads_read_their_own_mosaics():
    model = student()
    expected = model(MOSAIC, CAMERA)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(MOSAIC, CAMERA), expected)
    mosaics = [MOSAIC.roll(2 * k, 2) for k in range(8)]
    each = [model(m, CAMERA) for m in mosaics]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            found = pool.map(lambda m: model(m, CAMERA), mosaics)
            assert all(torch.equal(a, b) for a, b in zip(found, each, strict=True))
    with pytest.raises(ValueError, match="without its camera"):
        model(MOSAIC)


def test_a_matrix_of_another_filter_is_refused():
    with pytest.raises(ValueError, match="ccm has 3 columns"):
        student()(MOSAIC, ISP(black=0, white=1000, pattern="MONO", ccm=((1.0, 0, 0),) * 3))


def test_the_matrix_over_planes_is_exact():
    ccm = torch.randn(3, 3, 3)
    found = planes_matrix(ccm)
    expected = torch.zeros(3, 4, 4)
    for row, colour in enumerate((0, 1, 1, 2)):
        expected[:, row, 0], expected[:, row, 3] = ccm[:, colour, 0], ccm[:, colour, 2]
        half = ccm[:, colour, 1] / 2
        # Gr and Gb each stand for green in their own row.
        expected[:, row, 1] = 2 * half if row == 1 else 0 * half if row == 2 else half
        expected[:, row, 2] = 2 * half if row == 2 else 0 * half if row == 1 else half
    assert torch.equal(found, expected)
    # As a traced program makes it.
    assert torch.equal(torch.vmap(lambda one: planes_matrix(one[None])[0])(ccm), expected)


def test_autocast_does_not_round_the_colour_matrix():
    # 0.3 has no short binary form: in bfloat16 the product would be off by one part in a thousand.
    mix, planes = torch.full((4, 4), 0.3), torch.full((1, 4, 4), 0.7)
    with torch.autocast("cpu", torch.bfloat16):
        found = after_planes(mix, planes)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((1, 4, 4), 4 * 0.21))
    torch.testing.assert_close(after_planes(mix, planes), mix @ planes)


def test_constants_made_in_inference_mode_serve_gradients():
    program = (
        "import torch\n"
        "with torch.inference_mode():\n"
        "    from isp_distill.isp.matrices import planes_matrix\n"
        "ccm = torch.eye(3)[None].requires_grad_()\n"
        "planes_matrix(ccm).sum().backward()\n"
        "print(ccm.grad.sum().item())\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    # Of green 2 halves in each of R's and B's rows, and a whole one in each of its own.
    assert run.stdout == "12.0\n", run.stderr


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_matrix_over_planes_keeps_its_dtype(dtype):
    ccm = torch.randn(2, 3, 3, dtype=dtype)
    assert planes_matrix(ccm).dtype == dtype
    torch.testing.assert_close(planes_matrix(ccm).float(), planes_matrix(ccm.float()))
