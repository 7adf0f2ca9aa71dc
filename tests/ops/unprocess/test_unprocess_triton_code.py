"""What became of the Triton kernels of unprocess and expose as machine code."""

from __future__ import annotations

import pytest
from compiled_triton import ARCHITECTURES, Compiled, compile_for
from isp_distill.kernels.unprocess.kernel import BLOCK, WARPS, expose_kernel, unprocess_kernel

POINTERS = {
    **dict.fromkeys(["rgb_to_camera", "gains", "factors"], "*fp32"),
    **dict.fromkeys(["blacks", "whites", "shots", "reads"], "*fp32"),
    "patterns": "*i64",
    "out": "*u16",
}
#: As the launcher finds them for contiguous pictures whose sides are multiples of 16.
ALIGNED = ("rgb", "mosaic", "out", "sample_stride", "channel_stride", "row_stride", "width")


def compiled(architecture, element, noisy=True, exposes=False) -> Compiled:
    kernel = expose_kernel if exposes else unprocess_kernel
    names = kernel.arg_names
    constants = {"NOISY": noisy, "BYTES": element == "*u8", "BLOCK": BLOCK, "column_stride": 1}
    signature = {name: POINTERS.get(name, "i32") for name in names}
    signature["mosaic" if exposes else "rgb"] = element
    return compile_for(
        kernel,
        architecture,
        signature,
        {name: value for name, value in constants.items() if name in names},
        tuple(name for name in ALIGNED if name in names),
        num_warps=WARPS,
        enable_fp_fusion=False,
    )


LAUNCHES = {
    "float32": ("*fp32", False),
    "float32, noise": ("*fp32", True),
    "bfloat16, noise": ("*bf16", True),
    "uint8": ("*u8", False),
    "uint8, noise": ("*u8", True),
    "expose uint16": ("*u16", True, True),
    "expose float32": ("*fp32", True, True),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills_no_fusion_and_wide_loads(architecture):
    # One after the other: Python 3.11's parser, which Triton calls, fails in two threads at once.
    found = {name: compiled(architecture, *call) for name, call in LAUNCHES.items()}
    for name, code in found.items():
        print(f"sm_{architecture} {name}: {code.registers} registers, {code.shared} B shared")
        assert code.spills == code.stack == 0, name
        # Eight programs of 128 threads fill a multiprocessor's 65,536 registers at 64 each.
        assert code.registers <= 96, name
        # Four columns a thread: 16 bytes of float32, 8 of 16-bit types, 4 of bytes.
        width = {"float32": r"128", "uint16": "64", "bfloat16": "64"}
        wide = next((w for key, w in width.items() if key in name), None)
        rows = 2 if "expose" in name else 6
        loads = code.count(rf"LDG\.E\.{wide}.*" if wide else r"LDG\.E(\.CONSTANT)?")
        assert loads >= rows, name
        assert code.count(r"STG\.E\.64.*") == 2, name


def test_multiplications_and_additions_stay_apart():
    """Fused ones round differently; those left are of square roots and divisions, which are exact.

    Horner's schemes alone would be more than fifty.
    """
    plain = compiled(90, "*fp32")
    assert plain.count(r"FADD.*") > 100
    assert plain.count(r"FMUL.*") > 100
