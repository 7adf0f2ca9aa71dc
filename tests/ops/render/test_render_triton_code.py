"""What became of render's Triton kernels as machine code: registers, spills, width of loads."""

from __future__ import annotations

import pytest
from compiled_triton import ARCHITECTURES, Compiled, compile_for
from isp_distill.kernels.render import (
    columns as render_columns,
)
from isp_distill.kernels.render import (
    rows as render_rows,
)
from isp_distill.kernels.render import (
    unresized as render_unresized,
)

from isp_distill.isp.camera import DEMOSAICS
from isp_distill.raw.packings import PACKED

POINTERS = {
    **dict.fromkeys(["black", "scale", "ccm", "planes", "mean", "std", "rows"], "*fp32"),
    "linearise": "*fp32",
    "mosaic": "*i32",  # uint16 in pairs
    "patterns": "*i64",
}
ALIGNED = [
    "mosaic",
    "black",
    "scale",
    "ccm",
    "planes",
    "mean",
    "std",
    "rows",
    "out",
    "origin",
    "width",
]
ALIGNED += ["left", "out_sample", "out_row", "out_channel", "row_stride", "sample_stride"]
ALIGNED += ["target_width"]


def compiled(kernel, architecture, image, warps, **constants) -> Compiled:
    names = kernel.arg_names
    signature = {name: POINTERS.get(name, "i32") for name in names} | {"out": image}
    signature["mosaic"] = constants.pop("mosaic", POINTERS["mosaic"])
    constants = {
        "PAIRS": True, "ELEMENT": "uint16", "LINEARISE": False, "out_column": 1, "ODD_LEFT": 0,
        **constants,
    }  # fmt: skip
    found = compile_for(
        kernel,
        architecture,
        signature,
        {name: value for name, value in constants.items() if name in names},
        tuple(name for name in ALIGNED if name in names),
        num_warps=warps,
    )
    label = f"{kernel.__name__} sm_{architecture} {image} {constants}"
    print(f"{label}: {found.registers} registers, {found.shared} B shared")
    assert not found.spills, label
    assert not found.stack, label
    return found


def unresized(architecture, image, method, tone="srgb", **more):
    return compiled(
        render_unresized.render_unresized_kernel, architecture, image, render_unresized.WARPS,
        METHOD=method, TONE=tone, BLOCK_PAIRS=render_unresized.BLOCK_PAIRS,
        PERIODS=render_unresized.PERIODS, **more,
    )  # fmt: skip


def rows(architecture, method, develop, **more):
    return compiled(
        render_rows.render_rows_kernel, architecture, "*fp32", render_rows.WARPS, METHOD=method,
        TONE="srgb", DEVELOP=develop, BLOCK_PAIRS=render_rows.BLOCK_PAIRS, **more,
    )  # fmt: skip


@pytest.mark.parametrize("method", [*DEMOSAICS, "planes", "none"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills(architecture, method):
    assert unresized(architecture, "*fp32", method).registers <= 128
    # So that four warps fit a scheduler's registers, and hide the latency of one another's loads.
    assert rows(architecture, method, True).registers <= 128
    if architecture == 90:
        unresized(architecture, "*bf16", method)
        rows(architecture, method, False)


@pytest.mark.parametrize("packing", PACKED)
def test_packed_and_companded_without_spills(packing):
    how = {"PAIRS": False, "ELEMENT": packing, "LINEARISE": True, "mosaic": "*u8"}
    unresized(90, "*fp32", "malvar", **how)
    rows(90, "malvar", True, **how)
    if packing == "mipi12":
        unresized(90, "*bf16", "superpixel", **how)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills_across_columns(architecture):
    for source, target in ((4000, 224), (256, 512)):
        pixels, taps = render_columns.tile_of(source, target)
        for develop in (False, True):
            found = compiled(
                render_columns.render_columns_kernel, architecture, "*bf16", render_columns.WARPS,
                TONE="srgb", DEVELOP=develop, TALLER=target > source, BLOCK_PIXELS=pixels,
                BLOCK_TAPS=taps,
            )  # fmt: skip
            assert found.registers <= 128


def test_neighbours_of_a_row_are_loaded_together():
    """The two values of a pair come in one 32-bit load; alone they take two of 16."""
    narrow = r"LDG\.E\.(U16|S16|U8|S8).*"
    for kernel in (
        lambda **more: unresized(90, "*fp32", "malvar", **more),
        lambda **more: rows(90, "malvar", True, **more),
    ):
        pairs, single = kernel(), kernel(PAIRS=False, mosaic="*u16")
        assert pairs.count(narrow) <= 1  # the pattern, of whose int64 the low bits are read
        assert single.count(narrow) >= 24
        assert pairs.count(r"LDG\..*") + 12 <= single.count(r"LDG\..*")


def test_pixels_are_written_together():
    """A thread's two neighbouring pixels leave in one store, and rows of sums likewise: six of
    them, three channels of two rows; and a finished row in three places of the code."""
    stores = r"STG\..*"
    for found, width, count in (
        (unresized(90, "*fp32", "malvar"), r"STG\.E\.64", 6),
        (unresized(90, "*bf16", "malvar"), r"STG\.E", 6),
        (rows(90, "malvar", True), r"STG\.E\.64", 9),
    ):
        assert found.count(width) == found.count(stores) == count
