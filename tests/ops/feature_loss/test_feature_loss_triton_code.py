"""The Triton kernels of feature_loss compiled for GPUs that are not there: no spills, wide loads.

The launches are those of real calls, recorded on tensors without memory, so that the tiles and the
assumptions about alignment are the ones that a GPU would get.
"""

from __future__ import annotations

import pytest
import torch
from compiled_triton import ARCHITECTURES, compile_launch, recorded
from isp_distill.kernels.feature_loss import held, streamed

from isp_distill.ops.feature_loss.backend import Call
from isp_distill.ops.feature_loss.options import checked_options
from isp_distill.ops.feature_loss.triton import TritonKernels

KERNELS = {"feature_held_kernel": held, "feature_streamed_kernel": streamed}
# Features [N, D, ...] and the kernel that takes them; tokens are channels last.
SHAPES = {
    "tokens": ((64, 768, 257), "feature_held_kernel"),
    "maps": ((8, 256, 64, 64), "feature_held_kernel"),
    "wide maps": ((8, 1024, 32, 32), "feature_streamed_kernel"),
    "wide rows": ((64, 8192), "feature_streamed_kernel"),
}


def launch_of(name, dtype, objective, normalise, weighed):
    """The launch of one call with gradient, and with mask and weight where they are asked for."""
    shape, _ = SHAPES[name]
    student = torch.empty(shape, dtype=dtype, device="meta")
    if name == "tokens":
        student = torch.empty(64, 257, 768, dtype=dtype, device="meta").transpose(1, 2)
    positions = (shape[0], *shape[2:])
    of_channels = torch.empty(shape[1], device="meta") if normalise == "teacher" else None
    mask = torch.empty(positions, dtype=torch.bool, device="meta") if weighed else None
    weight = torch.empty(positions, device="meta") if weighed else None
    others = (of_channels, of_channels, mask, weight)
    factors = torch.empty(2, dtype=torch.float64, device="meta")
    options = checked_options(objective, normalise, "mean")
    with recorded(*((module, kernel) for kernel, module in KERNELS.items())) as launches:
        call = Call(others, factors, options, torch.empty_like(student), 1.0)
        TritonKernels().features(student, student, call)
    (launch,) = launches
    return launch


def cases():
    """The plainest call on each architecture; on sm_90 the ones with the most numbers a row."""
    for name in SHAPES:
        for architecture in ARCHITECTURES:
            yield name, torch.float32, "cosine_smooth_l1", "none", False, architecture
        for normalise in ("layer", "teacher"):
            yield name, torch.bfloat16, "cosine_smooth_l1", normalise, True, 90


@pytest.fixture(scope="module")
def found():
    """Each case's kernel and what became of it."""
    results = {}
    for case in cases():
        launch = launch_of(*case[:5])
        results[case] = (launch.kernel.__name__, compile_launch(launch, case[-1]))
    return results


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_spills_and_loads_are_wide(found, name):
    for case, (kernel, code) in found.items():
        if case[0] != name:
            continue
        assert kernel == SHAPES[name][1], case
        assert code.spills == code.stack == 0, (case, code.registers)
        assert 16 <= code.registers <= 255, case
        assert code.wide_loads >= 2, case
        assert code.count(r"STG\b.*\.128.*") >= 1, case
        assert code.count(r"(ATOM|RED)G?\b.*") == 0, case


if __name__ == "__main__":  # a table of what was measured
    for case in cases():
        launch = launch_of(*case[:5])
        code = compile_launch(launch, case[-1])
        print(*case, launch.kernel.__name__, f"registers {code.registers}, spills {code.spills},",
              f"16-byte loads {code.wide_loads}", flush=True)  # fmt: skip
