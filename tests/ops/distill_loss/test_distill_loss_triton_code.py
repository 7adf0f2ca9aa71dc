"""The Triton kernels of distill_loss compiled for GPUs that are not there: no spills, wide loads.

The launches are those of real calls, recorded on tensors without memory, so that the tiles and the
assumptions about alignment are the ones that a GPU would get.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from compiled_triton import ARCHITECTURES, Compiled, compile_launch, recorded
from isp_distill.kernels.distill_loss import (
    held as distill_held,
)
from isp_distill.kernels.distill_loss import (
    streamed as distill_streamed,
)
from isp_distill.kernels.distill_loss import (
    upsampled as distill_upsampled,
)

from isp_distill.ops.distill_loss.options import checked_options
from isp_distill.ops.distill_loss.request import Call
from isp_distill.ops.distill_loss.triton import TritonKernels

KERNELS = {
    "held_kernel": distill_held,
    "streamed_kernel": distill_streamed,
    "pixels_kernel": distill_upsampled,
    "cells_kernel": distill_upsampled,
}
# Logits and the kernel that takes them: ImageNet rows, rows of a language model's length, the
# dense maps of Cityscapes and ADE20K, a dense map of more classes than are held.
SHAPES = {
    "rows": ((4096, 1000), "held_kernel"),
    "long rows": ((512, 100_000), "streamed_kernel"),
    "cityscapes": ((4, 19, 512, 1024), "held_kernel"),
    "ade20k": ((4, 150, 512, 512), "held_kernel"),
    "many classes": ((8, 1000, 56, 56), "streamed_kernel"),
    "upsampled": ((4, 150, 128, 128), "cells_kernel"),
}
OBJECTIVES = [
    "forward_kl", "reverse_kl", "jsd(0.3)", "tvd", "dkd(1, 8)", "mse", "binary_kl(2, 0.1)"
]  # fmt: skip


def launches_of(name, dtype, objective, alpha):
    """Kernels, arguments and constants of one call with gradient, mask, weight and smoothing."""
    shape, _ = SHAPES[name]
    student = torch.empty(shape, dtype=dtype, device="meta")
    size = (512, 512) if name == "upsampled" else shape[2:]
    positions = (shape[0], *size)
    plain = alpha == 1 and not objective.startswith("dkd")
    labels = torch.empty(positions, dtype=torch.int64, device="meta")
    mask = torch.empty(positions, dtype=torch.bool, device="meta")
    rows = (labels, mask, torch.empty(shape[0], device="meta"))
    rows = (None, None, None) if plain else rows
    factors = torch.empty(2, dtype=torch.float64, device="meta")
    options = checked_options(objective, 4.0, alpha, -100, 0.1, "mean")
    with recorded(*((module, kernel) for kernel, module in KERNELS.items())) as launches:
        call = Call(rows, factors, options, torch.empty_like(student), 1.0)
        if name == "upsampled":
            TritonKernels().upsampled(student, student, size, False, call)
        else:
            TritonKernels().logits(student, student, call)
    return launches


def compiled(launch, architecture) -> tuple[str, Compiled]:
    return launch.kernel.__name__, compile_launch(launch, architecture)


def cases():
    """On sm_90 every objective with cross entropy; the plainest call on each architecture."""
    wide, half = torch.float32, torch.bfloat16
    for objective in OBJECTIVES:
        for name, dtypes in (
            ("rows", (wide, half)),
            ("long rows", (half,)),
            ("ade20k", (wide, half)),
            ("upsampled", (wide,)),
        ):
            for dtype in dtypes:
                yield name, dtype, objective, 0.5, 90
    # The tiles with the most numbers a thread: those of 16-bit pixels.
    for name in ("cityscapes", "many classes"):
        for objective in ("dkd(1, 8)", "jsd(0.3)"):
            yield name, half, objective, 0.5, 90
    yield "rows", half, "forward_kl", 0.0, 90
    yield "upsampled", half, "forward_kl", 0.0, 90
    for name in SHAPES:
        yield name, half, "forward_kl", 1.0, 90
    for architecture in ARCHITECTURES:
        for name in ("rows", "long rows", "ade20k", "upsampled"):
            yield name, wide, "forward_kl", 1.0, architecture


@pytest.fixture(scope="module")
def found():
    """The kernels of each case, by name, and what became of them."""
    waiting = [(case, launch) for case in cases() for launch in launches_of(*case[:4])]
    results = {}
    # One after the other: Python 3.11's parser, which Triton calls, fails in two threads at once.
    for case, launch in waiting:
        results.setdefault(case, []).append(compiled(launch, case[-1]))
    return results


def test_the_kernels_that_were_meant(found):
    for case, results in found.items():
        crowded = case[:4] == ("ade20k", torch.bfloat16, "dkd(1, 8)", 0.5)
        assert results[-1][0] == ("streamed_kernel" if crowded else SHAPES[case[0]][1]), case


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_spills(found, name):
    for case, results in found.items():
        for kernel, code in results if case[0] == name else []:
            assert code.spills == 0, (case, kernel)
            assert code.stack == 0, (case, kernel)
            assert 16 <= code.registers <= 255, (case, kernel)


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "upsampled"])
def test_logits_are_loaded_and_stored_16_bytes_at_a_time(found, name):
    for case, results in found.items():
        for kernel, code in results if case[0] == name else []:
            assert code.wide_loads >= 2, (case, kernel)
            assert code.count(r"STG\b.*\.128.*") >= 1, (case, kernel)
            if case[3] == 1.0:  # no labels, no mask: besides the logits, only the factor
                narrow = code.count(r"LDG\b.*") - code.wide_loads
                assert narrow <= 2, (case, kernel, code.instructions)


def test_no_atomics(found):
    for case, results in found.items():
        for kernel, code in results:
            assert code.count(r"(ATOM|RED)G?\b.*") == 0, (case, kernel)


WITHOUT_TRITON = """
import sys, torch
if sys.argv[1] == "absent":
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name == "triton" or name.startswith("triton."):
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Absent())
    import importlib.util
    real = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "triton" else real(name, *rest)
import isp_distill
# torch's compiler may have imported triton; what is ours is imported by the first call.
assert not any(name.startswith("isp_distill.kernels.") for name in sys.modules)
s = torch.randn(2, 3)
isp_distill.distill_loss(s, s)
try:
    with isp_distill.use_backend("triton"):
        isp_distill.distill_loss(s, s)
except isp_distill.BackendError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("triton", "reason"), [("absent", "not installed"), ("there", "not on cpu")]
)
def test_import_needs_no_triton_and_a_refusal_has_a_reason(triton, reason):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if triton == "absent":  # the only way to get as far as the question on a CPU
        environment["TRITON_INTERPRET"] = "1"
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON, triton],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert reason in run.stdout


if __name__ == "__main__":  # a table of what was measured
    for case in cases():
        for launch in launches_of(*case[:4]):
            kernel, code = compiled(launch, case[-1])
            print(*case, kernel, f"registers {code.registers}, spills {code.spills},",
                  f"16-byte loads {code.wide_loads}", flush=True)  # fmt: skip
